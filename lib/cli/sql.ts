/**
 * `dqlite sql` and `dqlite members`: one question to a cluster, the answer as a table. Knows how to show values. The client
 * does the rest.
 */
import Table from 'cli-table3'
import { Client } from '../client/client.js'
import type { SqlValue } from '../codec/tuple.js'

export interface ClusterFlags {
  readonly addresses: string
}
export interface SqlFlags extends ClusterFlags {
  readonly database: string
}

const style = { head: [], border: [], compact: true }

function text(value: SqlValue): string {
  if (value === null) return 'NULL'
  if (value instanceof Uint8Array) return `x'${Buffer.from(value).toString('hex')}'`
  if (value instanceof Date) return value.toISOString()
  return String(value)
}

export async function sql(statement: string, flags: SqlFlags): Promise<void> {
  const client = new Client({ addresses: flags.addresses.split(','), database: flags.database, integers: 'bigint' })
  try {
    const rows = await client.query(statement, [], { rowMode: 'array' })
    if (rows.columns.length === 0) return
    const table = new Table({ head: [...rows.columns], style })
    for (const row of rows) table.push(row.map(text))
    process.stdout.write(`${table.toString()}\n`)
  } finally {
    await client.close()
  }
}

export async function members(flags: ClusterFlags): Promise<void> {
  const client = new Client({ addresses: flags.addresses.split(',') })
  try {
    const leader = await client.leader()
    const table = new Table({ head: ['id', 'address', 'role', ''], style })
    for (const { id, address, role } of await client.cluster())
      table.push([String(id), address, role, address === leader.address ? 'leads' : ''])
    process.stdout.write(`${table.toString()}\n`)
  } finally {
    await client.close()
  }
}
