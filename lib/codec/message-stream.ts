/**
 * Cuts messages of the client protocol out of chunks of any size (client-protocol §3).
 * Knows the header. Does not know what a type means, nor who sent it.
 *
 *   offset 0: words of the body, uint32 · 4: type, uint8 · 5: schema, uint8 · 6: unused, uint16, ignored
 */
import { ByteQueue, ByteReader, malformed } from './bytes.js'

export interface RawMessage {
  readonly type: number
  readonly schema: number
  readonly body: Uint8Array
}

export const messageHeaderBytes = 8

interface Header {
  readonly type: number
  readonly schema: number
  readonly bodyBytes: number
}

/**
 * `push` a chunk, then call `next` until it gives undefined: what is kept is then less than one message of the size
 * its header announced, and that is at most `bodyBytesMax`. Bodies are views where a chunk holds them whole.
 */
export class MessageStream {
  readonly #bodyBytesMax: number
  readonly #queue = new ByteQueue()
  #header: Header | undefined

  constructor(options: { bodyBytesMax: number }) {
    this.#bodyBytesMax = options.bodyBytesMax
  }

  push(chunk: Uint8Array): void {
    this.#queue.push(chunk)
  }

  /** Throws MALFORMED at a header that cannot be, before anything of its body is kept; and again at every call. */
  next(): RawMessage | undefined {
    const header = (this.#header ??= this.#readHeader())
    if (header === undefined || this.#queue.length < header.bodyBytes) return undefined
    this.#header = undefined
    return { type: header.type, schema: header.schema, body: this.#queue.take(header.bodyBytes) }
  }

  #readHeader(): Header | undefined {
    if (this.#queue.length < messageHeaderBytes) return undefined
    const reader = new ByteReader(this.#queue.peek(messageHeaderBytes))
    const bodyBytes = reader.u32() * 8
    // No message has an empty body; C dqlite never reads such a connection again (client-protocol §1.5).
    if (bodyBytes === 0) throw malformed('a message of 0 words')
    if (bodyBytes > this.#bodyBytesMax)
      throw malformed(`a message of ${bodyBytes} bytes; at most ${this.#bodyBytesMax} are accepted`)
    const header = { type: reader.u8(), schema: reader.u8(), bodyBytes }
    this.#queue.take(messageHeaderBytes)
    return header
  }

  /** Bytes after the last message: CONNECT hands its connection over to the peer protocol (client-protocol §1.4). */
  takeRest(): Uint8Array {
    return this.#queue.take(this.#queue.length)
  }
}
