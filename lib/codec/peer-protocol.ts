/**
 * The messages between members (raft-wire §1.1, §2): each layout once, with the length variants that members of
 * other versions write. Does not know who sent a message, nor what Raft makes of it.
 */
import assert from 'node:assert/strict'
import type {
  AppendEntries,
  AppendEntriesResult,
  Entry,
  InstallSnapshot,
  Message,
  RequestVote,
  RequestVoteResult,
  ServerId,
  TimeoutNow,
} from '../raft/types.js'
import { ByteQueue, ByteReader, ByteWriter, malformed } from './bytes.js'
import { encodeHandshake, encodeRequest } from './client-protocol.js'
import {
  configurationBytes,
  decodeConfiguration,
  encodeConfiguration,
  entryData,
  entryFromParts,
  entryTypeCode,
} from './log-entry.js'

// Types 7 to 13 have names in C's sources and no codec anywhere: receiving one closes the connection.
const typeCodes = {
  appendEntries: 1,
  appendEntriesResult: 2,
  requestVote: 3,
  requestVoteResult: 4,
  installSnapshot: 5,
  timeoutNow: 6,
} as const satisfies Record<Message['type'], number>

/** Above it C members close the connection. */
export const headerBytesMax = 4 * 1024 * 1024
/** Above it C members close the connection; for a snapshot's content too. */
export const payloadBytesMax = 500 * 1024 * 1024

/** What a peer's stream begins with: the protocol word and CONNECT. There is no answer; messages follow at once. */
export function encodeConnect(id: ServerId, address: string): Buffer {
  return Buffer.concat([encodeHandshake(), encodeRequest({ type: 'connect', id, address })])
}

// ------------------------------------------------------------------------------------------------------ encoding

//  preamble:  u64 type, the upper 48 bits zero · u64 length of the header
const preambleBytes = 16

const disruptLeaderBit = 1n
const preVoteBit = 2n
const resultOfPreVoteBit = 1n

/** Entry data below this is copied beside its neighbours: a piece of the gather list costs more than the copy. */
const copyBelowBytes = 512

/**
 * The message in pieces, to be written in order; the data of large entries is not copied. `from`: a RequestVote says
 * the candidate. Every command's data must be in memory.
 */
export function encodeMessage(message: Exclude<Message, InstallSnapshot>, from: ServerId): Uint8Array[] {
  switch (message.type) {
    case 'requestVote':
      return [encodeHeader('requestVote', 40, (w) => writeRequestVote(w, message, from))]
    case 'requestVoteResult':
      return [encodeHeader('requestVoteResult', 24, (w) => writeRequestVoteResult(w, message))]
    case 'appendEntries':
      return encodeAppendEntries(message)
    case 'appendEntriesResult':
      return [encodeHeader('appendEntriesResult', 32, (w) => writeAppendEntriesResult(w, message))]
    case 'timeoutNow':
      return [encodeHeader('timeoutNow', 24, (w) => writeTimeoutNow(w, message))]
  }
}

/** Everything before the content, which is `contentBytes` of the uncompressed state machine (disk-format §8). */
export function encodeInstallSnapshotHeader(message: InstallSnapshot, contentBytes: number): Buffer {
  const { configuration } = message.snapshot
  return encodeHeader('installSnapshot', 48 + configurationBytes(configuration), (w) =>
    writeInstallSnapshot(w, message, contentBytes),
  )
}

function startHeader(type: Message['type'], headerBytes: number): ByteWriter {
  return new ByteWriter(preambleBytes + headerBytes).u64(typeCodes[type]).u64(headerBytes)
}

function encodeHeader(type: Message['type'], headerBytes: number, write: (writer: ByteWriter) => void): Buffer {
  const writer = startHeader(type, headerBytes)
  write(writer)
  assert.equal(writer.length, preambleBytes + headerBytes)
  return writer.finish()
}

function encodeAppendEntries(message: AppendEntries): Uint8Array[] {
  const headerBytes = appendEntriesHeaderBytes(message.entries.length) + junkBytes
  let writer = startHeader('appendEntries', headerBytes)
  writeAppendEntries(writer, message)
  assert.equal(writer.length, preambleBytes + headerBytes)
  const pieces: Uint8Array[] = []
  for (const entry of message.entries) {
    const data = entryData(entry)
    if (data.byteLength < copyBelowBytes) {
      writer.raw(data)
      continue
    }
    if (writer.length > 0) pieces.push(writer.finish())
    pieces.push(data)
    writer = new ByteWriter(0)
  }
  if (writer.length > 0) pieces.push(writer.finish())
  return pieces
}

// ------------------------------------------------------------------------------------------------------- layouts

// RequestVote, 40 bytes; 32 from members that have no flags:
//   0: u64 term · 8: u64 candidate · 16: u64 last index · 24: u64 last term · 32: u64 flags
function writeRequestVote(w: ByteWriter, message: RequestVote, from: ServerId): void {
  w.u64(message.term).u64(from).u64(message.last.index).u64(message.last.term)
  w.u64((message.disruptLeader ? disruptLeaderBit : 0n) | (message.preVote ? preVoteBit : 0n))
}
function readRequestVote(r: ByteReader): RequestVote {
  expectLength(r, 32, 40)
  const term = r.index()
  // Who asks is who connected (raft-wire §1.2).
  r.u64()
  const index = r.index()
  const last = { index, term: r.index() }
  const flags = r.remaining === 0 ? 0n : r.u64()
  const disruptLeader = (flags & disruptLeaderBit) !== 0n
  return { type: 'requestVote', term, last, disruptLeader, preVote: (flags & preVoteBit) !== 0n }
}

// RequestVoteResult, 24 bytes; 16 from members that have no flags, which is not the same as flags 0:
//   0: u64 term · 8: u64 granted · 16: u64 flags
function writeRequestVoteResult(w: ByteWriter, message: RequestVoteResult): void {
  w.u64(message.term)
    .u64(message.granted ? 1 : 0)
    .u64(message.preVote === true ? resultOfPreVoteBit : 0n)
}
function readRequestVoteResult(r: ByteReader): RequestVoteResult {
  expectLength(r, 16, 24)
  const term = r.index()
  const granted = r.u64() === 1n
  const preVote = r.remaining === 0 ? undefined : (r.u64() & resultOfPreVoteBit) !== 0n
  return { type: 'requestVoteResult', term, granted, preVote }
}

// AppendEntries, 40 + 16 n bytes, and 8 that mean nothing and that may be missing:
//   0: u64 term · 8: u64 previous index · 16: u64 previous term · 24: u64 commit index · 32: u64 n
//   40: n × (u64 term · u8 type · 3 bytes any · u32 length)
// Then the data of the entries, back to back.
const junkBytes = 8
const appendEntriesHeaderBytes = (n: number): number => 40 + 16 * n

function writeAppendEntries(w: ByteWriter, message: AppendEntries): void {
  w.u64(message.term).u64(message.prev.index).u64(message.prev.term).u64(message.commitIndex)
  w.u64(message.entries.length)
  for (const entry of message.entries) {
    assert(entry.byteLength % 8 === 0)
    w.u64(entry.term).u8(entryTypeCode(entry.type)).zeros(3).u32(entry.byteLength)
  }
  w.zeros(junkBytes)
}

interface EntryHead {
  readonly term: number
  readonly typeCode: number
  readonly byteLength: number
}

interface AppendEntriesHead {
  readonly message: AppendEntries
  readonly heads: readonly EntryHead[]
  readonly payloadBytes: number
}

function readAppendEntries(r: ByteReader): AppendEntriesHead {
  const term = r.index()
  const index = r.index()
  const prev = { index, term: r.index() }
  const commitIndex = r.index()
  const n = r.index()
  if (n > r.remaining / 16) throw malformed(`${n} entries in a header with ${r.remaining} bytes left`)
  const heads: EntryHead[] = []
  let payloadBytes = 0
  for (let i = 0; i < n; i++) {
    const term = r.index()
    const typeCode = r.u8()
    r.bytes(3)
    const byteLength = r.u32()
    if (byteLength % 8 !== 0) throw malformed(`an entry of ${byteLength} bytes, not a multiple of 8`)
    heads.push({ term, typeCode, byteLength })
    payloadBytes += byteLength
  }
  return { message: { type: 'appendEntries', term, prev, commitIndex, entries: [] }, heads, payloadBytes }
}

/** Entries as views of the one payload. */
function withEntries({ message, heads }: AppendEntriesHead, payload: Uint8Array): AppendEntries {
  let at = 0
  const entries = heads.map(({ term, typeCode, byteLength }, i): Entry => {
    const data = payload.subarray(at, at + byteLength)
    at += byteLength
    return entryFromParts(message.prev.index + 1 + i, term, typeCode, data)
  })
  return { ...message, entries }
}

// AppendEntriesResult, 32 bytes; 24 from members that have no features:
//   0: u64 term · 8: u64 rejected · 16: u64 last index · 24: u64 features
function writeAppendEntriesResult(w: ByteWriter, message: AppendEntriesResult): void {
  w.u64(message.term).u64(message.rejected).u64(message.lastLogIndex).u64(message.features)
}
function readAppendEntriesResult(r: ByteReader): AppendEntriesResult {
  expectLength(r, 24, 32)
  const term = r.index()
  const rejected = r.index()
  const lastLogIndex = r.index()
  // Bits beyond those we know cannot matter to us.
  const features = r.remaining === 0 ? 0 : Number(r.u64() & 0xffff_ffffn)
  return { type: 'appendEntriesResult', term, rejected, lastLogIndex, features }
}

// InstallSnapshot, 48 + C bytes, and up to raft 0.15 another 8 that mean nothing:
//   0: u64 term · 8: u64 last index · 16: u64 last term · 24: u64 index of the configuration
//   32: u64 C · 40: configuration · 40 + C: u64 length of the content
function writeInstallSnapshot(w: ByteWriter, { term, snapshot }: InstallSnapshot, contentBytes: number): void {
  const configuration = encodeConfiguration(snapshot.configuration)
  w.u64(term).u64(snapshot.last.index).u64(snapshot.last.term).u64(snapshot.configurationIndex)
  w.u64(configuration.length).raw(configuration).u64(contentBytes)
}
function readInstallSnapshot(r: ByteReader): { message: InstallSnapshot; contentBytes: number } {
  const term = r.index()
  const index = r.index()
  const last = { index, term: r.index() }
  const configurationIndex = r.index()
  const configurationLength = r.index()
  if (configurationLength > r.remaining) throw malformed(`a configuration of ${configurationLength} bytes`)
  const configuration = decodeConfiguration(r.bytes(configurationLength))
  const contentBytes = r.index()
  return {
    message: { type: 'installSnapshot', term, snapshot: { last, configuration, configurationIndex } },
    contentBytes,
  }
}

// TimeoutNow, 24 bytes:
//   0: u64 term · 8: u64 last index · 16: u64 last term
function writeTimeoutNow(w: ByteWriter, message: TimeoutNow): void {
  w.u64(message.term).u64(message.last.index).u64(message.last.term)
}
function readTimeoutNow(r: ByteReader): TimeoutNow {
  expectLength(r, 24)
  const term = r.index()
  const index = r.index()
  return { type: 'timeoutNow', term, last: { index, term: r.index() } }
}

function expectLength(r: ByteReader, ...lengths: number[]): void {
  if (!lengths.includes(r.remaining))
    throw malformed(`a header of ${r.remaining} bytes where ${lengths.join(' or ')} are possible`)
}

// ------------------------------------------------------------------------------------------------------ decoding

export interface ReceivedMessage {
  readonly message: Message
  /** After an InstallSnapshot: so many bytes come out of `takeContent` before the next message. */
  readonly content?: { readonly byteLength: number }
}

/** Far above any snapshot that fits a machine; a length above it is not a length. */
const contentBytesMaxDefault = 2 ** 44

/**
 * Cuts a peer's messages out of chunks of any size. `push` a chunk, then `next` until undefined; after an
 * InstallSnapshot with content, `takeContent` until `contentRemaining` is 0. What is kept is less than one message.
 * Anything wrong throws MALFORMED, again at every call: the stream cannot be trusted from there on.
 */
export class PeerMessageStream {
  readonly #headerBytesMax: number
  readonly #payloadBytesMax: number
  readonly #contentBytesMax: number
  readonly #queue = new ByteQueue()
  // What of the running message has been read, in this order.
  #preamble: { readonly typeCode: number; readonly headerBytes: number } | undefined
  #append: AppendEntriesHead | undefined
  #contentRemaining = 0
  #failure: Error | undefined

  constructor(options: { headerBytesMax: number; payloadBytesMax: number; contentBytesMax?: number }) {
    this.#headerBytesMax = options.headerBytesMax
    this.#payloadBytesMax = options.payloadBytesMax
    this.#contentBytesMax = options.contentBytesMax ?? contentBytesMaxDefault
  }

  push(chunk: Uint8Array): void {
    this.#queue.push(chunk)
  }

  next(): ReceivedMessage | undefined {
    if (this.#failure !== undefined) throw this.#failure
    try {
      return this.#next()
    } catch (cause) {
      this.#failure = cause as Error
      throw cause
    }
  }

  #next(): ReceivedMessage | undefined {
    if (this.#contentRemaining > 0) return undefined
    if (this.#append !== undefined) return this.#appendWithPayload(this.#append)
    const preamble = (this.#preamble ??= this.#readPreamble())
    if (preamble === undefined || this.#queue.length < preamble.headerBytes) return undefined
    this.#preamble = undefined
    return this.#readHeader(preamble.typeCode, new ByteReader(this.#queue.take(preamble.headerBytes)))
  }

  #readPreamble(): { typeCode: number; headerBytes: number } | undefined {
    if (this.#queue.length < preambleBytes) return undefined
    const reader = new ByteReader(this.#queue.take(preambleBytes))
    const typeCode = Number(reader.u64() & 0xffffn)
    const headerBytes = reader.index()
    if (!isTypeCode(typeCode)) throw malformed(`message type ${typeCode}`)
    if (headerBytes === 0 || headerBytes > this.#headerBytesMax)
      throw malformed(`a header of ${headerBytes} bytes; at most ${this.#headerBytesMax} are accepted`)
    return { typeCode, headerBytes }
  }

  #readHeader(typeCode: number, reader: ByteReader): ReceivedMessage | undefined {
    switch (typeCode) {
      case typeCodes.appendEntries:
        this.#append = readAppendEntries(reader)
        if (this.#append.payloadBytes > this.#payloadBytesMax)
          throw malformed(
            `${this.#append.payloadBytes} bytes of entries; at most ${this.#payloadBytesMax} are accepted`,
          )
        return this.#appendWithPayload(this.#append)
      case typeCodes.appendEntriesResult:
        return { message: readAppendEntriesResult(reader) }
      case typeCodes.requestVote:
        return { message: readRequestVote(reader) }
      case typeCodes.requestVoteResult:
        return { message: readRequestVoteResult(reader) }
      case typeCodes.timeoutNow:
        return { message: readTimeoutNow(reader) }
      case typeCodes.installSnapshot: {
        const { message, contentBytes } = readInstallSnapshot(reader)
        if (contentBytes > this.#contentBytesMax)
          throw malformed(`a snapshot of ${contentBytes} bytes; at most ${this.#contentBytesMax} are accepted`)
        this.#contentRemaining = contentBytes
        return { message, content: { byteLength: contentBytes } }
      }
      default:
        throw malformed(`message type ${typeCode}`)
    }
  }

  #appendWithPayload(append: AppendEntriesHead): ReceivedMessage | undefined {
    if (this.#queue.length < append.payloadBytes) return undefined
    this.#append = undefined
    return { message: withEntries(append, this.#queue.take(append.payloadBytes)) }
  }

  /** Bytes of the running content that have not been taken. */
  get contentRemaining(): number {
    return this.#contentRemaining
  }

  /** The next piece of the running content, never more than is buffered; undefined: finished, or wait for more. */
  takeContent(): Uint8Array | undefined {
    const piece = this.#queue.takeSome(this.#contentRemaining)
    if (piece !== undefined) this.#contentRemaining -= piece.byteLength
    return piece
  }
}

function isTypeCode(code: number): boolean {
  return code >= typeCodes.appendEntries && code <= typeCodes.timeoutNow
}
