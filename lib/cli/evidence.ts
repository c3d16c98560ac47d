/**
 * What the nodes hold after a workload, and whether it is what the clients were told. Every node is asked for its own
 * copy of the database, byte for byte; the leader is asked for the rows in it. Does not know how the workload went.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import { Client } from '../client/client.js'
import { DqliteError } from '../errors.js'
import { selectKeys, type Ledger } from './workload.js'

const convergeMs = 60_000
const pollMs = 100

export interface Copy {
  readonly address: string
  readonly byteLength: number
  readonly sha256: string
}

export interface Evidence {
  /** One per node, in the order of the addresses. */
  readonly copies: readonly Copy[]
  /** Rows of the workload as the leader lists them. */
  readonly keys: ReadonlySet<string>
  /** SQLite's own word on the leader's copy: `ok`, or what is wrong. */
  readonly integrity: string
}

/**
 * The database as one image. Members answer DUMP in two ways (client-protocol §7.14): with everything in the main file,
 * or with a WAL of whole transactions beside it, whose frames replace pages of the main file.
 *
 *   WAL: header 32 · frames of 24 + page bytes: u32 page number, u32 database size in pages, …, all big-endian
 */
export function imageOf(main: Uint8Array, wal: Uint8Array): Uint8Array {
  if (wal.length === 0) return main
  const header = Buffer.from(wal.buffer, wal.byteOffset, wal.byteLength)
  const pageBytes = header.readUInt32BE(8)
  const frameBytes = 24 + pageBytes
  assert((wal.length - 32) % frameBytes === 0)
  let pages = main.length / pageBytes
  const image = new Map<number, Uint8Array>()
  for (let page = 0; page < pages; page++) image.set(page + 1, main.subarray(page * pageBytes, (page + 1) * pageBytes))
  for (let at = 32; at < wal.length; at += frameBytes) {
    image.set(header.readUInt32BE(at), wal.subarray(at + 24, at + frameBytes))
    pages = header.readUInt32BE(at + 4) || pages
  }
  return Buffer.concat(Array.from({ length: pages }, (_, page) => image.get(page + 1) ?? new Uint8Array(pageBytes)))
}

async function copyOf(address: string, database: string): Promise<Copy> {
  const client = new Client({ addresses: [address] })
  try {
    const { main, wal } = await client.dump(database, { address })
    const image = imageOf(main, wal)
    return { address, byteLength: image.length, sha256: createHash('sha256').update(image).digest('hex') }
  } finally {
    await client.close()
  }
}

export const areIdentical = (copies: readonly Copy[]) => copies.every((copy) => copy.sha256 === copies[0]?.sha256)

/**
 * Asks every node for its copy until all are the same: a node that was away still applies what it missed. Copies that
 * stay different are returned as they are; saying so is the verdict's business.
 */
async function convergedCopies(addresses: readonly string[], database: string): Promise<Copy[]> {
  const deadlineMs = performance.now() + convergeMs
  for (;;) {
    try {
      const copies = await Promise.all(addresses.map((address) => copyOf(address, database)))
      if (areIdentical(copies) || performance.now() > deadlineMs) return copies
    } catch (error) {
      // A node that has just come back may not know the database yet.
      if (!(error instanceof DqliteError) || performance.now() > deadlineMs) throw error
    }
    // No node tells anybody when it has applied something: asking again is the only way.
    await sleep(pollMs)
  }
}

export async function gatherEvidence(addresses: readonly string[], database: string): Promise<Evidence> {
  const copies = await convergedCopies(addresses, database)
  const client = new Client({ addresses, database })
  try {
    const keys = (await client.query(selectKeys, [], { rowMode: 'array' })).map(([key]) => String(key))
    const check = (await client.query('PRAGMA integrity_check', [], { rowMode: 'array' })).map(([line]) => String(line))
    return { copies, keys: new Set(keys), integrity: check.join('; ') }
  } finally {
    await client.close()
  }
}

export interface Verdict {
  readonly lost: number
  readonly unknownPresent: number
  readonly identical: boolean
  /** Why it did not hold; empty if everything did. */
  readonly faults: readonly string[]
}

export function judge(evidence: Evidence, ledger: Ledger): Verdict {
  const lost = [...ledger.acknowledged].filter((key) => !evidence.keys.has(key))
  const invented = [...evidence.keys].filter((key) => !ledger.acknowledged.has(key) && !ledger.unknown.has(key))
  const unknownPresent = [...ledger.unknown].filter((key) => evidence.keys.has(key)).length
  const identical = areIdentical(evidence.copies)
  const faults: string[] = []
  if (ledger.acknowledged.size === 0) faults.push('no row was acknowledged')
  if (lost.length > 0) faults.push(`${lost.length} acknowledged rows are missing, among them ${lost[0]!}`)
  if (invented.length > 0)
    faults.push(`${invented.length} rows are there that were refused, among them ${invented[0]!}`)
  if (!identical) faults.push(`the copies of the nodes are still different after ${convergeMs} ms`)
  if (evidence.integrity !== 'ok') faults.push(`SQLite's integrity check says ${evidence.integrity}`)
  return { lost: lost.length, unknownPresent, identical, faults }
}
