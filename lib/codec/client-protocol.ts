/**
 * The messages between clients and servers (client-protocol §5, §6): one table for requests, one for responses, and
 * each body written down once, as a list of fields, for both directions. Parameters and rows stay bytes (tuple.ts on
 * the client, native code on the server). Does not know what a request does.
 */
import assert from 'node:assert/strict'
import { DqliteError } from '../errors.js'
import type { Role, ServerId } from '../raft/types.js'
import { ByteReader, ByteWriter, malformed, pad8 } from './bytes.js'
import { messageHeaderBytes, type RawMessage } from './message-stream.js'

/** The word a client opens its connection with; there is no answer (client-protocol §1.2). */
export const protocolVersion = 1n
/** Clients before 1.0. They get the answer to LEADER without an id, everything else is the same. */
export const legacyProtocolVersion = 0x86104dd760433fe5n

export const handshakeBytes = 8

export function encodeHandshake(protocol: bigint = protocolVersion): Buffer {
  return new ByteWriter(handshakeBytes).u64(protocol).finish()
}

/** The client protocol's numbers. Raft's configuration has others (raft-wire §4.3). */
const wireRoles: readonly Role[] = ['voter', 'standby', 'spare']

// -------------------------------------------------------------------------------------------------------- values

export type Schema = 0 | 1

export interface ServerEntry {
  readonly id: ServerId
  readonly address: string
  /** `undefined`: the request did not ask for roles (format 0). */
  readonly role: Role | undefined
}

export interface DumpedFile {
  readonly name: string
  readonly content: Uint8Array
}

export interface FileHead {
  readonly name: string
  readonly byteLength: number
}

/**
 * A request as the server sees it. `params` is where the parameter tuple begins in the message's body; at the body's
 * end there are none. `sql` is a view: the bytes of the text without NUL.
 */
export type Request =
  | { readonly type: 'leader' }
  | { readonly type: 'client'; readonly id: bigint }
  | { readonly type: 'open'; readonly name: string; readonly flags: bigint; readonly vfs: string }
  | { readonly type: 'prepare'; readonly schema: Schema; readonly databaseId: bigint; readonly sql: Uint8Array }
  | StatementRequest<'exec'>
  | StatementRequest<'query'>
  | { readonly type: 'finalize'; readonly databaseId: number; readonly statementId: number }
  | SqlRequest<'execSql'>
  | SqlRequest<'querySql'>
  | { readonly type: 'interrupt' }
  | { readonly type: 'connect'; readonly id: bigint; readonly address: string }
  | { readonly type: 'add'; readonly id: bigint; readonly address: string }
  /** `role` undefined: the request named a role that does not exist. A request without role means voter. */
  | { readonly type: 'assign'; readonly id: bigint; readonly role: Role | undefined }
  | { readonly type: 'remove'; readonly id: bigint }
  | { readonly type: 'dump'; readonly name: string }
  | { readonly type: 'cluster'; readonly format: bigint }
  | { readonly type: 'transfer'; readonly id: bigint }
  | { readonly type: 'describe'; readonly format: bigint }
  | { readonly type: 'weight'; readonly weight: bigint }

interface StatementRequest<T extends string> {
  readonly type: T
  readonly schema: Schema
  readonly databaseId: number
  readonly statementId: number
  readonly params: number
}

interface SqlRequest<T extends string> {
  readonly type: T
  readonly schema: Schema
  readonly databaseId: bigint
  readonly sql: Uint8Array
  readonly params: number
}

export type RequestType = Request['type']
type RequestOf<T extends RequestType> = Extract<Request, { readonly type: T }>

/** A request as the client writes it: `params` is the tuple itself (tuple.ts), empty for none; SQL may be a string. */
export type ClientRequest = { readonly [T in RequestType]: ToClient<RequestOf<T>> }[RequestType]
type ToClient<R> = {
  readonly [K in keyof R]: K extends 'params' ? Uint8Array : K extends 'sql' ? string | Uint8Array : R[K]
}

export type Response =
  | { readonly type: 'failure'; readonly code: number; readonly message: string }
  /** Id 0n and address '': no leader is known. Legacy servers do not say the id: 0n with an address. */
  | { readonly type: 'server'; readonly id: ServerId; readonly address: string }
  | { readonly type: 'welcome'; readonly heartbeatTimeoutMs: bigint }
  | { readonly type: 'servers'; readonly servers: readonly ServerEntry[] }
  | { readonly type: 'db'; readonly id: number }
  | {
      readonly type: 'stmt'
      readonly databaseId: number
      readonly statementId: number
      readonly parameterCount: bigint
      /** Byte offset of the text after the statement; only schema 1 says it. */
      readonly tail: bigint | undefined
    }
  | { readonly type: 'result'; readonly lastInsertRowid: bigint; readonly rowsAffected: bigint }
  /** For `decodeRows` of tuple.ts. */
  | { readonly type: 'rows'; readonly body: Uint8Array }
  | { readonly type: 'empty' }
  | { readonly type: 'files'; readonly files: readonly DumpedFile[] }
  | { readonly type: 'metadata'; readonly failureDomain: bigint; readonly weight: bigint }

export type ResponseType = Response['type']
type ResponseOf<T extends ResponseType> = Extract<Response, { readonly type: T }>

// -------------------------------------------------------------------------------------------------------- fields

/** One field of a body in both directions. `Out` is what a client may write where it differs from what is read. */
interface Field<T, Out = T> {
  read(reader: ByteReader, schema: number): T
  write(writer: ByteWriter, value: Out, schema: number): void
}

const u32: Field<number> = { read: (r) => r.u32(), write: (w, v) => w.u32(v) }
const u64: Field<bigint> = { read: (r) => r.u64(), write: (w, v) => w.u64(v) }
const i64: Field<bigint> = { read: (r) => r.i64(), write: (w, v) => w.i64(v) }
const text: Field<string> = { read: (r) => r.text(), write: (w, v) => w.text(v) }
/** What is compared byte by byte: names of databases and addresses. */
const name: Field<string> = { read: (r) => r.name(), write: (w, v) => w.text(v) }
const sql: Field<Uint8Array, string | Uint8Array> = { read: (r) => r.textBytes(), write: (w, v) => w.text(v) }
const params: Field<number, Uint8Array> = { read: (r) => r.offset, write: (w, v) => w.raw(v) }
const rest: Field<Uint8Array> = { read: (r) => r.bytes(r.remaining), write: (w, v) => w.raw(v) }
/** A word that nobody reads, and that must be there. */
const unusedWord: Field<undefined> = { read: (r) => void r.u64(), write: (w) => w.u64(0) }
const unusedHalf: Field<undefined> = { read: (r) => void r.u32(), write: (w) => w.u32(0) }
/** Absent: voter, the old request PROMOTE. A code above 2 is not a role. */
const assignedRole: Field<Role | undefined> = {
  read: (r) => (r.remaining === 0 ? 'voter' : wireRoles[Number(r.u64())]),
  write: (w, v) => {
    assert(v !== undefined)
    w.u64(wireRoles.indexOf(v))
  },
}
/** Only in the answer to a PREPARE of schema 1. */
const tailOffset: Field<bigint | undefined> = {
  read: (r, schema) => (schema === 1 ? r.u64() : undefined),
  write: (w, v) => {
    if (v !== undefined) w.u64(v)
  },
}
/** u64 count, then per server u64 id, text address and, where format 1 was asked for, u64 role. */
const serverList = (format: 0 | 1): Field<readonly ServerEntry[]> => ({
  read(r) {
    const count = r.index()
    const servers: ServerEntry[] = []
    // Ends with the bytes: a server takes at least 16 of them.
    for (let i = 0; i < count; i++) {
      const id = r.u64()
      const address = r.name()
      if (format === 0) {
        servers.push({ id, address, role: undefined })
        continue
      }
      const code = r.u64()
      const role = wireRoles[Number(code)]
      if (role === undefined) throw malformed(`role ${code.toString()}`)
      servers.push({ id, address, role })
    }
    return servers
  },
  write(w, servers) {
    w.u64(servers.length)
    for (const { id, address, role } of servers) {
      w.u64(id).text(address)
      if (format === 0) continue
      assert(role !== undefined)
      w.u64(wireRoles.indexOf(role))
    }
  },
})
/** u64 count, then per file text name, u64 length, the bytes. Lengths are whole words: Go does not align (§6.2). */
const fileList: Field<readonly DumpedFile[]> = {
  read(r) {
    const count = r.index()
    const files: DumpedFile[] = []
    for (let i = 0; i < count; i++) files.push({ name: r.text(), content: r.bytes(boundedLength(r)) })
    return files
  },
  write(w, files) {
    w.u64(files.length)
    for (const file of files) {
      writeFileHead(w, { name: file.name, byteLength: file.content.byteLength })
      w.raw(file.content)
    }
  },
}
function writeFileHead(w: ByteWriter, file: FileHead): void {
  assert(file.byteLength % 8 === 0, 'the length of a dumped file is a multiple of 8')
  w.text(file.name).u64(file.byteLength)
}
function boundedLength(r: ByteReader): number {
  const length = r.index()
  if (length > r.remaining) throw malformed(`a file of ${length} bytes in ${r.remaining}`)
  return length
}

/** Fields in the order of the wire. Keys that start with `_` are on the wire only. */
type Fields<V> = {
  readonly [K in Exclude<keyof V, 'type' | 'schema'>]: Field<V[K], never>
} & { readonly [K in `_${string}`]?: Field<undefined> }

interface Layout {
  readonly code: number
  readonly fields: readonly (readonly [string, Field<unknown>])[]
}

function layout(code: number, fields: object): Layout {
  return { code, fields: Object.entries(fields) as [string, Field<unknown>][] }
}

function readFields(
  fields: Layout['fields'],
  reader: ByteReader,
  schema: number,
  value: Record<string, unknown>,
): void {
  for (const [key, field] of fields) {
    const read = field.read(reader, schema)
    if (!key.startsWith('_')) value[key] = read
  }
}

function writeMessage(layout: Layout, value: object, schema: number): Buffer {
  const writer = new ByteWriter()
  writer.u32(0).u8(layout.code).u8(schema).u16(0)
  for (const [key, field] of layout.fields) field.write(writer, (value as Record<string, unknown>)[key], schema)
  const message = writer.finish()
  message.writeUInt32LE(bodyWords(message.length - messageHeaderBytes), 0)
  return message
}

function bodyWords(bodyBytes: number): number {
  assert(bodyBytes % 8 === 0, 'a body is a whole number of words')
  assert(bodyBytes > 0, 'no body is empty')
  return bodyBytes / 8
}

/** The 8 bytes before a body, for bodies that others write (rows, results). */
export function messageHeader(type: number, bodyBytes: number, schema = 0): Buffer {
  return new ByteWriter(messageHeaderBytes).u32(bodyWords(bodyBytes)).u8(type).u8(schema).u16(0).finish()
}

// ------------------------------------------------------------------------------------------------------ requests

interface RequestLayout extends Layout {
  readonly schemaMax: Schema
  /** Of the SQL family: a wrong schema is an SQL error there since dqlite 1.18.2 (client-protocol §1.5). */
  readonly isSql: boolean
}

const request = <T extends RequestType>(code: number, fields: Fields<RequestOf<T>>): RequestLayout => ({
  ...layout(code, fields),
  schemaMax: 0,
  isSql: false,
})
const sqlRequest = <T extends RequestType>(code: number, fields: Fields<RequestOf<T>>): RequestLayout => ({
  ...layout(code, fields),
  schemaMax: 1,
  isSql: true,
})

// client-protocol §5. Code 2, HEARTBEAT, was never implemented by anybody: it is an unknown type.
const requests = {
  leader: request<'leader'>(0, { _unused: unusedWord }),
  client: request<'client'>(1, { id: u64 }),
  open: request<'open'>(3, { name, flags: u64, vfs: text }),
  prepare: sqlRequest<'prepare'>(4, { databaseId: u64, sql }),
  exec: sqlRequest<'exec'>(5, { databaseId: u32, statementId: u32, params }),
  query: sqlRequest<'query'>(6, { databaseId: u32, statementId: u32, params }),
  finalize: request<'finalize'>(7, { databaseId: u32, statementId: u32 }),
  execSql: sqlRequest<'execSql'>(8, { databaseId: u64, sql, params }),
  querySql: sqlRequest<'querySql'>(9, { databaseId: u64, sql, params }),
  interrupt: request<'interrupt'>(10, { _databaseId: unusedWord }),
  connect: request<'connect'>(11, { id: u64, address: name }),
  add: request<'add'>(12, { id: u64, address: name }),
  assign: request<'assign'>(13, { id: u64, role: assignedRole }),
  remove: request<'remove'>(14, { id: u64 }),
  dump: request<'dump'>(15, { name }),
  cluster: request<'cluster'>(16, { format: u64 }),
  transfer: request<'transfer'>(17, { id: u64 }),
  describe: request<'describe'>(18, { format: u64 }),
  weight: request<'weight'>(19, { weight: u64 }),
} as const satisfies Record<RequestType, RequestLayout>

const requestByCode: readonly ([RequestType, RequestLayout] | undefined)[] = byCode(requests)

function byCode<K extends string, L extends Layout>(table: Record<K, L>): ([K, L] | undefined)[] {
  const result: ([K, L] | undefined)[] = []
  for (const [type, layout] of Object.entries(table) as [K, L][]) result[layout.code] = [type, layout]
  return result
}

/** The message type of CONNECT: what tells a peer from a client (raft-wire §1.1). */
export const connectCode: number = requests.connect.code

export const unrecognizedRequestText = 'unrecognized request type'
export const unrecognizedSchemaText = 'unrecognized schema version'

/**
 * Throws what the answer must be: PARSE or SQLITE_ERROR travel as FAILURE and the connection stays usable (unknown
 * type, unknown schema); MALFORMED closes it (client-protocol §1.5). Bytes after the last field are ignored.
 */
export function decodeRequest(message: RawMessage): Request {
  const found = requestByCode[message.type]
  if (found === undefined) throw new DqliteError('PARSE', unrecognizedRequestText)
  const [type, layout] = found
  // CONNECT does not look at the schema (client-protocol §1.4).
  if (message.schema > layout.schemaMax && type !== 'connect')
    throw new DqliteError(layout.isSql ? 'SQLITE_ERROR' : 'PARSE', unrecognizedSchemaText)
  const value: Record<string, unknown> = layout.isSql ? { type, schema: message.schema } : { type }
  readFields(layout.fields, new ByteReader(message.body), message.schema, value)
  return value as unknown as Request
}

/** A whole message. Throws BAD_PARAMETER for a text with NUL: the protocol would cut it there. */
export function encodeRequest(request: ClientRequest): Buffer {
  for (const value of Object.values(request))
    if (typeof value === 'string' && value.includes('\0'))
      throw new DqliteError('BAD_PARAMETER', 'a text sent to the server cannot contain NUL')
  return writeMessage(requests[request.type], request, 'schema' in request ? request.schema : 0)
}

// ----------------------------------------------------------------------------------------------------- responses

const response = <T extends ResponseType>(code: number, fields: Fields<ResponseOf<T>>): Layout => layout(code, fields)

// client-protocol §6.1.
const responses = {
  failure: response<'failure'>(0, { code: failureCode(), message: text }),
  server: response<'server'>(1, { id: u64, address: name }),
  welcome: response<'welcome'>(2, { heartbeatTimeoutMs: u64 }),
  servers: response<'servers'>(3, { servers: serverList(1) }),
  db: response<'db'>(4, { id: u32, _pad: unusedHalf }),
  stmt: response<'stmt'>(5, { databaseId: u32, statementId: u32, parameterCount: u64, tail: tailOffset }),
  result: response<'result'>(6, { lastInsertRowid: i64, rowsAffected: u64 }),
  rows: response<'rows'>(7, { body: rest }),
  empty: response<'empty'>(8, { _unused: unusedWord }),
  files: response<'files'>(9, { files: fileList }),
  metadata: response<'metadata'>(10, { failureDomain: u64, weight: u64 }),
} as const satisfies Record<ResponseType, Layout>

// The same codes with the bodies that the request or the protocol word asks for.
const serversFormat0: Layout = layout(responses.servers.code, { servers: serverList(0) })
const serverLegacy: Layout = layout(responses.server.code, { address: name })

function failureCode(): Field<number> {
  return { read: (r) => Number(r.u64()), write: (w, v) => w.u64(v) }
}

const responseByCode: readonly ([ResponseType, Layout] | undefined)[] = byCode(responses)

/** Message types of responses, for those who write bodies elsewhere. */
export const responseCodes: Readonly<Record<ResponseType, number>> = Object.fromEntries(
  Object.entries(responses).map(([type, { code }]) => [type, code]),
) as Record<ResponseType, number>

/** Whole messages with their header. */
export const encodeResponse = {
  failure: (code: number, message: string): Buffer => writeMessage(responses.failure, { code, message }, 0),
  server: (id: ServerId, address: string): Buffer => writeMessage(responses.server, { id, address }, 0),
  serverLegacy: (address: string): Buffer => writeMessage(serverLegacy, { address }, 0),
  welcome: (heartbeatTimeoutMs: number | bigint): Buffer => writeMessage(responses.welcome, { heartbeatTimeoutMs }, 0),
  /** Format 0 leaves the roles out. */
  servers: (servers: readonly { id: ServerId; address: string; role: Role }[], format: 0 | 1): Buffer =>
    writeMessage(format === 0 ? serversFormat0 : responses.servers, { servers }, 0),
  db: (id: number): Buffer => writeMessage(responses.db, { id }, 0),
  /** With `tail`: the answer to a PREPARE of schema 1. */
  stmt: (stmt: {
    databaseId: number
    statementId: number
    parameterCount: number | bigint
    tail?: number | bigint | undefined
  }): Buffer => writeMessage(responses.stmt, stmt, stmt.tail === undefined ? 0 : 1),
  result: (lastInsertRowid: bigint, rowsAffected: number | bigint): Buffer =>
    writeMessage(responses.result, { lastInsertRowid, rowsAffected }, 0),
  empty: (): Buffer => writeMessage(responses.empty, {}, 0),
  files: (files: readonly DumpedFile[]): Buffer => writeMessage(responses.files, { files }, 0),
  /** The same message in pieces: the content of file i follows piece i, so that nobody holds a whole database twice. */
  filesHeads: (files: readonly FileHead[]): Buffer[] => {
    assert(files.length > 0)
    const pieces = files.map((file, i) => {
      const writer = new ByteWriter()
      if (i === 0) writer.u64(files.length)
      writeFileHead(writer, file)
      return writer.finish()
    })
    const bodyBytes = files.reduce((sum, file, i) => sum + pieces[i]!.length + file.byteLength, 0)
    pieces[0] = Buffer.concat([messageHeader(responses.files.code, bodyBytes), pieces[0]!])
    return pieces
  },
  metadata: (failureDomain: number | bigint, weight: number | bigint): Buffer =>
    writeMessage(responses.metadata, { failureDomain, weight }, 0),
}

/**
 * Throws BAD_RESPONSE. `format`: what the CLUSTER request asked for (the body does not say); `legacy`: the connection
 * began with the legacy word. Bytes after the last field are ignored, except behind a FAILURE (see `trueFailure`).
 */
export function decodeResponse(message: RawMessage, options: { format?: 0 | 1; legacy?: boolean } = {}): Response {
  const found = responseByCode[message.type]
  if (found === undefined) throw new DqliteError('BAD_RESPONSE', `response type ${message.type} does not exist`)
  const [type] = found
  let [, layout] = found
  if (type === 'servers' && options.format === 0) layout = serversFormat0
  const value: Record<string, unknown> = { type }
  if (type === 'server' && options.legacy === true) {
    layout = serverLegacy
    value.id = 0n
  }
  return badResponse(`response ${type}`, () => {
    const reader = new ByteReader(message.body)
    readFields(layout.fields, reader, message.schema, value)
    const response = value as unknown as Response
    return response.type === 'failure' && reader.remaining > 0 ? trueFailure(message.body) : response
  })
}

/** Names bytes that a server should not have sent. */
export function badResponse<T>(what: string, decode: () => T): T {
  try {
    return decode()
  } catch (cause) {
    if (!(cause instanceof DqliteError) || cause.code !== 'MALFORMED') throw cause
    throw new DqliteError('BAD_RESPONSE', `${what}: ${cause.message}`, { cause })
  }
}

const failureCodeMax = 0xffff

/**
 * C servers append the failure of a running query to the rows collected so far and call the whole a FAILURE
 * (client-protocol §7.6): the code then reads as the number of columns. The true code and text are the last fields of
 * the body, so the rows before them are stepped over.
 */
function trueFailure(body: Uint8Array): ResponseOf<'failure'> {
  const reader = new ByteReader(body)
  const columns = reader.index()
  // A DUMP that fails has got as far as the number of files. No row fits between a count and a failure at its side.
  const ofDump = lastFailure(body, reader.offset)
  if (ofDump !== undefined) return ofDump
  if (columns <= body.byteLength / 8) {
    for (let i = 0; i < columns; i++) reader.textBytes()
    for (;;) {
      const failure = lastFailure(body, reader.offset)
      if (failure !== undefined) return failure
      // A statement without columns has no rows either: nothing more can be stepped over.
      if (columns === 0 || reader.remaining === 0) break
      skipRow(reader, columns)
    }
  }
  throw malformed('a FAILURE with bytes after its text that are not rows')
}

/** A code and a text that fill the body to its end. A row cannot look like it: the upper bytes of a code are NUL. */
function lastFailure(body: Uint8Array, offset: number): ResponseOf<'failure'> | undefined {
  if (body.byteLength - offset < 16) return undefined
  const reader = new ByteReader(body, offset)
  const code = reader.u64()
  if (code > BigInt(failureCodeMax) || body.indexOf(0, reader.offset) < 0) return undefined
  const message = reader.text()
  return reader.remaining === 0 ? { type: 'failure', code: Number(code), message } : undefined
}

function skipRow(reader: ByteReader, columns: number): void {
  const types = reader.bytes(rowHeaderBytes(columns))
  for (let column = 0; column < columns; column++) {
    switch (columnType(types, column)) {
      case valueTypes.text:
      case valueTypes.iso8601:
        reader.textBytes()
        break
      case valueTypes.blob:
        reader.blob()
        break
      default:
        reader.bytes(8)
    }
  }
}

// -------------------------------------------------------------------------------------------- what tuples are made of

/** client-protocol §4.1. */
export const valueTypes = {
  integer: 1,
  float: 2,
  text: 3,
  blob: 4,
  null: 5,
  unixTime: 9,
  iso8601: 10,
  boolean: 11,
} as const

/** A row begins with 4 bits per column, padded to whole words (client-protocol §4.3). */
export const rowHeaderBytes = (columns: number): number => pad8(Math.ceil(columns / 2))

/** Column 0 is the low half of byte 0, column 1 its high half. */
export const columnType = (header: Uint8Array, column: number): number =>
  column % 2 === 0 ? header[column >> 1]! & 15 : header[column >> 1]! >> 4
