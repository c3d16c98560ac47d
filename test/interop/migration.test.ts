/**
 * A cluster of three C nodes becomes one of ours and goes back, a member at a time, while clients write: by taking over
 * each directory in place, and by removing a member and adding one of the other kind. Nothing acknowledged is lost.
 */
import anyTest, { type ExecutionContext } from 'ava'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Workload } from '../../lib/cli/workload.js'
import { cMissing, interopSeconds, MixedCluster, type Kind, type MemberProcess } from '../support/members.js'

const test = cMissing === undefined ? anyTest.serial : anyTest.serial.skip

/** Between two steps. */
const writeMs = interopSeconds > 0 ? 3000 : 400

/** An operator hands leadership over before a member goes down. */
async function leadElsewhere(cluster: MixedCluster, member: MemberProcess): Promise<void> {
  if ((await cluster.leader()) !== member) return
  await cluster.leadBy(cluster.members.find((other) => other !== member && other.isRunning)!)
}

async function migrate(
  t: ExecutionContext,
  step: (cluster: MixedCluster, member: MemberProcess, to: Kind) => Promise<void>,
): Promise<void> {
  t.timeout(180_000 + interopSeconds * 1000)
  const cluster = await MixedCluster.start(t, ['C', 'C', 'C'])
  const workload: Workload = await cluster.startWorkload()
  await workload.ledger.nextAcknowledgement()
  const beganAtMs = performance.now()
  const untilMs = beganAtMs + interopSeconds * 1000
  const pauses: number[] = []
  let rounds = 0
  do {
    for (const to of ['ours', 'C'] as const)
      for (const member of [...cluster.members]) {
        const atMs = performance.now()
        await leadElsewhere(cluster, member)
        await step(cluster, member, to)
        await workload.ledger.nextAcknowledgement()
        await sleep(writeMs)
        pauses.push(Math.round(workload.ledger.longestPauseMs(atMs)))
      }
    rounds++
  } while (performance.now() < untilMs)
  await workload.stop()
  await cluster.holds(workload)
  pauses.sort((one, other) => one - other)
  t.log(
    `${rounds} there and back, ${pauses.length} steps, the longest pauses in writes: ` +
      `median ${pauses[pauses.length >> 1]!} ms, at most ${pauses.at(-1)!} ms`,
  )
}

test('three C nodes become ours and go back in place, under writes, and lose nothing', (t) =>
  migrate(t, async (_cluster, member, to) => {
    await member.stop()
    await member.start(to)
  }))

test('three C nodes become ours and go back by adding members and removing others, under writes, and lose nothing', (t) =>
  migrate(t, async (cluster, member, to) => {
    await cluster.add(await cluster.launch(to))
    await cluster.remove(member)
  }))
