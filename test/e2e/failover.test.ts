/**
 * Leaders that die, and leaders that fall silent, in the middle of a workload. The same plot as `dqlite start`, with
 * assertions: every acknowledged row is on every node, no refused row is anywhere.
 */
import test, { type ExecutionContext } from 'ava'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { gatherEvidence, judge } from '../../lib/cli/evidence.js'
import { LocalCluster } from '../../lib/cli/local-cluster.js'
import { Workload, workloadDatabase } from '../../lib/cli/workload.js'

const networkLatencyNs = 20_000_000
const writeMs = 1000
const clients = 6
/** Who waits for a silent leader gives up after this. */
const timeoutMs = 4000

async function startCluster(t: ExecutionContext): Promise<LocalCluster> {
  t.timeout(180_000)
  const parent = mkdtempSync(path.join(tmpdir(), 'dqlite-failover-'))
  const cluster = await LocalCluster.start({
    dir: path.join(parent, 'cluster'),
    flags: ['--network-latency-ns', String(networkLatencyNs)],
  })
  t.teardown(async () => {
    for (const node of cluster.nodes) await node.kill('SIGKILL')
    rmSync(parent, { recursive: true, force: true })
  })
  return cluster
}

async function startWorkload(t: ExecutionContext, cluster: LocalCluster): Promise<Workload> {
  const workload = new Workload({ addresses: cluster.addresses, clients, timeoutMs })
  // A test that has failed must not leave its writers behind; what they met is not its failure.
  t.teardown(() => workload.stop().catch(() => undefined))
  await workload.start()
  return workload
}

async function holds(t: ExecutionContext, cluster: LocalCluster, workload: Workload): Promise<void> {
  const evidence = await gatherEvidence(cluster.addresses, workloadDatabase)
  const { faults, unknownPresent } = judge(evidence, workload.ledger)
  t.deepEqual(faults, [])
  const { acknowledged, unknown, refused } = workload.ledger
  t.log(`${acknowledged.size} acknowledged, ${unknown.size} unknown (${unknownPresent} there), ${refused} refused`)
}

test.serial('a leader that is killed twice under load loses no acknowledged row', async (t) => {
  const cluster = await startCluster(t)
  const workload = await startWorkload(t, cluster)
  for (let round = 0; round < 2; round++) {
    await sleep(writeMs)
    const leader = await cluster.leader()
    const killedAtMs = performance.now()
    await leader.kill('SIGKILL')
    const next = await cluster.leader()
    t.not(next.options.id, leader.options.id)
    await workload.ledger.nextAcknowledgement()
    t.log(`no write for ${Math.round(workload.ledger.longestPauseMs(killedAtMs))} ms`)
    await cluster.restart(leader)
  }
  await sleep(writeMs)
  await workload.stop()
  await holds(t, cluster, workload)
})

test.serial('a leader that is stopped and continued finds a successor and follows it', async (t) => {
  const cluster = await startCluster(t)
  const workload = await startWorkload(t, cluster)
  await sleep(writeMs)
  const leader = await cluster.leader()
  leader.signal('SIGSTOP')
  t.teardown(() => leader.signal('SIGCONT'))
  // Whoever asks the silent one must not wait for it.
  const next = await cluster.leader()
  t.not(next.options.id, leader.options.id)
  await workload.ledger.nextAcknowledgement()
  leader.signal('SIGCONT')
  await sleep(writeMs)
  await workload.stop()
  await holds(t, cluster, workload)
})

test.serial('a follower that is killed and comes back is not noticed by the writers, and has everything', async (t) => {
  const cluster = await startCluster(t)
  const workload = await startWorkload(t, cluster)
  await sleep(writeMs)
  const leader = await cluster.leader()
  const follower = cluster.nodes.find((node) => node !== leader)!
  await follower.kill('SIGKILL')
  await sleep(writeMs)
  await cluster.restart(follower)
  await sleep(writeMs)
  await workload.stop()
  // On a machine that stands still for longer than the election timeout the leader may change for its own reasons.
  if ((await cluster.leader()) === leader) {
    t.is(workload.ledger.unknown.size, 0)
    t.is(workload.ledger.refused, 0)
  } else t.log('the leader changed meanwhile')
  await holds(t, cluster, workload)
})

test.serial('a cluster that loses all its nodes at once comes back with every acknowledged row', async (t) => {
  const cluster = await startCluster(t)
  const workload = await startWorkload(t, cluster)
  await sleep(writeMs)
  const nodes = [...cluster.nodes]
  await Promise.all(nodes.map((node) => node.kill('SIGKILL')))
  for (const node of nodes) await cluster.restart(node)
  await workload.ledger.nextAcknowledgement()
  await workload.stop()
  await holds(t, cluster, workload)
})
