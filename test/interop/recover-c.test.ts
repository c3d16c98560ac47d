/** A directory of C dqlite, recovered by us: C dqlite starts on it, and so do we. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import test from 'ava'
import { connect, lastEntry, Node, recover } from '../../lib/index.js'
import { cNodeProgram, hasCNode, startCCluster } from '../support/cluster.js'

test('after the loss of two of three C nodes the third goes on alone, in C and in Node', async (t) => {
  if (!hasCNode()) {
    t.log(`skipped: there is no C dqlite node at ${cNodeProgram} (PEERS_BIN says where)`)
    t.pass()
    return
  }
  t.timeout(120_000)
  const root = await mkdtemp(path.join(os.tmpdir(), 'dqlite-recover-'))
  t.teardown(() => rm(root, { recursive: true, force: true }))
  const cluster = await startCCluster(3, 19_540)
  const survivor = path.join(root, 'survivor')
  try {
    await using db = await connect({ addresses: cluster.addresses, database: 'app.db' })
    await db.exec('CREATE TABLE t (x)')
    for (let i = 0; i < 10; i++) await db.exec('INSERT INTO t VALUES (?)', [i])
    for (const node of cluster.nodes) await node.kill()
    cpSync(path.join(cluster.root, '1'), survivor, { recursive: true })
  } finally {
    await cluster.stop()
  }
  const address = '127.0.0.1:19545'
  const { index } = await lastEntry(survivor)
  t.deepEqual(await recover(survivor, [{ id: 1n, address, role: 'voter' }]), { index: index + 1, term: 1 })
  const ours = path.join(root, 'ours')
  cpSync(survivor, ours, { recursive: true })

  const check = async (): Promise<void> => {
    await using db = await connect({ addresses: [address], database: 'app.db' })
    t.deepEqual(await db.cluster(), [{ id: 1n, address, role: 'voter' }])
    t.is((await db.query('SELECT x FROM t')).length, 10)
    await db.exec('INSERT INTO t VALUES (10)')
    t.is((await db.query('SELECT x FROM t')).length, 11)
  }
  const c = spawn(cNodeProgram, ['1', address, survivor], { stdio: 'ignore' })
  const ended = once(c, 'exit')
  try {
    await check()
  } finally {
    c.kill('SIGKILL')
    await ended
  }
  const node = await Node.start({ id: 1n, address, dir: ours })
  try {
    await check()
  } finally {
    await node.stop()
  }
  // What C wrote behind the recovery is read by us as well.
  const again = await Node.start({ id: 1n, address, dir: survivor })
  try {
    await using db = await connect({ addresses: [address], database: 'app.db' })
    t.is((await db.query('SELECT x FROM t')).length, 11)
  } finally {
    await again.stop()
  }
})
