/**
 * Two clients of one node, byte by byte: one began with the current protocol word, one with that of clients before 1.0
 * (client-protocol §1.2). Each sends every request under every schema; only the answer to LEADER may differ.
 */
import test from 'ava'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { freePorts, NodeProcess } from '../../lib/cli/node-process.js'
import {
  encodeRequest,
  legacyProtocolVersion,
  protocolVersion,
  type ClientRequest,
  type Schema,
} from '../../lib/codec/client-protocol.js'
import { encodeParameters } from '../../lib/codec/tuple.js'
import { WireClient, words } from '../support/wire.js'

const anotherAddress = '127.0.0.1:1'
const text = (answer: string): string => Buffer.from(answer.replaceAll(' ', ''), 'hex').toString('latin1')
/** The answer's type and schema, its bytes 4 and 5: 'type.schema'. */
const kind = (answer: string): string => `${parseInt(answer.slice(8, 10), 16)}.${parseInt(answer.slice(10, 12), 16)}`

/** What is sent, and what kinds of answers must come: under schema 0 and under schema 1. */
interface Exchange {
  readonly request: (schema: Schema) => ClientRequest
  readonly kinds: readonly [string, string]
}

const failure = '0.0'
const simple = (request: ClientRequest, answer: string): Exchange => ({
  request: () => request,
  kinds: [answer, failure],
})
const statementId = (schema: Schema): number => schema
const databaseId = 0

// client-protocol §5, in an order in which each can be answered. Statement ids are given in order of PREPARE.
const exchanges: readonly Exchange[] = [
  simple({ type: 'client', id: 5n }, '2.0'),
  simple({ type: 'open', name: 'DATABASE', flags: 0n, vfs: 'volatile' }, '4.0'),
  simple({ type: 'open', name: 'DATABASE', flags: 0n, vfs: 'volatile' }, failure),
  {
    request: (schema) => ({
      type: 'execSql',
      schema,
      databaseId: 0n,
      sql: 'CREATE TABLE IF NOT EXISTS t(a, b)',
      params: new Uint8Array(),
    }),
    kinds: ['6.0', '6.0'],
  },
  {
    request: (schema) => ({
      type: 'execSql',
      schema,
      databaseId: 0n,
      sql: 'INSERT INTO t VALUES(?, ?)',
      params: encodeParameters([1, 'x'], schema),
    }),
    kinds: ['6.0', '6.0'],
  },
  {
    request: (schema) => ({
      type: 'querySql',
      schema,
      databaseId: 0n,
      sql: 'SELECT * FROM t WHERE b = ?',
      params: encodeParameters(['x'], schema),
    }),
    kinds: ['7.0', '7.0'],
  },
  {
    request: (schema) => ({ type: 'prepare', schema, databaseId: 0n, sql: 'UPDATE t SET a = a + ?' }),
    kinds: ['5.0', '5.1'],
  },
  {
    request: (schema) => ({
      type: 'exec',
      schema,
      databaseId,
      statementId: statementId(schema),
      params: encodeParameters([1], schema),
    }),
    kinds: ['6.0', '6.0'],
  },
  {
    request: (schema) => ({
      type: 'query',
      schema,
      databaseId,
      statementId: statementId(schema),
      params: encodeParameters([1], schema),
    }),
    kinds: ['7.0', '7.0'],
  },
  {
    request: (schema) => ({ type: 'execSql', schema, databaseId: 0n, sql: 'SELEKT', params: new Uint8Array() }),
    kinds: [failure, failure],
  },
  simple({ type: 'interrupt' }, '8.0'),
  simple({ type: 'cluster', format: 0n }, '3.0'),
  simple({ type: 'cluster', format: 1n }, '3.0'),
  simple({ type: 'add', id: 2n, address: anotherAddress }, '8.0'),
  simple({ type: 'assign', id: 9n, role: 'voter' }, failure),
  simple({ type: 'transfer', id: 2n }, failure),
  simple({ type: 'cluster', format: 1n }, '3.0'),
  simple({ type: 'remove', id: 2n }, '8.0'),
  simple({ type: 'weight', weight: 3n }, '8.0'),
  simple({ type: 'describe', format: 0n }, '10.0'),
  simple({ type: 'dump', name: 'nowhere' }, failure),
  simple({ type: 'finalize', databaseId, statementId: 0 }, '8.0'),
  simple({ type: 'finalize', databaseId, statementId: 0 }, failure),
]

/** The request's bytes with another schema in the header. */
function encode(request: ClientRequest, schema: number): Buffer {
  const bytes = encodeRequest(request)
  bytes[5] = schema
  return bytes
}

async function ask(client: WireClient, bytes: Uint8Array): Promise<string> {
  client.send(bytes)
  const answer = await client.hex()
  if (answer === undefined) throw new Error(`the node closed the connection at ${words(bytes)}`)
  return answer
}

async function startNode(): Promise<{ node: NodeProcess; port: number; dir: string }> {
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-legacy-'))
  const [port] = (await freePorts(1)) as [number]
  const node = await NodeProcess.start({ id: 1n, address: `127.0.0.1:${port}`, dir })
  return { node, port, dir }
}

test('every request under every schema is answered alike after the legacy word and after the current one', async (t) => {
  const { node, port, dir } = await startNode()
  t.teardown(async () => {
    await node.kill('SIGKILL')
    rmSync(dir, { recursive: true, force: true })
  })
  const told: string[][] = []
  for (const [word, database] of [
    [protocolVersion, 'new'],
    [legacyProtocolVersion, 'old'],
  ] as const) {
    const client = await WireClient.connect({ port }, word)
    const answers: string[] = []
    for (const { request, kinds } of exchanges)
      for (const schema of [0, 1, 2] as const) {
        const asked = request(schema === 1 ? 1 : 0)
        const sent = asked.type === 'open' ? { ...asked, name: database } : asked
        const answer = await ask(client, encode(sent, schema))
        answers.push(answer)
        const expected = schema === 2 ? failure : kinds[schema]
        t.is(kind(answer), expected, `${database} ${sent.type} under schema ${schema}: ${answer}`)
        if (schema === 2 || (schema === 1 && !('schema' in asked))) {
          t.true(text(answer).includes('unrecognized schema version'))
          t.is(parseInt(answer.slice(17, 21), 16), 'schema' in asked ? 0x0100 : 0xed03)
        }
      }
    const dump = await ask(client, encodeRequest({ type: 'dump', name: database }))
    t.is(kind(dump), '9.0')
    answers.push(String(dump.length))
    told.push(answers)
    await client.end()
  }
  t.deepEqual(told[1], told[0])
})

test('LEADER alone differs after the legacy word: the address without the id', async (t) => {
  const { node, port, dir } = await startNode()
  t.teardown(async () => {
    await node.kill('SIGKILL')
    rmSync(dir, { recursive: true, force: true })
  })
  const address = Buffer.alloc(16)
  address.write(`127.0.0.1:${port}`)
  const leader = encodeRequest({ type: 'leader' })
  for (const [word, head] of [
    [protocolVersion, '0300000001000000 0100000000000000'],
    [legacyProtocolVersion, '0200000001000000'],
  ] as const) {
    const client = await WireClient.connect({ port }, word)
    t.is(await ask(client, leader), `${head} ${words(address)}`)
    // The word keeps its meaning for the whole connection, after a failure too.
    const refused = await ask(client, encode({ type: 'leader' }, 1))
    t.is(kind(refused), failure)
    t.is(await ask(client, leader), `${head} ${words(address)}`)
    await client.end()
  }
})
