import path from 'node:path'
import test from 'ava'
import { type OpenOptions, openDataDirectory } from '../../lib/storage/open.js'
import type { Entry } from '../../lib/raft/types.js'
import { commandEntry, configurationEntry, described, entriesBetween } from '../support/entries.js'
import { FaultyDisk } from '../support/faulty-disk.js'

const dir = '/data'
const segmentBytes = 64 * 1024
const open = (disk: FaultyDisk, options: Partial<OpenOptions> = {}) =>
  openDataDirectory({ dir, disk, autoRecovery: true, logCacheBytesMax: 1 << 20, segmentBytes, ...options })

async function fresh(options: Partial<OpenOptions> = {}) {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk, options)
  await opened.metadata.save({ term: 1, votedFor: undefined })
  return { disk, opened, log: opened.log }
}
const names = (disk: FaultyDisk) => disk.paths().map((file) => path.basename(file))
const segmentNames = (disk: FaultyDisk) => names(disk).filter((name) => /^\d{16}-/.test(name))
const same = (a: readonly Entry[], b: readonly Entry[]) => a.map(described).join('\n') === b.map(described).join('\n')

test('what was appended is there after a clean stop, and only closed segments are', async (t) => {
  const { disk, opened, log } = await fresh()
  const entries: Entry[] = [
    configurationEntry(1),
    commandEntry(2),
    { type: 'barrier', index: 3, term: 1, byteLength: 8 },
  ]
  await log.append(entries.slice(0, 1))
  await log.append(entries.slice(1))
  t.is(log.lastIndex, 3)
  await opened.close()
  t.deepEqual(names(disk), ['0000000000000001-0000000000000003', 'dqlite-lock', 'metadata1'])
  const again = await open(disk)
  t.true(same(again.restored.entries, entries))
  t.deepEqual(again.warnings, [])
  t.is(again.log.lastIndex, 3)
  await again.log.append([commandEntry(4)])
  await again.close()
})

test('what was appended is there after the process was killed', async (t) => {
  const { disk, log } = await fresh()
  const entries = entriesBetween(1, 2000, 120)
  for (let i = 0; i < entries.length; i += 7) await log.append(entries.slice(i, i + 7))
  disk.kill()
  const again = await open(disk)
  t.true(same(again.restored.entries, entries))
  t.deepEqual(again.warnings, [])
  t.true(segmentNames(disk).length > 4)
  await again.close()
})

test('appends of one turn share a write, and resolve in order', async (t) => {
  const { disk, opened, log } = await fresh()
  await log.append([configurationEntry(1)])
  let appends = 0
  disk.fault = ({ kind }) => {
    if (kind === 'append') appends++
    return undefined
  }
  const order: number[] = []
  await Promise.all(entriesBetween(2, 101).map((entry) => log.append([entry]).then(() => order.push(entry.index))))
  t.deepEqual(
    order,
    Array.from({ length: 100 }, (_, i) => i + 2),
  )
  t.is(appends, 2) // the first one leaves at once, the other 99 wait for it together
  await opened.close()
})

test('an append of nothing waits for what was appended before', async (t) => {
  const { opened, log } = await fresh()
  let done = false
  const first = log.append([configurationEntry(1)]).then(() => (done = true))
  await log.append([])
  t.true(done)
  await first
  await log.append([])
  await opened.close()
})

test('large batches fill segments of their own, written piece by piece', async (t) => {
  const { disk, opened, log } = await fresh()
  const sizes = [64, 3 * 1024 * 1024 + 8, 64, 5000, 70_000, 1024 * 1024, 1_040_000, 64, 2_500_000, 2_600_000, 8]
  const entries = sizes.map((bytes, i) => (i === 0 ? configurationEntry(1) : commandEntry(i + 1, bytes)))
  // Alone, in one call, and while others wait.
  await log.append(entries.slice(0, 2))
  await Promise.all([log.append(entries.slice(2, 5)), log.append(entries.slice(5, 6)), log.append(entries.slice(6))])
  t.true(same(await log.read(1, 11, 1e9), entries))
  disk.kill()
  const again = await open(disk, { logCacheBytesMax: 1e9 })
  t.true(same(again.restored.entries, entries))
  t.true(same(await again.log.read(1, 11, 1e9), entries))
  await again.close()
  await opened.close().catch(() => undefined)
})

test('more entries than fit a segment in one call are cut into batches', async (t) => {
  const { disk, opened, log } = await fresh()
  const entries = entriesBetween(1, 5000, 64)
  await log.append(entries)
  await opened.close()
  const again = await open(disk)
  t.true(same(again.restored.entries, entries))
  const longest = Math.max(...segmentNames(disk).map((name) => disk.peek(path.join(dir, name))!.byteLength))
  t.true(longest <= segmentBytes)
  await again.close()
})

test('a disk that writes less than asked is asked again', async (t) => {
  const { disk, opened, log } = await fresh()
  await log.append([configurationEntry(1)])
  let i = 0
  disk.fault = ({ kind }) => ((kind === 'append' || kind === 'write') && i++ % 2 === 0 ? 'short' : undefined)
  const entries = entriesBetween(2, 300, 4000)
  await log.append(entries.slice(0, 100))
  await log.append(entries.slice(100))
  disk.fault = undefined
  t.true(same(await log.read(2, 300, 1e9), entries))
  await opened.close()
  const again = await open(disk, { logCacheBytesMax: 1e9 })
  t.true(same(again.restored.entries.slice(1), entries))
  await again.close()
})

test('evicted entries are read back, from open and closed segments, within bounds', async (t) => {
  const { disk, opened, log } = await fresh({ logCacheBytesMax: 10_000 })
  const entries = entriesBetween(1, 1000, 400)
  for (let i = 0; i < entries.length; i += 13) await log.append(entries.slice(i, i + 13))
  for (const [first, last] of [
    [1, 1],
    [1, 1000],
    [500, 700],
    [999, 1000],
    [1000, 1000],
  ] as const)
    t.true(same(await log.read(first, last, 1e9), entries.slice(first - 1, last)))
  t.is((await log.read(2, 1000, 4000)).length, 10)
  t.is((await log.read(2, 1000, 4399)).length, 10)
  t.is((await log.read(2, 1000, 1)).length, 1) // at least one
  await opened.close()
  const again = await open(disk, { logCacheBytesMax: 10_000 })
  const kept = again.restored.entries.filter((entry) => entry.type === 'command' && entry.data !== undefined)
  t.is(kept.length, 25)
  t.is(kept.at(-1)!.index, 1000)
  t.is(again.restored.entries.length, 1000)
  t.true(same(await again.log.read(1, 1000, 1e9), entries))
  await again.close()
})

test('an entry that rots on the disk is not read as good', async (t) => {
  const { disk, opened, log } = await fresh()
  await log.append(entriesBetween(1, 100))
  await opened.close()
  const again = await open(disk)
  const name = path.join(dir, segmentNames(disk)[0]!)
  disk.peek(name)!.writeUInt8(0xff, 4000)
  await t.throwsAsync(again.log.read(1, 100, 1e9), { code: 'DATA_CORRUPT', message: /entry \d+ in 0{15}1-/ })
  await again.close()
})

test('a truncated log ends where it should, and goes on from there', async (t) => {
  for (const last of [0, 1, 2, 99, 100, 101, 150, 399, 400]) {
    const { disk, opened, log } = await fresh()
    const entries = entriesBetween(1, 400, 600)
    // Batches of different sizes, several segments.
    for (let i = 0, n = 1; i < entries.length; i += n, n = (n % 7) + 1) void log.append(entries.slice(i, i + n))
    const truncated = log.truncateAfter(last)
    t.is(log.lastIndex, last)
    const more = [...entriesBetween(last + 1, last + 3, 600, 2)]
    const appended = [truncated, ...more.map((entry) => log.append([entry]))]
    await Promise.all(appended)
    const expected = [...entries.slice(0, last), ...more]
    t.true(same(await log.read(1, last + 3, 1e9), expected))
    await opened.metadata.save({ term: 2, votedFor: undefined })
    await opened.close()
    const again = await open(disk)
    t.true(same(again.restored.entries, expected), `after ${last}`)
    await again.log.truncateAfter(last)
    await again.log.append(more)
    await again.close()
    const third = await open(disk)
    t.true(same(third.restored.entries, expected))
    await third.close()
  }
})

test('appends asked for while truncations run keep their order', async (t) => {
  const { disk, opened, log } = await fresh()
  await log.append(entriesBetween(1, 10))
  const waits: Promise<void>[] = []
  waits.push(log.truncateAfter(5))
  void waits[0]!.then(() => waits.push(log.append([commandEntry(8, 64, 3)])))
  waits.push(log.append([commandEntry(6, 64, 2)]), log.truncateAfter(5), log.append([commandEntry(6, 64, 3)]))
  waits.push(log.append([commandEntry(7, 64, 3)]))
  await Promise.all(waits)
  await Promise.all(waits)
  await opened.metadata.save({ term: 3, votedFor: undefined })
  await opened.close()
  const again = await open(disk)
  t.deepEqual(again.restored.entries.map(({ index, term }) => `${index}/${term}`).slice(4), [
    '5/1',
    '6/3',
    '7/3',
    '8/3',
  ])
  await again.close()
})

test('compaction deletes whole segments from the front, never the last closed one', async (t) => {
  const { disk, opened, log } = await fresh()
  const entries = entriesBetween(1, 600, 600)
  for (const entry of entries) await log.append([entry])
  const before = segmentNames(disk)
  t.true(before.length >= 4)
  const secondFirst = Number(before[1]!.split('-')[0])
  await log.compact(secondFirst - 1)
  t.deepEqual(segmentNames(disk), before)
  await log.compact(secondFirst)
  t.deepEqual(segmentNames(disk), before.slice(1))
  await t.throwsAsync(log.read(1, 10, 1e9), { code: 'NOT_FOUND' })
  t.true(same(await log.read(secondFirst, 600, 1e9), entries.slice(secondFirst - 1)))
  await log.compact(601)
  t.is(segmentNames(disk).length, 1)
  await opened.close()
})

test('a failed write fails all that wait, and everything after it', async (t) => {
  for (const fault of ['EIO', 'ENOSPC'] as const) {
    const { disk, opened, log } = await fresh()
    await log.append([configurationEntry(1)])
    let isArmed = true
    disk.fault = ({ kind }) => {
      if (kind !== 'append' || !isArmed) return undefined
      isArmed = false
      return fault
    }
    const results = await Promise.allSettled([
      log.append([commandEntry(2)]),
      log.append([commandEntry(3)]),
      log.append([commandEntry(4)]),
    ])
    for (const result of results) {
      t.is(result.status, 'rejected')
      if (result.status === 'rejected')
        t.is(String(result.reason), `DqliteError: cannot write to open-1: ${fault}, write`)
    }
    await t.throwsAsync(log.append([commandEntry(5)]), { code: 'DISK_FAILED' })
    await t.throwsAsync(log.truncateAfter(1), { code: 'DISK_FAILED' })
    await t.throwsAsync(log.reset(10), { code: 'DISK_FAILED' })
    await t.throwsAsync(log.compact(1), { code: 'DISK_FAILED' })
    await opened.close()
    const again = await open(disk)
    t.is(again.log.lastIndex, 1)
    await again.close()
  }
})

test('a full disk refuses the append that finds no segment, and keeps what was acknowledged', async (t) => {
  const { disk, opened, log } = await fresh()
  await log.append([configurationEntry(1)])
  await new Promise((resolve) => setTimeout(resolve, 20)) // the spares are prepared
  disk.capacityBytes = 4 * segmentBytes
  let acknowledged = 1
  await t.throwsAsync(
    async () => {
      for (let index = 2; index < 10_000; index++) {
        await log.append([commandEntry(index, 1000)])
        acknowledged = index
      }
    },
    { code: 'DISK_FAILED', message: /ENOSPC/ },
  )
  t.true(acknowledged > 60)
  await opened.close()
  disk.capacityBytes = Infinity
  const again = await open(disk)
  t.true(again.log.lastIndex >= acknowledged)
  t.true(same(again.restored.entries, entriesBetween(1, again.log.lastIndex, 1000)))
  await again.close()
})

test('a segment that cannot be closed stops the log: a failed fsync is not tried again', async (t) => {
  const { disk, opened, log } = await fresh()
  await log.append([configurationEntry(1)])
  disk.fault = ({ kind, path: file }) => (kind === 'sync' && file.includes('open-1') ? 'EIO' : undefined)
  await t.throwsAsync(
    async () => {
      for (let index = 2; index < 10_000; index++) await log.append([commandEntry(index, 1000)])
    },
    { code: 'DISK_FAILED', message: /close open-1/ },
  )
  await opened.close()
})
