/**
 * Little-endian bytes to values and back: the primitives of client-protocol §2, which the disk and the peers share.
 * Knows when bytes run out. Does not know what any field means.
 */
import assert from 'node:assert/strict'
import { DqliteError } from '../errors.js'

const wordBytes = 8
const two32 = 2 ** 32

/** Bytes from `n` up to the next whole word. */
export const pad8 = (n: number): number => Math.ceil(n / wordBytes) * wordBytes

const scratch = new DataView(new ArrayBuffer(8))
// A key that decodes to the same string as another one would name somebody else's database: fatal, and no BOM eaten.
const strictUtf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

export function malformed(what: string, cause?: unknown): DqliteError {
  return new DqliteError('MALFORMED', what, cause === undefined ? {} : { cause })
}

/** A Buffer over the same memory. */
export const asBuffer = (bytes: Uint8Array): Buffer =>
  Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)

/** Reads from the front; every method throws MALFORMED if the bytes end first. Blobs and bytes are views. */
export class ByteReader {
  readonly #bytes: Uint8Array
  offset: number

  constructor(bytes: Uint8Array, offset = 0) {
    assert(offset >= 0 && offset <= bytes.byteLength)
    this.#bytes = bytes
    this.offset = offset
  }

  get remaining(): number {
    return this.#bytes.byteLength - this.offset
  }

  #take(n: number): number {
    const at = this.offset
    if (n > this.#bytes.byteLength - at) throw malformed(`${n} bytes expected, ${this.#bytes.byteLength - at} left`)
    this.offset = at + n
    return at
  }

  u8(): number {
    return this.#bytes[this.#take(1)]!
  }

  u16(): number {
    const at = this.#take(2)
    return this.#bytes[at]! | (this.#bytes[at + 1]! << 8)
  }

  u32(): number {
    const at = this.#take(4)
    const b = this.#bytes
    return (b[at]! | (b[at + 1]! << 8) | (b[at + 2]! << 16) | (b[at + 3]! << 24)) >>> 0
  }

  u64(): bigint {
    if (this.remaining < 8) this.#take(8)
    const low = this.u32()
    const high = this.u32()
    return high === 0 ? BigInt(low) : (BigInt(high) << 32n) | BigInt(low)
  }

  /** A u64 that counts something here: terms, indexes, lengths. Above 2^53 it cannot be true. */
  index(): number {
    if (this.remaining < 8) this.#take(8)
    const low = this.u32()
    const high = this.u32()
    if (high >= 2 ** 21) throw malformed('a number beyond 2^53')
    return high * two32 + low
  }

  i64(): bigint {
    return BigInt.asIntN(64, this.u64())
  }

  f64(): number {
    if (this.remaining < 8) this.#take(8)
    scratch.setUint32(0, this.u32(), true)
    scratch.setUint32(4, this.u32(), true)
    return scratch.getFloat64(0, true)
  }

  /** The bytes of a text without its NUL and padding. No NUL in what is left: malformed (client-protocol §2). */
  textBytes(): Uint8Array {
    const start = this.offset
    const end = this.#bytes.indexOf(0, start)
    if (end < 0) throw malformed('a text without NUL')
    // The padding must be there, whatever it holds.
    this.#take(pad8(end - start + 1))
    return this.#bytes.subarray(start, end)
  }

  /** For people: bytes that are not UTF-8 become U+FFFD. */
  text(): string {
    return asBuffer(this.textBytes()).toString('utf8')
  }

  /** For comparing: database names and addresses. Bytes that are not UTF-8 are malformed. */
  name(): string {
    return decodeName(this.textBytes())
  }

  /** The name of a replicated database: what others have committed cannot be refused. See `decodeKey`. */
  key(): string {
    return decodeKey(this.textBytes())
  }

  blob(): Uint8Array {
    const length = this.index()
    const padded = pad8(length)
    const at = this.#take(padded)
    return this.#bytes.subarray(at, at + length)
  }

  bytes(n: number): Uint8Array {
    assert(Number.isSafeInteger(n) && n >= 0)
    const at = this.#take(n)
    return this.#bytes.subarray(at, at + n)
  }

  /** Bytes up to the next NUL, which is skipped; no padding. */
  nulTerminated(): Uint8Array {
    const start = this.offset
    const end = this.#bytes.indexOf(0, start)
    if (end < 0) throw malformed('a text without NUL')
    this.offset = end + 1
    return this.#bytes.subarray(start, end)
  }
}

/** Bytes as a string that no other bytes decode to. */
export function decodeName(bytes: Uint8Array): string {
  try {
    return strictUtf8.decode(bytes)
  } catch (cause) {
    throw malformed('a name that is not UTF-8', cause)
  }
}

/**
 * A name of any bytes as a string, one to one: UTF-8, or NUL and a character per byte where it is not UTF-8. C members
 * take such names from their clients; ours does not (NUL is in no name that it accepts).
 */
export function decodeKey(bytes: Uint8Array): string {
  try {
    return strictUtf8.decode(bytes)
  } catch {
    return `\0${asBuffer(bytes).toString('latin1')}`
  }
}

export const encodeKey = (key: string): Buffer =>
  key.startsWith('\0') ? Buffer.from(key.slice(1), 'latin1') : Buffer.from(key)

/** Grows as it is written; `finish` gives the memory away without a copy. */
export class ByteWriter {
  #buffer: Buffer
  #length = 0

  constructor(initialBytes = 128) {
    this.#buffer = Buffer.allocUnsafe(initialBytes)
  }

  get length(): number {
    return this.#length
  }

  #room(n: number): number {
    const at = this.#length
    if (at + n > this.#buffer.length) {
      const larger = Buffer.allocUnsafe(Math.max(at + n, this.#buffer.length * 2))
      this.#buffer.copy(larger, 0, 0, at)
      this.#buffer = larger
    }
    this.#length = at + n
    return at
  }

  u8(v: number): this {
    const at = this.#room(1)
    this.#buffer.writeUInt8(v, at)
    return this
  }

  u16(v: number): this {
    const at = this.#room(2)
    this.#buffer.writeUInt16LE(v, at)
    return this
  }

  u32(v: number): this {
    const at = this.#room(4)
    this.#buffer.writeUInt32LE(v, at)
    return this
  }

  u64(v: number | bigint): this {
    if (typeof v === 'number') assert(Number.isSafeInteger(v) && v >= 0, 'a u64 is a whole number from 0 to 2^53')
    const at = this.#room(8)
    if (typeof v === 'number') {
      this.#buffer.writeUInt32LE(v % two32, at)
      this.#buffer.writeUInt32LE(Math.floor(v / two32), at + 4)
    } else this.#buffer.writeBigUInt64LE(v, at)
    return this
  }

  i64(v: bigint): this {
    const at = this.#room(8)
    this.#buffer.writeBigInt64LE(v, at)
    return this
  }

  f64(v: number): this {
    const at = this.#room(8)
    this.#buffer.writeDoubleLE(v, at)
    return this
  }

  /** The bytes of the text up to its first NUL (the wire cannot say more), one NUL, zeros up to a whole word. */
  text(s: string | Uint8Array): this {
    if (typeof s !== 'string') {
      const nul = s.indexOf(0)
      const bytes = nul < 0 ? s : s.subarray(0, nul)
      this.raw(bytes)
      return this.zeros(pad8(bytes.byteLength + 1) - bytes.byteLength)
    }
    const nul = s.indexOf('\0')
    const text = nul < 0 ? s : s.slice(0, nul)
    const byteLength = Buffer.byteLength(text)
    const at = this.#room(byteLength)
    this.#buffer.write(text, at, byteLength, 'utf8')
    return this.zeros(pad8(byteLength + 1) - byteLength)
  }

  blob(b: Uint8Array): this {
    this.u64(b.byteLength)
    this.raw(b)
    return this.zeros(pad8(b.byteLength) - b.byteLength)
  }

  raw(b: Uint8Array): this {
    const at = this.#room(b.byteLength)
    this.#buffer.set(b, at)
    return this
  }

  zeros(n: number): this {
    const at = this.#room(n)
    this.#buffer.fill(0, at, at + n)
    return this
  }

  finish(): Buffer {
    const result = this.#buffer.subarray(0, this.#length)
    this.#buffer = Buffer.alloc(0)
    this.#length = 0
    return result
  }
}

// Chunks below this are copied together, so that a peer who sends single bytes costs bytes and not objects.
const smallChunkBytes = 1024
const blockBytes = 16 * 1024

/**
 * Received chunks in order, taken from the front in any sizes. What lies within one chunk is taken as a view; what
 * spans several is copied once, when all of it is there. Takes ownership of the chunks pushed.
 */
export class ByteQueue {
  #chunks: Uint8Array[] = []
  #head = 0
  #offset = 0
  #length = 0
  #block = Buffer.alloc(0)
  #blockUsed = 0

  get length(): number {
    return this.#length
  }

  push(chunk: Uint8Array): void {
    const n = chunk.byteLength
    if (n === 0) return
    if (this.#length > 0 && n < smallChunkBytes) this.#pushSmall(chunk)
    else this.#chunks.push(chunk)
    this.#length += n
  }

  #pushSmall(chunk: Uint8Array): void {
    const n = chunk.byteLength
    if (this.#blockUsed + n > this.#block.length) {
      this.#block = Buffer.allocUnsafeSlow(blockBytes)
      this.#blockUsed = 0
    }
    const start = this.#blockUsed
    this.#block.set(chunk, start)
    this.#blockUsed = start + n
    // Bytes behind the last piece of this block lengthen that piece; views handed out before keep theirs.
    const last = this.#chunks.at(-1)
    if (start > 0 && last !== undefined && last.buffer === this.#block.buffer)
      this.#chunks[this.#chunks.length - 1] = this.#block.subarray(last.byteOffset - this.#block.byteOffset, start + n)
    else this.#chunks.push(this.#block.subarray(start, start + n))
  }

  /** The next `n` bytes without taking them. */
  peek(n: number): Uint8Array {
    assert(n <= this.#length)
    const head = this.#chunks[this.#head]
    if (head !== undefined && head.byteLength - this.#offset >= n) return head.subarray(this.#offset, this.#offset + n)
    const result = Buffer.allocUnsafe(n)
    let at = 0
    let offset = this.#offset
    for (let i = this.#head; at < n; i++) {
      const chunk = this.#chunks[i]!
      const part = Math.min(n - at, chunk.byteLength - offset)
      result.set(chunk.subarray(offset, offset + part), at)
      at += part
      offset = 0
    }
    return result
  }

  take(n: number): Uint8Array {
    const result = this.peek(n)
    this.#drop(n)
    return result
  }

  /** At most `n` bytes, as much as one chunk has: never copies. */
  takeSome(n: number): Uint8Array | undefined {
    const head = this.#chunks[this.#head]
    if (head === undefined || n === 0) return undefined
    return this.take(Math.min(n, head.byteLength - this.#offset))
  }

  #drop(n: number): void {
    this.#length -= n
    let left = n
    while (left > 0) {
      const rest = this.#chunks[this.#head]!.byteLength - this.#offset
      if (left < rest) {
        this.#offset += left
        return
      }
      left -= rest
      this.#offset = 0
      this.#head++
    }
    if (this.#head === this.#chunks.length) {
      this.#chunks = []
      this.#head = 0
    } else if (this.#head > 64 && this.#head * 2 > this.#chunks.length) {
      this.#chunks.splice(0, this.#head)
      this.#head = 0
    }
  }
}
