/**
 * Sends what Raft wants sent. Most messages leave at once; entries whose data was evicted are read from the log first,
 * snapshots are streamed from disk, and what goes to the same peer waits behind them. Decides nothing: what cannot be
 * sent is reported, and Raft tries again.
 */
import { strict as assert } from 'node:assert'

import { payloadBytesMax } from '../codec/peer-protocol.js'
import { DqliteError } from '../errors.js'
import type { Transport } from '../network/transport.js'
import type { AppendEntries, Entry, Envelope, Index, InstallSnapshot, ServerId } from '../raft/types.js'
import type { OpenedDirectory } from '../storage/open.js'

export interface SenderOptions {
  readonly transport: Pick<Transport, 'send' | 'sendSnapshot'>
  readonly directory: {
    readonly log: Pick<OpenedDirectory['log'], 'read'>
    readonly snapshots: Pick<OpenedDirectory['snapshots'], 'openNewest'>
  }
  /** Bytes read from the log at a time; one larger entry is read alone. */
  readonly readBytesMax: number
  /** Whether a member takes snapshots beyond `payloadBytesMax`. Ours do, C dqlite's close the connection. */
  readonly takesLargeSnapshots: (to: ServerId) => boolean
  readonly onUnreachable: (to: ServerId) => void
  /** A member cannot be helped, and why. Once per member and snapshot. */
  readonly onWarning: (text: string) => void
  /** Our own log or snapshot cannot be read. */
  readonly onFailure: (error: DqliteError) => void
}

export class Sender {
  readonly #options: SenderOptions
  /** Peers that something is being read for; later messages to them queue behind it. */
  readonly #slowPeers = new Map<ServerId, Promise<void>>()
  /** Index of the snapshot that each member was refused last. */
  readonly #refused = new Map<ServerId, Index>()
  #isClosed = false

  constructor(options: SenderOptions) {
    this.#options = options
  }

  send(envelopes: readonly Envelope[]): void {
    if (this.#slowPeers.size === 0 && !envelopes.some(isSlow)) {
      this.#options.transport.send(envelopes)
      return
    }
    const fast: Envelope[] = []
    for (const envelope of envelopes) {
      if (this.#slowPeers.has(envelope.to) || isSlow(envelope)) this.#sendSlowly(envelope)
      else fast.push(envelope)
    }
    if (fast.length > 0) this.#options.transport.send(fast)
  }

  /** Waits for what is being read. */
  async close(): Promise<void> {
    this.#isClosed = true
    await Promise.all(this.#slowPeers.values())
  }

  #sendSlowly(envelope: Envelope): void {
    const before = this.#slowPeers.get(envelope.to) ?? Promise.resolve()
    const sent = before
      .then(() => (this.#isClosed ? undefined : this.#sendFromDisk(envelope)))
      .catch((error: unknown) => {
        // Entries may have been compacted away, or the peer is gone: Raft tries again, by snapshot if need be.
        if (error instanceof DqliteError && error.code === 'DATA_CORRUPT') this.#options.onFailure(error)
        else this.#options.onUnreachable(envelope.to)
      })
      .finally(() => {
        if (this.#slowPeers.get(envelope.to) === sent) this.#slowPeers.delete(envelope.to)
      })
    this.#slowPeers.set(envelope.to, sent)
  }

  async #sendFromDisk(envelope: Envelope): Promise<void> {
    const { message } = envelope
    if (message.type === 'installSnapshot') return this.#sendSnapshot(envelope, message)
    const complete = message.type === 'appendEntries' ? { ...message, entries: await this.#complete(message) } : message
    this.#options.transport.send([{ ...envelope, message: complete }])
  }

  /** The entries with their data. Throws NO_CONNECTION if the log has changed since the message was made. */
  async #complete({ entries }: AppendEntries): Promise<readonly Entry[]> {
    const complete: Entry[] = []
    while (complete.length < entries.length) {
      const next = entries[complete.length]!
      if (hasData(next)) {
        complete.push(next)
        continue
      }
      const last = entries.at(-1)!.index
      const read = await this.#options.directory.log.read(next.index, last, this.#options.readBytesMax)
      assert(read.length > 0, 'a read gives at least one entry')
      for (const entry of read) {
        const expected = entries[complete.length]
        if (entry.index !== expected?.index || entry.term !== expected.term)
          throw new DqliteError('NO_CONNECTION', `entry ${entry.index} was replaced while it was being sent`)
        complete.push(entry)
      }
    }
    return complete
  }

  async #sendSnapshot(envelope: Envelope, message: InstallSnapshot): Promise<void> {
    const newest = await this.#options.directory.snapshots.openNewest()
    if (newest === undefined) throw new DqliteError('NO_CONNECTION', 'no snapshot to send')
    try {
      this.#checkSize(envelope, newest.description.last.index, newest.contentBytes)
      // The newest on disk may be newer than the one Raft knew: it serves as well, under its own name.
      const current = { ...envelope, message: { ...message, snapshot: newest.description } }
      await this.#options.transport.sendSnapshot(current, newest.contentBytes, newest.content)
    } finally {
      await newest.close()
    }
  }

  /** raft-wire §2: C members take 500 MiB. Sending more would end in a closed connection, again and again. */
  #checkSize({ to, address }: Envelope, index: Index, contentBytes: number): void {
    if (contentBytes <= payloadBytesMax || this.#options.takesLargeSnapshots(to)) return
    if (this.#refused.get(to) !== index) {
      this.#refused.set(to, index)
      this.#options.onWarning(
        `the member at ${address} needs a snapshot of ${contentBytes} bytes, and takes ${payloadBytesMax} at most: ` +
          'shrink the databases (VACUUM), or replace it by a member that takes more',
      )
    }
    throw new DqliteError('NO_CONNECTION', `a snapshot of ${contentBytes} bytes is too large for ${address}`)
  }
}

/** Must be fetched from disk before it can be sent. */
function isSlow({ message }: Envelope): boolean {
  if (message.type === 'installSnapshot') return true
  return message.type === 'appendEntries' && !message.entries.every(hasData)
}

export function hasData(entry: Entry): boolean {
  return entry.type !== 'command' || entry.data !== undefined
}
