/**
 * Clusters of our nodes and C dqlite 1.11's: both lead, both follow, both die, under writes. At the end every member
 * has the same content, byte for byte, and nothing that was acknowledged is missing.
 */
import anyTest, { type ExecutionContext } from 'ava'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Client } from '../../lib/client/client.js'
import { DqliteError } from '../../lib/errors.js'
import { ask, play } from '../support/exchange.js'
import {
  cMissing,
  eventually,
  interopSeconds,
  latencyMs,
  MixedCluster,
  snapshotsIn,
  type Kind,
  type MemberProcess,
} from '../support/members.js'

const test = cMissing === undefined ? anyTest.serial : anyTest.serial.skip

const writeMs = 400

async function exercise(t: ExecutionContext, kinds: readonly Kind[]): Promise<void> {
  t.timeout(120_000 + interopSeconds * 1000)
  const cluster = await MixedCluster.start(t, kinds)
  t.is((await cluster.leader()).id, 1n)
  const workload = await cluster.startWorkload()
  // Leadership is handed over in both directions, by TRANSFER and TimeoutNow.
  for (const member of [...cluster.members.slice(1), cluster.members[0]!]) {
    await sleep(writeMs)
    await cluster.leadBy(member)
    await workload.ledger.nextAcknowledgement()
  }
  const untilMs = performance.now() + interopSeconds * 1000
  let kills = 0
  for (; kills < 3 || performance.now() < untilMs; kills++) {
    await sleep(writeMs)
    const leader = cluster.members[kills % cluster.members.length]!
    await cluster.leadBy(leader)
    const killedAtMs = performance.now()
    await leader.kill()
    await workload.ledger.nextAcknowledgement()
    const next = await cluster.leader()
    const pauseMs = Math.round(workload.ledger.longestPauseMs(killedAtMs))
    if (kills < 3)
      t.log(`${leader.kind} ${leader.id} was killed, ${next.kind} ${next.id} leads: no write for ${pauseMs} ms`)
    await leader.start()
  }
  await sleep(writeMs)
  await workload.stop()
  if (kills > 3) t.log(`${kills} leaders were killed`)
  await cluster.holds(workload)
}

test('one of ours and two C nodes: each leads, each is killed as leader, nothing is lost', (t) =>
  exercise(t, ['ours', 'C', 'C']))

test('two of ours and one C node: each leads, each is killed as leader, nothing is lost', (t) =>
  exercise(t, ['C', 'ours', 'ours']))

/** So many transactions, each an entry of the log, a hundred in one request. */
async function fill(cluster: MixedCluster, count: number): Promise<void> {
  const insert = 'INSERT INTO t (b) VALUES (hex(randomblob(100)));'
  // A client of its own: one that is surprised by a change of leader may not repeat several statements.
  await cluster.with(
    async (db) => {
      for (let left = count; left > 0; left -= 100) await db.exec(insert.repeat(Math.min(100, left)))
    },
    { database: 'app' },
  )
}

const createTable = 'CREATE TABLE t (a INTEGER PRIMARY KEY, b)'
const rowCount = async (db: Client): Promise<number> => Number((await db.query('SELECT count(*) AS n FROM t'))[0]!.n)

test('a C leader sends its snapshot, with a WAL in it, to one of ours', async (t) => {
  const cluster = await MixedCluster.start(t, ['C', 'ours'], { joins: false })
  const [leader, follower] = cluster.members
  const db = cluster.client({ database: 'app', addresses: [leader!.address] })
  await db.exec(createTable)
  // C takes one every 1024 entries and gives it to everybody who has nothing.
  await fill(cluster, 1100)
  await eventually('a snapshot of the C node', () => snapshotsIn(leader!.options.dir).length > 0)
  await cluster.add(follower!)
  const [installed] = snapshotsIn(follower!.options.dir)
  t.true(installed !== undefined && installed >= 1024)
  await cluster.identical('app')
  // And it is a state to lead from.
  await cluster.leadBy(follower!)
  await fill(cluster, 50)
  t.is(await rowCount(db), 1150)
  await cluster.identical('app')
})

test('one of ours as leader sends its snapshot to a C node, to a new one and to one that was away', async (t) => {
  t.timeout(90_000)
  const flags = ['--snapshot-threshold', '64', '--snapshot-trailing', '64']
  const cluster = await MixedCluster.start(t, ['ours', 'C', 'C'], { flags, joins: false })
  const [leader, ...followers] = cluster.members
  const db = cluster.client({ database: 'app', addresses: [leader!.address] })
  await db.exec(createTable)
  await db.exec('CREATE INDEX tb ON t (b)')
  let rows = 0
  const newest = (member: MemberProcess): number => snapshotsIn(member.options.dir)[0] ?? 0
  /** Snapshots are taken beside the writes. */
  const fillUntilSnapshotBeyond = async (index: number): Promise<void> => {
    for (; newest(leader!) <= index; rows += 100) await fill(cluster, 100)
  }
  await fillUntilSnapshotBeyond(200)
  for (const follower of followers) await cluster.add(follower)
  for (const follower of followers) t.true(newest(follower) > 0)
  await cluster.identical('app')

  const [away] = followers
  const before = newest(away!)
  await away!.kill()
  await fillUntilSnapshotBeyond(newest(leader!) + 300)
  await away!.start()
  await cluster.identical('app')
  t.true(newest(away!) > before)
  await cluster.leadBy(away!)
  t.is(await rowCount(db), rows)
  await fill(cluster, 10)
  await cluster.identical('app')
})

test('a database that shrinks: C 1.11 keeps the pages behind the end, and has the same content', async (t) => {
  const cluster = await MixedCluster.start(t, ['ours', 'C', 'C'])
  const db = cluster.client({ database: 'app' })
  await db.exec(createTable)
  await fill(cluster, 200)
  await db.exec('DELETE FROM t WHERE a > 20')
  await db.exec('VACUUM')
  const sizes = await cluster.identical('app', { upToHeaderSize: true })
  t.log(`pages after VACUUM: ${sizes.join(', ')}`)
  for (const member of cluster.members.slice(1)) {
    await cluster.leadBy(member)
    t.is(await rowCount(db), 20)
    t.deepEqual([...(await db.query('PRAGMA integrity_check', [], { rowMode: 'array' }))], [['ok']])
  }
  // Growing again makes them alike. (Until then C 1.11 cannot take a snapshot, in clusters of its own neither: see
  // docs/compatibility.md.)
  await fill(cluster, 250)
  t.is(new Set(await cluster.identical('app')).size, 1)
})

test('a spare of ours in a C cluster is promoted under writes, and leads', async (t) => {
  t.timeout(90_000)
  const cluster = await MixedCluster.start(t, ['C', 'C', 'C'])
  const workload = await cluster.startWorkload()
  await workload.ledger.nextAcknowledgement()
  const spare = await cluster.launch('ours')
  await cluster.add(spare, 'spare')
  const roles = async (): Promise<string[]> =>
    (await cluster.with((client) => client.cluster())).map(({ role }) => role)
  t.deepEqual(await roles(), ['voter', 'voter', 'voter', 'spare'])
  await sleep(writeMs)
  await cluster.with((client) => client.assign(spare.id, 'voter'))
  t.deepEqual(await roles(), ['voter', 'voter', 'voter', 'voter'])
  await cluster.leadBy(spare)
  await workload.ledger.nextAcknowledgement()
  // Ours can change the roles of C members as well.
  await cluster.with((client) => client.assign(1, 'standby'))
  t.deepEqual(await roles(), ['standby', 'voter', 'voter', 'voter'])
  await sleep(writeMs)
  await workload.stop()
  await cluster.holds(workload)
})

/** A request that nobody can commit, and how it ended. */
async function outcomeOf(request: Promise<unknown>): Promise<string> {
  try {
    await request
    return 'done'
  } catch (error) {
    if (!(error instanceof DqliteError)) throw error
    return error.outcome
  }
}

test('a tail that one of ours wrote alone is cut by a C leader, which writes no barrier of its own', async (t) => {
  t.timeout(90_000)
  const cluster = await MixedCluster.start(t, ['ours', 'C', 'C'])
  const [ours, ...others] = cluster.members
  const db = cluster.client({ database: 'app' })
  await db.exec(createTable)
  await db.exec("INSERT INTO t (b) VALUES ('all')")
  // What ours appends now, no other disk has.
  for (const other of others) await other.kill()
  const alone = cluster.client({ database: 'app', addresses: [ours!.address], timeoutMs: 500 })
  const outcomes = await Promise.all([1, 2, 3].map(() => outcomeOf(alone.exec("INSERT INTO t (b) VALUES ('alone')"))))
  t.true(outcomes.includes('unknown'), outcomes.join())
  await ours!.kill()
  for (const other of others) await other.start()
  const leader = await cluster.leader()
  t.is(leader.kind, 'C')
  // Ours comes back with a log longer than the leader's, and is not asked about the difference until there is a new entry.
  await ours!.start()
  await sleep(10 * latencyMs)
  await db.exec("INSERT INTO t (b) VALUES ('after')")
  const texts = (await db.query('SELECT b FROM t ORDER BY a')).map(({ b }) => b)
  t.deepEqual(texts, ['all', 'after'])
  await cluster.identical('app')
  await cluster.leadBy(ours!)
  t.is(await rowCount(db), 2)
  await fill(cluster, 20)
  await cluster.identical('app')
})

test('what one of ours acknowledged and nobody else knows to be committed is there under a C leader', async (t) => {
  t.timeout(90_000)
  const cluster = await MixedCluster.start(t, ['ours', 'C', 'C'])
  const db = cluster.client({ database: 'app' })
  await db.exec(createTable)
  for (let round = 0; round < 3; round++) {
    await cluster.leadBy(cluster.members[0]!)
    // Killed at the acknowledgement: the commit index would have come with the next message.
    await db.exec('INSERT INTO t (a) VALUES (?)', [round])
    await cluster.members[0]!.kill()
    // C 1.11 commits what it has inherited when the first statement asks for a barrier.
    t.is(await rowCount(db), round + 1)
    t.is((await cluster.leader()).kind, 'C')
    await cluster.members[0]!.start()
  }
  await cluster.identical('app')
})

test('databases with names that C takes from its clients and ours does not are kept by ours', async (t) => {
  const cluster = await MixedCluster.start(t, ['C', 'ours'])
  const [leader, ours] = cluster.members
  for (const name of [Buffer.from('x-wal'), Buffer.from([0x61, 0xe9])]) {
    const answers = await play(leader!.address, [ask.openBytes(name), ask.execSql('CREATE TABLE t (a)')])
    t.deepEqual(answers.slice(1), ['result 0/0'])
  }
  const db = cluster.client({ database: 'app' })
  await db.exec(createTable)
  await fill(cluster, 5)
  // From its own log as well.
  await ours!.kill()
  await ours!.start()
  await cluster.identical('app')
  await cluster.leadBy(ours!)
  t.is(await rowCount(db), 5)
  t.deepEqual(await play(ours!.address, [ask.open('x-wal')]), [
    'failure 14 "not a name a database can have: \\"x-wal\\""',
  ])
  // And the longest name of ours is one that C can apply.
  const longest = 'n'.repeat(504)
  t.regex((await play(ours!.address, [ask.open(`${longest}n`)])).join(), /^failure 14/)
  await cluster.with((client) => client.exec(createTable), { database: longest })
  await cluster.identical(longest)
  await cluster.identical('app')
  t.deepEqual(leader!.deaths, [])
})
