/**
 * Who the members are: pure functions over configurations, and the history of those that the log still holds.
 * Knows nothing of when a change is allowed.
 */
import assert from 'node:assert/strict'
import type { Configuration, Index, Role, Server, ServerId } from './types.js'

export const emptyConfiguration: Configuration = { servers: [] }

export function findServer(configuration: Configuration, id: ServerId): Server | undefined {
  for (const server of configuration.servers) if (server.id === id) return server
  return undefined
}

export function isVoter(configuration: Configuration, id: ServerId): boolean {
  return findServer(configuration, id)?.role === 'voter'
}

export function voterCount(configuration: Configuration): number {
  let count = 0
  for (const server of configuration.servers) if (server.role === 'voter') count++
  return count
}

export function isOnlyVoter(configuration: Configuration, id: ServerId): boolean {
  return isVoter(configuration, id) && voterCount(configuration) === 1
}

export function majorityOf(voters: number): number {
  return Math.floor(voters / 2) + 1
}

/** A new server begins as a spare, at the end of the order (raft-wire §6.7). */
export function withServer(configuration: Configuration, id: ServerId, address: string): Configuration {
  assert(findServer(configuration, id) === undefined)
  return { servers: [...configuration.servers, { id, address, role: 'spare' }] }
}

export function withRole(configuration: Configuration, id: ServerId, role: Role): Configuration {
  return { servers: configuration.servers.map((server) => (server.id === id ? { ...server, role } : server)) }
}

export function withoutServer(configuration: Configuration, id: ServerId): Configuration {
  return { servers: configuration.servers.filter((server) => server.id !== id) }
}

/** Bytes of the encoding of raft-wire §4.3: format, count, per server id + address + NUL + role; padded to 8. */
export function configurationByteLength(configuration: Configuration): number {
  let bytes = 1 + 8
  for (const server of configuration.servers) bytes += 8 + utf8Length(server.address) + 1 + 1
  return Math.ceil(bytes / 8) * 8
}

function utf8Length(text: string): number {
  let bytes = 0
  for (const character of text) {
    const code = character.codePointAt(0)!
    bytes += code < 0x80 ? 1 : code < 0x800 ? 2 : code < 0x10000 ? 3 : 4
  }
  return bytes
}

export interface IndexedConfiguration {
  readonly configuration: Configuration
  readonly index: Index
}

const none: IndexedConfiguration = { configuration: emptyConfiguration, index: 0 }

/** The configurations of the log in order, and below them the one the snapshot has. Few: changes are rare. */
export class ConfigurationHistory {
  #history: IndexedConfiguration[] = []

  get newest(): IndexedConfiguration {
    return this.#history.at(-1) ?? none
  }

  /** The one that was in force at `index`: the newest at or below it. */
  at(index: Index): IndexedConfiguration {
    for (let position = this.#history.length - 1; position >= 0; position--)
      if (this.#history[position]!.index <= index) return this.#history[position]!
    return none
  }

  /** Is it a voter in the configuration that was in force at `index`, or in any later one? */
  isVoterSince(index: Index, id: ServerId): boolean {
    for (let position = this.#history.length - 1; position >= 0; position--) {
      if (isVoter(this.#history[position]!.configuration, id)) return true
      if (this.#history[position]!.index <= index) return false
    }
    return false
  }

  push(configuration: Configuration, index: Index): void {
    assert(index > this.newest.index || this.#history.length === 0)
    this.#history.push({ configuration, index })
  }

  truncateAfter(index: Index): void {
    while (this.#history.length > 0 && this.newest.index > index) this.#history.pop()
  }

  /** Forgets what was in force before `index` only. */
  trim(index: Index): void {
    while (this.#history.length > 1 && this.#history[1]!.index <= index) this.#history.shift()
  }

  reset(configuration: Configuration, index: Index): void {
    this.#history = [{ configuration, index }]
  }
}
