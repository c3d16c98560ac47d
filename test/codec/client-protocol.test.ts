import test from 'ava'
import fc from 'fast-check'
import {
  decodeRequest,
  decodeResponse,
  encodeHandshake,
  encodeRequest,
  encodeResponse,
  messageHeader,
  responseCodes,
  type ClientRequest,
  type Request,
  type Response,
} from '../../lib/codec/client-protocol.js'
import { MessageStream, type RawMessage } from '../../lib/codec/message-stream.js'
import { encodeParameters } from '../../lib/codec/tuple.js'
import { DqliteError, errorFromWire } from '../../lib/errors.js'
import * as golden from './golden.js'

const { hex } = golden

function cut(bytes: Uint8Array): RawMessage {
  const stream = new MessageStream({ bodyBytesMax: 1024 * 1024 })
  stream.push(bytes)
  const message = stream.next()
  if (message === undefined || stream.takeRest().byteLength > 0) throw new Error('not exactly one message')
  return message
}
const sqlBytes = (text: string): Uint8Array => Buffer.from(text)

const address = '127.0.0.1:19101'
const insertSeven = 'INSERT INTO t VALUES(?,?,?,?,?,?,?)'
const twoSelects = 'SELECT * FROM t WHERE i=?; SELECT 2'
const twoInserts = 'INSERT INTO t(i) VALUES(?); INSERT INTO t(i) VALUES(?)'

/** What each golden request means to the server, and how a client says it. */
const meanings: Record<keyof typeof golden.requests, { server: Request; client?: ClientRequest }> = {
  leader: { server: { type: 'leader' } },
  client: { server: { type: 'client', id: 0x1234n } },
  open: { server: { type: 'open', name: 'test', flags: 0n, vfs: 'volatile' } },
  prepare0: { server: { type: 'prepare', schema: 0, databaseId: 0n, sql: sqlBytes(insertSeven) } },
  prepare1: { server: { type: 'prepare', schema: 1, databaseId: 0n, sql: sqlBytes(twoSelects) } },
  exec0: {
    server: { type: 'exec', schema: 0, databaseId: 0, statementId: 0, params: 8 },
    client: {
      type: 'exec',
      schema: 0,
      databaseId: 0,
      statementId: 0,
      params: encodeParameters(
        [-2, 1.5, 'héllo', Buffer.from([1, 2, 3]), new Date('2024-01-02T03:04:05Z'), true, null],
        0,
      ),
    },
  },
  // Its boolean is 5, which no client of ours sends: decoded only.
  exec1: { server: { type: 'exec', schema: 1, databaseId: 0, statementId: 0, params: 8 } },
  query0: {
    server: { type: 'query', schema: 0, databaseId: 0, statementId: 1, params: 8 },
    client: { type: 'query', schema: 0, databaseId: 0, statementId: 1, params: encodeParameters([-2], 0) },
  },
  execSql: {
    server: { type: 'execSql', schema: 0, databaseId: 0n, sql: sqlBytes(twoInserts), params: 64 },
    client: { type: 'execSql', schema: 0, databaseId: 0n, sql: twoInserts, params: encodeParameters([200, 201], 0) },
  },
  cluster: { server: { type: 'cluster', format: 1n } },
  add: { server: { type: 'add', id: 9n, address } },
  assign: { server: { type: 'assign', id: 2n, role: 'standby' } },
  promote: { server: { type: 'assign', id: 2n, role: 'voter' }, client: { type: 'assign', id: 2n, role: 'voter' } },
  remove: { server: { type: 'remove', id: 3n } },
  transfer: { server: { type: 'transfer', id: 2n } },
  describe: { server: { type: 'describe', format: 0n } },
  weight: { server: { type: 'weight', weight: 42n } },
  dump: { server: { type: 'dump', name: 'test' } },
  interrupt: { server: { type: 'interrupt' } },
  finalize: { server: { type: 'finalize', databaseId: 0, statementId: 1 } },
}

const plain = (request: Request): unknown =>
  'sql' in request ? { ...request, sql: Buffer.from(request.sql) } : request

for (const [name, meaning] of Object.entries(meanings) as [
  keyof typeof golden.requests,
  (typeof meanings)['leader'],
][]) {
  test(`the golden request ${name} is understood`, (t) => {
    t.deepEqual(plain(decodeRequest(cut(hex(golden.requests[name])))), plain(meaning.server))
  })
  // PROMOTE without a role is the old form; we write the new one. exec1 cannot be said with our values.
  if (name !== 'promote' && name !== 'exec1')
    test(`the golden request ${name} is what a client of ours sends`, (t) => {
      const request = meaning.client ?? (meaning.server as ClientRequest)
      t.is(encodeRequest(request).toString('hex'), hex(golden.requests[name]).toString('hex'))
    })
}

test('assigning voter says the role', (t) => {
  const bytes = encodeRequest({ type: 'assign', id: 2n, role: 'voter' })
  t.is(bytes.toString('hex'), hex('020000000d000000 0200000000000000 0000000000000000').toString('hex'))
})

test('the handshake is the protocol word', (t) => {
  t.is(encodeHandshake().toString('hex'), '0100000000000000')
  t.is(encodeHandshake(0x86104dd760433fe5n).toString('hex'), 'e53f4360d74d1086')
})

const server = { id: 1n, address, role: 'voter' } as const
const encoded: Partial<Record<keyof typeof golden.responses, Buffer>> = {
  server: encodeResponse.server(1n, address),
  serverLegacy: encodeResponse.serverLegacy('127.0.0.1:27510'),
  noLeader: encodeResponse.server(0n, ''),
  welcome: encodeResponse.welcome(15_000),
  db: encodeResponse.db(0),
  alreadyOpen: encodeResponse.failure(5, 'a database for this connection is already open'),
  stmt0: encodeResponse.stmt({ databaseId: 0, statementId: 0, parameterCount: 7 }),
  stmt1: encodeResponse.stmt({ databaseId: 0, statementId: 1, parameterCount: 1, tail: 26 }),
  result: encodeResponse.result(-2n, 1),
  constraint: encodeResponse.failure(1555, 'UNIQUE constraint failed: t.i'),
  unrecognizedType: encodeResponse.failure(1005, 'unrecognized request type'),
  notLeader: encodeResponse.failure(10_250, 'not leader'),
  leadershipLost: encodeResponse.failure(10_506, 'leadership lost'),
  emptyStatement: encodeResponse.failure(0, 'empty statement'),
  servers0: encodeResponse.servers([server], 0),
  servers1: encodeResponse.servers([server], 1),
  empty: encodeResponse.empty(),
  metadata: encodeResponse.metadata(100, 42),
  integerOverflow: encodeResponse.failure(1, 'integer overflow'),
}
for (const [name, bytes] of Object.entries(encoded) as [keyof typeof golden.responses, Buffer][])
  test(`the golden response ${name} is what we answer`, (t) => {
    t.is(bytes.toString('hex'), hex(golden.responses[name]).toString('hex'))
  })

test('a dump is two files, whole or in pieces', (t) => {
  const content = Buffer.alloc(12_288, 7)
  const expected = Buffer.concat([hex(golden.responses.filesHead), content, hex(golden.responses.filesTail)])
  const files = [
    { name: 'test', content },
    { name: 'test-wal', content: Buffer.alloc(0) },
  ]
  t.true(encodeResponse.files(files).equals(expected))
  const [head, tail] = encodeResponse.filesHeads(files.map((f) => ({ name: f.name, byteLength: f.content.length })))
  t.true(Buffer.concat([head!, content, tail!]).equals(expected))
  const response = decodeResponse(cut(expected))
  t.deepEqual(response, { type: 'files', files })
})

test('every golden response is understood', (t) => {
  const cases: [keyof typeof golden.responses, Response, Parameters<typeof decodeResponse>[1]?][] = [
    ['server', { type: 'server', id: 1n, address }],
    ['serverLegacy', { type: 'server', id: 0n, address: '127.0.0.1:27510' }, { legacy: true }],
    ['noLeader', { type: 'server', id: 0n, address: '' }],
    ['welcome', { type: 'welcome', heartbeatTimeoutMs: 15_000n }],
    ['db', { type: 'db', id: 0 }],
    ['alreadyOpen', { type: 'failure', code: 5, message: 'a database for this connection is already open' }],
    ['stmt0', { type: 'stmt', databaseId: 0, statementId: 0, parameterCount: 7n, tail: undefined }],
    ['stmt1', { type: 'stmt', databaseId: 0, statementId: 1, parameterCount: 1n, tail: 26n }],
    ['result', { type: 'result', lastInsertRowid: -2n, rowsAffected: 1n }],
    ['servers1', { type: 'servers', servers: [server] }],
    ['servers0', { type: 'servers', servers: [{ ...server, role: undefined }] }, { format: 0 }],
    ['empty', { type: 'empty' }],
    ['metadata', { type: 'metadata', failureDomain: 100n, weight: 42n }],
    ['integerOverflow', { type: 'failure', code: 1, message: 'integer overflow' }],
  ]
  for (const [name, expected, options] of cases)
    t.deepEqual(decodeResponse(cut(hex(golden.responses[name])), options), expected, name)
})

test('the true error of a C server is found behind the rows it is appended to', (t) => {
  t.deepEqual(decodeResponse(cut(hex(golden.corruptedFailures.fiveColumns))), {
    type: 'failure',
    code: 1,
    message: 'integer overflow',
  })
  t.deepEqual(decodeResponse(cut(hex(golden.corruptedFailures.noColumns))), {
    type: 'failure',
    code: 1555,
    message: 'UNIQUE constraint failed: t.i',
  })
  // With rows of every type in between.
  const rows = hex(golden.responses.rows).subarray(8, -8)
  const failure = hex(golden.responses.constraint).subarray(8)
  const body = Buffer.concat([rows, failure])
  t.deepEqual(decodeResponse({ type: 0, schema: 0, body }), {
    type: 'failure',
    code: 1555,
    message: 'UNIQUE constraint failed: t.i',
  })
})

test('bytes behind a failure that are neither rows nor a failure are not trusted', (t) => {
  const body = Buffer.concat([hex(golden.responses.notLeader).subarray(8), Buffer.alloc(8, 0xcc)])
  t.throws(() => decodeResponse({ type: 0, schema: 0, body }), { code: 'BAD_RESPONSE' })
})

test('an unknown type is answered, with any schema', (t) => {
  for (const type of [2, 20, 255])
    t.throws(() => decodeRequest({ type, schema: 3, body: Buffer.alloc(8) }), {
      code: 'PARSE',
      message: 'unrecognized request type',
    })
})

test('an unknown schema is an SQL error for SQL and a parse error for the rest, before the body is looked at', (t) => {
  const message = 'unrecognized schema version'
  for (const type of [4, 5, 6, 8, 9])
    t.throws(() => decodeRequest({ type, schema: 2, body: Buffer.alloc(0) }), { code: 'SQLITE_ERROR', message })
  for (const type of [0, 1, 3, 7, 10, 12, 13, 14, 15, 16, 17, 18, 19])
    t.throws(() => decodeRequest({ type, schema: 1, body: Buffer.alloc(0) }), { code: 'PARSE', message })
  const connect = cut(hex(golden.connect).subarray(8))
  t.deepEqual(decodeRequest({ ...connect, schema: 9 }), { type: 'connect', id: 3n, address: '127.0.0.1:19103' })
})

test('a role that does not exist is not taken for another', (t) => {
  const body = hex('0200000000000000 0300000000000000')
  t.deepEqual(decodeRequest({ type: 13, schema: 0, body }), { type: 'assign', id: 2n, role: undefined })
})

test('bytes after the last field of a request are ignored', (t) => {
  for (const [name, bytes] of Object.entries(golden.requests)) {
    const message = cut(hex(bytes))
    // Behind a parameter tuple or a PROMOTE they would be fields.
    if (['exec0', 'exec1', 'query0', 'execSql', 'promote'].includes(name)) continue
    const longer = { ...message, body: Buffer.concat([message.body, Buffer.alloc(16, 0xee)]) }
    t.deepEqual(plain(decodeRequest(longer)), plain(decodeRequest(message)))
  }
})

test('a body cut anywhere is malformed, or lacks only its parameters or its role', (t) => {
  for (const [name, bytes] of Object.entries(golden.requests)) {
    const message = cut(hex(bytes))
    for (let length = 0; length < message.body.byteLength; length++) {
      try {
        const request = decodeRequest({ ...message, body: message.body.subarray(0, length) })
        t.true('params' in request || request.type === 'assign', `${name} cut to ${length}`)
        if ('params' in request) t.true(request.params <= length)
      } catch (error) {
        t.is((error as DqliteError).code, 'MALFORMED')
      }
    }
  }
  for (const bytes of Object.values(golden.responses).filter((b) => b !== golden.responses.filesTail)) {
    const body = hex(bytes).subarray(8)
    for (let length = 0; length < body.length; length++)
      try {
        decodeResponse({ type: hex(bytes)[4]!, schema: hex(bytes)[5]!, body: body.subarray(0, length) })
      } catch (error) {
        t.is((error as DqliteError).code, 'BAD_RESPONSE')
      }
  }
})

test('the FAILURE of a DUMP that C 1.11 cannot make is understood behind its number of files', (t) => {
  const body = Buffer.concat([
    hex('0200000000000000 0b00000000000000'),
    Buffer.from('failed to dump database\0'), // 24 bytes
  ])
  t.deepEqual(decodeResponse({ type: 0, schema: 0, body }), {
    type: 'failure',
    code: 11,
    message: 'failed to dump database',
  })
})

test("a C 1.11 leader that hands over leaks its Raft's number for not leader", (t) => {
  t.is(errorFromWire(7, 'no more rows available').code, 'NOT_LEADER')
  t.is(errorFromWire(7, 'out of memory').code, 'SQLITE')
})

test('a text with NUL is refused where it would be cut silently', (t) => {
  t.throws(() => encodeRequest({ type: 'open', name: 'a\0b', flags: 0n, vfs: '' }), { code: 'BAD_PARAMETER' })
  t.throws(
    () => encodeRequest({ type: 'querySql', schema: 0, databaseId: 0n, sql: 'SELECT 1\0', params: Buffer.alloc(0) }),
    { code: 'BAD_PARAMETER' },
  )
})

test('requests read back as they were written', (t) => {
  const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })
  const u32 = fc.integer({ min: 0, max: 0xffff_ffff })
  const name = fc.string({ unit: 'grapheme' }).filter((s) => !s.includes('\0'))
  const schema = fc.constantFrom<0 | 1>(0, 1)
  const request: fc.Arbitrary<Request> = fc.oneof(
    fc.record({ type: fc.constant('client' as const), id: u64 }),
    fc.record({ type: fc.constant('open' as const), name, flags: u64, vfs: name }),
    fc.record({ type: fc.constant('finalize' as const), databaseId: u32, statementId: u32 }),
    fc.record({ type: fc.constantFrom('add' as const, 'connect' as const), id: u64, address: name }),
    fc.record({ type: fc.constant('assign' as const), id: u64, role: fc.constantFrom('voter', 'standby', 'spare') }),
    fc.record({ type: fc.constantFrom('cluster' as const, 'describe' as const), format: u64 }),
    fc.record({
      type: fc.constant('prepare' as const),
      schema,
      databaseId: u64,
      sql: name.map((s): Uint8Array => Buffer.from(s)),
    }),
  )
  fc.assert(
    fc.property(request, (value) => {
      t.deepEqual(plain(decodeRequest(cut(encodeRequest(value as ClientRequest)))), plain(value))
    }),
  )
})

test('headers for bodies written elsewhere', (t) => {
  t.is(messageHeader(responseCodes.rows, 168).toString('hex'), '1500000007000000')
})

test('bytes that mean nothing never throw anything but our errors', (t) => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 20 }),
      fc.integer({ min: 0, max: 2 }),
      fc.uint8Array({ maxLength: 200 }),
      (type, schema, body) => {
        for (const decode of [decodeRequest, decodeResponse])
          try {
            decode({ type, schema, body })
          } catch (error) {
            t.true(error instanceof DqliteError, String(error))
          }
      },
    ),
    { numRuns: 3000 },
  )
  // Mutations of what is right reach deeper.
  const samples = [
    ...Object.values(golden.requests),
    ...Object.values(golden.responses),
    ...Object.values(golden.corruptedFailures),
  ]
  fc.assert(
    fc.property(
      fc.constantFrom(...samples),
      fc.array(fc.tuple(fc.nat(), fc.integer({ min: 0, max: 255 })), { minLength: 1, maxLength: 4 }),
      (sample, changes) => {
        const bytes = hex(sample)
        if (bytes.length <= 8) return
        for (const [at, value] of changes) bytes[8 + (at % (bytes.length - 8))] = value
        for (const decode of [decodeRequest, decodeResponse])
          try {
            decode({ type: bytes[4]!, schema: bytes[5]!, body: bytes.subarray(8) })
          } catch (error) {
            t.true(error instanceof DqliteError, String(error))
          }
      },
    ),
    { numRuns: 3000 },
  )
})
