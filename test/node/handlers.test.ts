import test from 'ava'
import { DqliteError } from '../../lib/errors.js'
import { encodeParameters, type SqlValue } from '../../lib/codec/tuple.js'
import type { ClientRequest } from '../../lib/codec/client-protocol.js'
import { startServer, summary, WireClient } from '../support/wire.js'

const noParams = new Uint8Array()
const open: ClientRequest = { type: 'open', name: 'test', flags: 0n, vfs: '' }
const sqlRequests = (databaseId: number): ClientRequest[] => [
  { type: 'prepare', schema: 0, databaseId: BigInt(databaseId), sql: 'SELECT 1' },
  { type: 'exec', schema: 0, databaseId, statementId: 0, params: noParams },
  { type: 'query', schema: 1, databaseId, statementId: 0, params: noParams },
  { type: 'execSql', schema: 0, databaseId: BigInt(databaseId), sql: 'SELECT 1', params: noParams },
  { type: 'querySql', schema: 1, databaseId: BigInt(databaseId), sql: 'SELECT 1', params: noParams },
]

test('without an open database SQL requests are refused with 12', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.connect(server)
  const finalize: ClientRequest = { type: 'finalize', databaseId: 0, statementId: 0 }
  for (const request of [...sqlRequests(0), finalize])
    t.is(summary(await client.ask(request)), '12 no database opened', request.type)
  await client.ask(open)
  for (const request of [...sqlRequests(1), { ...finalize, databaseId: 1 }])
    t.is(summary(await client.ask(request)), '12 no database opened', request.type)
  for (const type of ['exec', 'query'] as const)
    t.is(
      summary(await client.ask({ type, schema: 0, databaseId: 0, statementId: 3, params: noParams })),
      '12 no statement with the given id',
    )
  t.is(summary(await client.ask(finalize)), '12 no statement with the given id')
})

test('a node that does not lead refuses with 10250, before it looks at the database', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  server.replicator.isLeader = false
  const client = await WireClient.connect(server)
  const requests: ClientRequest[] = [
    open,
    ...sqlRequests(0),
    { type: 'add', id: 2n, address: 'a' },
    { type: 'assign', id: 2n, role: 'voter' },
    { type: 'remove', id: 2n },
    { type: 'transfer', id: 0n },
  ]
  for (const request of requests) t.is(summary(await client.ask(request)), '10250 not leader', request.type)
  t.deepEqual(server.replicator.changes, [])
  for (const request of [
    { type: 'leader' },
    { type: 'client', id: 1n },
    { type: 'cluster', format: 1n },
    { type: 'describe', format: 0n },
    { type: 'weight', weight: 1n },
    { type: 'interrupt' },
  ] as const)
    t.not((await client.ask(request)).type, 'failure', request.type)
})

test('while leadership is handed over SQL is refused by us and membership by Raft', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  server.replicator.isLeader = false
  server.replicator.isTransferring = true
  t.is(await client.exec('CREATE TABLE a(x)'), '10250 not leader')
  server.replicator.nextOutcome = new DqliteError('NOT_LEADER', 'server is not the leader')
  t.is(summary(await client.ask({ type: 'remove', id: 2n })), '10250 server is not the leader')
  server.replicator.isLeader = true
  server.replicator.isTransferring = false
  t.is(await client.exec('CREATE TABLE a(x)'), '0/0')
})

test('failures of membership changes travel with their codes and texts', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.connect(server)
  for (const [code, text, expected] of [
    ['SQLITE_ERROR', 'server ID already in use', '1 server ID already in use'],
    ['BUSY', 'a configuration change is already in progress', '5 a configuration change is already in progress'],
    ['LEADERSHIP_LOST', 'server has lost leadership', '10506 server has lost leadership'],
  ] as const) {
    server.replicator.nextOutcome = new DqliteError(code, text)
    t.is(summary(await client.ask({ type: 'add', id: 2n, address: 'a' })), expected)
  }
  // A role that does not exist; and an error that nobody expects.
  client.sendHex('020000000d000000 0200000000000000 0300000000000000')
  t.is(summary(await client.next()), '1 server role is not valid')
  server.replicator.nextOutcome = new TypeError('unforeseen') as DqliteError
  t.is(summary(await client.ask({ type: 'transfer', id: 0n })), '10 leader exec failed')
  t.is(server.internalErrors.length, 1)
  t.is((await client.ask({ type: 'client', id: 0n })).type, 'welcome')
})

test('names that no database can have are refused, odd ones are keys like any other', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  for (const name of ['', ':memory:', 'x'.repeat(512), 'a-wal', 'a-journal', 'file:x?mode=memory']) {
    const client = await WireClient.connect(server)
    t.is((await client.ask({ ...open, name })).type, 'failure', name)
    t.is((await client.ask(open)).type, 'db')
  }
  for (const name of ['a/b/c', '../x', 'TEST', 'é', 'x'.repeat(400)]) {
    const client = await WireClient.connect(server)
    t.is((await client.ask({ ...open, name })).type, 'db', name)
    t.is(await client.exec('CREATE TABLE only_here(x)'), '0/0')
  }
  t.deepEqual(server.internalErrors, [])
})

async function prepare(client: WireClient, sql: string, schema: 0 | 1 = 0): Promise<string> {
  const response = await client.ask({ type: 'prepare', schema, databaseId: 0n, sql })
  if (response.type !== 'stmt') return summary(response)
  return `${response.statementId} params ${response.parameterCount.toString()} tail ${String(response.tail)}`
}

test('statement ids: the lowest free one is taken; a finalized one is unknown', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  for (let id = 0; id < 4; id++) t.is(await prepare(client, `SELECT ${id}`), `${id} params 0 tail undefined`)
  t.is((await client.ask({ type: 'finalize', databaseId: 0, statementId: 1 })).type, 'empty')
  t.is(
    summary(await client.ask({ type: 'query', schema: 0, databaseId: 0, statementId: 1, params: noParams })),
    '12 no statement with the given id',
  )
  t.is(
    summary(await client.ask({ type: 'finalize', databaseId: 0, statementId: 1 })),
    '12 no statement with the given id',
  )
  await client.ask({ type: 'finalize', databaseId: 0, statementId: 3 })
  await client.ask({ type: 'finalize', databaseId: 0, statementId: 0 })
  t.is(await prepare(client, 'SELECT 10'), '0 params 0 tail undefined')
  t.is(await prepare(client, 'SELECT 11'), '1 params 0 tail undefined')
  t.is(await prepare(client, 'SELECT 13'), '3 params 0 tail undefined')
  t.is(await prepare(client, 'SELECT 14'), '4 params 0 tail undefined')
  client.request({ type: 'query', schema: 0, databaseId: 0, statementId: 1, params: noParams })
  t.deepEqual(await client.rows(), { columns: ['11'], rows: [[11]], parts: 1 })
})

test('PREPARE: tails, empty statements, errors, and the limit of statements', async (t) => {
  const server = await startServer({ statementsMax: 2 })
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  t.is(await prepare(client, 'SELECT 1; SELECT 2'), '1 nonempty statement tail')
  t.is(await prepare(client, 'SELECT 1; SELEC'), '1 nonempty statement tail')
  t.is(await prepare(client, ''), '0 empty statement')
  t.is(await prepare(client, '  ;; -- nothing\n /* at all */'), '0 empty statement')
  t.is(await prepare(client, 'SELEC 1'), '1 near "SELEC": syntax error')
  t.is(await prepare(client, 'SELECT * FROM nowhere'), '1 no such table: nowhere')
  t.is(await prepare(client, 'SELECT é', 1), '1 no such column: é')
  t.is(await prepare(client, " SELECT 'é', ?; ; -- end\n"), '0 params 1 tail undefined')
  t.is(await prepare(client, "SELECT 'é'; SELECT 2", 1), '1 params 0 tail 12')
  t.regex(await prepare(client, 'SELECT 3'), /^18 /)
})

test('as many parameters as each schema can say', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  for (const [schema, counts] of [
    [0, [0, 1, 7, 8, 255]],
    [1, [0, 4, 5, 256, 1000]],
  ] as const)
    for (const count of counts) {
      const values: SqlValue[] = Array.from({ length: count }, (_, i) => i)
      const sql = `SELECT ${values.map(() => '?').join(', ') || 'NULL'}`
      const params = encodeParameters(values, schema)
      client.request({ type: 'querySql', schema, databaseId: 0n, sql, params })
      const answer = await client.rows()
      t.deepEqual(typeof answer === 'string' ? answer : answer.rows, [count === 0 ? [null] : values])
      const prepared = await prepare(client, sql)
      t.is(prepared, `0 params ${count} tail undefined`)
      client.request({ type: 'query', schema, databaseId: 0, statementId: 0, params })
      t.deepEqual(await client.rows(), answer)
      await client.ask({ type: 'finalize', databaseId: 0, statementId: 0 })
    }
})

test('too few values are NULL, each time; too many are ignored by EXEC and refused by QUERY', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  await client.exec('CREATE TABLE a(x, y)')
  await prepare(client, 'INSERT INTO a VALUES(?, ?)')
  const run = async (type: 'exec' | 'query', ...values: SqlValue[]): Promise<string> =>
    summary(await client.ask({ type, schema: 0, databaseId: 0, statementId: 0, params: encodeParameters(values, 0) }))
  t.is(await run('exec', 1, 2), '1/1')
  t.is(await run('exec', 3), '2/1')
  t.is(await run('exec'), '3/1')
  t.is(await run('exec', 4, 5, 6), '4/1')
  t.is(await run('query', 7, 8, 9), '1 bind parameters')
  t.is(await run('query', 7, 8), 'rows')
  t.is(await client.exec('INSERT INTO a VALUES(?, ?)', 1, 2, 3), '6/1')
  t.is(await client.exec('INSERT INTO a VALUES(?, ?); INSERT INTO a VALUES(?, ?)', 10, 11, 12), '8/1')
  client.requestQuery('SELECT ?', 1, 2)
  t.is(await client.rows(), '1 bind parameters')
  t.deepEqual((await client.query('SELECT x, y FROM a ORDER BY rowid')).rows, [
    [1, 2],
    [3, null],
    [null, null],
    [4, 5],
    [7, 8],
    [1, 2],
    [10, 11],
    [12, null],
  ])
})

test('EXEC: rows are an error that leaves nothing behind, RESULT is sticky, texts stop at the first failure', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  const yielded = '1 rows yielded when none expected for EXEC request'
  t.is(await client.exec(''), '0/0')
  t.is(await client.exec('CREATE TABLE a(x INTEGER PRIMARY KEY)'), '0/0')
  t.is(await client.exec('INSERT INTO a VALUES(5), (6)'), '6/2')
  for (const sql of ['', ' -- nothing', 'BEGIN', 'COMMIT', 'CREATE TABLE b(x)', 'SELECT 1 WHERE 0'])
    t.is(await client.exec(sql), '6/2', sql)
  t.is(await client.exec('SELECT 1'), yielded)
  t.is(await client.exec('INSERT INTO a VALUES(7) RETURNING x'), yielded)
  // Nobody is locked out, and the connection works on.
  const other = await WireClient.open(server)
  t.regex(await other.exec('INSERT INTO b VALUES(1)'), /\/1$/)
  t.is(await client.exec('INSERT INTO b VALUES(2)'), '2/1')
  t.is(await client.value('SELECT count(*) FROM a WHERE x = 7'), 0)
  t.is(await client.exec('INSERT INTO a VALUES(-9)'), '-9/1')
  t.is(await client.exec('INSERT INTO b VALUES(3); bogus; INSERT INTO b VALUES(4)'), '1 near "bogus": syntax error')
  t.is(await client.value('SELECT count(*) FROM b'), 3)
  t.is(await client.exec('BEGIN; INSERT INTO b VALUES(5); bogus'), '1 near "bogus": syntax error')
  t.is(await client.value('SELECT count(*) FROM b'), 4)
  t.is(await client.exec('BEGIN'), '1 cannot start a transaction within a transaction')
  t.is((await client.exec('ROLLBACK')).includes(' '), false)
  t.is(await client.value('SELECT count(*) FROM b'), 3)
  t.is(await client.exec('CREATE TABLE c(x); INSERT INTO c VALUES(1); INSERT INTO c VALUES(2);  '), '2/1')
})

test('QUERY: one statement of any kind, RETURNING included', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  const query = async (sql: string): Promise<unknown> => {
    client.requestQuery(sql)
    const answer = await client.rows()
    return typeof answer === 'string' ? answer : answer.rows
  }
  t.deepEqual(await query('CREATE TABLE a(x INTEGER PRIMARY KEY)'), [])
  t.is(await query('SELECT 1; SELECT 2'), '1 nonempty statement tail')
  t.is(await query('SELECT 1; bogus'), '1 nonempty statement tail')
  for (const tail of [' -- that is all', '\n;;\t/* nor * here */ -- \n ;', ' /* never ends'])
    t.deepEqual(await query(`SELECT 1;${tail}`), [[1]], tail)
  for (const tail of [' -- that\n2', '/**/-', '/', "''"])
    t.is(await query(`SELECT 1;${tail}`), '1 nonempty statement tail', tail)
  t.is(await query(' ; '), '0 empty statement')
  t.deepEqual(await query('INSERT INTO a VALUES(1), (2) RETURNING x, x + 1'), [
    [1, 2],
    [2, 3],
  ])
  t.is(await query('INSERT INTO a VALUES(3), (1) RETURNING x'), '1555 UNIQUE constraint failed: a.x')
  t.deepEqual(await query('SELECT count(*) FROM a'), [[2]])
})

test('what a replicated database refuses is refused with 23', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  for (const sql of [
    "ATTACH 'other' AS o",
    'PRAGMA journal_mode = DELETE',
    'PRAGMA wal_checkpoint',
    'PRAGMA page_size = 512',
  ])
    t.regex(await client.exec(sql), /^23 /, sql)
  t.is(await client.value('PRAGMA journal_mode'), 'wal')
  t.is(await client.value('PRAGMA foreign_keys'), 1)
})

test('a second statement that is refused has not been run', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  await client.exec('CREATE TABLE a(x)')
  await client.exec('BEGIN IMMEDIATE')
  client.requestQuery('SELECT 1; PRAGMA delete_database')
  t.is(await client.rows(), '1 nonempty statement tail')
  await client.exec('COMMIT')
  t.is(await client.value('SELECT count(*) FROM sqlite_schema'), 1)
})

test('VACUUM works and is replicated', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  await client.exec('CREATE TABLE a(x); INSERT INTO a VALUES(zeroblob(500000)); DELETE FROM a')
  const before = (await client.value('PRAGMA page_count')) as number
  const entries = server.replicator.commands.length
  t.false((await client.exec('VACUUM')).includes(' '))
  t.is(server.replicator.commands.length, entries + 1)
  t.true(((await client.value('PRAGMA page_count')) as number) < before)
  const other = await WireClient.open(server)
  t.regex(await other.exec('INSERT INTO a VALUES(1)'), /\/1$/)
})
