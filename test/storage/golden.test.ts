/**
 * Whole directories that C dqlite left behind, killed or stopped: opened, read, changed, closed, and judged by an
 * independent reader. The archive is too large for the repository; without it the tests say so and pass.
 */
import { execFileSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'
import { ContentDecoder } from '../../lib/codec/data-directory.js'
import { decodeCommand } from '../../lib/codec/log-entry.js'
import type { Entry } from '../../lib/raft/types.js'
import { openDataDirectory } from '../../lib/storage/open.js'
import { commandEntry, described } from '../support/entries.js'

const root = path.resolve(import.meta.dirname, '../../..')
const shared = process.env['DQLITE_SHARED'] ?? path.resolve(root, '../shared')
const archive = path.join(shared, 'golden', 'c-data-dirs.tar.xz')
const reader = path.join(shared, 'peers', 'parse_dqlite_dir.py')

interface Golden {
  readonly name: string
  readonly first: number
  readonly last: number
  readonly term: number
  readonly snapshot?: number
  /** What the independent reader finds once everything is replayed. */
  readonly rows: readonly string[]
}

const goldens: readonly Golden[] = [
  { name: 'd-old2', first: 51, last: 175, term: 1, snapshot: 150, rows: ["{'t': 190}", "{'u': 3}"] },
  { name: 'd-head2', first: 51, last: 175, term: 1, snapshot: 150, rows: ["{'t': 190}", "{'u': 3}"] },
  { name: 'm1', first: 1, last: 46, term: 1, rows: ["{'t': 40}"] },
  { name: 'q1', first: 1, last: 1580, term: 3, snapshot: 1577, rows: ["{'t': 1607, 'u': 0}"] },
  { name: 's1', first: 81, last: 126, term: 1, snapshot: 120, rows: ["{'t': 120}"] },
]

function unpack(t: ExecutionContext, name: string): string | undefined {
  if (!fs.existsSync(archive)) {
    t.log(`skipped: ${archive} is not here`)
    t.pass()
    return undefined
  }
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'dqlite-golden-'))
  t.teardown(() => fs.rmSync(dir, { recursive: true, force: true }))
  execFileSync('tar', ['xJf', archive, '-C', dir, name])
  return path.join(dir, name)
}

const judged = (dir: string): string =>
  execFileSync('python3', [reader, dir, '--replay', `${dir}-replayed`], { encoding: 'utf8' })

for (const golden of goldens) {
  test(`${golden.name}, as C dqlite left it, is taken over and given back`, async (t) => {
    const dir = unpack(t, golden.name)
    if (dir === undefined) return
    const options = { dir, autoRecovery: true, logCacheBytesMax: 100_000 }
    const opened = await openDataDirectory(options)
    const { restored, log, snapshots } = opened
    t.deepEqual(opened.warnings, [])
    t.is(restored.term, golden.term)
    t.is(restored.snapshot?.last.index, golden.snapshot)
    t.is(restored.entries[0]!.index, golden.first)
    t.is(log.lastIndex, golden.last)
    const entries = await log.read(golden.first, golden.last, 1e9)
    t.is(entries.length, golden.last - golden.first + 1)
    for (const entry of entries) if (entry.type === 'command') decodeCommand(entry.data!)
    for (const [i, entry] of restored.entries.entries())
      if (entry.type !== 'command' || entry.data !== undefined) t.is(described(entry), described(entries[i]!))
    const snapshot = await snapshots.openNewest()
    if (snapshot !== undefined) {
      const decoder = new ContentDecoder()
      for await (const piece of snapshot.content) for (const part of decoder.push(piece)) void part
      decoder.finish()
      await snapshot.close()
    }
    await opened.close()
    const report = judged(dir)
    for (const rows of golden.rows) t.true(report.includes(`integrity [('ok',)], ${rows}`), `${rows} in\n${report}`)
    t.true(report.includes(`last index ${golden.last} `))
    t.false(report.includes('!!'))
    t.true(fs.readdirSync(dir).every((name) => !name.startsWith('open-')))
  })
}

test('what we write into a directory of C dqlite is read by an independent reader', async (t) => {
  const dir = unpack(t, 'q1')
  if (dir === undefined) return
  const opened = await openDataDirectory({ dir, autoRecovery: true, logCacheBytesMax: 0 })
  const { log, metadata, snapshots } = opened
  const [last] = await log.read(log.lastIndex, log.lastIndex, 1)
  await metadata.save({ term: 4, votedFor: 1n })
  // The same transaction again, some barriers, a cut, a snapshot of the same content.
  for (let index = 1581; index <= 1600; index++) {
    const barrier: Entry = { type: 'barrier', index, term: 4, byteLength: 8 }
    await log.append([last?.type === 'command' && index % 2 === 0 ? { ...last, index, term: 4 } : barrier])
  }
  await log.truncateAfter(1591)
  await metadata.save({ term: 5, votedFor: undefined })
  await log.append([{ type: 'barrier', index: 1592, term: 5, byteLength: 8 }])
  const before = await snapshots.openNewest()
  const { configuration, configurationIndex } = before!.description
  const description = { last: { index: 1577, term: 2 }, configuration, configurationIndex }
  await snapshots.take(description, before!.contentBytes, before!.content)
  await before!.close()
  await log.compact(1500)
  await opened.close()
  const report = judged(dir)
  t.true(report.includes('CURRENT term=5 vote=0'))
  t.true(report.includes('last index 1592 last term 5'))
  t.true(report.includes("{'t': 1607, 'u': 0}"))
  t.is(report.match(/== snapshot term=2 index=1577/g)?.length, 2)
  t.false(report.includes('!!'))
})

test('a directory of ours that was killed in the middle is read by an independent reader', async (t) => {
  if (!fs.existsSync(reader)) {
    t.log(`skipped: ${reader} is not here`)
    t.pass()
    return
  }
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'dqlite-golden-'))
  t.teardown(() => fs.rmSync(dir, { recursive: true, force: true }))
  const opened = await openDataDirectory({ dir, autoRecovery: true, logCacheBytesMax: 0 })
  await opened.metadata.save({ term: 1, votedFor: undefined })
  const servers = [{ id: 1n, address: '127.0.0.1:9001', role: 'voter' as const }]
  await opened.log.append([{ type: 'configuration', index: 1, term: 1, byteLength: 40, configuration: { servers } }])
  await opened.log.append([{ type: 'barrier', index: 2, term: 1, byteLength: 8 }])
  await opened.log.append([checkpoint(3), checkpoint(4)])
  const copy = `${dir}-copy`
  t.teardown(() => fs.rmSync(copy, { recursive: true, force: true }))
  fs.cpSync(dir, copy, { recursive: true })
  const report = judged(copy)
  t.regex(report, /open segment open-1 first=1 n=4/)
  t.true(report.includes('rest all zero'))
  await opened.close()
})

/** CHECKPOINT of "test.db", which old logs hold (raft-wire §5). */
function checkpoint(index: number) {
  const data = Buffer.from('0104000000000000' + Buffer.from('test.db\0').toString('hex'), 'hex')
  return { ...commandEntry(index, 16), data }
}
