// Directories written by C dqlite 1.11.1 and 1.18 are opened in place by all of our rooms together: storage, snapshot
// content in both forms, the log applied by the engine. Then they are closed, and an independent reader has a look.
import { execFileSync } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import os from 'node:os'
import path from 'node:path'
import anyTest, { type TestFn } from 'ava'

import { decodeRows } from '../../lib/codec/tuple.js'
import { MessageStream } from '../../lib/codec/message-stream.js'
import { RowsBuffer } from '../../lib/engine/connection.js'
import { Engine } from '../../lib/engine/database.js'
import { StateMachine } from '../../lib/node/state-machine.js'
import { openDataDirectory } from '../../lib/storage/open.js'
import { goldenMissing, parserProgram, unpackGolden } from '../support/golden.js'

const test = anyTest as TestFn<{ dir: string }>
const missing = goldenMissing()
const goldenTest = missing === undefined ? test.serial : test.serial.skip

/** What the archive's README states: directory, database, table, rows. */
const content = [
  { dir: 'd-old2', rows: { 'test.db': { t: 190 }, 'second.db': { u: 3 } }, written: '1.11.1, killed, two snapshots' },
  { dir: 'd-head2', rows: { 'test.db': { t: 190 }, 'second.db': { u: 3 } }, written: '1.18, killed, two snapshots' },
  { dir: 'm1', rows: { 'test.db': { t: 40 } }, written: 'a mixed cluster, killed, no snapshot' },
  { dir: 'q1', rows: { 'test.db': { t: 1607, u: 0 } }, written: 'a mixed cluster, one snapshot' },
  { dir: 's1', rows: { 'test.db': { t: 120 } }, written: '1.11.1, killed, snapshots with a WAL' },
]

test.before(async (t) => {
  t.context.dir = await mkdtemp(path.join(os.tmpdir(), 'dqlite-golden-'))
  if (missing === undefined) unpackGolden(t.context.dir)
  else t.log(`skipped: ${missing}`)
})

test.after.always(async (t) => {
  await rm(t.context.dir, { recursive: true, force: true })
})

function count(engine: Engine, database: string, table: string): unknown {
  const connection = engine.find(database)!.connect()
  const { statement } = connection.prepare(Buffer.from(`SELECT count(*) FROM ${table}`))
  const rows = new RowsBuffer()
  const outcome = statement!.rows(rows)
  if (outcome.kind !== 'done') throw new Error(`${outcome.kind}`)
  const stream = new MessageStream({ bodyBytesMax: 1 << 20 })
  stream.push(rows.take())
  const value = decodeRows(stream.next()!.body).rows[0]![0]
  statement!.finalize()
  void connection.close()
  return value
}

for (const { dir, rows, written } of content) {
  goldenTest(`a directory written by C dqlite opens with its rows and closes well: ${dir} (${written})`, async (t) => {
    const at = path.join(t.context.dir, dir)
    const directory = await openDataDirectory({ dir: at, autoRecovery: true, logCacheBytesMax: 1 << 30 })
    const engine = Engine.create()
    const stateMachine = new StateMachine(engine, { checkpointFrames: 1000 })
    const stored = await directory.snapshots.openNewest()
    if (stored !== undefined) {
      await stateMachine.restore(stored.content)
      await stored.close()
    }
    const snapshotIndex = directory.restored.snapshot?.last.index ?? 0
    for (const entry of directory.restored.entries) if (entry.index > snapshotIndex) stateMachine.apply(entry)
    const counted = Object.fromEntries(
      Object.entries(rows).map(([database, tables]) => [
        database,
        Object.fromEntries(Object.keys(tables).map((table) => [table, count(engine, database, table)])),
      ]),
    )
    t.deepEqual(counted, rows)

    // Our own snapshot of that state, in the form of 1.17 and later, restores to the same.
    const image = stateMachine.openImage()
    const other = Engine.create()
    await new StateMachine(other, { checkpointFrames: 1000 }).restore(image.content())
    image.close()
    for (const [database, tables] of Object.entries(rows))
      for (const [table, expected] of Object.entries(tables)) t.is(count(other, database, table), expected)

    await other.close()
    await engine.close()
    await directory.close()
    const report = execFileSync('python3', [parserProgram, at], { encoding: 'utf8' })
    t.notRegex(report, /!!|open segment open-/, 'the independent reader finds closed segments only, without gaps')
  })
}
