import path from 'node:path'
import test from 'ava'
import type { SnapshotDescription } from '../../lib/raft/types.js'
import { storageAddon } from '../../lib/storage/addon-storage.js'
import { openDataDirectory } from '../../lib/storage/open.js'
import { configuration, configurationEntry, described, entriesBetween } from '../support/entries.js'
import { FaultyDisk } from '../support/faulty-disk.js'
import { collected, inChunks, snapshotContent } from '../support/snapshot-content.js'

const dir = '/data'
const open = (disk: FaultyDisk) =>
  openDataDirectory({ dir, disk, autoRecovery: true, logCacheBytesMax: 1 << 20, segmentBytes: 16384 })
const at = (index: number, term = 1): SnapshotDescription => ({
  last: { index, term },
  configuration,
  configurationIndex: 1,
})
const names = (disk: FaultyDisk) => disk.paths().map((file) => path.basename(file))
const snapshots = (disk: FaultyDisk) => names(disk).filter((name) => name.startsWith('snapshot-'))

async function withEntries(last: number) {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 9, votedFor: undefined })
  await opened.log.append([configurationEntry(1)])
  await opened.log.append(entriesBetween(2, last))
  return { disk, opened }
}

test('a snapshot is streamed to a frame and back, whatever the pieces', async (t) => {
  for (const pages of [1, 63, 64, 300]) {
    for (const chunkBytes of [4096, 100_000, 2_000_000]) {
      const { disk, opened } = await withEntries(10)
      const content = snapshotContent(pages, pages)
      await opened.snapshots.take(at(7), content.byteLength, inChunks(content, chunkBytes))
      t.deepEqual(opened.snapshots.newest, at(7))
      const name = snapshots(disk).find((n) => !n.endsWith('.meta'))!
      // disk-format §7: magic, FLG, BD, content size.
      t.is(disk.peek(path.join(dir, name))!.subarray(0, 6).toString('hex'), '04224d184c40')
      t.is(Number(disk.peek(path.join(dir, name))!.readBigUInt64LE(6)), content.byteLength)
      await opened.close()
      const again = await open(disk)
      t.deepEqual(again.restored.snapshot, at(7))
      const opened2 = await again.snapshots.openNewest()
      t.is(opened2!.contentBytes, content.byteLength)
      t.true((await collected(opened2!.content)).equals(content))
      await opened2!.close()
      await again.close()
    }
  }
})

test('without a snapshot there is none to open', async (t) => {
  const { opened } = await withEntries(2)
  t.is(opened.snapshots.newest, undefined)
  t.is(await opened.snapshots.openNewest(), undefined)
  await opened.close()
})

test('the two newest snapshots are kept', async (t) => {
  const { disk, opened } = await withEntries(50)
  for (const index of [10, 20, 20, 30]) {
    const content = snapshotContent(2, index)
    await opened.snapshots.take(at(index), content.byteLength, inChunks(content, 4096))
  }
  t.is(snapshots(disk).length, 4)
  t.true(snapshots(disk).every((name) => /^snapshot-1-(20|30)-/.test(name)))
  await opened.close()
  t.false(names(disk).some((name) => name.startsWith('tmp-')))
})

test('a raw snapshot is read too', async (t) => {
  const { disk, opened } = await withEntries(10)
  const content = snapshotContent(70, 1)
  await opened.snapshots.take(at(10), content.byteLength, inChunks(content, 4096))
  await opened.close()
  disk.poke(
    path.join(
      dir,
      snapshots(disk).find((n) => !n.endsWith('.meta'))!,
    ),
    content,
  )
  const again = await open(disk)
  const opened2 = await again.snapshots.openNewest()
  t.is(opened2!.contentBytes, content.byteLength)
  t.true((await collected(opened2!.content)).equals(content))
  await again.close()
})

test('a received snapshot is invisible until it is installed, and gone when it is discarded', async (t) => {
  const { disk, opened } = await withEntries(10)
  const content = snapshotContent(5)
  const first = await opened.snapshots.receive(at(100, 2), content.byteLength, inChunks(content, 1000))
  t.is(opened.snapshots.newest, undefined)
  await first.discard()
  t.false(names(disk).some((name) => name.startsWith('tmp-')))
  const second = await opened.snapshots.receive(at(100, 2), content.byteLength, inChunks(content, 1000))
  await second.install()
  await opened.log.reset(101)
  t.deepEqual(opened.snapshots.newest, at(100, 2))
  t.is(opened.log.lastIndex, 100)
  const more = entriesBetween(101, 103, 64, 2)
  await opened.log.append(more)
  await opened.close()
  const again = await open(disk)
  t.deepEqual(again.restored.entries.map(described), more.map(described))
  t.deepEqual(again.warnings, [])
  await again.close()
})

test('content that cannot be a snapshot is refused and leaves nothing behind', async (t) => {
  const { disk, opened } = await withEntries(10)
  const content = snapshotContent(3)
  const before = names(disk)
  const cases: [number, Buffer][] = [
    [content.byteLength, content.subarray(0, -8)],
    [content.byteLength - 8, content],
    [content.byteLength, Buffer.alloc(content.byteLength)],
    [content.byteLength + 8, Buffer.concat([content, Buffer.alloc(8)])],
  ]
  for (const [announced, bytes] of cases)
    await t.throwsAsync(opened.snapshots.receive(at(100), announced, inChunks(bytes, 5000)), { code: 'MALFORMED' })
  const broken = (async function* () {
    yield content.subarray(0, 5000)
    throw new Error('the sender went away')
  })()
  await t.throwsAsync(opened.snapshots.receive(at(100), content.byteLength, broken), {
    message: 'the sender went away',
  })
  t.deepEqual(names(disk), before)
  await opened.close()
})

test('a full disk fails the snapshot and not the log', async (t) => {
  const { disk, opened } = await withEntries(10)
  const content = snapshotContent(300)
  for (let i = 0; i < content.byteLength; i += 4) content.writeUInt32LE((i * 2654435761) >>> 0, i < 100 ? 96 : i)
  const good = snapshotContent(200)
  disk.fault = ({ kind, path: file }) => (kind === 'write' && file.includes('tmp-snapshot') ? 'ENOSPC' : undefined)
  await t.throwsAsync(opened.snapshots.take(at(5), good.byteLength, inChunks(good, 4096)), {
    code: 'DISK_FAILED',
    message: /ENOSPC/,
  })
  disk.fault = undefined
  t.false(names(disk).some((name) => name.startsWith('tmp-') || name.startsWith('snapshot-')))
  await opened.log.append(entriesBetween(11, 12))
  await opened.snapshots.take(at(6), good.byteLength, inChunks(good, 4096))
  t.deepEqual(opened.snapshots.newest, at(6))
  await opened.close()
})

test('the loop is free while a large snapshot is written and read', async (t) => {
  const { opened } = await withEntries(10)
  const content = snapshotContent(2000)
  let turns = 0
  let isRunning = true
  const tick = (): void => {
    turns++
    if (isRunning) setImmediate(tick)
  }
  tick()
  // What the state machine does: pieces that come from elsewhere.
  const source = (async function* () {
    for await (const piece of inChunks(content, 256 * 1024)) {
      await new Promise((resolve) => setImmediate(resolve))
      yield piece
    }
  })()
  await opened.snapshots.take(at(10), content.byteLength, source)
  t.true(turns >= content.byteLength / (256 * 1024))
  isRunning = false
  await opened.close()
})

test('a frame of independent blocks with checksums is read', (t) => {
  // Written by hand: one stored block, independent, with a content size; no checksums (FLG 0x68).
  const content = Buffer.from('0123456789abcdef')
  const header = Buffer.from([0x04, 0x22, 0x4d, 0x18, 0x68, 0x40, 16, 0, 0, 0, 0, 0, 0, 0, 0])
  // The header checksum is a byte of xxh32; find it by trying, the reader tells.
  let reader: InstanceType<typeof storageAddon.SnapshotFrameReader> | undefined
  for (let byte = 0; byte < 256 && reader === undefined; byte++) {
    header[14] = byte
    try {
      reader = new storageAddon.SnapshotFrameReader(header)
    } catch {
      reader = undefined
    }
  }
  t.truthy(reader)
  t.is(reader!.contentBytes, 16)
  const size = Buffer.alloc(4)
  size.writeUInt32LE((16 | 0x80000000) >>> 0)
  const file = Buffer.concat([header, size, content, Buffer.alloc(4)])
  const target = Buffer.alloc(64)
  const step = new Uint32Array(2)
  let produced = 0
  for (let from = 0; from < file.byteLength;) {
    reader!.update(file.subarray(from), target.subarray(produced), step)
    from += step[0]!
    produced += step[1]!
  }
  t.true(reader!.isComplete)
  t.is(target.subarray(0, produced).toString(), content.toString())
})
