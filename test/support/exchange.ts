/**
 * Requests as bytes, sent to any server of the client protocol, and its answers as text that can be compared: what a
 * client could tell apart, and nothing else. Does not know what the right answer is.
 */
import net from 'node:net'
import { once } from 'node:events'
import { ByteReader, ByteWriter, pad8 } from '../../lib/codec/bytes.js'
import {
  columnType,
  decodeResponse,
  encodeHandshake,
  messageHeader,
  rowHeaderBytes,
  valueTypes,
} from '../../lib/codec/client-protocol.js'
import { MessageStream, type RawMessage } from '../../lib/codec/message-stream.js'
import { imageOf } from '../../lib/cli/evidence.js'
import { createHash } from 'node:crypto'

// -------------------------------------------------------------------------------------------------------- requests

/** A parameter by its type code (client-protocol §4.1). */
export interface RawValue {
  readonly code: number
  readonly bytes: Buffer
}

export type Value = null | number | bigint | string | boolean | Uint8Array | RawValue

/** What the answer consists of. */
export type Shape = 'one' | 'rows' | 'drain'

export interface Step {
  /** Which connection of the sequence; 0 is there from the beginning. */
  readonly connection: number
  /** For people. */
  readonly text: string
  readonly bytes: Buffer
  readonly shape: Shape
}

function encodeValue(value: Value): RawValue {
  const writer = new ByteWriter(16)
  if (value === null) return { code: valueTypes.null, bytes: writer.u64(0).finish() }
  if (typeof value === 'boolean') return { code: valueTypes.boolean, bytes: writer.u64(value ? 1 : 0).finish() }
  if (typeof value === 'bigint') return { code: valueTypes.integer, bytes: writer.i64(value).finish() }
  if (typeof value === 'number')
    return Number.isSafeInteger(value) && !Object.is(value, -0)
      ? { code: valueTypes.integer, bytes: writer.i64(BigInt(value)).finish() }
      : { code: valueTypes.float, bytes: writer.f64(value).finish() }
  if (typeof value === 'string') return { code: valueTypes.text, bytes: writer.text(value).finish() }
  if (value instanceof Uint8Array) return { code: valueTypes.blob, bytes: writer.blob(value).finish() }
  return value
}

function tuple(values: readonly Value[], schema: number): Buffer {
  if (values.length === 0) return Buffer.alloc(0)
  const encoded = values.map(encodeValue)
  const head = new ByteWriter(8)
  if (schema === 0) head.u8(values.length)
  else head.u32(values.length)
  head.raw(Uint8Array.from(encoded.map(({ code }) => code)))
  head.zeros(pad8(head.length) - head.length)
  return Buffer.concat([head.finish(), ...encoded.map(({ bytes }) => bytes)])
}

export const text = (value: string): Buffer => new ByteWriter(16).text(value).finish()
export const words = (...values: (number | bigint)[]): Buffer => {
  const writer = new ByteWriter(8 * values.length)
  for (const value of values) writer.u64(value)
  return writer.finish()
}
const halves = (one: number, other: number): Buffer => new ByteWriter(8).u32(one).u32(other).finish()

export function raw(type: number, body: Uint8Array, schema = 0, shape: Shape = 'one', what = `type ${type}`): Step {
  return { connection: 0, text: what, bytes: Buffer.concat([messageHeader(type, body.length, schema), body]), shape }
}

const shown = (values: readonly Value[]): string =>
  values.length === 0
    ? ''
    : ` [${values.map((v) => (v instanceof Uint8Array ? `x'${Buffer.from(v).toString('hex')}'` : v === null ? 'null' : typeof v === 'object' ? `type ${v.code}` : String(v))).join(', ')}]`

export interface SqlOptions {
  readonly schema?: number
  readonly db?: number
}

const sqlStep =
  (type: number, name: string, shape: Shape) =>
  (sql: string, values: readonly Value[] = [], { schema = 0, db = 0 }: SqlOptions = {}): Step =>
    raw(
      type,
      Buffer.concat([words(db), text(sql), tuple(values, schema)]),
      schema,
      shape,
      `${name}${schema ? ` schema ${schema}` : ''} ${sql.length > 300 ? `${sql.slice(0, 300)}…` : sql}${shown(values)}`,
    )
const statementStep =
  (type: number, name: string, shape: Shape) =>
  (id: number, values: readonly Value[] = [], { schema = 0, db = 0 }: SqlOptions = {}): Step =>
    raw(type, Buffer.concat([halves(db, id), tuple(values, schema)]), schema, shape, `${name} ${id}${shown(values)}`)

export const ask = {
  leader: raw(0, words(0), 0, 'one', 'leader'),
  client: (id: bigint): Step => raw(1, words(id), 0, 'one', `client ${id.toString()}`),
  openBytes: (name: Uint8Array): Step =>
    raw(3, Buffer.concat([new ByteWriter(16).text(name).finish(), words(0), text('')]), 0, 'one', 'open, in bytes'),
  open: (name: string): Step => raw(3, Buffer.concat([text(name), words(0), text('')]), 0, 'one', `open ${name}`),
  prepare: sqlStep(4, 'prepare', 'one'),
  exec: statementStep(5, 'exec', 'one'),
  query: statementStep(6, 'query', 'rows'),
  finalize: (id: number, db = 0): Step => raw(7, halves(db, id), 0, 'one', `finalize ${id}`),
  execSql: sqlStep(8, 'execSql', 'one'),
  querySql: sqlStep(9, 'querySql', 'rows'),
  interrupt: raw(10, words(0), 0, 'one', 'interrupt'),
  /** INTERRUPT behind a request whose answer is still to come: everything up to EMPTY is one answer. */
  interrupted: (step: Step): Step => ({
    ...step,
    text: `${step.text}, interrupted`,
    bytes: Buffer.concat([step.bytes, raw(10, words(0)).bytes]),
    shape: 'drain',
  }),
  add: (id: number, address: string): Step =>
    raw(12, Buffer.concat([words(id), text(address)]), 0, 'one', `add ${id} ${address}`),
  assign: (id: number, ...role: number[]): Step => raw(13, words(id, ...role), 0, 'one', `assign ${id} ${role.join()}`),
  remove: (id: number): Step => raw(14, words(id), 0, 'one', `remove ${id}`),
  dump: (name: string): Step => raw(15, text(name), 0, 'one', `dump ${name}`),
  cluster: (format: number): Step => raw(16, words(format), 0, 'one', `cluster ${format}`),
  transfer: (id: number): Step => raw(17, words(id), 0, 'one', `transfer ${id}`),
  describe: (format: number): Step => raw(18, words(format), 0, 'one', `describe ${format}`),
  weight: (weight: number): Step => raw(19, words(weight), 0, 'one', `weight ${weight}`),
}

export const on = (connection: number, step: Step): Step => ({
  ...step,
  connection,
  text: `(${connection}) ${step.text}`,
})

// --------------------------------------------------------------------------------------------------------- answers

function describeRows(bodies: readonly Uint8Array[]): string {
  let columns: string | undefined
  const rows: string[] = []
  let end = 'unfinished'
  for (const body of bodies) {
    const reader = new ByteReader(body)
    const count = reader.index()
    const names: string[] = []
    for (let i = 0; i < count; i++) names.push(JSON.stringify(Buffer.from(reader.textBytes()).toString('utf8')))
    if (columns !== undefined && columns !== names.join()) end = `other columns ${names.join()}`
    columns = names.join()
    while (reader.remaining > 0) {
      const marker = body[reader.offset]!
      if (marker === 0xff || marker === 0xee) {
        end = marker === 0xff ? 'done' : 'part'
        reader.bytes(8)
        break
      }
      const header = reader.bytes(rowHeaderBytes(count))
      const cells: string[] = []
      for (let i = 0; i < count; i++) cells.push(describeCell(columnType(header, i), reader))
      rows.push(cells.join(' '))
    }
    if (reader.remaining > 0) end += `, ${reader.remaining} bytes behind`
  }
  const listed = rows.join(' | ')
  const shownRows =
    listed.length < 2000 ? listed : `${rows.length} rows ${createHash('sha256').update(listed).digest('hex')}`
  return `rows [${columns ?? ''}] ${shownRows} ${end}`
}

function describeCell(code: number, reader: ByteReader): string {
  switch (code) {
    case valueTypes.float: {
      const value = reader.f64()
      return `float:${Object.is(value, -0) ? '-0' : value}`
    }
    case valueTypes.text:
    case valueTypes.iso8601:
      return `${code === valueTypes.text ? 'text' : 'iso'}:${JSON.stringify(Buffer.from(reader.textBytes()).toString('latin1'))}`
    case valueTypes.blob:
      return `blob:${Buffer.from(reader.blob()).toString('hex')}`
    case valueTypes.null:
      reader.u64()
      return 'null'
    default:
      return `${code}:${reader.i64().toString()}`
  }
}

/** Where a node says its own address, and what SQLite writes of itself into a database. */
export interface Masks {
  readonly address: string
}

function describe(messages: readonly RawMessage[], { address }: Masks): string {
  const [message] = messages
  if (message === undefined) return 'nothing'
  const { type, schema, body } = message
  const version = schema === 0 ? '' : ` schema ${schema}`
  switch (type) {
    case 0: {
      const failure = decodeResponse(message)
      if (failure.type !== 'failure') throw new Error('a FAILURE that is none')
      const { code, message: words } = failure
      // Bytes before the failure: what C leaves in its buffer (client-protocol §7.6).
      const isClean = body.length === 8 + pad8(Buffer.byteLength(words) + 1)
      return `failure ${code} ${JSON.stringify(words)}${isClean ? '' : ' behind rows'}${version}`
    }
    case 5: {
      const reader = new ByteReader(body)
      const [db, id, parameters] = [reader.u32(), reader.u32(), reader.u64()]
      const tail = reader.remaining >= 8 ? ` tail ${reader.u64().toString()}` : ''
      return `stmt${version} ${db} ${id} parameters ${parameters.toString()}${tail}`
    }
    case 6: {
      const reader = new ByteReader(body)
      return `result${version} ${reader.i64().toString()}/${reader.u64().toString()}`
    }
    case 7:
      return describeRows(messages.map((each) => each.body))
    case 9: {
      const response = decodeResponse(message)
      if (response.type !== 'files') throw new Error('FILES that are none')
      const [main, wal] = response.files.map(({ content }) => content)
      const image = Buffer.from(imageOf(main!, wal!))
      const names = response.files.map(({ name }) => name).join()
      // Offset 96: the version of SQLite that wrote last.
      if (image.length > 0) image.fill(0, 96, 100)
      const merged = wal!.length === 0 ? 'merged' : 'with a WAL'
      return `files ${names} ${image.length} ${createHash('sha256').update(image).digest('hex').slice(0, 16)} ${merged}`
    }
    default:
      return `type ${type}${version} ${Buffer.from(body).toString('latin1').replaceAll(address, 'HOST:PORT')}`
  }
}

const silenceMs = 1000

class Conversation {
  readonly #socket: net.Socket
  readonly #stream = new MessageStream({ bodyBytesMax: 2 ** 30 })
  #hasEnded = false
  #wake: (() => void) | undefined

  constructor(socket: net.Socket) {
    this.#socket = socket
    socket.on('data', (chunk: Buffer) => {
      this.#stream.push(chunk)
      this.#wake?.()
    })
    const end = (): void => {
      this.#hasEnded = true
      this.#wake?.()
    }
    socket.on('end', end).on('close', end).on('error', end)
  }

  async #next(): Promise<RawMessage | 'closed' | 'silence'> {
    const deadlineMs = performance.now() + silenceMs
    for (;;) {
      const message = this.#stream.next()
      if (message !== undefined) return message
      if (this.#hasEnded) return 'closed'
      const leftMs = deadlineMs - performance.now()
      if (leftMs <= 0) return 'silence'
      let timer: NodeJS.Timeout | undefined
      await new Promise<void>((resolve) => {
        this.#wake = resolve
        timer = setTimeout(resolve, leftMs)
      })
      clearTimeout(timer)
    }
  }

  /** The answer, or how there was none; then the connection is of no use. */
  async exchange({ bytes, shape }: Step, masks: Masks): Promise<string> {
    this.#socket.write(bytes)
    const messages: RawMessage[] = []
    for (;;) {
      const message = await this.#next()
      if (typeof message === 'string') return message
      messages.push(message)
      if (shape === 'drain') {
        if (message.type === 8) return 'drained'
        continue
      }
      const isPart = shape === 'rows' && message.type === 7 && message.body.at(-1) === 0xee
      if (isPart) continue
      // A failure behind parts is the answer; the parts are void.
      return describe(message.type === 7 ? messages : messages.slice(-1), masks)
    }
  }

  async end(): Promise<void> {
    const closed = this.#socket.closed ? undefined : once(this.#socket, 'close')
    this.#socket.destroy()
    await closed
  }
}

/** Plays the steps to the server there; one text per step, up to the first without an answer. */
export async function play(address: string, steps: readonly Step[], protocol = 1n): Promise<string[]> {
  const port = Number(address.slice(address.lastIndexOf(':') + 1))
  const connections = new Map<number, Conversation>()
  const answers: string[] = []
  try {
    for (const step of steps) {
      let conversation = connections.get(step.connection)
      if (conversation === undefined) {
        const socket = net.connect(port, '127.0.0.1')
        socket.setNoDelay(true)
        await once(socket, 'connect')
        socket.write(encodeHandshake(protocol))
        conversation = new Conversation(socket)
        connections.set(step.connection, conversation)
      }
      const answer = await conversation.exchange(step, { address })
      answers.push(answer)
      if (answer === 'silence' || answer === 'closed') break
    }
  } finally {
    for (const conversation of connections.values()) await conversation.end()
  }
  return answers
}
