/**
 * One data directory that C dqlite 1.11 and ours take from each other, again and again, killed each time in the middle
 * of writes: every acknowledged row is there after every change of hands, whether it comes from the log or from a
 * snapshot of either form.
 */
import anyTest, { type ExecutionContext } from 'ava'
import { mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { Client } from '../../lib/client/client.js'
import { freePorts } from '../../lib/cli/node-process.js'
import { DqliteError } from '../../lib/errors.js'
import { cMissing, eventually, interopSeconds, MemberProcess, snapshotsIn, type Kind } from '../support/members.js'

const test = cMissing === undefined ? anyTest.serial : anyTest.serial.skip

/** Changes of hands; more where there is time. */
const rounds = interopSeconds > 0 ? 20 : 4
const rowsPerRequest = 50
/** More than the 1024 entries after which C takes a snapshot. */
const rowsPerRound = 1050

/** What a writer was told. A request of several statements is acknowledged as a whole; statements commit one by one. */
class Book {
  next = 0
  acknowledged = 0
  /** Rows from `acknowledged` up to here may be there. */
  sent = 0

  /** Writes until the connection is gone. */
  async write(db: Client, untilRows: number): Promise<void> {
    try {
      while (this.acknowledged < untilRows) {
        const rows = Array.from({ length: rowsPerRequest }, (_, i) => this.next + i)
        this.sent = this.next + rowsPerRequest
        await db.exec(
          rows.map((a) => `INSERT INTO t VALUES (${a}, hex(zeroblob(${(a * 37) % 900})), ${a} * 7)`).join(';'),
        )
        this.next = this.acknowledged = this.sent
      }
    } catch (error) {
      if (!(error instanceof DqliteError) || error.outcome !== 'unknown') throw error
    }
  }

  /** The rows that are there are a beginning of what was sent, and all that was acknowledged. What is there is there. */
  settle(present: number): boolean {
    if (present < this.acknowledged || present > this.sent) return false
    this.next = this.acknowledged = this.sent = present
    return true
  }
}

const content = `SELECT count(*) AS n, count(DISTINCT a) AS d, coalesce(max(a), -1) AS last,
  total(c) AS sevens, total(length(b)) AS bytes FROM t`

async function passAround(
  t: ExecutionContext,
  { kinds, end, flags }: { kinds: readonly Kind[]; end: 'kill' | 'stop'; flags: readonly string[] },
): Promise<void> {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'dqlite-directory-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const [port] = await freePorts(1)
  const options = { id: 1, address: `127.0.0.1:${port!}`, dir: path.join(dir, '1'), flags }
  const book = new Book()
  let snapshots = 0
  for (let round = 0; round < rounds; round++) {
    const kind = kinds[round % kinds.length]!
    const member = await MemberProcess.start(kind, options)
    t.teardown(() => member.kill())
    const db = new Client({ addresses: [options.address], database: 'app', timeoutMs: 10_000 })
    t.teardown(() => db.close({ timeoutMs: 1 }))
    if (round === 0) await db.exec('CREATE TABLE t (a INTEGER PRIMARY KEY, b, c); CREATE INDEX tb ON t (b)')
    const [found] = await db.query(content)
    const n = Number(found!.n)
    t.true(book.settle(n), `${kind}, round ${round}: ${n} rows, ${book.acknowledged} acknowledged, ${book.sent} sent`)
    t.deepEqual([found!.d, found!.last, found!.sevens], [n, n - 1, Math.abs(7 * ((n * (n - 1)) / 2))])
    t.deepEqual([...(await db.query('PRAGMA integrity_check', [], { rowMode: 'array' }))], [['ok']])
    await book.write(db, n + rowsPerRound)
    await eventually(`a snapshot of ${kind}`, () => (snapshotsIn(options.dir)[0] ?? 0) > snapshots)
    snapshots = snapshotsIn(options.dir)[0]!
    // And now in the middle of it.
    const writing = book.write(db, Infinity)
    await eventually('more rows', () => book.acknowledged > n + rowsPerRound)
    await member[end]()
    await writing
    await db.close({ timeoutMs: 1 })
  }
  t.log(`${book.acknowledged} rows after ${rounds} changes of hands, the newest snapshot at ${snapshots}`)
}

// Ours takes a snapshot whenever a thousand entries are due for one, so that each finds the other's.
const flags = ['--snapshot-threshold', '500', '--snapshot-trailing', '600']

for (const [kinds, end] of [
  [['C', 'ours'], 'kill'],
  [['ours', 'C'], 'stop'],
] as const)
  test(`a directory goes from ${kinds.join(' to ')} and back, with a ${end} each time, and keeps every acknowledged row`, async (t) => {
    t.timeout(120_000 + rounds * 10_000)
    await passAround(t, { kinds, end, flags })
  })

const whereThereIsTime = cMissing === undefined && interopSeconds > 0 ? anyTest.serial : anyTest.serial.skip
whereThereIsTime('a directory of C is taken over without a snapshot of ours, and given back', async (t) => {
  t.timeout(120_000 + rounds * 10_000)
  await passAround(t, { kinds: ['C', 'ours', 'ours', 'C'], end: 'kill', flags: [] })
})
