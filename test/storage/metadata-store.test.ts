import test from 'ava'
import { decodeMetadata, encodeMetadata } from '../../lib/codec/data-directory.js'
import { openDataDirectory } from '../../lib/storage/open.js'
import { FaultyDisk } from '../support/faulty-disk.js'

const dir = '/data'
const open = (disk: FaultyDisk) =>
  openDataDirectory({ dir, disk, autoRecovery: true, logCacheBytesMax: 0, segmentBytes: 8192 })
const state = (disk: FaultyDisk, slot: 1 | 2) => {
  const bytes = disk.peek(`${dir}/metadata${slot}`)
  return bytes === undefined ? undefined : decodeMetadata(bytes)
}

test('a new directory has term 0 and no vote', async (t) => {
  const opened = await open(new FaultyDisk({ seed: 1 }))
  t.is(opened.restored.term, 0)
  t.is(opened.restored.votedFor, undefined)
  t.deepEqual(opened.restored.entries, [])
  await opened.close()
})

test('changes alternate between the two files, odd versions in the first', async (t) => {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 1, votedFor: undefined })
  t.deepEqual(state(disk, 1), { version: 1, term: 1, votedFor: undefined })
  await opened.metadata.save({ term: 1, votedFor: 7n })
  t.deepEqual(state(disk, 2), { version: 2, term: 1, votedFor: 7n })
  // In the order of calls, and nothing for what is saved already.
  const saves = [2, 2, 3].map((term) => opened.metadata.save({ term, votedFor: undefined }))
  await Promise.all(saves)
  t.deepEqual(state(disk, 1), { version: 3, term: 2, votedFor: undefined })
  t.deepEqual(state(disk, 2), { version: 4, term: 3, votedFor: undefined })
  await opened.close()
  const again = await open(disk)
  t.is(again.restored.term, 3)
  await again.close()
})

test('the higher version counts', async (t) => {
  const disk = new FaultyDisk({ seed: 1 })
  disk.poke(`${dir}/metadata1`, encodeMetadata({ version: 5, term: 4, votedFor: 2n }))
  disk.poke(`${dir}/metadata2`, encodeMetadata({ version: 4, term: 3, votedFor: 1n }))
  const opened = await open(disk)
  t.is(opened.restored.term, 4)
  t.is(opened.restored.votedFor, 2n)
  await opened.metadata.save({ term: 5, votedFor: undefined })
  t.is(state(disk, 2)?.version, 6)
  await opened.close()
})

test('a file that was never completely written is removed', async (t) => {
  for (const rest of [Buffer.alloc(0), Buffer.alloc(31, 1), Buffer.alloc(32)]) {
    const disk = new FaultyDisk({ seed: 1 })
    disk.poke(`${dir}/metadata1`, encodeMetadata({ version: 1, term: 1, votedFor: undefined }))
    disk.poke(`${dir}/metadata2`, rest)
    const opened = await open(disk)
    t.is(opened.restored.term, 1)
    t.is(disk.peek(`${dir}/metadata2`), undefined)
    await opened.metadata.save({ term: 2, votedFor: undefined })
    t.is(state(disk, 2)?.term, 2)
    await opened.close()
  }
})

test('metadata that cannot be is refused, and nothing is changed', async (t) => {
  const good = encodeMetadata({ version: 2, term: 1, votedFor: undefined })
  const newer = Buffer.from(good)
  newer.writeUInt32LE(2, 0)
  const nonsense = Buffer.alloc(32, 0xff)
  const versionZero = Buffer.from(good)
  versionZero.writeUInt32LE(0, 8)
  const cases = [
    { file: 'metadata1', bytes: good, code: 'DATA_CORRUPT' }, // an even version in the first file
    { file: 'metadata2', bytes: newer, code: 'DIRECTORY_FOREIGN' },
    { file: 'metadata2', bytes: nonsense, code: 'DATA_CORRUPT' },
    { file: 'metadata2', bytes: versionZero, code: 'DATA_CORRUPT' },
    { file: 'metadata2', bytes: Buffer.concat([good, Buffer.alloc(1)]), code: 'DATA_CORRUPT' },
  ]
  for (const { file, bytes, code } of cases) {
    const disk = new FaultyDisk({ seed: 1 })
    disk.poke(`${dir}/${file}`, bytes)
    disk.poke(`${dir}/tmp-litter`, Buffer.alloc(5))
    await t.throwsAsync(open(disk), { code, message: new RegExp(file) })
    t.deepEqual(disk.paths(), [`${dir}/${file}`, `${dir}/tmp-litter`])
  }
})

test('after a failed write nothing is saved any more', async (t) => {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 1, votedFor: undefined })
  disk.fault = ({ kind, path }) => (kind === 'sync' && path.includes('metadata') ? 'EIO' : undefined)
  await t.throwsAsync(opened.metadata.save({ term: 2, votedFor: undefined }), {
    code: 'DISK_FAILED',
    message: /metadata2/,
  })
  disk.fault = undefined
  await t.throwsAsync(opened.metadata.save({ term: 3, votedFor: undefined }), { code: 'DISK_FAILED' })
  await opened.close()
})
