/**
 * What does one heavy query do to everybody else? A recursive query of a few seconds on one connection, point selects
 * on another, and the question whether the leader is still the same afterwards.
 */
import { Client } from '../lib/client/client.js'
import { quantile } from './statistics.js'

const database = 'bench'
const heavy = (rows: number) =>
  `WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < ${rows}) SELECT count(*), sum(i % 7) FROM c`

export interface HeavyResult {
  readonly heavySeconds: number
  readonly selects: number
  readonly p50Ms: number
  readonly p99Ms: number
  readonly maxMs: number
  readonly leaderChanged: boolean
}

/** `rows` of the recursive query: four million take a second or so. */
export async function heavyQuery(addresses: readonly string[], rows: number): Promise<HeavyResult> {
  const heavyClient = new Client({ addresses, database })
  const lightClient = new Client({ addresses, database })
  try {
    const before = await lightClient.leader()
    await lightClient.query('SELECT 1')
    await heavyClient.query('SELECT 1')
    let isRunning = true
    const beganMs = performance.now()
    const running = heavyClient.query(heavy(rows), [], { timeoutMs: 120_000 }).finally(() => (isRunning = false))
    const latenciesMs: number[] = []
    while (isRunning) {
      const fromMs = performance.now()
      await lightClient.query('SELECT value FROM kv WHERE key = ?', ['k00000042'], { timeoutMs: 120_000 })
      latenciesMs.push(performance.now() - fromMs)
    }
    await running
    const heavySeconds = (performance.now() - beganMs) / 1000
    const after = await lightClient.leader()
    latenciesMs.sort((a, b) => a - b)
    return {
      heavySeconds,
      selects: latenciesMs.length,
      p50Ms: quantile(latenciesMs, 0.5),
      p99Ms: quantile(latenciesMs, 0.99),
      maxMs: latenciesMs.at(-1) ?? 0,
      leaderChanged: before.address !== after.address,
    }
  } finally {
    await Promise.all([heavyClient.close(), lightClient.close()])
  }
}
