/** The evidence of `dqlite start`: dumps read as images, and the verdict. */
import test from 'ava'
import { imageOf, judge, type Evidence } from '../../lib/cli/evidence.js'
import { Ledger } from '../../lib/cli/workload.js'

test('a dump with a WAL beside it is read as one image', (t) => {
  const page = (fill: number) => Buffer.alloc(512, fill)
  const frame = (number: number, sizePages: number, fill: number) => {
    const header = Buffer.alloc(24)
    header.writeUInt32BE(number, 0)
    header.writeUInt32BE(sizePages, 4)
    return Buffer.concat([header, page(fill)])
  }
  const header = Buffer.alloc(32)
  header.writeUInt32BE(512, 8)
  const wal = Buffer.concat([header, frame(2, 0, 7), frame(3, 3, 8), frame(2, 3, 9)])
  t.deepEqual(Buffer.from(imageOf(Buffer.concat([page(1), page(2)]), wal)), Buffer.concat([page(1), page(9), page(8)]))
  t.deepEqual(Buffer.from(imageOf(page(1), Buffer.alloc(0))), page(1))
})

function story() {
  const ledger = new Ledger()
  for (const key of ['1/1', '1/2']) ledger.acknowledge(key)
  ledger.unknown.add('1/3')
  const copy = { address: 'a', byteLength: 1, sha256: 'x' }
  const evidence: Evidence = { copies: [copy, copy, copy], keys: new Set(['1/1', '1/2']), integrity: 'ok' }
  return { ledger, evidence, copy }
}

test('everything holds with or without the rows of unknown outcome', (t) => {
  const { ledger, evidence } = story()
  t.like(judge(evidence, ledger), { faults: [], lost: 0, unknownPresent: 0, identical: true })
  const more = { ...evidence, keys: new Set([...evidence.keys, '1/3']) }
  t.like(judge(more, ledger), { faults: [], unknownPresent: 1 })
})

test('a lost row, a row out of nowhere, a different copy and a damaged database are faults', (t) => {
  const { ledger, evidence, copy } = story()
  const faultsOf = (changed: Partial<Evidence>) => judge({ ...evidence, ...changed }, ledger).faults
  t.regex(faultsOf({ keys: new Set(['1/1']) }).join(), /1 acknowledged rows are missing, among them 1\/2/)
  t.regex(
    faultsOf({ keys: new Set(['1/1', '1/2', '9/9']) }).join(),
    /1 rows are there that were refused, among them 9\/9/,
  )
  t.regex(faultsOf({ copies: [copy, { ...copy, sha256: 'y' }] }).join(), /still different/)
  t.regex(faultsOf({ integrity: 'row missing from index' }).join(), /row missing from index/)
  t.regex(judge(evidence, new Ledger()).faults.join(), /no row was acknowledged/)
})

test('the longest pause is counted from the moment asked for', (t) => {
  const ledger = new Ledger()
  ledger.acknowledgedAtMs.push(0, 100, 900, 910)
  t.is(ledger.longestPauseMs(0), 800)
  t.is(ledger.longestPauseMs(500), 400)
  t.is(ledger.longestPauseMs(905), 5)
})
