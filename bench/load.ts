/**
 * A load generator on our own client, in a process of its own so that it does not share the loop with the table that
 * is printed. The same statements as the Go generator: 1 KiB inserts with unique keys, point selects.
 */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'
import { Client } from '../lib/client/client.js'
import { DqliteError } from '../lib/errors.js'
import { preloadedRows, valueBytes, type LoadOptions, type LoadResult } from './loadgen.js'
import { quantile } from './statistics.js'

const database = 'bench'
const insertRow = 'INSERT INTO kv (key, value) VALUES (?, ?)'
const selectRow = 'SELECT value FROM kv WHERE key = ?'
const keyOf = (row: number) => `k${String(row).padStart(8, '0')}`

export async function setUp(addresses: readonly string[]): Promise<void> {
  const client = new Client({ addresses, database })
  try {
    await client.exec('DROP TABLE IF EXISTS kv')
    await client.exec('CREATE TABLE kv (key TEXT PRIMARY KEY, value BLOB)')
    const fill = `WITH RECURSIVE c(i) AS (SELECT ? UNION ALL SELECT i + 1 FROM c WHERE i + 1 < ?)
      INSERT INTO kv SELECT printf('k%08d', i), CAST(printf('%0${valueBytes}d', i) AS BLOB) FROM c`
    for (let row = 0; row < preloadedRows; row += 1000) await client.exec(fill, [row, row + 1000])
  } finally {
    await client.close()
  }
}

async function worker(name: string, { addresses, workload, warmupSeconds, seconds }: LoadOptions) {
  const client = new Client({ addresses, database, sessionsMax: 1 })
  const latenciesMs: number[] = []
  let busy = 0
  let errors = 0
  const value = randomBytes(valueBytes)
  try {
    const fromMs = performance.now() + warmupSeconds * 1000
    const toMs = fromMs + seconds * 1000
    for (let n = 0; ; n++) {
      const beganMs = performance.now()
      if (beganMs >= toMs) break
      try {
        for (let tries = 0; ; tries++)
          try {
            if (workload === 'insert') await client.exec(insertRow, [`${name}-${n}`, value])
            else await client.query(selectRow, [keyOf(Math.floor(Math.random() * preloadedRows))])
            break
          } catch (error) {
            if (!(error instanceof DqliteError && error.code === 'BUSY')) throw error
            busy++
            await sleep(Math.random() * Math.min(2 ** tries, 32)) // the same patience as the Go generator's
          }
      } catch (error) {
        if (!(error instanceof DqliteError)) throw error
        errors++
        continue
      }
      const endedMs = performance.now()
      if (beganMs >= fromMs && endedMs <= toMs) latenciesMs.push(endedMs - beganMs)
    }
  } finally {
    await client.close()
  }
  return { latenciesMs, busy, errors }
}

/** In the child: every client, then one message with the figures. */
async function loadHere(options: LoadOptions): Promise<LoadResult> {
  const run = randomBytes(6).toString('hex')
  const results = await Promise.all(Array.from({ length: options.clients }, (_, i) => worker(`${run}-${i}`, options)))
  const latenciesMs = results.flatMap((result) => result.latenciesMs).sort((a, b) => a - b)
  return {
    opsPerSecond: latenciesMs.length / options.seconds,
    p50Ms: quantile(latenciesMs, 0.5),
    p99Ms: quantile(latenciesMs, 0.99),
    busy: results.reduce((sum, result) => sum + result.busy, 0),
    errors: results.reduce((sum, result) => sum + result.errors, 0),
  }
}

export async function runLoad(options: LoadOptions): Promise<LoadResult> {
  const child = fork(fileURLToPath(import.meta.url), ['load'])
  child.send(options)
  let result: LoadResult | undefined
  child.on('message', (message) => (result = message as LoadResult))
  const [status] = (await once(child, 'close')) as [number | null]
  if (result === undefined) throw new Error(`the load generator ended with status ${status}`)
  return result
}

if (process.argv[1] === fileURLToPath(import.meta.url) && process.argv[2] === 'load' && process.send !== undefined) {
  const [options] = (await once(process, 'message')) as [LoadOptions]
  const result = await loadHere(options)
  process.send(result, () => process.disconnect())
}
