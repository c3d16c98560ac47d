/**
 * What a log entry carries: commands and configurations (raft-wire §4, §5). The same bytes travel between peers and
 * lie on disk. Does not know what applying a command does.
 */
import assert from 'node:assert/strict'
import type { Configuration, Entry, Index, Role, Server, Term } from '../raft/types.js'
import { ByteReader, ByteWriter, asBuffer, decodeName, malformed, pad8 } from './bytes.js'

/** The names of databases in commands, as bytes. */
export { encodeKey } from './bytes.js'

// ------------------------------------------------------------------------------------------------ configurations

const configurationFormat = 1
/** Raft's numbers. The client protocol has others: 0 is a voter there (client-protocol §5). */
const raftRoles: readonly Role[] = ['standby', 'voter', 'spare']

// raft-wire §4.3:
//   u8 format = 1 · u64 n · n × (u64 id · address · NUL · u8 role), unpadded · any bytes up to a multiple of 8
export function configurationBytes(configuration: Configuration): number {
  let bytes = 1 + 8
  for (const server of configuration.servers) bytes += 8 + Buffer.byteLength(server.address) + 1 + 1
  return pad8(bytes)
}

export function encodeConfiguration(configuration: Configuration): Buffer {
  const writer = new ByteWriter(configurationBytes(configuration))
  writer.u8(configurationFormat).u64(configuration.servers.length)
  for (const { id, address, role } of configuration.servers) {
    assert(!address.includes('\0'))
    writer.u64(id).raw(Buffer.from(address)).u8(0).u8(raftRoles.indexOf(role))
  }
  return writer.zeros(pad8(writer.length) - writer.length).finish()
}

/** Throws MALFORMED also for what no cluster may have: id 0, an id or an address twice, an unknown role. */
export function decodeConfiguration(bytes: Uint8Array): Configuration {
  const reader = new ByteReader(bytes)
  const format = reader.u8()
  if (format !== configurationFormat) throw malformed(`configuration format ${format}`)
  const count = reader.index()
  const servers: Server[] = []
  const ids = new Set<bigint>()
  const addresses = new Set<string>()
  // A server takes at least 10 bytes, so the count ends with the bytes and not with the memory.
  for (let i = 0; i < count; i++) {
    const id = reader.u64()
    const address = decodeName(reader.nulTerminated())
    const code = reader.u8()
    const role = raftRoles[code]
    if (role === undefined) throw malformed(`raft role ${code}`)
    if (id === 0n) throw malformed('a server with id 0')
    if (ids.has(id)) throw malformed(`server ${id.toString()} twice in a configuration`)
    if (addresses.has(address)) throw malformed(`address ${address} twice in a configuration`)
    ids.add(id)
    addresses.add(address)
    servers.push({ id, address, role })
  }
  return { servers }
}

// ----------------------------------------------------------------------------------------------------- commands

const commandFormat = 1
const commandCodes = { open: 1, frames: 2, undo: 3, checkpoint: 4 } as const

export interface FramesCommand {
  readonly type: 'frames'
  readonly database: string
  /** False only in logs of dqlite up to 1.5. */
  readonly isCommit: boolean
  readonly pageSize: number
  /** In WAL order; the same number may come twice, the last one wins. */
  readonly pageNumbers: readonly number[]
  /** Where the page images begin in the command's data: `pageNumbers.length * pageSize` bytes. */
  readonly pagesOffset: number
}

/** Only FRAMES does anything; the others stand in old logs and are applied as nothing (raft-wire §5). */
export type Command =
  | FramesCommand
  | { readonly type: 'open'; readonly database: string }
  | { readonly type: 'undo'; readonly transactionId: bigint }
  | { readonly type: 'checkpoint'; readonly database: string }

const pageSizeMin = 512
const pageSizeMax = 32768
const pageNumberMax = 2 ** 31 - 1

// raft-wire §5, §5.1; "any" is written as zero and never read:
//    0: u8 format = 1 · u8 type · 6 bytes any
//    8: text database
//       u64 transaction id (0) · u32 truncate (0) · u8 is_commit · 3 bytes any
//       u32 n · u16 page size · 2 bytes any
//       n × u64 page number
//       n × page image
export function decodeCommand(data: Uint8Array): Command {
  const reader = new ByteReader(data)
  const format = reader.u8()
  const code = reader.u8()
  reader.bytes(6)
  if (format !== commandFormat) throw malformed(`command format ${format}`)
  switch (code) {
    case commandCodes.open:
      return { type: 'open', database: reader.key() }
    case commandCodes.undo:
      return { type: 'undo', transactionId: reader.u64() }
    case commandCodes.checkpoint:
      return { type: 'checkpoint', database: reader.key() }
    case commandCodes.frames:
      return decodeFrames(reader)
    default:
      throw malformed(`command type ${code}`)
  }
}

function decodeFrames(reader: ByteReader): FramesCommand {
  const database = reader.key()
  reader.bytes(12)
  const isCommit = reader.u8() !== 0
  reader.bytes(3)
  const pageCount = reader.u32()
  const pageSize = reader.u16()
  reader.bytes(2)
  if (pageCount === 0) throw malformed('a FRAMES command without pages')
  if (pageSize < pageSizeMin || pageSize > pageSizeMax || (pageSize & (pageSize - 1)) !== 0)
    throw malformed(`page size ${pageSize}`)
  if (reader.remaining < pageCount * (8 + pageSize)) throw malformed(`${pageCount} pages do not fit the FRAMES command`)
  const pageNumbers: number[] = []
  for (let i = 0; i < pageCount; i++) {
    const number = reader.index()
    if (number === 0 || number > pageNumberMax) throw malformed(`page number ${number}`)
    pageNumbers.push(number)
  }
  return { type: 'frames', database, isCommit, pageSize, pageNumbers, pagesOffset: reader.offset }
}

/** The database of a FRAMES command, without reading its pages; undefined for the commands that do nothing. */
export function commandDatabase(data: Uint8Array): string | undefined {
  const reader = new ByteReader(data)
  if (reader.u8() !== commandFormat || reader.u8() !== commandCodes.frames) return undefined
  reader.bytes(6)
  return reader.key()
}

export interface Page {
  readonly number: number
  readonly image: Uint8Array
}

/** A whole transaction as one command. The engine writes its own, with the same bytes; this one serves tools and tests. */
export function encodeFrames(options: { database: string; pageSize: number; pages: readonly Page[] }): Buffer {
  const { database, pageSize, pages } = options
  assert(pages.length > 0)
  assert(!database.includes('\0'))
  const writer = new ByteWriter(8 + pad8(Buffer.byteLength(database) + 1) + 24 + pages.length * (8 + pageSize))
  writer.u8(commandFormat).u8(commandCodes.frames).zeros(6)
  writer.text(database)
  writer.u64(0).u32(0).u8(1).zeros(3)
  writer.u32(pages.length).u16(pageSize).zeros(2)
  for (const page of pages) writer.u64(page.number)
  for (const page of pages) {
    assert(page.image.byteLength === pageSize)
    writer.raw(page.image)
  }
  return writer.finish()
}

// ------------------------------------------------------------------------------------------------------ entries

/** raft-wire §4.1. */
export const entryTypeCodes = { command: 1, barrier: 2, configuration: 3 } as const satisfies Record<
  Entry['type'],
  number
>

export const entryTypeCode = (type: Entry['type']): number => entryTypeCodes[type]

const barrierData = Buffer.alloc(8)

/**
 * The entry that a code and its data mean. Commands keep a view of `data`. `byteLength` is what `entryData` gives
 * again: a barrier's bytes mean nothing (garbage from members before 1.18.4) and become 8 zeros, a configuration
 * loses the padding that others leave uninitialised.
 */
export function entryFromParts(index: Index, term: Term, typeCode: number, data: Uint8Array): Entry {
  if (data.byteLength % 8 !== 0) throw malformed(`an entry of ${data.byteLength} bytes, not a multiple of 8`)
  switch (typeCode) {
    case entryTypeCodes.command:
      return { type: 'command', index, term, byteLength: data.byteLength, data }
    case entryTypeCodes.barrier:
      return { type: 'barrier', index, term, byteLength: barrierData.byteLength }
    case entryTypeCodes.configuration: {
      const configuration = decodeConfiguration(data)
      return { type: 'configuration', index, term, byteLength: configurationBytes(configuration), configuration }
    }
    default:
      throw malformed(`entry type ${typeCode}`)
  }
}

/** An entry's bytes. The data of a command must be in memory: whoever sends or stores an evicted one reads it first. */
export function entryData(entry: Entry): Uint8Array {
  switch (entry.type) {
    case 'command':
      assert(entry.data !== undefined, `the data of entry ${entry.index} is not in memory`)
      assert.equal(entry.data.byteLength, entry.byteLength)
      return entry.data
    case 'barrier':
      return barrierData
    case 'configuration': {
      const data = encodeConfiguration(entry.configuration)
      assert.equal(data.byteLength, entry.byteLength)
      return data
    }
  }
}

/** Equal as configurations of one cluster: the same servers in the same order. */
export function sameConfiguration(a: Configuration, b: Configuration): boolean {
  return asBuffer(encodeConfiguration(a)).equals(encodeConfiguration(b))
}
