import { setTimeout as sleep } from 'node:timers/promises'
import test from 'ava'
import { RowsBuffer } from '../../lib/engine/connection.js'
import { Engine } from '../../lib/engine/database.js'
import { decodeRows, endless, exec, execOnWorker, query, queryOnWorker, replicate } from '../support/engine.js'
import type { Connection } from '../../lib/engine/connection.js'
import type { Database } from '../../lib/engine/database.js'
import type { EngineOptions } from '../../lib/engine/database.js'

function open(options: EngineOptions = {}): { engine: Engine; database: Database; connection: Connection } {
  // The default budget is for a loop with other work; a busy test machine must not run into it.
  const engine = Engine.create({ statementBudgetMs: 10_000, ...options })
  const database = engine.database('test.db')
  return { engine, database, connection: database.connect() }
}

const hex = (text: string): Buffer => Buffer.from(text.replaceAll(' ', ''), 'hex')
const count = (limit: number): string =>
  `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ${limit}) SELECT i FROM n`

test('parameters and rows are the bytes of the protocol', async (t) => {
  const { engine, database, connection } = open()
  exec(connection, 'CREATE TABLE t(i INTEGER, r REAL, s TEXT, b BLOB, d DATETIME, o BOOLEAN, x)')
  const insert = connection.prepare(Buffer.from('INSERT INTO t VALUES(?,?,?,?,?,?,?)')).statement!
  t.is(insert.parameterCount, 7)
  t.true(insert.needsWriteTurn)
  // client-protocol E6: the tuple stands behind the fixed fields of the message
  const body = hex(
    '0000000000000000 07010203040a0b05 feffffffffffffff 000000000000f83f 68c3a96c6c6f0000 0300000000000000' +
      '0102030000000000 323032342d30312d 30322030333a3034 3a30352b30303a30 3000000000000000 0100000000000000' +
      '0000000000000000',
  )
  t.is(insert.bind(body, 8, 0, 0), 7)
  t.is(insert.execute().kind, 'done')
  replicate(database)
  const result = Buffer.alloc(24)
  connection.writeResult(result, 8)
  t.deepEqual(result, hex('0000000000000000 0100000000000000 0100000000000000'))
  const select = connection.prepare(Buffer.from('SELECT * FROM t')).statement!
  t.true(select.isReadOnly)
  t.is(select.columnCount, 7)
  const target = new RowsBuffer()
  t.is(select.rows(target).kind, 'done')
  // E8
  t.deepEqual(
    Buffer.from(target.take()),
    hex(
      '1500000007000000 0700000000000000 6900000000000000 7200000000000000 7300000000000000 6200000000000000' +
        '6400000000000000 6f00000000000000 7800000000000000 2143ba0500000000 feffffffffffffff 000000000000f83f' +
        '68c3a96c6c6f0000 0300000000000000 0102030000000000 323032342d30312d 30322030333a3034 3a30352b30303a30' +
        '3000000000000000 0100000000000000 0000000000000000 ffffffffffffffff',
    ),
  )
  t.throws(() => insert.bind(hex('0109000000000000 0100000000000000'), 0, 0, 0), {
    code: 'SQLITE_ERROR',
    message: 'bind parameters',
  })
  await engine.close()
})

test('a result of several batches: the first closes at a page, later ones may be larger', async (t) => {
  const { engine, connection } = open()
  const statement = connection.prepare(Buffer.from(count(20_000))).statement!
  const target = new RowsBuffer(64 * 1024)
  t.is(statement.rows(target).kind, 'part')
  const first = target.take()
  t.is(first.byteLength, 8 + 513 * 8) // E13
  t.is(statement.rows(target).kind, 'part')
  const second = target.take()
  t.true(second.byteLength > 64 * 1024 && second.byteLength < 65 * 1024)
  t.is(decodeRows(first).length, 255)
  let rows = 255 + decodeRows(second).length
  let outcome
  do {
    outcome = statement.rows(target)
    rows += decodeRows(target.take()).length
  } while (outcome.kind === 'part')
  t.is(outcome.kind, 'done')
  t.is(rows, 20_000)
  t.is(decodeRows(first).length, 255) // the message was given away and stays as it was
  t.deepEqual(query(connection, 'SELECT length(zeroblob(3000000)), zeroblob(300000)')[0]![1], Buffer.alloc(300_000))
  await engine.close()
})

test('SQL errors carry the extended code and text of SQLite', async (t) => {
  const { engine, connection } = open()
  t.throws(() => connection.prepare(Buffer.from('SELEC')), {
    code: 'SQLITE_ERROR',
    message: 'near "SELEC": syntax error',
  })
  t.throws(() => connection.prepare(Buffer.from('PRAGMA journal_mode=DELETE')), {
    code: 'NOT_AUTHORIZED',
    message: 'not authorized',
  })
  exec(connection, 'CREATE TABLE t(a UNIQUE); INSERT INTO t VALUES(1)')
  const { statement } = connection.prepare(Buffer.from('INSERT INTO t VALUES(1)'))
  t.deepEqual(statement!.execute(), { kind: 'error', code: 2067, message: 'UNIQUE constraint failed: t.a' })
  t.deepEqual(await statement!.executeOnWorker(), {
    kind: 'error',
    code: 2067,
    message: 'UNIQUE constraint failed: t.a',
  })
  await engine.close()
})

test('a text is prepared statement by statement', async (t) => {
  const { engine, connection } = open()
  const sql = Buffer.from('SELECT 1; -- é\nSELECT 2 ; ;')
  const first = connection.prepare(sql)
  t.is(first.tail, 9)
  const second = connection.prepare(sql, first.tail)
  t.is(sql.subarray(second.tail).toString(), ' ;')
  t.deepEqual(connection.prepare(sql, second.tail), { statement: undefined, tail: sql.length })
  t.is(connection.prepare(new Uint8Array(0)).statement, undefined)
  await engine.close()
})

test('a released statement is prepared once', async (t) => {
  const { engine, connection } = open()
  const sql = Buffer.from('SELECT 1')
  const { statement } = connection.prepareCached(sql)
  const other = connection.prepareCached(sql).statement!
  t.not(other, statement)
  statement!.release()
  other.release() // its place is taken
  t.is(connection.prepareCached(Buffer.from('SELECT 1')).statement, statement)
  for (let i = 0; i < 100; i++) connection.prepareCached(Buffer.from(`SELECT ${i}`)).statement!.release()
  // A PRAGMA may act when it is prepared: it is never kept.
  const pragma = connection.prepareCached(Buffer.from('PRAGMA user_version')).statement!
  pragma.release()
  t.not(connection.prepareCached(Buffer.from('PRAGMA user_version')).statement, pragma)
  await engine.close()
})

test('a statement over its budget is undone and runs on a worker', async (t) => {
  const { engine, database, connection } = open({ statementBudgetMs: 2 })
  exec(connection, 'CREATE TABLE t(a)')
  const insert = connection.prepare(Buffer.from(`INSERT INTO t ${count(300_000)}`)).statement!
  t.is(insert.execute().kind, 'overBudget')
  t.false(connection.isWriting)
  const running = insert.executeOnWorker()
  t.true(connection.isBusy)
  t.throws(() => connection.prepare(Buffer.from('SELECT 1')), { message: /worker/ })
  t.true(connection.isWriting)
  t.deepEqual(await running, { kind: 'done' })
  t.false(connection.isBusy)
  replicate(database)
  const select = connection.prepare(Buffer.from('SELECT sum(a % 7), count(*) FROM t WHERE a > 0')).statement!
  const target = new RowsBuffer()
  t.is(select.rows(target).kind, 'overBudget')
  t.is((await select.rowsOnWorker(target)).kind, 'done')
  t.is(decodeRows(target.take())[0]![1], 300_000n)
  t.true(database.checkpoint())
  await engine.close()
})

test('workers and the loop share one database', async (t) => {
  const { engine, database, connection } = open({ workerThreadsMax: 3 })
  exec(connection, 'CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE TABLE big(a)')
  replicate(database)
  let inserted = 0
  const readers = Array.from({ length: 8 }, async () => {
    const reader = database.connect()
    for (let i = 0; i < 20; i++) {
      const expected = BigInt(inserted - database.speculative)
      const [row] = await queryOnWorker(reader, 'SELECT count(*), count(b) FROM t')
      t.deepEqual(row, [expected, expected])
    }
    await reader.close()
  })
  const insert = connection.prepare(Buffer.from('INSERT INTO t(b) VALUES(hex(zeroblob(300)))')).statement!
  const done = Promise.all(readers).then(() => true)
  while (!(await Promise.race([done, new Promise<false>((resolve) => setImmediate(resolve, false))]))) {
    for (let i = 0; i < 5; i++) {
      t.is(insert.execute().kind, 'done')
      inserted++
    }
    for (let i = 0; i < 4; i++) {
      database.takeCaptured()
      if (database.speculative > 0) database.publish()
    }
  }
  insert.finalize()
  t.deepEqual(await execOnWorker(connection, `INSERT INTO big ${count(1000)}`), { kind: 'done' })
  t.deepEqual(await execOnWorker(connection, 'VACUUM'), { kind: 'done' })
  while (database.speculative > 0) database.publish()
  t.deepEqual(query(connection, 'SELECT count(*) FROM big'), [[1000n]])
  t.deepEqual(query(connection, 'PRAGMA integrity_check'), [['ok']])
  t.true(database.checkpoint())
  await engine.close()
})

test('interrupt and close end what a worker runs', async (t) => {
  const { engine, database, connection } = open()
  const running = queryOnWorker(connection, endless)
  await sleep(5)
  connection.interrupt()
  await t.throwsAsync(running, { message: '9 interrupted' })
  t.deepEqual(query(connection, 'SELECT 1'), [[1n]])
  // At once, before the worker has made a step.
  const early = queryOnWorker(connection, endless)
  connection.interrupt()
  await t.throwsAsync(early, { message: '9 interrupted' })
  exec(connection, 'CREATE TABLE t(a); BEGIN; INSERT INTO t VALUES(1)')
  const writing = execOnWorker(connection, `INSERT INTO t ${endless}`)
  const closed = connection.close()
  t.is(connection.close(), closed)
  t.is((await writing).kind, 'error')
  await closed
  t.is(database.connections, 0)
  t.is(database.speculative, 1)
  t.throws(() => connection.prepare(Buffer.from('SELECT 1')), { code: 'CLOSED' })
  database.dropSpeculative()
  await engine.close()
})

test('closing the engine interrupts every worker, also those that wait for a thread', async (t) => {
  const { engine, database } = open({ workerThreadsMax: 2 })
  const running = Array.from({ length: 6 }, () => queryOnWorker(database.connect(), endless))
  const ended = Promise.allSettled(running)
  await engine.close()
  for (const { status } of await ended) t.is(status, 'rejected')
  t.is(database.connections, 0)
})

test('closing a connection rolls back', async (t) => {
  const { engine, database, connection } = open()
  exec(connection, 'CREATE TABLE t(a)')
  replicate(database)
  const half = connection.prepare(Buffer.from(`INSERT INTO t ${count(1000)} RETURNING a`)).statement!
  t.is(half.rows(new RowsBuffer()).kind, 'part')
  t.true(connection.isWriting)
  await connection.close()
  const other = database.connect()
  exec(other, 'BEGIN IMMEDIATE; INSERT INTO t VALUES(1)')
  await other.close()
  t.is(database.takeCaptured(), undefined)
  t.true(database.checkpoint())
  await engine.close()
})

test('EXEC of a statement that yields a row leaves nothing locked', async (t) => {
  const { engine, database, connection } = open()
  exec(connection, 'CREATE TABLE t(a)')
  replicate(database)
  const { statement } = connection.prepare(Buffer.from('INSERT INTO t VALUES(1) RETURNING a'))
  t.is(statement!.execute().kind, 'row')
  t.is((await statement!.executeOnWorker()).kind, 'row')
  t.is(database.takeCaptured(), undefined)
  exec(database.connect(), 'BEGIN IMMEDIATE')
  await engine.close()
})
