/**
 * Who puts the load on: the load generator on go-dqlite where it is there, else our own client (load.ts). Both give
 * the same figures. Does not know whose cluster it is.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { runLoad, setUp } from './load.js'

export type Workload = 'insert' | 'select'

export interface LoadResult {
  readonly opsPerSecond: number
  readonly p50Ms: number
  readonly p99Ms: number
  /** Refusals with BUSY; each was repeated. */
  readonly busy: number
  readonly errors: number
}

export interface LoadOptions {
  readonly addresses: readonly string[]
  readonly workload: Workload
  readonly clients: number
  readonly warmupSeconds: number
  readonly seconds: number
}

export const valueBytes = 1024
export const preloadedRows = 10_000

export interface LoadGenerator {
  readonly name: string
  /** Creates the table, with rows to select. */
  setUp(addresses: readonly string[]): Promise<void>
  run(options: LoadOptions): Promise<LoadResult>
}

/** Runs the Go program and gives the JSON object it ends with. */
export async function goLoadgen(program: string, args: readonly string[]): Promise<Record<string, unknown>> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [status] = (await once(child, 'close')) as [number | null]
  const last = stdout.trim().split('\n').pop() ?? ''
  if (status !== 0) throw new Error(`loadgen ${args.join(' ')}: ${stderr.trim() || `status ${status}`}`)
  return JSON.parse(last) as Record<string, unknown>
}

export const goGenerator = (program: string): LoadGenerator => ({
  name: 'go-dqlite',
  async setUp(addresses) {
    await goLoadgen(program, ['--addr', addresses.join(), '--workload', 'setup', '--rows', String(preloadedRows)])
  },
  async run({ addresses, workload, clients, warmupSeconds, seconds }) {
    const numbers = await goLoadgen(program, [
      ...['--addr', addresses.join(), '--workload', workload, '--clients', String(clients)],
      ...['--warmup', String(warmupSeconds), '--seconds', String(seconds), '--value-size', String(valueBytes)],
    ])
    const { ops_per_s, p50_ms, p99_ms, busy, errors } = numbers as Record<string, number>
    return { opsPerSecond: ops_per_s!, p50Ms: p50_ms!, p99Ms: p99_ms!, busy: busy!, errors: errors! }
  },
})

export const ownGenerator: LoadGenerator = {
  name: 'our client',
  setUp: (addresses) => setUp(addresses),
  run: (options) => runLoad(options),
}
