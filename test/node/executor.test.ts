import test from 'ava'
import { settled, startServer, summary, until, WireClient, type TestServer } from '../support/wire.js'

const many = 'WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < ?) SELECT n FROM c'
/** As the limit of `many`: it ends when it is interrupted. */
const endless = 1e15
const locked = '5 database is locked'
const notLeader = '10250 not leader'
const lost = '10506 leadership lost'

/** A table `a`, committed; from here on the test commits by hand. */
async function byHand(server: TestServer): Promise<void> {
  const client = await WireClient.open(server)
  await client.exec('CREATE TABLE a(x INTEGER PRIMARY KEY)')
  await client.end()
  server.replicator.auto = false
}

const clients = (server: TestServer, count: number): Promise<WireClient[]> =>
  Promise.all(Array.from({ length: count }, () => WireClient.open(server)))

test('a write is answered when its entry is applied, not before', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  const [client] = await clients(server, 1)
  client!.requestExec('INSERT INTO a VALUES(1)')
  await until(() => server.replicator.holds === 1)
  await settled()
  t.is(client!.peek(), undefined)
  server.replicator.commit()
  t.is(await client!.answer(), '1/1')
})

test('writers run on top of each other before anything is committed, and are answered in the order of commits', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  const writers = await clients(server, 5)
  const start = server.replicator.lastIndex
  for (const [i, client] of writers.entries()) client.requestExec('INSERT INTO a VALUES(?)', i)
  await until(() => server.replicator.holds === 5)
  t.is(server.replicator.lastIndex, start + 5)
  t.is(server.engine.find('test')!.speculative, 5)
  server.replicator.commit(start + 3)
  await settled()
  const answered = writers.filter((client) => client.peek() !== undefined)
  t.is(answered.length, 3)
  server.replicator.commit()
  for (const client of writers.filter((each) => !answered.includes(each))) t.regex(await client.answer(), /\/1$/)
})

test('reads see the committed view and are not held; nobody sees what is not committed', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  const [writer, reader] = await clients(server, 2)
  writer!.requestExec('INSERT INTO a VALUES(1)')
  await until(() => server.replicator.holds === 1)
  t.is(await reader!.value('SELECT count(*) FROM a'), 0)
  // On the speculative view: a failure, a statement of zero frames, a schema. They wait for what they saw.
  for (const request of [
    'INSERT INTO a VALUES(1)',
    'UPDATE a SET x = 2 WHERE x = 77',
    'CREATE TABLE IF NOT EXISTS a(x)',
    'BEGIN; SELECT count(*) FROM a WHERE 0; COMMIT',
  ]) {
    const client = await WireClient.open(server)
    client.requestExec(request)
    await until(() => server.replicator.holds === 2)
    await settled()
    t.is(client.peek(), undefined, request)
    await client.end()
    await until(() => server.engine.find('test')!.connections === 2)
    server.replicator.commit()
    await writer!.answer()
    writer!.requestExec('INSERT INTO a VALUES(NULL)')
    await until(() => server.replicator.holds === 1)
  }
  t.is(await reader!.value('SELECT count(*) FROM a'), 4)
  server.replicator.commit()
  t.is(await reader!.value('SELECT count(*) FROM a'), 5)
})

test('inside a transaction answers wait for the transactions below it', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  const [writer, other] = await clients(server, 2)
  writer!.requestExec('INSERT INTO a VALUES(1)')
  await until(() => server.replicator.holds === 1)
  t.is(await other!.exec('BEGIN'), '0/0')
  other!.requestQuery('SELECT count(*) FROM a')
  await until(() => server.replicator.holds === 2)
  await settled()
  t.is(other!.peek(), undefined)
  server.replicator.commit()
  const answer = await other!.rows()
  t.deepEqual(typeof answer === 'string' ? answer : answer.rows, [[1]])
  t.is(await writer!.answer(), '1/1')
  t.is(await other!.exec('INSERT INTO a VALUES(2)'), '2/1')
  other!.requestExec('COMMIT')
  await until(() => server.replicator.holds === 1)
  server.replicator.commit()
  t.is(await other!.answer(), '2/1')
})

test('RETURNING shows its rows, and DONE when the write is committed', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  const [client] = await clients(server, 1)
  client!.requestQuery('INSERT INTO a VALUES(1), (2) RETURNING x')
  await until(() => server.replicator.holds === 1)
  await settled()
  t.is(client!.peek(), undefined)
  server.replicator.commit()
  const answer = await client!.rows()
  t.deepEqual(typeof answer === 'string' ? answer : answer.rows, [[1], [2]])
})

test('writers wait for an open transaction in order of arrival', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [holder, ...writers] = await clients(server, 6)
  await holder!.exec('BEGIN IMMEDIATE; INSERT INTO a VALUES(100)')
  for (const [i, client] of writers.entries()) {
    client.requestExec('INSERT INTO a VALUES(NULL)')
    await until(() => server.executor.writersQueued === i + 1)
  }
  // The holder's own statements do not queue.
  t.is(await holder!.exec('INSERT INTO a VALUES(200)'), '200/1')
  t.is(await holder!.exec('COMMIT'), '200/1')
  t.deepEqual(await Promise.all(writers.map((client) => client.answer())), [
    '201/1',
    '202/1',
    '203/1',
    '204/1',
    '205/1',
  ])
})

test('a writer whose time is over gets BUSY, and a limit of 0 refuses at once', async (t) => {
  for (const busyTimeoutMs of [30, 0]) {
    const server = await startServer({ busyTimeoutMs })
    t.teardown(() => server.close())
    await byHand(server)
    server.replicator.auto = true
    const [holder, writer, reader] = await clients(server, 3)
    await holder!.exec('BEGIN IMMEDIATE')
    for (const type of ['exec', 'query'] as const)
      if (type === 'exec') t.is(await writer!.exec('INSERT INTO a VALUES(1)'), locked)
      else {
        writer!.requestQuery('INSERT INTO a VALUES(1) RETURNING x')
        t.is(await writer!.rows(), locked)
      }
    t.is(await writer!.exec('BEGIN IMMEDIATE'), locked)
    t.is(await reader!.value('SELECT count(*) FROM a'), 0)
    await holder!.exec('COMMIT')
    t.is(await writer!.exec('INSERT INTO a VALUES(1)'), '1/1')
    t.deepEqual(server.internalErrors, [])
  }
})

test('the queue of writers is bounded', async (t) => {
  const server = await startServer({ writersQueuedMax: 2 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [holder, first, second, third] = await clients(server, 4)
  await holder!.exec('BEGIN IMMEDIATE')
  first!.requestExec('INSERT INTO a VALUES(1)')
  second!.requestExec('INSERT INTO a VALUES(2)')
  await until(() => server.executor.writersQueued === 2)
  t.is(await third!.exec('INSERT INTO a VALUES(3)'), locked)
  await holder!.exec('ROLLBACK')
  t.is(await first!.answer(), '1/1')
  t.is(await second!.answer(), '2/1')
})

test('a transaction that has read and writes after somebody else gets 517', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [client, other] = await clients(server, 2)
  await client!.exec('BEGIN')
  t.is(await client!.value('SELECT count(*) FROM a'), 0)
  await other!.exec('INSERT INTO a VALUES(1)')
  t.is(await client!.exec('INSERT INTO a VALUES(2)'), '517 database is locked')
  // The turn was not kept.
  t.is(await other!.exec('INSERT INTO a VALUES(3)'), '3/1')
  t.is((await client!.exec('ROLLBACK')).includes(' '), false)
  t.is(await client!.exec('INSERT INTO a VALUES(2)'), '2/1')
})

test('a disconnect rolls back, gives the turn away and leaves the queue', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [holder, leaver, writer] = await clients(server, 3)
  await holder!.exec('BEGIN IMMEDIATE; INSERT INTO a VALUES(1)')
  leaver!.requestExec('INSERT INTO a VALUES(2)')
  await until(() => server.executor.writersQueued === 1)
  writer!.requestExec('INSERT INTO a VALUES(3)')
  await until(() => server.executor.writersQueued === 2)
  await leaver!.end()
  await until(() => server.executor.writersQueued === 1)
  await holder!.end()
  t.is(await writer!.answer(), '3/1')
  t.is(await writer!.value('SELECT group_concat(x) FROM a'), '3')
  await until(() => server.engine.find('test')!.connections === 1)
})

test('a disconnect while an answer is held leaves the write as it is', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  const [leaver, reader] = await clients(server, 2)
  leaver!.requestExec('INSERT INTO a VALUES(1)')
  await until(() => server.replicator.holds === 1)
  await leaver!.end()
  await until(() => server.gateways.connections === 1)
  server.replicator.commit()
  t.is(await reader!.value('SELECT count(*) FROM a'), 1)
  t.deepEqual(server.internalErrors, [])
})

test('a disconnect ends a statement on a worker, and the next writer goes on', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [leaver, writer] = await clients(server, 2)
  leaver!.requestExec(`INSERT INTO a ${many}`, 2_000_000_000)
  await settled()
  writer!.requestExec('INSERT INTO a VALUES(7)')
  await until(() => server.executor.writersQueued === 1)
  await leaver!.end()
  t.is(await writer!.answer(), '7/1')
  t.is(await writer!.value('SELECT count(*) FROM a'), 1)
})

test('INTERRUPT takes a queued writer out of the queue', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [holder, writer] = await clients(server, 2)
  await holder!.exec('BEGIN IMMEDIATE')
  writer!.requestExec('INSERT INTO a VALUES(1)')
  await until(() => server.executor.writersQueued === 1)
  writer!.request({ type: 'interrupt' })
  t.is(await writer!.answer(), 'empty')
  t.is(server.executor.writersQueued, 0)
  await holder!.exec('COMMIT')
  t.is(await writer!.value('SELECT count(*) FROM a'), 0)
})

test('INTERRUPT behind a held write is answered after it', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  const [writer] = await clients(server, 1)
  writer!.requestExec('INSERT INTO a VALUES(1)')
  writer!.request({ type: 'interrupt' })
  await until(() => server.replicator.holds === 1)
  await settled()
  t.is(writer!.peek(), undefined)
  server.replicator.commit()
  t.is(await writer!.answer(), '1/1')
  t.is(await writer!.answer(), 'empty')
})

test('a full pipeline makes writers wait, not fail', async (t) => {
  const server = await startServer({ busyTimeoutMs: 0 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.pipelineEntriesMax = 2
  const writers = await clients(server, 5)
  for (const client of writers) client.requestExec('INSERT INTO a VALUES(NULL)')
  await until(() => server.replicator.holds === 2 && server.executor.writersQueued === 3)
  server.replicator.commit()
  await until(() => server.replicator.holds === 2 && server.executor.writersQueued === 1)
  server.replicator.commit()
  await until(() => server.replicator.holds === 1)
  server.replicator.commit()
  for (const client of writers) t.regex(await client.answer(), /\/1$/)
})

test('a COMMIT waits for room in the pipeline', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.pipelineEntriesMax = 1
  const [writer, other] = await clients(server, 2)
  t.is(await writer!.exec('BEGIN IMMEDIATE'), '0/0')
  t.is(await writer!.exec('INSERT INTO a VALUES(1)'), '1/1')
  const full = await WireClient.open(server, 'another')
  full.requestExec('CREATE TABLE b(x)')
  await until(() => server.replicator.holds === 1)
  writer!.requestExec('COMMIT')
  await settled()
  t.is(server.replicator.holds, 1)
  t.is(await other!.value('SELECT count(*) FROM a'), 0)
  server.replicator.commit()
  t.is(await full.answer(), '0/0')
  await until(() => server.replicator.holds === 1)
  server.replicator.commit()
  t.is(await writer!.answer(), '1/1')
})

test('many pipelined writes of many clients all commit', async (t) => {
  const server = await startServer({ checkpointFrames: 50 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const writers = await clients(server, 10)
  for (const client of writers) for (let i = 0; i < 100; i++) client.requestExec('INSERT INTO a VALUES(NULL)')
  for (const client of writers) for (let i = 0; i < 100; i++) t.regex(await client.answer(), /\/1$/)
  t.is(await writers[0]!.value('SELECT count(*) FROM a'), 1000)
  // The write-ahead log was moved into the database on the way.
  t.true(server.engine.find('test')!.walFrames < 1000)
  t.deepEqual(server.internalErrors, [])
})

test('a reader in the way only postpones the checkpoint', async (t) => {
  const server = await startServer({ checkpointFrames: 20 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [reader, writer] = await clients(server, 2)
  await reader!.exec('BEGIN')
  t.is(await reader!.value('SELECT count(*) FROM a'), 0)
  for (let i = 0; i < 60; i++) t.is(await writer!.exec('INSERT INTO a VALUES(NULL)'), `${i + 1}/1`)
  t.true(server.engine.find('test')!.walFrames >= 60)
  t.is(await reader!.value('SELECT count(*) FROM a'), 0)
  await reader!.exec('COMMIT')
  for (let i = 60; i < 120; i++) await writer!.exec('INSERT INTO a VALUES(NULL)')
  t.true(server.engine.find('test')!.walFrames < 100)
})

test('the first statement after an election waits for the barrier', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [reader, writer, transaction] = await clients(server, 3)
  await transaction!.exec('BEGIN')
  server.replicator.needsBarrier = true
  t.is(await transaction!.value('SELECT count(*) FROM a'), 0)
  reader!.requestQuery('SELECT count(*) FROM a')
  writer!.requestExec('INSERT INTO a VALUES(1)')
  await until(() => server.replicator.barriers === 2)
  await settled()
  t.is(reader!.peek(), undefined)
  server.replicator.barrierApplied()
  t.deepEqual(await reader!.rows().then((a) => (typeof a === 'string' ? a : a.rows.length)), 1)
  t.is(await writer!.answer(), '1/1')
})

test('a heavy read runs on a worker while others go on', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [heavy, writer, reader] = await clients(server, 3)
  heavy!.requestQuery(`SELECT count(*) FROM (${many}) a`, endless)
  await settled()
  t.is(await writer!.exec('INSERT INTO a VALUES(1)'), '1/1')
  t.is(await reader!.value('SELECT count(*) FROM a'), 1)
  t.is(heavy!.peek(), undefined)
  heavy!.request({ type: 'interrupt' })
  t.is(await heavy!.answer(), 'empty')
  heavy!.requestQuery(`SELECT count(*) FROM (${many}) a`, 1_000_000)
  const answer = await heavy!.rows()
  t.deepEqual(typeof answer === 'string' ? answer : answer.rows, [[1_000_000]])
})

test('a query that is quick at first and slow later does not hold the loop', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  const [heavy, other] = await clients(server, 2)
  heavy!.requestQuery(`SELECT n FROM (${many}) WHERE n < 1000`, endless)
  t.is((await heavy!.raw())!.type, 7)
  for (let i = 0; i < 20; i++) t.is(await other!.value('SELECT count(*) FROM a'), 0)
  t.is(heavy!.peek(), undefined)
  heavy!.request({ type: 'interrupt' })
  t.is(await heavy!.answer(), 'empty')
})

test('in a transaction a heavy write starts on a worker, and its transaction survives', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [heavy, reader] = await clients(server, 2)
  await heavy!.exec('BEGIN; INSERT INTO a VALUES(-5)')
  heavy!.requestExec(`INSERT INTO a ${many}`, 1_000_000)
  t.is(await reader!.value('SELECT count(*) FROM a'), 0)
  t.is(heavy!.peek(), undefined)
  t.is(await heavy!.answer(), '1000000/1000000')
  t.is(await heavy!.exec('COMMIT'), '1000000/1000000')
  t.is(await reader!.value('SELECT count(*) FROM a'), 1_000_001)
})

test('a long text of statements gives others their turns', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [long, other] = await clients(server, 2)
  const count = 5000
  long!.requestExec('INSERT INTO a VALUES(NULL);'.repeat(count))
  other!.requestExec('INSERT INTO a VALUES(1000000)')
  t.is(await other!.answer(), '1000000/1')
  t.is(long!.peek(), undefined)
  t.regex(await long!.answer(), /\/1$/)
  t.is(await other!.value('SELECT count(*) FROM a'), count + 1)
})

test('PRAGMA delete_database empties the database, and it is gone with its last connection', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [client, other] = await clients(server, 2)
  t.is(
    await client!.exec('PRAGMA delete_database'),
    '1 PRAGMA delete_database must be run in a write transaction. Use BEGIN IMMEDIATE to start one.',
  )
  t.false((await client!.exec('BEGIN IMMEDIATE; PRAGMA delete_database; COMMIT')).includes(' '))
  t.is(await other!.value('SELECT count(*) FROM sqlite_schema'), 0)
  await client!.end()
  await other!.end()
  await until(() => server.engine.find('test') === undefined)
  const again = await WireClient.open(server)
  t.is(await again.exec('CREATE TABLE a(x)'), '0/0')
})

test('a transaction above the limit is refused with its text and leaves nothing behind', async (t) => {
  const server = await startServer({}, { transactionBytesMax: 1024 * 1024 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.auto = true
  const [client] = await clients(server, 1)
  await client!.exec('CREATE TABLE b(x)')
  t.regex(await client!.exec('INSERT INTO b VALUES(zeroblob(2000000))'), /^18 /)
  t.is(await client!.value('SELECT count(*) FROM b'), 0)
  t.is(await client!.exec('INSERT INTO b VALUES(zeroblob(500000))'), '1/1')
})

test('a heavy write runs on a worker with the turn taken', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  const [heavy, writer, reader] = await clients(server, 3)
  heavy!.requestExec(`INSERT INTO a SELECT n + 1000000 FROM (${many})`, 400_000)
  t.is(await reader!.value('SELECT count(*) FROM a'), 0)
  writer!.requestExec('INSERT INTO a VALUES(1)')
  await until(() => server.executor.writersQueued === 1)
  t.is(await reader!.value('SELECT count(*) FROM a'), 0)
  await until(() => server.replicator.holds === 2)
  t.is(await reader!.value('SELECT count(*) FROM a'), 0)
  server.replicator.commit()
  t.is(await heavy!.answer(), '1400000/400000')
  t.is(await writer!.answer(), '1/1')
  t.is(await reader!.value('SELECT count(*) FROM a'), 400_001)
})

test('loss of leadership: idle, in a transaction, queued, held, reading, on a worker', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  const [idle, held, transaction, queued, worker, streaming, barrier, text] = await clients(server, 8)
  t.is((await idle!.ask({ type: 'prepare', schema: 0, databaseId: 0n, sql: 'SELECT 1' })).type, 'stmt')
  held!.requestExec('INSERT INTO a VALUES(1)')
  await until(() => server.replicator.holds === 1)
  text!.requestExec('INSERT INTO a VALUES(2); INSERT INTO a VALUES(3)')
  await until(() => server.replicator.holds === 2)
  streaming!.socket.pause()
  streaming!.requestQuery(many, 10_000_000)
  worker!.requestQuery(`SELECT count(*) FROM (${many}) a`, 2_000_000_000)
  t.is(await transaction!.exec('BEGIN IMMEDIATE'), '0/0')
  queued!.requestExec('INSERT INTO a VALUES(4)')
  await until(() => server.executor.writersQueued === 1)
  server.replicator.needsBarrier = true
  barrier!.requestQuery('SELECT 1')
  await until(() => server.replicator.barriers === 1)
  await settled()
  server.replicator.needsBarrier = false

  await server.replicator.loseLeadership()
  const database = server.engine.find('test')!
  t.is(database.connections, 0)
  t.is(database.speculative, 0)
  t.is(await held!.answer(), lost)
  t.is(await text!.answer(), lost)
  t.is(await queued!.answer(), notLeader)
  t.is(await worker!.rows(), lost)
  t.true([lost, notLeader].includes((await barrier!.rows()) as string))
  streaming!.socket.resume()
  t.is(await streaming!.rows(), lost)
  const all = [idle, held, transaction, queued, worker, streaming, barrier, text]
  for (const client of all) t.is(await client!.exec('SELECT 1'), notLeader)
  server.replicator.becomeLeader()
  for (const client of all) {
    t.is(await client!.exec('SELECT 1'), '12 no database opened')
    t.is(summary(await client!.ask({ type: 'finalize', databaseId: 0, statementId: 0 })), '12 no database opened')
  }
  t.is((await idle!.ask({ type: 'open', name: 'test', flags: 0n, vfs: '' })).type, 'db')
  t.is(
    summary(await idle!.ask({ type: 'query', schema: 0, databaseId: 0, statementId: 0, params: new Uint8Array() })),
    '12 no statement with the given id',
  )
  server.replicator.auto = true
  t.is(await idle!.value('SELECT count(*) FROM a'), 0)
  t.is(await idle!.exec('INSERT INTO a VALUES(9)'), '9/1')
  t.deepEqual(server.internalErrors, [])
})

test('leadership lost while a worker writes: nothing is appended, the outcome is known', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  const [worker] = await clients(server, 1)
  const before = server.replicator.lastIndex
  worker!.requestExec(`INSERT INTO a ${many}`, 100_000_000)
  await settled()
  await server.replicator.loseLeadership()
  t.is(await worker!.answer(), notLeader)
  t.is(server.replicator.lastIndex, before)
  t.is(server.engine.find('test')!.connections, 0)
})

test('a transfer that begins while a worker writes voids the chain; if it fails the database goes on', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  const [first, worker, bystander] = await clients(server, 3)
  first!.requestExec('INSERT INTO a VALUES(-1)')
  await until(() => server.replicator.holds === 1)
  worker!.requestExec(`INSERT INTO a ${many}`, 600_000)
  await until(() => server.engine.find('test')!.connections === 3)
  bystander!.requestExec('INSERT INTO a VALUES(-2)')
  await until(() => server.executor.writersQueued === 1)
  server.replicator.isLeader = false
  server.replicator.isTransferring = true
  t.is(await worker!.answer(), notLeader)
  t.is(await bystander!.answer(), notLeader)
  t.is(await bystander!.exec('SELECT 1'), notLeader)
  server.replicator.isTransferring = false
  server.replicator.isLeader = true
  t.is(await bystander!.exec('SELECT 1'), '12 no database opened')
  server.replicator.commit()
  t.is(await first!.answer().catch(() => 'closed'), lost)
  await until(() => server.engine.find('test')!.speculative === 0)
  await settled()
  server.replicator.auto = true
  t.is((await bystander!.ask({ type: 'open', name: 'test', flags: 0n, vfs: '' })).type, 'db')
  t.is(await bystander!.value('SELECT group_concat(x) FROM a'), '-1')
  t.is(await bystander!.exec('INSERT INTO a VALUES(5)'), '5/1')
  t.deepEqual(server.internalErrors, [])
})

test('whatever happens, what was acknowledged is there and what was refused is not', async (t) => {
  let seed = Number(process.env.DQLITE_SEED ?? 8412)
  t.log(`seed ${seed}`)
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    return (seed >>> 8) % below
  }
  const server = await startServer({ checkpointFrames: 30, busyTimeoutMs: 20 }, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  await byHand(server)
  server.replicator.pipelineEntriesMax = 6
  const acknowledged = new Set<number>()
  const refused = new Set<number>()
  let nextId = 1
  let running = true

  /** One client: writes in several ways, reads, leaves in the middle, comes again. */
  const clientLife = async (): Promise<void> => {
    while (running) {
      const client = await WireClient.connect(server)
      try {
        const opened = await client.ask({ type: 'open', name: 'test', flags: 0n, vfs: '' })
        for (let i = 0; opened.type === 'db' && i < 30 && running; i++) {
          const id = nextId++
          const judge = (answer: string): void => {
            if (/^-?\d+\/\d+$/.test(answer) || answer === 'rows') acknowledged.add(id)
            else if (answer !== lost) refused.add(id)
          }
          switch (random(7)) {
            case 0:
            case 1:
              judge(await client.exec('INSERT INTO a VALUES(?)', id))
              break
            case 2:
              client.requestQuery('INSERT INTO a VALUES(?) RETURNING x', id)
              judge(await client.answer())
              break
            case 3: {
              const begun = await client.exec(random(2) === 0 ? 'BEGIN' : 'BEGIN IMMEDIATE')
              if (begun.includes(' ')) break
              const inserted = await client.exec('INSERT INTO a VALUES(?)', id)
              const end = inserted.includes(' ') || random(4) === 0 ? 'ROLLBACK' : 'COMMIT'
              if (end === 'ROLLBACK') refused.add(id)
              const ended = await client.exec(end)
              if (end === 'COMMIT') judge(ended)
              // Refused, the transaction is still open: it ends with the connection.
              if (ended.includes(' ')) throw new Error('leaves')
              break
            }
            case 4:
              client.requestQuery('SELECT x FROM a')
              await client.rows()
              break
            case 5:
              client.requestExec(`INSERT INTO a SELECT -n - ${id * 1_000_000} FROM (${many})`, 3000)
              if (random(2) === 0) client.request({ type: 'interrupt' })
              else if (random(4) === 0) throw new Error('leaves')
              if ((await client.answer()) !== 'empty') throw new Error('out of step')
              break
            case 6:
              client.requestExec('INSERT INTO a VALUES(?)', id)
              throw new Error('leaves')
          }
        }
      } catch {
        // Left by this client, or answers are out of step after an INTERRUPT: start anew.
      }
      await client.end()
    }
  }
  const lives = Array.from({ length: 6 }, clientLife)
  for (let step = 0; step < 1200 || acknowledged.size < 150; step++) {
    await new Promise((resolve) => setImmediate(resolve))
    const { replicator } = server
    const open = replicator.lastIndex - replicator.lastApplied
    const dice = random(400)
    if (dice === 0) {
      await replicator.loseLeadership()
      replicator.becomeLeader()
    } else if (dice === 1) {
      replicator.isLeader = false
      replicator.isTransferring = true
    } else if (dice < 40 && replicator.isTransferring) {
      if (dice < 20) await replicator.loseLeadership()
      replicator.isTransferring = false
      replicator.becomeLeader()
    } else if (open > 0) replicator.commit(replicator.lastApplied + 1 + random(open))
    else replicator.commit()
  }
  running = false
  server.replicator.isTransferring = false
  server.replicator.becomeLeader()
  server.replicator.auto = true
  server.replicator.pipelineEntriesMax = 1000
  const pump = setInterval(() => {
    server.replicator.commit()
  }, 1)
  await Promise.all(lives)
  await until(() => server.gateways.connections === 0 && server.engine.find('test')!.connections === 0)
  clearInterval(pump)
  await settled()
  const client = await WireClient.open(server)
  const present = new Set((await client.query('SELECT x FROM a WHERE x > 0')).rows.map(([x]) => x as number))
  t.log(`${acknowledged.size} acknowledged, ${refused.size} refused, ${present.size} present`)
  t.deepEqual(
    [...acknowledged].filter((id) => !present.has(id)),
    [],
  )
  t.deepEqual(
    [...refused].filter((id) => present.has(id)),
    [],
  )
  t.is(await client.value('PRAGMA integrity_check'), 'ok')
  t.is(server.engine.find('test')!.speculative, 0)
  t.deepEqual(server.internalErrors, [])
})

test('temporary tables are written without a log entry and queue like any writer', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  t.is(await client.exec('CREATE TEMP TABLE mine(x); INSERT INTO mine VALUES(1)'), '1/1')
  t.is(await client.value('SELECT count(*) FROM mine'), 1)
  const other = await WireClient.open(server)
  t.is(await other.exec('INSERT INTO mine VALUES(1)'), '1 no such table: mine')
})

test('databases are independent of each other', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const first = await WireClient.open(server, 'one')
  const second = await WireClient.open(server, 'two')
  await first.exec('CREATE TABLE a(x); BEGIN IMMEDIATE')
  t.is(await second.exec('CREATE TABLE a(x)'), '0/0')
  t.is(await second.exec('INSERT INTO a VALUES(1)'), '1/1')
})
