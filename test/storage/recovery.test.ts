import fs from 'node:fs'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { encodeMetadata, openSegmentName } from '../../lib/codec/data-directory.js'
import type { Entry } from '../../lib/raft/types.js'
import { type OpenOptions, openDataDirectory } from '../../lib/storage/open.js'
import { commandEntry, configuration, configurationEntry, described, entriesBetween } from '../support/entries.js'
import { FaultyDisk } from '../support/faulty-disk.js'
import { collected, inChunks, snapshotContent } from '../support/snapshot-content.js'

const dir = '/data'
const segmentBytes = 16 * 1024
const open = (disk: FaultyDisk, options: Partial<OpenOptions> = {}) =>
  openDataDirectory({ dir, disk, autoRecovery: true, logCacheBytesMax: 1 << 20, segmentBytes, ...options })
const names = (disk: FaultyDisk) => disk.paths().map((file) => path.basename(file))
const segments = (disk: FaultyDisk) => names(disk).filter((name) => /^\d{16}-|^open-/.test(name))
const file = (name: string) => path.join(dir, name)

/** A directory whose files can be changed: batches of `per` entries, killed or stopped. */
async function written(options: { last: number; per?: number; bytes?: number; stop: 'kill' | 'close' }) {
  const { last, per = 1, bytes = 64, stop } = options
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 9, votedFor: undefined })
  const entries = entriesBetween(1, last, bytes)
  for (let i = 0; i < entries.length; i += per) await opened.log.append(entries.slice(i, i + per))
  if (stop === 'close') await opened.close()
  else disk.kill()
  return { disk, entries, opened }
}

/** As it is, byte for byte. */
const photograph = (disk: FaultyDisk) =>
  new Map(disk.paths().map((name) => [name, disk.peek(name)!.toString('base64')]))

async function refuses(
  t: ExecutionContext,
  disk: FaultyDisk,
  expected: { code: string; message: RegExp | ((text: string) => boolean) },
  options = {},
) {
  const before = photograph(disk)
  await t.throwsAsync(open(disk, options), expected)
  t.deepEqual(photograph(disk), before, 'nothing is changed')
}

function flip(disk: FaultyDisk, name: string, offset: number): void {
  const bytes = Buffer.from(disk.peek(file(name))!)
  bytes[offset]! ^= 0x10
  disk.poke(file(name), bytes)
}

test('the bootstrap segment and the metadata of C dqlite are taken over', async (t) => {
  const fixtures = path.resolve(import.meta.dirname, '../../../test/storage/fixtures')
  const disk = new FaultyDisk({ seed: 1 })
  for (const name of ['0000000000000001-0000000000000001', 'metadata1'])
    disk.poke(file(name), fs.readFileSync(path.join(fixtures, name)))
  const opened = await open(disk)
  t.is(opened.restored.term, 1)
  t.deepEqual(opened.restored.entries, [
    {
      type: 'configuration',
      index: 1,
      term: 1,
      byteLength: 40,
      configuration: { servers: [{ id: 1n, address: '127.0.0.1:19701', role: 'voter' }] },
    },
  ])
  await opened.close()
})

test('a snapshot of C dqlite is taken over', async (t) => {
  const fixtures = path.resolve(import.meta.dirname, '../../../test/storage/fixtures')
  const disk = new FaultyDisk({ seed: 1 })
  for (const name of ['snapshot-1-100-2223220', 'snapshot-1-100-2223220.meta', 'metadata1'])
    disk.poke(file(name), fs.readFileSync(path.join(fixtures, name)))
  const opened = await open(disk)
  t.deepEqual(opened.restored.snapshot, {
    last: { index: 100, term: 1 },
    configurationIndex: 3,
    configuration: {
      servers: [
        { id: 1n, address: '127.0.0.1:19351', role: 'voter' },
        { id: 2n, address: '127.0.0.1:19352', role: 'voter' },
      ],
    },
  })
  const snapshot = await opened.snapshots.openNewest()
  const content = await collected(snapshot!.content)
  t.is(content.byteLength, snapshot!.contentBytes)
  t.is(content.toString('latin1', 16, 23), 'test.db')
  t.is(opened.log.lastIndex, 100)
  await opened.log.append([commandEntry(101)])
  await opened.close()
})

test('a last batch that is torn at any byte is cut off, and nothing else', async (t) => {
  const { disk, entries } = await written({ last: 12, per: 3, stop: 'kill' })
  const whole = Buffer.from(disk.peek(file('open-1'))!)
  // 8 + configuration entry + …: three batches stay, the last one begins where the first three end.
  const start = 8 + (16 + 3 * 16 + entries[0]!.byteLength + 2 * 64) + 2 * (16 + 3 * (16 + 64))
  const end = start + 16 + 3 * (16 + 64)
  const kept = entries.slice(0, 9).map(described)
  for (let at = start; at < end; at++) {
    for (const how of ['zeros after', 'file ends', 'zeros before', 'flipped'] as const) {
      const bytes = Buffer.from(whole)
      if (how === 'zeros after') bytes.fill(0, at)
      if (how === 'zeros before') bytes.fill(0, start, at + 1)
      if (how === 'flipped') bytes[at]! ^= 1
      if (how === 'file ends') disk.poke(file('open-1'), whole.subarray(0, at))
      else disk.poke(file('open-1'), bytes)
      const opened = await open(disk)
      const found = opened.restored.entries.map(described)
      // Zeros over zeros change nothing.
      if (found.length === 12) t.true(bytes.equals(whole))
      else t.deepEqual(found, kept, `${how} at ${at}`)
      await opened.close()
      for (const name of segments(disk)) disk.poke(file(name), undefined)
    }
  }
})

test('a batch whose length runs past the file is torn like any other', async (t) => {
  const { disk } = await written({ last: 3, stop: 'kill' })
  const bytes = disk.peek(file('open-1'))!
  disk.poke(file('open-1'), bytes.subarray(0, 300))
  const opened = await open(disk)
  t.true(opened.log.lastIndex < 3)
  await opened.close()
})

test('open segments are closed in order, unused ones are removed', async (t) => {
  const { disk, entries } = await written({ last: 200, bytes: 400, stop: 'kill' })
  t.true(segments(disk).filter((name) => name.startsWith('open-')).length >= 3)
  const opened = await open(disk)
  t.deepEqual(opened.restored.entries.map(described), entries.map(described))
  await opened.close()
  t.true(segments(disk).every((name) => /^\d/.test(name)))
})

test('an open segment whose first write was lost is set aside', async (t) => {
  const { disk } = await written({ last: 2, stop: 'close' })
  const torn = Buffer.alloc(segmentBytes)
  torn.fill(7, 4096, 8192)
  disk.poke(file('open-1'), torn)
  const opened = await open(disk)
  t.is(opened.log.lastIndex, 2)
  t.regex(opened.warnings.join(), /open-1/)
  t.true(names(disk).some((name) => /^corrupt-\d+-open-1$/.test(name)))
  await opened.close()
})

test('damage before entries that were written later is refused', async (t) => {
  const { disk } = await written({ last: 60, bytes: 400, stop: 'close' })
  const [first, second] = segments(disk)
  const closed = { first: disk.peek(file(first!))!, second: disk.peek(file(second!))! }
  for (const name of segments(disk)) disk.poke(file(name), undefined)
  const asOpen = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(segmentBytes - bytes.byteLength)])
  disk.poke(file(openSegmentName(1)), asOpen(closed.first))
  disk.poke(file(openSegmentName(2)), asOpen(closed.second))
  const opened = await open(disk)
  await opened.close()
  for (const name of segments(disk)) disk.poke(file(name), undefined)
  disk.poke(file(openSegmentName(1)), asOpen(closed.first))
  disk.poke(file(openSegmentName(2)), asOpen(closed.second))
  flip(disk, 'open-1', 5000)
  await refuses(t, disk, {
    code: 'DATA_CORRUPT',
    message: /open-1 .*checksum.*mv \/data\/open-2 \/data\.set-aside\/\./,
  })
  disk.poke(file('open-1'), Buffer.alloc(segmentBytes))
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: /open-1 .*nothing was written/ })
})

test('damage in a closed segment is refused, with and without autoRecovery, and says what resolves it', async (t) => {
  const { disk, entries } = await written({ last: 100, bytes: 400, stop: 'close' })
  const files = segments(disk)
  t.true(files.length >= 3)
  for (const name of files) {
    const good = disk.peek(file(name))!
    const damages: [string, Buffer][] = [
      ['empty', Buffer.alloc(0)],
      ['short', good.subarray(0, good.byteLength - 8)],
      ['a zero block after it', Buffer.concat([good, Buffer.alloc(4096)])],
      ['flipped', Buffer.from(good.map((byte, i) => (i === 1000 ? byte ^ 1 : byte)))],
      ['no format', Buffer.concat([Buffer.alloc(8), good.subarray(8)])],
    ]
    for (const [how, bytes] of damages) {
      disk.poke(file(name), bytes)
      const after = files.slice(files.indexOf(name)).map(file).join(' ')
      const message = new RegExp(
        `^${name} is damaged.*nothing was changed.*mkdir -p /data.set-aside && mv ${after} /data`,
      )
      for (const autoRecovery of [true, false])
        await refuses(t, disk, { code: 'DATA_CORRUPT', message }, { autoRecovery })
      t.pass(how)
    }
    disk.poke(file(name), good)
  }
  // The operator's consent: the last one is moved away.
  disk.poke(file(files.at(-1)!), undefined)
  const opened = await open(disk)
  t.deepEqual(opened.restored.entries.map(described), entries.slice(0, opened.log.lastIndex).map(described))
  t.is(opened.log.lastIndex, Number(files.at(-1)!.split('-')[0]) - 1)
  await opened.close()
})

test('a segment of a newer format is foreign', async (t) => {
  const { disk } = await written({ last: 3, stop: 'close' })
  const name = segments(disk)[0]!
  const bytes = Buffer.from(disk.peek(file(name))!)
  bytes.writeUInt32LE(2, 0)
  disk.poke(file(name), bytes)
  await refuses(t, disk, { code: 'DIRECTORY_FOREIGN', message: /format 2/ })
})

test('a gap is refused', async (t) => {
  const { disk } = await written({ last: 100, bytes: 400, stop: 'close' })
  const files = segments(disk)
  disk.poke(file(files[1]!), undefined)
  const after = files.slice(2).map(file).join(' ')
  const message = new RegExp(
    `^${files[2]} .*no file holds the entries from \\d+ to \\d+.* && mv ${after} /data.set-aside/`,
  )
  await refuses(t, disk, { code: 'DATA_CORRUPT', message })
  for (const name of files.slice(2)) disk.poke(file(name), undefined)
  const opened = await open(disk)
  t.is(opened.log.lastIndex, Number(files[0]!.split('-')[1]))
  await opened.close()
})

test('a log whose beginning is missing is refused, and nothing but a copy resolves it', async (t) => {
  const { disk } = await written({ last: 100, bytes: 400, stop: 'close' })
  disk.poke(file(segments(disk)[0]!), undefined)
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: /no file holds the entries from 1 to .*restore \/data from/ })
})

test('entries without term and vote are refused', async (t) => {
  const { disk } = await written({ last: 3, stop: 'close' })
  const metadata = disk.peek(file('metadata1'))!
  disk.poke(file('metadata1'), undefined)
  const recover = `dqlite recover --dir /data --cluster '[{"id":"1","address":"127.0.0.1:9001","role":0},`
  const message = (text: string) => text.includes('term and vote are missing') && text.includes(recover)
  await refuses(t, disk, { code: 'DATA_CORRUPT', message })
  disk.poke(file('metadata1'), metadata)
  await (await open(disk)).close()
})

test('one of two metadata files that is missing or short is refused: it may have held a newer vote', async (t) => {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 1, votedFor: undefined })
  await opened.log.append(entriesBetween(1, 3))
  await opened.metadata.save({ term: 2, votedFor: undefined })
  await opened.metadata.save({ term: 2, votedFor: 1n })
  await opened.close()
  const [first, second] = ['metadata1', 'metadata2'].map((name) => disk.peek(file(name))!)
  for (const [name, good] of [
    ['metadata1', first!],
    ['metadata2', second!],
  ] as const)
    for (const [bytes, why] of [
      [undefined, 'missing'],
      [good.subarray(0, 20), 'too short'],
    ] as const) {
      disk.poke(file(name), bytes)
      const message = new RegExp(
        `^${name} is damaged: it is ${why}, and may have held a newer .*: dqlite recover --dir /data`,
      )
      await refuses(t, disk, { code: 'DATA_CORRUPT', message })
      disk.poke(file(name), good)
    }
  // The second one is created by the second change: interrupted, it was never there.
  disk.poke(file('metadata1'), encodeMetadata({ version: 1, term: 1, votedFor: undefined }))
  disk.poke(file('metadata2'), second!.subarray(0, 8))
  const again = await open(disk)
  t.is(again.restored.term, 1)
  await again.close()
})

test('two metadata files of one version, or in the wrong place, are refused by name', async (t) => {
  const { disk } = await written({ last: 3, stop: 'close' })
  disk.poke(file('metadata2'), disk.peek(file('metadata1')))
  await refuses(t, disk, {
    code: 'DATA_CORRUPT',
    message: /^metadata2 is damaged: it holds version 1, which belongs to/,
  })
  disk.poke(file('metadata2'), Buffer.alloc(64, 1))
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: /^metadata2 is damaged/ })
})

test('entries of a term that the metadata does not know are refused', async (t) => {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 5, votedFor: undefined })
  await opened.log.append([configurationEntry(1, 5)])
  await opened.close()
  disk.poke(file('metadata1'), encodeMetadata({ version: 1, term: 4, votedFor: undefined }))
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: /term 4, but entries of term 5/ })
})

test('a log that does not begin with a configuration is refused', async (t) => {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 1, votedFor: undefined })
  await opened.log.append([commandEntry(1)])
  await opened.close()
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: /entry 1 is not a configuration/ })
})

test('the result of an interrupted truncation beside the original: the original stays', async (t) => {
  const { disk, entries, opened } = await written({ last: 10, stop: 'close' })
  t.truthy(opened)
  const original = disk.peek(file('0000000000000001-0000000000000010'))!
  const again = await open(disk)
  await again.log.truncateAfter(6)
  await again.close()
  t.deepEqual(segments(disk), ['0000000000000001-0000000000000006'])
  disk.poke(file('0000000000000001-0000000000000010'), original)
  const third = await open(disk)
  t.deepEqual(third.restored.entries.map(described), entries.map(described))
  t.deepEqual(
    segments(disk).filter((name) => /^\d/.test(name)),
    ['0000000000000001-0000000000000010'],
  )
  await third.close()
})

test('segments that overlap otherwise are refused', async (t) => {
  const { disk } = await written({ last: 10, stop: 'close' })
  disk.poke(file('0000000000000005-0000000000000012'), disk.peek(file('0000000000000001-0000000000000010')))
  const message = /^0+5-0+12 .*holds some of its entries too.* && mv \/data\/0+5-0+12 \/data\.set-aside\//
  await refuses(t, disk, { code: 'DATA_CORRUPT', message })
  // The command it names resolves it.
  disk.poke(file('0000000000000005-0000000000000012'), undefined)
  const opened = await open(disk)
  t.is(opened.log.lastIndex, 10)
  await opened.close()
})

test('a segment inside another one is refused, and the command moves that one only', async (t) => {
  const { disk } = await written({ last: 60, bytes: 400, stop: 'close' })
  const [first, second] = segments(disk)
  t.truthy(second)
  disk.poke(file('0000000000000003-0000000000000005'), disk.peek(file(first!)))
  const message =
    /^0+3-0+5 .*holds some of its entries too.*: mkdir -p \/data\.set-aside && mv \/data\/0+3-0+5 \/data\.set/
  await refuses(t, disk, { code: 'DATA_CORRUPT', message })
})

test('a log that went on after an interrupted truncation is refused, and the command moves the cut segment', async (t) => {
  const { disk, entries } = await written({ last: 10, stop: 'close' })
  const original = disk.peek(file('0000000000000001-0000000000000010'))!
  const again = await open(disk)
  await again.log.truncateAfter(6)
  const others = entriesBetween(7, 9, 64, 9)
  await again.log.append(others)
  await again.close()
  disk.poke(file('0000000000000001-0000000000000010'), original)
  const message = /^0+7-0+9 .*was cut after entry 6 .* went on in 0+7-0+9.* && mv \/data\/0+1-0+10 \/data\.set-aside\//
  await refuses(t, disk, { code: 'DATA_CORRUPT', message })
  disk.poke(file('0000000000000001-0000000000000010'), undefined)
  const third = await open(disk)
  t.deepEqual(third.restored.entries.map(described), [...entries.slice(0, 6), ...others].map(described))
  await third.close()
})

test('what a truncation of C dqlite left half done is refused by name: a cut segment and a later one', async (t) => {
  const { disk, entries } = await written({ last: 100, bytes: 400, stop: 'close' })
  const [first, second] = segments(disk)
  const again = await open(disk)
  const later = disk.peek(file(second!))!
  await again.log.truncateAfter(6)
  await again.close()
  disk.poke(file(second!), later)
  const message = new RegExp(
    `^${second} .*from 7 to ${Number(first!.split('-')[1])}.* && mv /data/${second} /data.set-aside/`,
  )
  await refuses(t, disk, { code: 'DATA_CORRUPT', message })
  disk.poke(file(second!), undefined)
  const third = await open(disk)
  t.deepEqual(third.restored.entries.map(described), entries.slice(0, 6).map(described))
  await third.close()
})

test('half a copied directory is refused: the content of a snapshot without its metadata', async (t) => {
  const { disk } = await written({ last: 3, stop: 'close' })
  disk.poke(file('snapshot-1-80-17'), Buffer.alloc(8))
  const message = /^snapshot-1-80-17\.meta is damaged: it is missing.*up to 80.* && mv \/data\/snapshot-1-80-17 \/data/
  await refuses(t, disk, { code: 'DATA_CORRUPT', message })
  for (const name of segments(disk)) disk.poke(file(name), undefined)
  await refuses(t, disk, { code: 'DATA_CORRUPT', message })
})

test('a directory with a space in its name gets a command that a shell understands', async (t) => {
  const { disk } = await written({ last: 3, stop: 'close' })
  const odd = "/my data/it's"
  for (const name of names(disk)) disk.poke(path.join(odd, name), disk.peek(file(name)))
  disk.poke(path.join(odd, '0000000000000001-0000000000000003'), Buffer.alloc(0))
  await t.throwsAsync(openDataDirectory({ dir: odd, disk, autoRecovery: true, logCacheBytesMax: 0 }), {
    code: 'DATA_CORRUPT',
    message: /mkdir -p '\/my data\/it'\\''s\.set-aside' && mv '\/my data\/it'\\''s\/0+1-0+3' '/,
  })
})

test('litter is removed, strangers are left alone', async (t) => {
  const { disk } = await written({ last: 3, stop: 'close' })
  const litter = ['tmp-1', 'snapshot-1-2-3', 'snapshot-1-2-4.meta', 'snapshot-1-2-5', 'snapshot-1-2-5.meta']
  for (const name of litter) disk.poke(file(name), name === 'snapshot-1-2-5' ? Buffer.alloc(0) : Buffer.alloc(8))
  const strangers = ['info.yaml', 'cluster.yaml', 'corrupt-17-open-1', 'database']
  for (const name of strangers) disk.poke(file(name), Buffer.alloc(8))
  const opened = await open(disk)
  await opened.close()
  for (const name of litter) t.false(names(disk).includes(name), name)
  for (const name of strangers) t.true(names(disk).includes(name), name)
})

// ------------------------------------------------------------------------------------------------ with snapshots

/** 200 entries, snapshots at 80 and 150, nothing compacted unless asked. */
async function withSnapshots(options: { compactTo?: number } = {}) {
  const disk = new FaultyDisk({ seed: 1 })
  const opened = await open(disk)
  await opened.metadata.save({ term: 1, votedFor: undefined })
  const entries = entriesBetween(1, 200, 400)
  await opened.log.append(entries.slice(0, 100))
  const contents = new Map<number, Buffer>()
  for (const index of [80, 150]) {
    const content = snapshotContent(4, index)
    contents.set(index, content)
    const description = { last: { index, term: 1 }, configuration, configurationIndex: 1 }
    await opened.snapshots.take(description, content.byteLength, inChunks(content, 4096))
    if (index === 80) await opened.log.append(entries.slice(100))
  }
  if (options.compactTo !== undefined) await opened.log.compact(options.compactTo)
  await opened.close()
  const [older, newest] = [80, 150].map((i) =>
    names(disk).find((name) => new RegExp(`^snapshot-1-${i}-\\d+$`).test(name))!,
  )
  return { disk, entries, contents, older: older!, newest: newest! }
}

test('a damaged newest snapshot is replaced by the older one, if the log covers the rest', async (t) => {
  for (const part of ['content', 'meta'] as const) {
    const { disk, entries, contents, newest } = await withSnapshots()
    flip(disk, part === 'meta' ? `${newest}.meta` : newest, part === 'meta' ? 20 : 40)
    await refuses(t, disk, { code: 'DATA_CORRUPT', message: /start with autoRecovery/ }, { autoRecovery: false })
    const opened = await open(disk)
    t.is(opened.restored.snapshot?.last.index, 80)
    t.deepEqual(opened.restored.entries.map(described), entries.map(described))
    const snapshot = await opened.snapshots.openNewest()
    t.true((await collected(snapshot!.content)).equals(contents.get(80)!))
    t.regex(opened.warnings.join(), /set aside/)
    t.is(names(disk).filter((name) => name.startsWith('corrupt-')).length, 2)
    await opened.close()
    const again = await open(disk)
    t.deepEqual(again.warnings, [])
    await again.close()
  }
})

test('both snapshots damaged: the log alone serves, if it is complete', async (t) => {
  const { disk, entries, older, newest } = await withSnapshots()
  flip(disk, newest, 40)
  flip(disk, older, 40)
  const opened = await open(disk)
  t.is(opened.restored.snapshot, undefined)
  t.deepEqual(opened.restored.entries.map(described), entries.map(described))
  await opened.close()
})

test('a damaged snapshot that nothing replaces is refused', async (t) => {
  const { disk, older, newest } = await withSnapshots({ compactTo: 120 })
  flip(disk, newest, 40)
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: new RegExp(`${newest} is damaged.*does not replace it`) })
  flip(disk, older, 40)
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: new RegExp(`${newest} is damaged.*does not replace it`) })
})

test('a snapshot of a newer format is foreign', async (t) => {
  const { disk, newest } = await withSnapshots()
  const bytes = Buffer.from(disk.peek(file(`${newest}.meta`))!)
  bytes.writeUInt32LE(2, 0)
  disk.poke(file(`${newest}.meta`), bytes)
  await refuses(t, disk, { code: 'DIRECTORY_FOREIGN', message: /newer/ })
})

test('a damaged segment that the snapshot covers is set aside', async (t) => {
  const { disk, entries } = await withSnapshots()
  const covered = segments(disk).find((name) => Number(name.split('-')[1]) <= 150 && Number(name.split('-')[0]) > 50)!
  const last = Number(covered.split('-')[1])
  flip(disk, covered, 100)
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: /start with autoRecovery/ }, { autoRecovery: false })
  const opened = await open(disk)
  t.is(opened.restored.snapshot?.last.index, 150)
  t.deepEqual(opened.restored.entries.map(described), entries.slice(last).map(described))
  t.regex(opened.warnings.join(), /set aside/)
  await opened.close()
  const again = await open(disk)
  t.deepEqual(again.restored.entries.map(described), entries.slice(last).map(described))
  // What is before it belongs to no log; compaction removes it.
  await again.log.compact(1)
  t.true(segments(disk).every((name) => name.startsWith('open-') || Number(name.split('-')[0]) > last))
  await again.close()
})

test('a damaged segment with entries newer than the snapshot is refused', async (t) => {
  const { disk } = await withSnapshots()
  const name = segments(disk).at(-1)!
  flip(disk, name, 200)
  await refuses(t, disk, { code: 'DATA_CORRUPT', message: new RegExp(name) })
})

test('a log behind its snapshot is what an installation left, and is dropped', async (t) => {
  const { disk } = await withSnapshots()
  for (const name of segments(disk)) if (Number(name.split('-')[1]) > 120) disk.poke(file(name), undefined)
  const opened = await open(disk)
  t.is(opened.log.lastIndex, 150)
  t.deepEqual(opened.restored.entries, [])
  t.deepEqual(
    segments(disk).filter((name) => /^\d/.test(name)),
    [],
  )
  t.regex(opened.warnings.join(), /dropped/)
  const more: Entry[] = entriesBetween(151, 152)
  await opened.log.append(more)
  await opened.close()
  const again = await open(disk)
  t.deepEqual(again.restored.entries.map(described), more.map(described))
  await again.close()
})

test('a log with another entry at the index of the snapshot is dropped', async (t) => {
  const { disk, newest } = await withSnapshots()
  await open(disk).then(async (opened) => {
    await opened.metadata.save({ term: 7, votedFor: undefined })
    await opened.close()
  })
  for (const suffix of ['', '.meta']) {
    const bytes = disk.peek(file(newest + suffix))!
    disk.poke(file(newest.replace('snapshot-1-', 'snapshot-7-') + suffix), bytes)
  }
  const opened = await open(disk)
  t.deepEqual(opened.restored.snapshot?.last, { index: 150, term: 7 })
  t.deepEqual(opened.restored.entries, [])
  t.is(opened.log.lastIndex, 150)
  await opened.close()
})
