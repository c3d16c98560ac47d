// `inspect`: what is said about directories of ours and of C dqlite, and that nothing in them changes.
import { createHash } from 'node:crypto'
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import test, { type ExecutionContext } from 'ava'

import { connect, inspect, Node } from '../../lib/index.js'
import { goldenMissing, unpackGolden } from '../support/golden.js'

function temporaryDirectory(t: ExecutionContext): string {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'dqlite-inspect-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

/** Names, contents, and the times of the last changes. */
function photograph(dir: string): Record<string, string> {
  const photo: Record<string, string> = { '.': String(statSync(dir).mtimeMs) }
  for (const name of readdirSync(dir).sort()) {
    const file = path.join(dir, name)
    if (!statSync(file).isFile()) continue
    photo[name] = `${statSync(file).mtimeMs} ${createHash('sha256').update(readFileSync(file)).digest('hex')}`
  }
  return photo
}

async function inspected(t: ExecutionContext, dir: string) {
  const before = photograph(dir)
  const inspection = await inspect(dir)
  t.deepEqual(photograph(dir), before, 'nothing is changed')
  return inspection
}

/** A node that has written, in a directory of its own. */
async function withNode(t: ExecutionContext, options: { snapshots?: boolean } = {}) {
  const dir = path.join(temporaryDirectory(t), 'data')
  const bind = `@dqlite-inspect-${process.pid}-${Math.random()}`
  const limits = options.snapshots === true ? { limits: { snapshotThreshold: 8, snapshotTrailing: 8 } } : {}
  const node = await Node.start({ id: 1, address: bind, bind, dir, ...limits })
  t.teardown(() => node.stop())
  await using db = await connect({ addresses: [bind], database: 'app' })
  await db.exec('CREATE TABLE a (x)')
  await db.exec('CREATE TABLE "odd ""name" (x)')
  for (let i = 0; i < 20; i++) await db.exec('INSERT INTO a VALUES (?)', [i])
  await using other = await connect({ addresses: [bind], database: 'other' })
  await other.exec('CREATE TABLE b (x)')
  return { dir, node, bind }
}

test('a directory after a clean stop is described down to its rows, and nothing is irregular', async (t) => {
  const { dir, node } = await withNode(t)
  const last = node.status.lastIndex
  await node.stop()
  const inspection = await inspected(t, dir)
  t.deepEqual(inspection.irregularities, [])
  t.false(inspection.isInUse)
  t.is(inspection.lastEntry?.index, last)
  t.like(inspection.configuration, { index: 1, servers: [{ id: 1n, role: 'voter' }] })
  t.deepEqual(
    inspection.databases?.map(({ name, pages, bytes, tables, problems }) => [name, bytes / pages, tables, problems]),
    [
      ['app', 4096, { a: 20, 'odd "name': 0 }, []],
      ['other', 4096, { b: 0 }, []],
    ],
  )
  t.true(inspection.segments.every(({ kind, tail, problem }) => kind === 'closed' && tail === 'none' && !problem))
  t.is(
    inspection.segments.reduce((sum, { entries }) => sum + entries, 0),
    last,
  )
  t.is(inspection.metadata.length, 1)
})

test('a directory in use is read, and it is said that it is in use', async (t) => {
  const { dir, node } = await withNode(t)
  const { isInUse, irregularities, databases } = await inspect(dir)
  t.true(isInUse)
  t.regex(irregularities[0]!, /a node uses this directory/)
  t.like(databases?.[0], { name: 'app', tables: { a: 20 } })
  await node.stop()
})

test('snapshots are described, and the rows come from snapshot and log', async (t) => {
  const { dir, node } = await withNode(t, { snapshots: true })
  await node.stop()
  const inspection = await inspected(t, dir)
  t.is(inspection.snapshots.length, 2)
  for (const snapshot of inspection.snapshots) {
    t.true(snapshot.isCompressed)
    t.is(snapshot.problem, undefined)
    t.is(snapshot.databases?.[0]?.name, 'app')
  }
  t.like(inspection.databases?.[0], { name: 'app', tables: { a: 20 } })
})

test('everything irregular is said in plain words', async (t) => {
  const { dir, node } = await withNode(t, { snapshots: true })
  await node.stop()
  const segments = readdirSync(dir).filter((name) => /^\d/.test(name))
  const last = segments.at(-1)!
  const newest = (await inspect(dir)).snapshots.at(-1)!.file
  const files: Record<string, Buffer | string> = {
    'tmp-17': 'x',
    'corrupt-17-open-3': 'x',
    'snapshot-1-2-3': 'content',
    'snapshot-1-2-4.meta': 'meta',
    'info.yaml': 'ID: 1',
    metadata2: 'short',
    'open-x': 'x',
    // A batch whose first half arrived.
    'open-1': Buffer.concat([Buffer.from([1, 0, 0, 0, 0, 0, 0, 0]), Buffer.alloc(100, 7), Buffer.alloc(4000)]),
  }
  for (const [name, bytes] of Object.entries(files)) writeFileSync(path.join(dir, name), bytes)
  mkdirSync(path.join(dir, 'database'))
  const { irregularities, otherFiles, databases } = await inspected(t, dir)
  const text = irregularities.join('\n')
  for (const words of [
    /^tmp-17 is a temporary file/m,
    /^corrupt-17-open-3 was set aside/m,
    /^snapshot-1-2-3 has no snapshot-1-2-3\.meta: half a snapshot/m,
    /^snapshot-1-2-4\.meta has no content/m,
    /^metadata2 holds no term and vote/m,
    /^open-x is not a name/m,
    /^open-1 has a torn tail: a batch with an impossible number of entries, at byte 8/m,
    /^database is left from disk mode/m,
  ])
    t.regex(text, words)
  t.true(otherFiles.includes('info.yaml'))
  t.like(databases?.[0], { name: 'app', tables: { a: 20 } })

  // Damage that stops a start: a gap, an overlap, a snapshot that nothing replaces.
  const copy = (name: string) => {
    const to = path.join(temporaryDirectory(t), name)
    cpSync(dir, to, { recursive: true })
    return to
  }
  const overlapping = copy('overlap')
  const [first, end] = last.split('-').map(Number)
  const inside = `${String(first).padStart(16, '0')}-${String(end! + 3).padStart(16, '0')}`
  cpSync(path.join(dir, last), path.join(overlapping, inside))
  const overlap = await inspected(t, overlapping)
  t.regex(overlap.irregularities.join('\n'), new RegExp(`${last} and ${inside} overlap: both hold entries`))
  t.regex(overlap.irregularities.join('\n'), new RegExp(`${inside} is damaged: it ends with entry ${end}`))
  t.regex(overlap.irregularities.at(-1)!, /^a start is refused: .*mkdir -p .* && mv /)
  t.is(overlap.databases, undefined)

  const damaged = copy('damaged')
  const snapshot = path.join(damaged, newest)
  const bytes = readFileSync(snapshot)
  bytes[bytes.byteLength - 1]! ^= 1
  writeFileSync(snapshot, bytes)
  const found = await inspected(t, damaged)
  t.regex(found.irregularities.join('\n'), new RegExp(`${newest} is damaged`))
  t.truthy(found.snapshots.at(-1)?.problem)
  t.like(found.databases?.[0], { name: 'app', tables: { a: 20 } }, 'from the older snapshot and the log')
})

test('a directory that is not there is refused; an empty one holds nothing', async (t) => {
  await t.throwsAsync(inspect('/nowhere/at/all'), { code: 'DISK_FAILED', message: /nowhere/ })
  const inspection = await inspected(t, temporaryDirectory(t))
  t.like(inspection, { term: 0, lastEntry: { index: 0, term: 0 }, databases: [], irregularities: [] })
})

const golden = [
  { name: 'd-old2', last: 175, databases: { 'test.db': { t: 190 }, 'second.db': { u: 3 } } },
  { name: 'd-head2', last: 175, databases: { 'test.db': { t: 190 }, 'second.db': { u: 3 } } },
  { name: 'm1', last: 46, databases: { 'test.db': { t: 40 } } },
  { name: 'q1', last: 1580, databases: { 'test.db': { t: 1607, u: 0 } } },
  { name: 's1', last: 126, databases: { 'test.db': { t: 120 } } },
]
test('directories that C dqlite wrote show their rows', async (t) => {
  const missing = goldenMissing()
  if (missing !== undefined) {
    t.log(`skipped: ${missing}`)
    t.pass()
    return
  }
  const dir = temporaryDirectory(t)
  unpackGolden(dir)
  for (const { name, last, databases } of golden) {
    const inspection = await inspected(t, path.join(dir, name))
    t.deepEqual(Object.fromEntries(inspection.databases!.map((each) => [each.name, each.tables])), databases, name)
    t.is(inspection.lastEntry?.index, last)
    t.deepEqual(inspection.irregularities, [], name)
  }
})
