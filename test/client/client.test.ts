import { setTimeout as pause } from 'node:timers/promises'
import test from 'ava'
import { decodeRequest, encodeResponse } from '../../lib/codec/client-protocol.js'
import { Client } from '../../lib/client/client.js'
import type { SqlValue } from '../../lib/codec/tuple.js'
import { clientOf, failure, fakeServer, twoServers } from '../support/client-setup.js'
import type { FakeConnection, FakeServer, Script } from '../support/fake-server.js'

const notLeader = (connection: FakeConnection): 'answered' => connection.fail(10250, 'not leader')

/** The first time this SQL comes, `act` answers. */
function once(sql: string, act: (connection: FakeConnection) => 'answered'): Script {
  let isDone = false
  return (_request, connection, text) => {
    if (isDone || text !== sql) return undefined
    isDone = true
    return act(connection)
  }
}

/** The first server stops leading when it sees this SQL, and the second leads. */
function failover(
  [first, second]: [FakeServer, FakeServer],
  sql: string,
  act: (connection: FakeConnection) => 'answered',
): void {
  first.script = once(sql, (connection) => {
    first.leader = second.leader = second.address
    return act(connection)
  })
}

test('a write that the server refused for not leading is sent to the new leader, once', async (t) => {
  const servers = await twoServers(t)
  const [first, second] = servers
  failover(servers, 'INSERT', notLeader)
  const db = clientOf(t, [first, second])
  t.deepEqual(await db.exec('INSERT'), { lastInsertRowid: 1, changes: 1 })
  t.deepEqual([first.asked('INSERT'), second.asked('INSERT')], [1, 1])
})

test('a write whose connection broke has an unknown outcome and is not sent again', async (t) => {
  const servers = await twoServers(t)
  const [first, second] = servers
  failover(servers, 'INSERT', (connection) => connection.close())
  const db = clientOf(t, [first, second])
  const error = await failure(t, db.exec('INSERT'))
  t.deepEqual([error.code, error.outcome, error.retryable], ['CONNECTION_LOST', 'unknown', false])
  t.is(second.asked('INSERT'), 0)
  await db.exec('OTHER')
  t.is(second.asked('OTHER'), 1)
})

test('a write during which leadership was lost has an unknown outcome and is not sent again', async (t) => {
  const servers = await twoServers(t)
  const [first, second] = servers
  failover(servers, 'INSERT', (connection) => connection.fail(10506, 'leadership lost'))
  const db = clientOf(t, [first, second])
  const error = await failure(t, db.exec('INSERT'))
  t.deepEqual([error.code, error.outcome, error.retryable], ['LEADERSHIP_LOST', 'unknown', false])
  t.is(second.asked('INSERT'), 0)
})

test('an idempotent write is sent again', async (t) => {
  for (const act of [
    (connection: FakeConnection) => connection.close(),
    (connection: FakeConnection) => connection.fail(10506, 'leadership lost'),
  ]) {
    const servers = await twoServers(t)
    failover(servers, 'UPDATE', act)
    await clientOf(t, servers).exec('UPDATE', [], { idempotent: true })
    t.deepEqual([servers[0].asked('UPDATE'), servers[1].asked('UPDATE')], [1, 1])
  }
})

test('an idempotent write that fails after a try of unknown outcome says so', async (t) => {
  const server = await fakeServer(
    t,
    once('UPDATE', (connection) => connection.close()),
  )
  const db = clientOf(t, [server])
  await db.connect()
  const script = server.script
  server.script = async (request, connection, sql) =>
    (await script(request, connection, sql)) ??
    (sql === 'UPDATE' ? connection.fail(5, 'database is locked') : undefined)
  const error = await failure(t, db.exec('UPDATE', [], { idempotent: true }))
  t.deepEqual([error.code, error.outcome, error.retryable], ['BUSY', 'unknown', false])
})

test('reads are repeated, also after their connection broke; what may write is not', async (t) => {
  const reads = ['SELECT 1', ' -- why\n/* so */ VALUES (1)', 'WITH a AS (SELECT 1) SELECT * FROM a', 'EXPLAIN DELETE']
  for (const sql of reads) {
    const servers = await twoServers(t)
    failover(servers, sql, (connection) => connection.close())
    t.is((await clientOf(t, servers).query(sql)).length, 1)
  }
  for (const sql of ['INSERT INTO t VALUES (1) RETURNING a', 'WITH a AS (SELECT 1) DELETE FROM t RETURNING a']) {
    const servers = await twoServers(t)
    failover(servers, sql, (connection) => connection.close())
    t.is((await failure(t, clientOf(t, servers).query(sql))).outcome, 'unknown')
    t.is(servers[1].asked(sql), 0)
  }
})

test('a stream is repeated before its first row', async (t) => {
  const servers = await twoServers(t)
  failover(servers, 'SELECT 1', (connection) => connection.close())
  const rows: unknown[] = []
  for await (const row of clientOf(t, servers).stream('SELECT 1')) rows.push(row)
  t.deepEqual(rows, [{ n: 1 }])
})

test('several statements are not repeated: the first ones may have been committed', async (t) => {
  const servers = await twoServers(t)
  failover(servers, 'INSERT a; INSERT b', notLeader)
  const error = await failure(t, clientOf(t, servers).exec('INSERT a; INSERT b'))
  t.deepEqual([error.code, error.outcome], ['NOT_LEADER', 'unknown'])
  const others = await twoServers(t)
  const single = "INSERT 'a; b' -- ; c\n;"
  failover(others, single, notLeader)
  await clientOf(t, others).exec(single)
  t.is(others[1].asked('INSERT'), 1)
})

test('a database handle that went with a lost leadership is opened again', async (t) => {
  const server = await fakeServer(
    t,
    once('INSERT', (connection) => connection.fail(12, 'no database opened')),
  )
  await clientOf(t, [server]).exec('INSERT')
  t.deepEqual([server.asked('open'), server.asked('INSERT')], [2, 2])
})

test('BUSY is thrown, or waited out where the caller asks for it', async (t) => {
  let times = 3
  const server = await fakeServer(t, (_request, connection, sql) =>
    sql === 'INSERT' && times-- > 0 ? connection.fail(5, 'database is locked') : undefined,
  )
  const db = clientOf(t, [server])
  const error = await failure(t, db.exec('INSERT'))
  t.deepEqual([error.code, error.wire, error.message, error.retryable], ['BUSY', 5, 'database is locked', true])
  await db.exec('INSERT', [], { retryBusy: true })
  t.is(server.asked('INSERT'), 4)
  times = 1e9
  t.is((await failure(t, db.exec('INSERT', [], { retryBusy: true, timeoutMs: 100 }))).code, 'BUSY')
})

test("SQLite's errors keep their code and text", async (t) => {
  const server = await fakeServer(t, (_request, connection, sql) =>
    sql === 'INSERT' ? connection.fail(2067, 'UNIQUE constraint failed: t.a') : undefined,
  )
  const db = clientOf(t, [server])
  for (const promise of [db.exec('INSERT'), db.query('INSERT')]) {
    const error = await failure(t, promise)
    t.deepEqual([error.code, error.wire, error.message], ['SQLITE', 2067, 'UNIQUE constraint failed: t.a'])
  }
})

// ---------------------------------------------------------------------------------------------------- parameters

test('more than 255 parameters travel in the other schema; undefined is refused by its position', async (t) => {
  const schemas: number[] = []
  const server = await fakeServer(t, (request) => {
    if (request.type === 'execSql') schemas.push(request.schema)
    return undefined
  })
  const db = clientOf(t, [server])
  await db.exec('INSERT', new Array<number>(255).fill(1))
  await db.exec('INSERT', new Array<number>(256).fill(1))
  t.deepEqual(schemas, [0, 1])
  const error = await failure(t, db.exec('INSERT', [1, undefined as unknown as SqlValue]))
  t.is(error.code, 'BAD_PARAMETER')
  t.regex(error.message, /parameter 2 is undefined/)
  t.is((await failure(t, db.exec('INSERT', [2n ** 63n]))).code, 'BAD_PARAMETER')
  t.is((await failure(t, db.exec('INSERT \0'))).code, 'BAD_PARAMETER')
  t.is(server.connections.length, 1)
})

// ---------------------------------------------------------------------------------------------------- statements

test('a statement is prepared once per session, again with a new leader, and finalised on the way', async (t) => {
  const servers = await twoServers(t)
  const [first, second] = servers
  const db = clientOf(t, servers, { sessionsMax: 1 })
  const statement = await db.prepare('INSERT ?')
  t.is(statement.parameterCount, 1)
  await statement.exec([1])
  await statement.exec([2])
  t.deepEqual([first.asked('prepare'), first.log.filter((line) => line === 'exec').length], [1, 2])
  first.leader = second.leader = second.address
  first.script = (request, connection) => (request.type === 'exec' ? notLeader(connection) : undefined)
  t.is((await statement.exec([3])).changes, 1)
  t.deepEqual([...(await statement.query([3]))], [{ n: 1 }])
  t.is(second.asked('prepare'), 1)
  t.is((await failure(t, statement.exec([]))).code, 'BAD_PARAMETER')
  await statement.close()
  await statement.close()
  t.is((await failure(t, statement.exec([1]))).code, 'CLOSED')
  t.is(second.asked('finalize'), 0)
  await db.exec('NEXT')
  t.deepEqual(second.log.slice(-2), ['finalize', 'execSql NEXT'])
})

// ---------------------------------------------------------------------------------------------------- sessions

test('sessions are bounded, calls wait in order, and a wait has an end', async (t) => {
  const held: FakeConnection[] = []
  const server = await fakeServer(t, (_request, connection, sql) => {
    if (!sql.startsWith('HOLD')) return undefined
    held.push(connection)
    return 'answered'
  })
  const db = clientOf(t, [server], { sessionsMax: 2, waitersMax: 3 })
  const order: string[] = []
  const holds = ['HOLD 1', 'HOLD 2'].map((sql) => db.exec(sql))
  while (held.length < 2) await pause(5)
  const waits = ['a', 'b'].map((sql) => db.exec(sql).then(() => order.push(sql)))
  const late = failure(t, db.exec('late', [], { timeoutMs: 50 }))
  const full = await failure(t, db.exec('full'))
  t.deepEqual([full.code, full.outcome], ['BUSY', 'none'])
  const error = await late
  t.deepEqual([error.code, error.outcome], ['TIMEOUT', 'none'])
  for (const connection of held) connection.send(encodeResponse.result(1n, 1))
  await Promise.all([...holds, ...waits])
  t.deepEqual(order, ['a', 'b'])
  t.is(server.connections.length, 2)
  t.is(server.asked('late') + server.asked('full'), 0)
})

test('when the leader changes, idle sessions with the old one go', async (t) => {
  const servers = await twoServers(t)
  const [first, second] = servers
  const db = clientOf(t, servers)
  await Promise.all(['a', 'b', 'c', 'd'].map((sql) => db.exec(sql)))
  t.is(first.openConnections, 4)
  failover(servers, 'INSERT', notLeader)
  await db.exec('INSERT')
  await pause(20)
  t.is(first.openConnections, 0)
  t.is(second.openConnections, 1)
})

test('a text that leaves a transaction open does not leave it to others', async (t) => {
  const server = await fakeServer(t)
  const db = clientOf(t, [server], { sessionsMax: 1 })
  const error = await failure(t, db.exec('BEGIN; INSERT'))
  t.regex(error.message, /transaction\(\)/)
  t.false(server.connections[0]!.inTransaction)
  t.deepEqual(server.log.slice(-2), ['execSql BEGIN; INSERT', 'execSql ROLLBACK'])
  for (const sql of ['BEGIN', 'SAVEPOINT a', ' /* x */ begin immediate']) {
    t.regex((await failure(t, db.query(sql))).message, /transaction\(\)/)
    t.regex((await failure(t, db.prepare(sql))).message, /transaction\(\)/)
  }
  t.deepEqual(await db.exec('CREATE TRIGGER x BEGIN DELETE; END'), { lastInsertRowid: 1, changes: 1 }, 'tidied quietly')
})

test('close lets running calls end, fails waiting ones, and cuts what does not end', async (t) => {
  const held: FakeConnection[] = []
  const server = await fakeServer(t, (_request, connection, sql) => {
    if (sql !== 'HOLD') return undefined
    held.push(connection)
    return 'answered'
  })
  const db = new Client({ addresses: [server.address], database: 'app', sessionsMax: 1 })
  const running = db.exec('HOLD')
  while (held.length < 1) await pause(5)
  const waiting = failure(t, db.exec('INSERT'))
  const closing = db.close()
  t.is((await waiting).code, 'CLOSED')
  held[0]!.send(encodeResponse.result(7n, 1))
  t.is((await running).lastInsertRowid, 7)
  await closing
  await db.close()
  t.is((await failure(t, db.exec('INSERT'))).code, 'CLOSED')

  const other = new Client({ addresses: [server.address], database: 'app' })
  const cut = failure(t, other.exec('HOLD'))
  while (held.length < 2) await pause(5)
  await other.close({ timeoutMs: 30 })
  const error = await cut
  t.deepEqual([error.code, error.outcome], ['ABORTED', 'unknown'])
  await pause(20)
  t.is(server.openConnections, 0)
})

// ---------------------------------------------------------------------------------------------------- cluster

test('calls about the cluster go to the leader, without a database', async (t) => {
  const servers = await twoServers(t)
  const [first, second] = servers
  const seen: unknown[] = []
  second.script = (request) => {
    if (!['leader', 'cluster'].includes(request.type)) seen.push(request)
    return undefined
  }
  const db = new Client({ addresses: [first.address, second.address], timeoutMs: 2000 })
  t.teardown(() => db.close({ timeoutMs: 1 }))
  first.members = [{ id: 9n, address: first.address, role: 'spare' }]
  t.deepEqual(await db.cluster(), [{ id: 9n, address: first.address, role: 'spare' }])
  first.leader = second.leader = second.address
  first.script = (request, connection) => (request.type === 'add' ? notLeader(connection) : undefined)
  const id = 3297041220608546238n
  await db.add({ id, address: 'x:1' })
  await db.add({ id: 4, address: 'y:1', role: 'spare' })
  await db.assign(4, 'standby')
  await db.remove(id)
  await db.transfer(7)
  t.deepEqual(seen, [
    { type: 'add', id, address: 'x:1' },
    { type: 'assign', id, role: 'voter' },
    { type: 'add', id: 4n, address: 'y:1' },
    { type: 'assign', id: 4n, role: 'standby' },
    { type: 'remove', id },
    { type: 'transfer', id: 7n },
  ])
  await db.weight(5, { address: first.address })
  t.deepEqual(await db.describe({ address: first.address }), { failureDomain: 0n, weight: 0n })
  t.is(first.asked('weight'), 1)
  t.is((await failure(t, db.exec('INSERT'))).code, 'BAD_OPTION')
  t.is(
    (
      await failure(
        t,
        db.transaction(async () => undefined),
      )
    ).code,
    'BAD_OPTION',
  )
  t.is((await failure(t, db.remove(0))).code, 'BAD_PARAMETER')
})

test('a dump is the main file and the log beside it', async (t) => {
  const [main, wal] = [Buffer.alloc(8192, 1), Buffer.alloc(0)]
  const server = await fakeServer(t, (request, connection) =>
    request.type === 'dump'
      ? connection.send(
          encodeResponse.files([
            { name: request.name, content: main },
            { name: `${request.name}-wal`, content: wal },
          ]),
        )
      : undefined,
  )
  const dump = await clientOf(t, [server]).dump()
  t.deepEqual([Buffer.from(dump.main).equals(main), dump.wal.length], [true, 0])
})

test('one request is one write', async (t) => {
  const writes: Buffer[] = []
  const server = await fakeServer(t)
  const { dial } = await import('../../lib/network/dial.js')
  const db = clientOf(t, [server], {
    dial: async (address, options) => {
      const socket = await dial(address, options)
      const write = socket.write.bind(socket)
      socket.write = (chunk: Uint8Array | string) => {
        writes.push(Buffer.from(chunk as Uint8Array))
        return write(chunk)
      }
      return socket
    },
  })
  await db.exec('INSERT', [1])
  t.is(writes.length, 3) // version and LEADER · OPEN and CLUSTER · EXEC_SQL
  const body = writes[2]!.subarray(8)
  t.is(decodeRequest({ type: writes[2]![4]!, schema: writes[2]![5]!, body }).type, 'execSql')
})
