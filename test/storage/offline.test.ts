import { createHash } from 'node:crypto'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { decodeMetadata, encodeMetadata } from '../../lib/codec/data-directory.js'
import { lastEntry, recover, type RecoveredServer } from '../../lib/storage/offline.js'
import { openDataDirectory } from '../../lib/storage/open.js'
import { commandEntry, described, entriesBetween } from '../support/entries.js'
import { FaultyDisk } from '../support/faulty-disk.js'

const dir = '/data'
const file = (name: string) => path.join(dir, name)
const open = (disk: FaultyDisk) =>
  openDataDirectory({ dir, disk, autoRecovery: true, logCacheBytesMax: 1 << 20, segmentBytes: 16 * 1024 })
const names = (disk: FaultyDisk) => disk.paths().map((name) => path.basename(name))
const photograph = (disk: FaultyDisk) =>
  new Map(disk.paths().map((name) => [name, createHash('sha256').update(disk.peek(name)!).digest('hex')]))

async function written(options: { last: number; stop: 'kill' | 'close' }) {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 3, votedFor: undefined })
  const entries = entriesBetween(1, options.last, 400, 3)
  for (const entry of entries) await opened.log.append([entry])
  if (options.stop === 'close') await opened.close()
  else disk.kill()
  return { disk, entries, opened }
}

const one: RecoveredServer = { id: 1n, address: '127.0.0.1:9001', role: 'voter' }

async function refuses(t: ExecutionContext, disk: FaultyDisk, attempt: Promise<unknown>, expected: object) {
  const before = photograph(disk)
  await t.throwsAsync(attempt, expected)
  t.deepEqual(photograph(disk), before, 'nothing is changed')
}

test('the last entry is read without a change, from open segments and closed ones', async (t) => {
  for (const stop of ['kill', 'close'] as const) {
    const { disk } = await written({ last: 60, stop })
    const before = photograph(disk)
    t.deepEqual(await lastEntry(dir, { disk }), { index: 60, term: 3 })
    t.deepEqual(photograph(disk), before)
  }
})

test('a directory without entries has entry 0 of term 0; one that is not there is refused and not made', async (t) => {
  const disk = new FaultyDisk({ seed: 1 })
  t.deepEqual(await lastEntry(dir, { disk }), { index: 0, term: 0 })
  await refuses(t, disk, recover(dir, [one], { disk }), { code: 'DIRECTORY_FOREIGN', message: /nothing to recover/ })
  for (const attempt of [lastEntry('/nowhere/at/all'), recover('/nowhere/at/all', [one])])
    await t.throwsAsync(attempt, { code: 'DISK_FAILED', message: /nowhere/ })
})

test('neither works while a node holds the lock', async (t) => {
  const { disk, opened } = await written({ last: 3, stop: 'close' })
  t.truthy(opened)
  const running = await open(disk)
  await t.throwsAsync(lastEntry(dir, { disk }), { code: 'DIRECTORY_LOCKED', message: /\/data/ })
  await t.throwsAsync(recover(dir, [one], { disk }), { code: 'DIRECTORY_LOCKED', message: /\/data/ })
  await running.close()
  t.deepEqual(await lastEntry(dir, { disk }), { index: 3, term: 3 })
})

test('a recovery closes open segments and ends the log with the configuration, in term 1', async (t) => {
  for (const stop of ['kill', 'close'] as const) {
    const { disk, entries } = await written({ last: 60, stop })
    const servers: RecoveredServer[] = [
      { id: 7, address: 'a:1', role: 'standby' },
      { id: 2n ** 64n - 1n, address: 'b:2', role: 'voter' },
    ]
    t.deepEqual(await recover(dir, servers, { disk }), { index: 61, term: 1 })
    t.true(names(disk).every((name) => !name.startsWith('open-')))
    // u64 format · batch: crc, crc, n · term, type 3, length · configuration (disk-format §4.1)
    const segment = disk.peek(file('0000000000000061-0000000000000061'))!
    t.is(segment.readBigUInt64LE(0), 1n)
    t.is(segment.readBigUInt64LE(16), 1n)
    t.is(segment.readBigUInt64LE(24), 1n)
    t.is(segment.readUInt8(32), 3)
    t.is(segment.readUInt32LE(36), segment.byteLength - 40)
    t.deepEqual(await lastEntry(dir, { disk }), { index: 61, term: 1 })

    const opened = await open(disk)
    t.deepEqual(opened.restored.entries.slice(0, 60).map(described), entries.map(described))
    t.like(opened.restored.entries[60], {
      type: 'configuration',
      term: 1,
      configuration: { servers: servers.map((server) => ({ ...server, id: BigInt(server.id) })) },
    })
    t.is(opened.restored.term, 4, 'nobody has led in it')
    // The log goes on behind it.
    await opened.log.append([commandEntry(62, 64, 4)])
    await opened.close()
    // Twice is twice.
    t.deepEqual(await recover(dir, [one], { disk }), { index: 63, term: 1 })
  }
})

test('a configuration that cannot be is refused before anything is touched', async (t) => {
  const { disk } = await written({ last: 3, stop: 'kill' })
  const bad: [readonly unknown[], RegExp][] = [
    [[], /there is no voter/],
    [[{ ...one, role: 'spare' }], /there is no voter/],
    [[{ ...one, role: 'king' }], /role king/],
    [[{ ...one, id: 0n }], /id 0 /],
    [[{ ...one, id: 2n ** 64n }], /id 18446744073709551616 /],
    [[{ ...one, id: 1.5 }], /id 1\.5 /],
    [[{ ...one, id: '1' }], /id 1 /],
    [[{ ...one, address: '' }], /address ""/],
    [[{ ...one, address: 'a\0b' }], /address/],
    [[one, { ...one, address: 'b:1' }], /id 1 is there twice/],
    [[one, { ...one, id: 2n }], /address 127\.0\.0\.1:9001 is there twice/],
    [Array.from({ length: 200 }, (_, i) => ({ ...one, id: i + 1, address: `10.0.0.1:${9000 + i}` })), /block of 4096/],
  ]
  for (const [servers, message] of bad)
    await refuses(t, disk, recover(dir, servers as RecoveredServer[], { disk }), { code: 'BAD_OPTION', message })
})

test('a damaged directory is refused like at a start', async (t) => {
  const { disk } = await written({ last: 60, stop: 'close' })
  const name = names(disk).find((each) => each.startsWith('00000'))!
  disk.poke(file(name), disk.peek(file(name))!.subarray(0, 100))
  await refuses(t, disk, recover(dir, [one], { disk }), { code: 'DATA_CORRUPT', message: new RegExp(name) })
  await refuses(t, disk, lastEntry(dir, { disk }), { code: 'DATA_CORRUPT', message: new RegExp(name) })
})

test('a recovery replaces lost terms and votes by a term in which nobody has voted', async (t) => {
  const { disk } = await written({ last: 3, stop: 'close' })
  disk.poke(file('metadata1'), undefined)
  await recover(dir, [one], { disk })
  t.deepEqual(decodeMetadata(disk.peek(file('metadata1'))!), { version: 1, term: 4, votedFor: undefined })
  await (await open(disk)).close()

  disk.poke(file('metadata1'), encodeMetadata({ version: 3, term: 6, votedFor: 2n }))
  await t.throwsAsync(open(disk), { code: 'DATA_CORRUPT', message: /^metadata2 is damaged: it is missing/ })
  await recover(dir, [one], { disk })
  t.deepEqual(decodeMetadata(disk.peek(file('metadata2'))!), { version: 4, term: 7, votedFor: undefined })

  // Of another member: older than the entries.
  disk.poke(file('metadata1'), encodeMetadata({ version: 1, term: 1, votedFor: 2n }))
  disk.poke(file('metadata2'), undefined)
  await t.throwsAsync(open(disk), { code: 'DATA_CORRUPT', message: /term 1, but entries of term 3/ })
  await recover(dir, [one], { disk })
  t.deepEqual(decodeMetadata(disk.peek(file('metadata2'))!), { version: 2, term: 4, votedFor: undefined })
  const opened = await open(disk)
  t.is(opened.restored.term, 4)
  await opened.close()
})

test('a recovery that is interrupted anywhere leaves a directory that opens, with or without it', async (t) => {
  const { disk: probe } = await written({ last: 60, stop: 'kill' })
  const begin = probe.operations
  await recover(dir, [one], { disk: probe })
  const operations = probe.operations - begin
  t.true(operations > 5)
  for (let at = 1; at <= operations; at++) {
    const { disk, entries } = await written({ last: 60, stop: 'kill' })
    const from = disk.operations
    disk.fault = ({ number }) => (number === from + at ? 'crash' : undefined)
    await t.throwsAsync(recover(dir, [one], { disk }), undefined, `operation ${at}`)
    disk.fault = undefined
    disk.crash()
    const opened = await open(disk)
    const found = opened.restored.entries
    t.deepEqual(found.slice(0, 60).map(described), entries.map(described), `operation ${at}`)
    t.true(found.length === 60 || (found.length === 61 && found[60]!.type === 'configuration'))
    await opened.close()
    await recover(dir, [one], { disk })
  }
})
