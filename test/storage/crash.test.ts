/**
 * Power is lost at every single disk operation of a script, in many ways each; then the directory must open, hold
 * everything that was acknowledged, nothing that was never written, and go on.
 */
import test, { type ExecutionContext } from 'ava'
import type { Entry, Index, ServerId, SnapshotDescription, Term } from '../../lib/raft/types.js'
import { type OpenedDirectory, openDataDirectory } from '../../lib/storage/open.js'
import { commandEntry, configuration, configurationEntry, described, entriesBetween } from '../support/entries.js'
import { FaultyDisk } from '../support/faulty-disk.js'
import { collected, inChunks, snapshotContent } from '../support/snapshot-content.js'

const dir = '/data'
const segmentBytes = 16 * 1024
const open = (disk: FaultyDisk): Promise<OpenedDirectory> =>
  openDataDirectory({ dir, disk, autoRecovery: true, logCacheBytesMax: 1 << 20, segmentBytes })

/** What the directory must hold, at least and at most. */
class Expected {
  /** By index, as they were acknowledged last. */
  readonly acknowledged = new Map<Index, string>()
  /** Everything ever given to append, per index. */
  readonly written = new Map<Index, Set<string>>()
  terms: [Term, ServerId | undefined][] = [[0, undefined]]
  acknowledgedTerm = 0
  /** Snapshots that may exist, and the newest one that must. */
  readonly snapshots = new Map<Index, Buffer>()
  acknowledgedSnapshot: Index = 0
  /** A reset has begun: entries from before it need not be there. */
  resetTo: Index = 0
}

class Runner {
  readonly opened: OpenedDirectory
  readonly expected: Expected

  constructor(opened: OpenedDirectory, expected: Expected) {
    this.opened = opened
    this.expected = expected
  }

  async append(entries: readonly Entry[]): Promise<void> {
    for (const entry of entries) {
      const all = this.expected.written.get(entry.index) ?? new Set()
      this.expected.written.set(entry.index, all.add(described(entry)))
    }
    await this.opened.log.append(entries)
    for (const entry of entries) this.expected.acknowledged.set(entry.index, described(entry))
  }

  async save(term: Term, votedFor: ServerId | undefined): Promise<void> {
    this.expected.terms.push([term, votedFor])
    await this.opened.metadata.save({ term, votedFor })
    this.expected.acknowledgedTerm = this.expected.terms.length - 1
  }

  async truncateAfter(index: Index): Promise<void> {
    // From now on the entries may be there or not.
    for (const known of [...this.expected.acknowledged.keys()])
      if (known > index) this.expected.acknowledged.delete(known)
    await this.opened.log.truncateAfter(index)
    for (const known of [...this.expected.written.keys()]) if (known > index) this.expected.written.delete(known)
  }

  async take(index: Index, term: Term): Promise<void> {
    const content = snapshotContent(3, index)
    this.expected.snapshots.set(index, content)
    await this.opened.snapshots.take(description(index, term), content.byteLength, inChunks(content, 5000))
    this.expected.acknowledgedSnapshot = index
  }

  async compact(upTo: Index): Promise<void> {
    for (const known of [...this.expected.acknowledged.keys()])
      if (known < upTo) this.expected.acknowledged.delete(known)
    await this.opened.log.compact(upTo)
  }

  async install(index: Index, term: Term): Promise<void> {
    const content = snapshotContent(3, index)
    const { snapshots, log } = this.opened
    const received = await snapshots.receive(description(index, term), content.byteLength, inChunks(content, 777))
    this.expected.snapshots.set(index, content)
    this.expected.resetTo = index + 1
    this.expected.acknowledged.clear()
    await received.install()
    this.expected.acknowledgedSnapshot = index
    await log.reset(index + 1)
    this.expected.written.clear()
  }
}

const description = (index: Index, term: Term): SnapshotDescription => ({
  last: { index, term },
  configuration,
  configurationIndex: 1,
})

async function check(t: ExecutionContext, opened: OpenedDirectory, expected: Expected, where: string): Promise<void> {
  const { restored } = opened
  const states = expected.terms.slice(expected.acknowledgedTerm)
  const isKnown = states.some(([term, votedFor]) => term === restored.term && votedFor === restored.votedFor)
  if (!isKnown) t.fail(`${where}: term ${restored.term}`)
  const newest = restored.snapshot?.last.index ?? 0
  if (newest < expected.acknowledgedSnapshot) t.fail(`${where}: snapshot ${newest}`)
  if (newest > 0) {
    const snapshot = await opened.snapshots.openNewest()
    const content = await collected(snapshot!.content)
    await snapshot!.close()
    if (!content.equals(expected.snapshots.get(newest) ?? Buffer.alloc(0))) t.fail(`${where}: content of ${newest}`)
  }
  const { entries } = restored
  const found = new Map(entries.map((entry) => [entry.index, described(entry)]))
  for (const [index, text] of expected.acknowledged)
    if (found.get(index) !== text && index > newest) t.fail(`${where}: acknowledged entry ${index} is gone`)
  for (const [i, entry] of entries.entries()) {
    if (entry.index !== entries[0]!.index + i) t.fail(`${where}: a gap at ${entry.index}`)
    if (expected.written.get(entry.index)?.has(described(entry)) !== true)
      t.fail(`${where}: entry ${entry.index}/${entry.term} was never written`)
  }
  const there = entries.find((entry) => entry.index === newest)
  if (there !== undefined && there.term !== restored.snapshot?.last.term)
    t.fail(`${where}: the log has entry ${newest} of term ${there.term}, which the snapshot replaces`)
  const first = entries[0]?.index ?? newest + 1
  if (first > newest + 1) t.fail(`${where}: the log begins at ${first}, the snapshot ends at ${newest}`)
  if (opened.log.lastIndex !== Math.max(newest, entries.at(-1)?.index ?? 0))
    t.fail(`${where}: last ${opened.log.lastIndex}`)
}

type Script = (run: Runner) => Promise<void>

/** Ways to lose power at each operation; more of them find more, and take longer. */
const seeds = Number(process.env['DQLITE_CRASH_SEEDS'] ?? 3)

async function crashEverywhere(t: ExecutionContext, script: Script): Promise<void> {
  const measure = new FaultyDisk({ seed: 0 })
  const whole = new Runner(await open(measure), new Expected())
  await script(whole)
  await whole.opened.close()
  const total = measure.operations
  t.true(total > 20)
  let runs = 0
  for (let number = 1; number <= total; number++) {
    for (let seed = 1; seed <= seeds; seed++) {
      const where = `operation ${number} of ${total}, seed ${seed}`
      const disk = new FaultyDisk({ seed: seed * 1000 + number })
      disk.fault = (operation) => (operation.number >= number && operation.kind !== 'read' ? 'crash' : undefined)
      const expected = new Expected()
      try {
        const run = new Runner(await open(disk), expected)
        await script(run)
        await run.opened.close()
      } catch {
        // The disk is gone; so is the process.
      }
      // The append writer's completion that was under way sees that it is dead.
      await new Promise((resolve) => setImmediate(resolve))
      disk.fault = undefined
      disk.crash()
      let opened: OpenedDirectory
      try {
        opened = await open(disk)
      } catch (error) {
        t.fail(`${where}: ${String(error)} ${disk.paths().join(' ')}`)
        return
      }
      await check(t, opened, expected, where)
      // Crash once more right after the repair, then go on.
      disk.crash()
      const again = await open(disk)
      await check(t, again, expected, `${where}, again`)
      const next = again.log.lastIndex + 1
      const entry = next === 1 ? configurationEntry(1) : commandEntry(next, 64, again.restored.term)
      if (again.restored.term === 0) await again.metadata.save({ term: 1, votedFor: undefined })
      await again.log.append([entry])
      await again.close()
      const last = await open(disk)
      t.is(described(last.restored.entries.at(-1)!), described(entry), where)
      await last.close()
      runs++
    }
  }
  t.log(`${runs} crashes`)
}

test('appends survive power loss at every operation', async (t) => {
  await crashEverywhere(t, async (run) => {
    await run.save(1, undefined)
    await run.append([configurationEntry(1)])
    await Promise.all([run.append(entriesBetween(2, 4, 600)), run.append(entriesBetween(5, 9, 1000))])
    await run.append(entriesBetween(10, 16, 1504))
    await run.save(2, 3n)
    await run.append(entriesBetween(17, 17, 20_000, 2))
    await run.append(entriesBetween(18, 19, 2000, 2))
  })
})

test('truncations survive power loss at every operation', async (t) => {
  await crashEverywhere(t, async (run) => {
    await run.save(1, undefined)
    await run.append([configurationEntry(1)])
    for (let index = 2; index < 40; index += 3) await run.append(entriesBetween(index, index + 2, 704))
    await run.save(2, undefined)
    await run.truncateAfter(12)
    await run.append(entriesBetween(13, 20, 904, 2))
    await run.truncateAfter(19)
    await run.append(entriesBetween(20, 22, 904, 2))
  })
})

test('snapshots and compaction survive power loss at every operation', async (t) => {
  await crashEverywhere(t, async (run) => {
    await run.save(1, undefined)
    await run.append([configurationEntry(1)])
    for (let index = 2; index < 32; index += 5) await run.append(entriesBetween(index, index + 4, 1000))
    await run.take(20, 1)
    await run.compact(18)
    await run.append(entriesBetween(32, 40, 1000))
    await run.take(36, 1)
    await run.append(entriesBetween(41, 44, 1000))
    await run.take(44, 1)
    await run.compact(44)
    await run.append(entriesBetween(45, 46, 1000))
  })
})

test('installing a snapshot survives power loss at every operation', async (t) => {
  await crashEverywhere(t, async (run) => {
    await run.save(1, undefined)
    await run.append([configurationEntry(1)])
    for (let index = 2; index < 52; index += 10) await run.append(entriesBetween(index, index + 9, 1000))
    await run.save(5, undefined)
    await run.install(30, 5) // in the middle of a log of another term
    await run.append(entriesBetween(31, 40, 1000, 5))
    await run.install(200, 5) // far ahead
    await run.append(entriesBetween(201, 205, 1000, 5))
    await run.take(203, 5)
    await run.append(entriesBetween(206, 206, 1000, 5))
  })
})
