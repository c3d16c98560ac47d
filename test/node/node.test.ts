// Whole nodes: every room, real sockets, some on a disk that fails.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'

import { connect, type Client } from '../../lib/client/client.js'
import type { DqliteError, ErrorCode } from '../../lib/errors.js'
import { Node, type NodeOptions } from '../../lib/node/node.js'
import { FaultyDisk, type Fault } from '../support/faulty-disk.js'

/** Elections within a second: the nodes are on one machine. */
const networkLatencyNs = 20_000_000

async function freeAddress(): Promise<string> {
  const server = net.createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as net.AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return `127.0.0.1:${port}`
}

async function directory(t: ExecutionContext): Promise<string> {
  const dir = await mkdtemp(path.join(os.tmpdir(), 'dqlite-node-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  return dir
}

async function start(t: ExecutionContext, id: number, options: Partial<NodeOptions> = {}): Promise<Node> {
  const dir = options.dir ?? (await directory(t))
  const node = await Node.start({ id, address: await freeAddress(), networkLatencyNs, ...options, dir })
  t.teardown(() => node.stop())
  return node
}

async function client(t: ExecutionContext, nodes: readonly Node[], database = 'app'): Promise<Client> {
  const client = await connect({ addresses: nodes.map((node) => node.address), database, timeoutMs: 20_000 })
  t.teardown(() => client.close())
  return client
}

/** Every node's copy once all have applied what the leader has. */
async function copies(t: ExecutionContext, nodes: readonly Node[]): Promise<string[]> {
  const target = Math.max(...nodes.map((node) => node.status.lastIndex))
  for (const node of nodes) while (node.status.lastApplied < target) await new Promise((r) => setTimeout(r, 5))
  return Promise.all(
    nodes.map(async (node) => {
      const one = await connect({ addresses: [node.address] })
      t.teardown(() => one.close())
      const { main } = await one.dump('app', { address: node.address })
      return Buffer.from(main).toString('base64')
    }),
  )
}

test('a node that is restarted has what was acknowledged, from its log alone and from its snapshots', async (t) => {
  for (const limits of [{}, { snapshotThreshold: 8, snapshotTrailing: 8, checkpointFrames: 5 }]) {
    const dir = await directory(t)
    const address = await freeAddress()
    const node = await start(t, 1, { dir, address, limits })
    const db = await client(t, [node])
    await db.exec('CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)')
    for (let i = 0; i < 50; i++) await db.exec('INSERT INTO t (b) VALUES (randomblob(3000))')
    const before = await db.query('SELECT a, hex(b) AS b FROM t')
    await db.close()
    await node.stop()
    const again = await start(t, 1, { dir, address, limits })
    t.deepEqual(await (await client(t, [again])).query('SELECT a, hex(b) AS b FROM t'), before)
    await again.stop()
  }
})

test('a member that joins late is brought up by a snapshot, and reads old entries come from disk', async (t) => {
  // Nothing stays in memory, and the snapshot has replaced the beginning of the log.
  const limits = { snapshotThreshold: 16, snapshotTrailing: 16, logCacheBytesMax: 0, appendBytesMax: 20_000 }
  const nodes = [await start(t, 1, { limits })]
  const db = await client(t, nodes)
  await db.exec('CREATE TABLE t (a INTEGER PRIMARY KEY, b BLOB)')
  const write = async (count: number): Promise<void> => {
    await Promise.all(Array.from({ length: count }, () => db.exec('INSERT INTO t (b) VALUES (randomblob(2000))')))
  }
  await write(100)
  for (const id of [2, 3]) {
    const node = await start(t, id, { limits })
    nodes.push(node)
    await Promise.all([db.add({ id: BigInt(id), address: node.address }), write(100)])
  }
  const all = await copies(t, nodes)
  t.is(new Set(all).size, 1)
  t.deepEqual(await db.query('SELECT count(*) AS n FROM t'), [{ n: 300 }])
})

test('writers go on through a leadership transfer, and no acknowledged row is lost', async (t) => {
  const nodes = [await start(t, 1), await start(t, 2), await start(t, 3)]
  const db = await client(t, nodes)
  for (const { id, address } of nodes.slice(1)) await db.add({ id, address })
  await db.exec('CREATE TABLE t (a INTEGER PRIMARY KEY)')
  const acknowledged: number[] = []
  const unknown: number[] = []
  let next = 0
  let isDone = false
  const writers = Array.from({ length: 8 }, async () => {
    while (!isDone) {
      const a = next++
      try {
        await db.exec('INSERT INTO t VALUES (?)', [a])
        acknowledged.push(a)
      } catch (error) {
        if ((error as DqliteError).outcome === 'unknown') unknown.push(a)
        else if (!(error as DqliteError).retryable) throw error
      }
    }
  })
  for (const to of [2n, 3n, 1n]) {
    const before = acknowledged.length
    while (acknowledged.length < before + 200) await new Promise((r) => setTimeout(r, 1))
    await db.transfer(to)
  }
  isDone = true
  await Promise.all(writers)
  const rows = new Set((await db.query<{ a: number }>('SELECT a FROM t')).map(({ a }) => a))
  t.deepEqual(
    acknowledged.filter((a) => !rows.has(a)),
    [],
    'acknowledged and lost',
  )
  const known = new Set([...acknowledged, ...unknown])
  t.deepEqual(
    [...rows].filter((a) => !known.has(a)),
    [],
    'there, although refused',
  )
  t.is(new Set(await copies(t, nodes)).size, 1)
})

test('a leader whose disk fails stops acknowledging, says so and steps down; the others go on', async (t) => {
  const faults: { now: Fault | undefined } = { now: undefined }
  const disk = new FaultyDisk({ seed: 1, fault: ({ kind }) => (kind === 'append' ? faults.now : undefined) })
  const failures: DqliteError[] = []
  const nodes = [
    await start(t, 1, { disk, dir: '/memory', onFailure: (error) => failures.push(error) }),
    await start(t, 2),
    await start(t, 3),
  ]
  const db = await client(t, nodes)
  for (const { id, address } of nodes.slice(1)) await db.add({ id, address })
  await db.exec('CREATE TABLE t (a)')
  await db.exec('INSERT INTO t VALUES (1)')
  t.is(nodes[0]!.status.state, 'leader')
  faults.now = 'EIO'
  // The followers' disks are a majority: the row may be acknowledged or not, but it must not be lost if it is.
  const outcome = await db.exec('INSERT INTO t VALUES (2)').then(
    () => 'acknowledged',
    (error: DqliteError) => error.outcome,
  )
  await db.exec('INSERT INTO t VALUES (3)', [], { idempotent: true })
  const rows = (await db.query<{ a: number }>('SELECT DISTINCT a FROM t ORDER BY a')).map(({ a }) => a)
  t.true(rows.includes(1) && rows.includes(3))
  if (outcome === 'acknowledged') t.true(rows.includes(2))
  t.is(failures.length, 1)
  t.is(failures[0]!.code, 'DISK_FAILED')
  t.is(nodes[0]!.status.leader, undefined)
  t.not(nodes[0]!.status.state, 'leader')
})

test('a client that added the members finds the next leader, although it was told of one address only', async (t) => {
  const nodes = [await start(t, 1), await start(t, 2), await start(t, 3)]
  const db = await client(t, [nodes[0]!])
  await db.exec('CREATE TABLE t (a)')
  for (const { id, address } of nodes.slice(1)) await db.add({ id, address })
  await nodes[0]!.stop()
  await db.exec('INSERT INTO t VALUES (1)', [], { idempotent: true })
  t.deepEqual(await db.query('SELECT DISTINCT a FROM t'), [{ a: 1 }])
})

test('a lone node whose disk is full refuses to acknowledge', async (t) => {
  const faults: { now: Fault | undefined } = { now: undefined }
  const disk = new FaultyDisk({ seed: 1, fault: ({ kind }) => (kind === 'append' ? faults.now : undefined) })
  const node = await start(t, 1, { disk, dir: '/memory' })
  const db = await client(t, [node])
  await db.exec('CREATE TABLE t (a)')
  faults.now = 'ENOSPC'
  const error = await t.throwsAsync<DqliteError>(db.exec('INSERT INTO t VALUES (1)', [], { timeoutMs: 2000 }))
  t.is(error.outcome, 'unknown')
})

test('a transaction that is larger than an entry may be is rolled back, with an error that says so', async (t) => {
  const node = await start(t, 1, { limits: { transactionBytesMax: 1 << 20 } })
  const db = await client(t, [node])
  await db.exec('CREATE TABLE t (a)')
  const error = await t.throwsAsync<DqliteError>(
    db.exec(
      'WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 2000) INSERT INTO t SELECT randomblob(1000) FROM c',
    ),
  )
  t.is(error.code, 'TOO_BIG')
  t.regex(error.message, /transaction/)
  await db.exec('INSERT INTO t VALUES (1)')
  t.deepEqual(await db.query('SELECT count(*) AS n FROM t'), [{ n: 1 }])
})

test('several databases commit side by side, and each member has them all', async (t) => {
  const nodes = [await start(t, 1), await start(t, 2), await start(t, 3)]
  const first = await client(t, nodes)
  for (const { id, address } of nodes.slice(1)) await first.add({ id, address })
  const clients = await Promise.all(['app', 'b', 'c'].map((name) => client(t, nodes, name)))
  await Promise.all(
    clients.map(async (db, at) => {
      await db.exec('CREATE TABLE t (a)')
      await Promise.all(Array.from({ length: 50 }, (_, i) => db.exec('INSERT INTO t VALUES (?)', [i * 10 + at])))
    }),
  )
  for (const [at, db] of clients.entries())
    t.deepEqual(await db.query('SELECT count(*) AS n, min(a) AS low FROM t'), [{ n: 50, low: at }])
  t.is(new Set(await copies(t, nodes)).size, 1)
})

test('what cannot be is refused by name before anything is written or listened to', async (t) => {
  const dir = await directory(t)
  const good = { id: 1, address: '127.0.0.1:0', dir }
  const refused = async (options: Partial<NodeOptions>, code: ErrorCode, text: RegExp): Promise<void> => {
    const error = await t.throwsAsync<DqliteError>(Node.start({ ...good, ...options }))
    t.is(error.code, code)
    t.regex(error.message, text)
  }
  await refused({ id: 0 }, 'BAD_OPTION', /id/)
  await refused({ id: 2 ** 53 }, 'BAD_OPTION', /id/)
  await refused({ id: 1n << 64n }, 'BAD_OPTION', /id/)
  await refused({ address: '' }, 'BAD_OPTION', /address/)
  await refused({ bind: 'no port:x' }, 'BAD_OPTION', /no port:x/)
  await refused({ networkLatencyNs: 5 }, 'BAD_OPTION', /networkLatencyNs/)
  await refused({ limits: { busyTimeoutMs: -1 } }, 'BAD_OPTION', /busyTimeoutMs/)
  await refused({ limits: { snapshotThreshold: 100, snapshotTrailing: 50 } }, 'BAD_OPTION', /snapshotTrailing/)
  await writeFile(path.join(dir, 'file'), '')
  await refused({ dir: path.join(dir, 'file', 'below') }, 'DISK_FAILED', /file.below/)

  const node = await start(t, 1, { dir })
  await refused({ address: node.address }, 'ADDRESS_IN_USE', new RegExp(node.address))
  await refused({}, 'DIRECTORY_LOCKED', new RegExp(dir))
  await node.stop()

  const foreign = path.join(dir, 'newer')
  await mkdir(foreign)
  const newer = Buffer.alloc(32)
  newer.writeBigUInt64LE(2n, 0)
  newer.writeBigUInt64LE(1n, 8)
  await writeFile(path.join(foreign, 'metadata1'), newer)
  await refused({ dir: foreign }, 'DIRECTORY_FOREIGN', /metadata1/)
})
