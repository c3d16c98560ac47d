/** What the compiler makes of the client's calls: this file says it by compiling. */
import test from 'ava'
import type { Client } from '../../lib/client/client.js'
import type { Row, RowList, RowStream } from '../../lib/client/calls.js'
import type { Transaction } from '../../lib/client/transaction.js'
import type { SqlValue } from '../../lib/codec/tuple.js'

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
/** Compiles only if the value has exactly the type `A`. */
const is =
  <A>() =>
  <B>(value: B, same: Equal<A, B>): unknown => [value, same]

interface Person {
  readonly id: number
  readonly name: string
}

async function uses(db: Client, tx: Transaction): Promise<void> {
  const plain = await db.query('SELECT 1')
  is<RowList<Row>>()(plain, true)
  const people = await db.query<Person>('SELECT id, name FROM person')
  is<Person>()(people[0]!, true)
  const arrays = await db.query('SELECT 1', [], { rowMode: 'array' })
  is<SqlValue[]>()(arrays[0]!, true)
  const pairs = tx.stream<[number, string]>('SELECT 1', undefined, { rowMode: 'array' })
  is<RowStream<[number, string]>>()(pairs, true)
  for await (const pair of pairs) is<[number, string]>()(pair, true)
  const value = await db.transaction(async (inner) => inner.transaction(async () => 7))
  is<number>()(value, true)
  await using statement = await db.prepare('SELECT 1')
  const rows = await statement.query<Person>([1, 'a', null, 1n, true, new Date(), new Uint8Array()])
  is<Person>()(rows[0]!, true)
  // @ts-expect-error undefined has no SQL type
  await db.exec('INSERT', [undefined])
  // @ts-expect-error no such mode
  await db.transaction(async () => undefined, { mode: 'wal' })
  // @ts-expect-error options are known by name
  await db.query('SELECT 1', [], { rowmode: 'array' })
  // @ts-expect-error a transaction has no cluster
  is<unknown>()(tx.cluster, true)
}

test('the types of calls follow their options', (t) => {
  t.is(typeof uses, 'function')
})
