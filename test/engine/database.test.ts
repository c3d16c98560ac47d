import test from 'ava'
import { Engine } from '../../lib/engine/database.js'
import { DqliteError } from '../../lib/errors.js'
import { exec, imageOf, query, replicate } from '../support/engine.js'
import type { Database } from '../../lib/engine/database.js'

function nodes(): { leader: Database; follower: Database; close: () => Promise<void> } {
  const engines = [Engine.create({ statementBudgetMs: 10_000 }), Engine.create({ statementBudgetMs: 10_000 })]
  return {
    leader: engines[0]!.database('test.db'),
    follower: engines[1]!.database('test.db'),
    close: async () => {
      await Promise.all(engines.map((engine) => engine.close()))
    },
  }
}

const rows = (count: number, from = 0): string =>
  `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT ${count})
   SELECT i + ${from} AS i, hex(zeroblob(400)) || i AS s FROM n`

test('a captured transaction applied elsewhere gives the identical image', async (t) => {
  const { leader, follower, close } = nodes()
  const connection = leader.connect()
  exec(connection, 'CREATE TABLE t(id INTEGER PRIMARY KEY, v)')
  exec(connection, `INSERT INTO t SELECT i, s FROM (${rows(300)})`)
  exec(connection, 'DELETE FROM t WHERE id % 3 = 0; VACUUM')
  t.is(leader.speculative, 4)
  t.is(replicate(leader, follower), 4)
  t.is(leader.speculative, 0)
  t.deepEqual(imageOf(leader), imageOf(follower))
  t.true(leader.checkpoint())
  t.is(leader.walFrames, 0)
  t.deepEqual(imageOf(leader), imageOf(follower))
  t.deepEqual(query(connection, 'PRAGMA integrity_check'), [['ok']])
  await close()
})

test('a commit after a cache spill and a failed statement is captured whole', async (t) => {
  const { leader, follower, close } = nodes()
  const connection = leader.connect()
  exec(connection, "CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES(5000, 'x')")
  replicate(leader, follower)
  exec(connection, "PRAGMA cache_size=20; BEGIN; INSERT INTO t VALUES(9000, 'small')")
  t.throws(
    () => {
      exec(connection, `INSERT INTO t SELECT i, s FROM (${rows(6000)})`)
    },
    { message: '1555 UNIQUE constraint failed: t.id' },
  )
  exec(connection, "INSERT INTO t VALUES(9001, 'small too'); COMMIT")
  const command = leader.takeCaptured()!
  t.true(command.byteLength < 40_000)
  follower.apply(command)
  leader.publish()
  t.deepEqual(imageOf(leader), imageOf(follower))
  const fresh = follower.connect()
  t.deepEqual(query(fresh, 'SELECT id FROM t'), [[5000n], [9000n], [9001n]])
  t.deepEqual(query(fresh, 'PRAGMA integrity_check'), [['ok']])
  await close()
})

test('reads see what is published, writes see everything, and the tail can be dropped', async (t) => {
  const { leader, follower, close } = nodes()
  const reader = leader.connect()
  let writer = leader.connect()
  exec(writer, 'CREATE TABLE t(a)')
  t.throws(() => query(reader, 'SELECT * FROM t'), { message: '1 no such table: t' })
  replicate(leader, follower)
  for (let i = 1; i <= 3; i++) exec(writer, 'INSERT INTO t SELECT count(*) FROM t')
  t.deepEqual(query(reader, 'SELECT * FROM t'), [])
  follower.apply(leader.takeCaptured()!)
  leader.publish()
  t.deepEqual(query(reader, 'SELECT * FROM t'), [[0n]])
  t.deepEqual(query(writer, 'SELECT * FROM t'), [[0n]])
  t.is(leader.speculative, 2)
  t.false(leader.checkpoint())
  await Promise.all([reader.close(), writer.close()])
  t.is(leader.connections, 0)
  leader.dropSpeculative()
  t.is(leader.takeCaptured(), undefined)
  t.deepEqual(imageOf(leader), imageOf(follower))
  writer = follower.connect()
  exec(writer, 'INSERT INTO t VALUES(77)')
  replicate(follower, leader)
  t.deepEqual(query(leader.connect(), 'SELECT * FROM t'), [[0n], [77n]])
  t.deepEqual(imageOf(leader), imageOf(follower))
  await close()
})

test('a large command gets its own memory, small ones share a slab', async (t) => {
  const { leader, follower, close } = nodes()
  const connection = leader.connect()
  exec(connection, 'CREATE TABLE t(id INTEGER PRIMARY KEY, v)')
  const first = leader.takeCaptured()!
  const kept = Buffer.from(first)
  exec(connection, `INSERT INTO t SELECT i, s FROM (${rows(2000)})`)
  const large = leader.takeCaptured()!
  t.true(large.byteLength > 1_000_000)
  const others: Uint8Array[] = []
  for (let i = 0; i < 60; i++) {
    exec(connection, `UPDATE t SET v = 'u' WHERE id = ${i}`)
    others.push(leader.takeCaptured() ?? new Uint8Array(0))
  }
  t.deepEqual(Buffer.from(first), kept)
  for (const command of [first, large, ...others.filter((bytes) => bytes.byteLength > 0)]) {
    follower.apply(command)
    leader.publish()
  }
  t.deepEqual(imageOf(leader), imageOf(follower))
  await close()
})

test('a transaction beyond transactionBytesMax fails and is rolled back', async (t) => {
  const engine = Engine.create({ transactionBytesMax: 64 * 1024, statementBudgetMs: 10_000 })
  const database = engine.database('test.db')
  const connection = database.connect()
  exec(connection, 'CREATE TABLE t(id INTEGER PRIMARY KEY, v)')
  replicate(database)
  const error = t.throws(() => {
    exec(connection, `INSERT INTO t SELECT i, s FROM (${rows(1000)})`)
  })
  t.regex(error.message, /^18 transaction too big/)
  t.is(database.takeCaptured(), undefined)
  t.deepEqual(query(connection, 'SELECT count(*) FROM t'), [[0n]])
  await engine.close()
})

test('an image restores into another database, in any chunks', async (t) => {
  const { leader, follower, close } = nodes()
  const connection = leader.connect()
  exec(connection, `CREATE TABLE t(id INTEGER PRIMARY KEY, v); INSERT INTO t SELECT i, s FROM (${rows(100)})`)
  replicate(leader)
  const image = imageOf(leader)
  t.is(image.readUInt32BE(28), image.length / 4096)
  const restore = follower.restore(image.length)
  for (let at = 0; at < image.length; at += 5000) restore.write(image.subarray(at, at + 5000))
  restore.finish()
  t.deepEqual(imageOf(follower), image)
  t.deepEqual(query(follower.connect(), 'SELECT count(*) FROM t'), [[100n]])
  exec(connection, 'DELETE FROM t WHERE id = 1')
  replicate(leader, follower)
  t.deepEqual(imageOf(follower), imageOf(leader))
  const short = follower.restore(8192)
  short.write(image.subarray(0, 4096))
  t.throws(
    () => {
      short.finish()
    },
    { code: 'DATA_CORRUPT', message: /connections are open/ },
  )
  const aborted = leader.restore(4096)
  aborted.write(image.subarray(0, 4096))
  aborted.abort()
  t.deepEqual(imageOf(follower), imageOf(leader))
  await close()
})

test('names that SQLite reads otherwise are refused', async (t) => {
  const engine = Engine.create()
  for (const name of ['', ':memory:', 'file:x', 'x-wal', 'x-journal', 'x'.repeat(512), 'é'.repeat(256), 'a\0b'])
    t.throws(() => engine.database(name), { instanceOf: DqliteError, code: 'CANNOT_OPEN' })
  const names = ['b', 'a', 'a/b/c', '../x', 'é']
  for (const name of names) engine.database(name).connect()
  t.deepEqual(
    engine.databases().map(({ name }) => name),
    names,
  )
  t.is(engine.find('a'), engine.database('a'))
  t.is(engine.find('nobody'), undefined)
  await engine.find('a')!.closeConnections()
  engine.drop('a')
  t.is(engine.find('a'), undefined)
  t.is(imageOf(engine.database('a')).length, 4096)
  await engine.close()
})

test('a database that others have replicated may have any name, and nobody connects to it', async (t) => {
  const engine = Engine.create()
  for (const name of ['x-wal', '\0\u00ff', ':memory:', 'n'.repeat(505)]) {
    const database = engine.replicated(name)
    t.is(engine.replicated(name), database)
    t.is(engine.find(name), database)
    t.throws(() => engine.database(name), { instanceOf: DqliteError, code: 'CANNOT_OPEN' })
  }
  t.is(engine.replicated('plain'), engine.database('plain'))
  await engine.close()
})

test('an image stays whole when its database is dropped or replaced', async (t) => {
  const engine = Engine.create()
  const database = engine.database('test.db')
  const connection = database.connect()
  exec(connection, 'CREATE TABLE t(a)')
  replicate(database)
  const expected = imageOf(database)
  const image = database.openImage()
  await connection.close()
  const restore = database.restore(expected.length)
  restore.write(expected)
  restore.finish()
  engine.drop('test.db')
  const bytes = Buffer.alloc(image.byteLength)
  t.is(image.read(bytes), expected.length)
  t.deepEqual(bytes, expected)
  image.close()
  await engine.close()
})

test('a command that is not one is refused as corrupt', async (t) => {
  const { leader, follower, close } = nodes()
  exec(leader.connect(), 'CREATE TABLE t(a)')
  const command = leader.takeCaptured()!
  for (const broken of [new Uint8Array(0), command.subarray(0, 100), command.subarray(8)])
    t.throws(
      () => {
        follower.apply(broken)
      },
      { code: 'DATA_CORRUPT' },
    )
  follower.apply(command)
  await close()
})

test('PRAGMA delete_database empties the database everywhere', async (t) => {
  const { leader, follower, close } = nodes()
  const connection = leader.connect()
  exec(connection, 'CREATE TABLE t(a); INSERT INTO t VALUES(1)')
  replicate(leader, follower)
  exec(connection, 'BEGIN IMMEDIATE; PRAGMA delete_database; COMMIT')
  replicate(leader, follower)
  t.true(leader.isDeleted)
  t.true(follower.isDeleted)
  t.deepEqual(query(connection, 'SELECT * FROM sqlite_schema'), [])
  await close()
})
