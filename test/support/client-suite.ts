/** What a client must be able to do with any real cluster of three, whoever wrote its nodes. */
import type { ExecutionContext } from 'ava'
import { connect } from '../../lib/client/client.js'
import { DqliteError } from '../../lib/errors.js'
import type { TestCluster } from './cluster.js'

export async function exerciseClient(t: ExecutionContext, cluster: TestCluster): Promise<void> {
  await using db = await connect({ addresses: [cluster.addresses[1]!], database: 'app' })
  const members = await db.cluster()
  t.deepEqual(
    members.map(({ id, role }) => [id, role]),
    [
      [1n, 'voter'],
      [2n, 'voter'],
      [3n, 'voter'],
    ],
  )
  t.is((await db.leader()).address, cluster.addresses[0]!)
  t.deepEqual(await db.describe(), { failureDomain: 0n, weight: 0n })

  // Values.
  await db.exec('CREATE TABLE t (i INTEGER PRIMARY KEY, r REAL, s TEXT, b BLOB, d DATETIME, o BOOLEAN, x)')
  const date = new Date('2024-01-02T03:04:05.678Z')
  const inserted = await db.exec('INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?)', [
    -2,
    1.5,
    'héllo',
    Buffer.from([1, 2, 3]),
    date,
    true,
    null,
  ])
  t.deepEqual(inserted, { lastInsertRowid: -2, changes: 1 })
  t.deepEqual(
    [...(await db.query('SELECT * FROM t'))],
    [{ i: -2, r: 1.5, s: 'héllo', b: Buffer.from([1, 2, 3]), d: date, o: true, x: null }],
  )
  const empty = await db.query('SELECT i, s FROM t WHERE 0')
  t.deepEqual([empty.length, empty.columns], [0, ['i', 's']])
  const big = 2n ** 62n
  await db.exec('INSERT INTO t (i, x) VALUES (1, ?)', [big])
  await t.throwsAsync(db.query('SELECT x FROM t WHERE i = 1'), { code: 'UNSAFE_INTEGER' })
  const exact = await db.query('SELECT x FROM t WHERE i = 1', [], { integers: 'bigint', rowMode: 'array' })
  t.deepEqual([...exact], [[big]])

  // Errors.
  const unique = await t.throwsAsync(db.exec('INSERT INTO t (i) VALUES (1)'), { instanceOf: DqliteError })
  t.deepEqual([unique.wire, unique.message, unique.outcome], [1555, 'UNIQUE constraint failed: t.i', 'none'])
  const overflow = await t.throwsAsync(db.query('SELECT 1, 2, 3, 4, abs(-9223372036854775807 - 1)'), {
    instanceOf: DqliteError,
  })
  t.deepEqual([overflow.wire, overflow.message], [1, 'integer overflow'])
  const wrong = await t.throwsAsync(db.query('SELECT missing'), { instanceOf: DqliteError })
  t.deepEqual([wrong.message, wrong.retryable], ['no such column: missing', false])

  // Transactions.
  await db.exec('CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL CHECK (balance >= 0))')
  await db.exec('INSERT INTO account VALUES (1, 100), (2, 0)')
  const move = (amount: number): Promise<void> =>
    db.transaction(async (tx) => {
      await tx.exec('UPDATE account SET balance = balance + ? WHERE id = 2', [amount])
      await tx.exec('UPDATE account SET balance = balance - ? WHERE id = 1', [amount])
    })
  await Promise.all(Array.from({ length: 20 }, () => move(2)))
  await t.throwsAsync(move(1000), { message: /CHECK constraint failed/ })
  const balances = await db.query('SELECT balance FROM account ORDER BY id', [], { rowMode: 'array' })
  t.deepEqual([...balances], [[60], [40]])
  await db.transaction(async (tx) => {
    await tx.exec('INSERT INTO account VALUES (3, 3)')
    await t.throwsAsync(
      tx.transaction(async (inner) => {
        await inner.exec('INSERT INTO account VALUES (4, 4)')
        throw new Error('undo')
      }),
    )
    await t.throwsAsync(tx.exec('INSERT INTO account VALUES (3, 3)'), { code: 'SQLITE' })
    await tx.exec('INSERT INTO account VALUES (5, 5)')
  })
  const ids = await db.query<{ id: number }>('SELECT id FROM account ORDER BY id')
  t.deepEqual(
    ids.map(({ id }) => id),
    [1, 2, 3, 5],
  )
  const open = await t.throwsAsync(db.exec('BEGIN; INSERT INTO account VALUES (6, 6)'), { instanceOf: DqliteError })
  t.regex(open.message, /rolled back/)
  t.is((await db.query('SELECT 1 FROM account WHERE id = 6')).length, 0)

  // Many rows, and leaving them.
  const numbers = 'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i FROM n'
  t.is((await db.query(numbers, [5000])).length, 5000)
  let sum = 0
  for await (const [i] of db.stream<[number]>(numbers, [20_000], { rowMode: 'array' })) {
    sum += i
    if (i === 1000) break
  }
  t.is(sum, 500_500)

  // Statements.
  {
    await using insert = await db.prepare('INSERT INTO t (i, s) VALUES (?, ?)')
    t.is(insert.parameterCount, 2)
    for (let i = 10; i < 20; i++) await insert.exec([i, `row ${i}`])
    await t.throwsAsync(insert.exec([1]), { code: 'BAD_PARAMETER' })
  }
  await using select = await db.prepare('SELECT s FROM t WHERE i = ?')
  t.deepEqual([...(await select.query([13]))], [{ s: 'row 13' }])

  // Many parameters: schema 1 beyond 255 (C dqlite 1.11 does not know it).
  const marks = (count: number): string => `VALUES (${new Array<string>(count).fill('?').join(', ')})`
  const [wide] = await db.query(
    marks(255),
    Array.from({ length: 255 }, (_, i) => i),
    { rowMode: 'array' },
  )
  t.is(wide!.at(-1), 254)

  const dump = await db.dump()
  t.is(Buffer.from(dump.main).toString('latin1', 0, 15), 'SQLite format 3')

  // A planned change of leader: nothing is lost, nothing fails.
  await db.transfer(2)
  t.is((await db.leader()).id, 2n)
  await db.exec('INSERT INTO t (i, s) VALUES (100, ?)', ['after'])
  t.deepEqual([...(await select.query([100]))], [{ s: 'after' }])

  // An unplanned one: reads wait for the new leader.
  await cluster.nodes[1]!.kill()
  t.deepEqual([...(await select.query([100], { timeoutMs: 60_000 }))], [{ s: 'after' }])
  await db.transaction(async (tx) => {
    await tx.exec('INSERT INTO t (i, s) VALUES (101, ?)', ['later'])
  })
  t.deepEqual([...(await select.query([101]))], [{ s: 'later' }])
  t.not((await db.leader()).id, 2n)
}
