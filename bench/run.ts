/**
 * `npm run bench`: three of our nodes beside three C dqlite nodes where they can be had, in one run, in turn (A B A B), on
 * loopback, with data on disk. Prints a table and writes JSON. Knows the order of measurements and how to show them.
 *
 * Absolute figures drift with the machine and the day: the ratio of one run is what can be compared.
 */
import { Command, InvalidArgumentError } from 'commander'
import Table from 'cli-table3'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import { availableParallelism, release, totalmem } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Client } from '../lib/client/client.js'
import { heavyQuery, type HeavyResult } from './heavy-query.js'
import { goGenerator, goLoadgen, ownGenerator, type LoadGenerator, type LoadResult, type Workload } from './loadgen.js'
import { findPeers, projectRoot, type Peers } from './peers.js'
import { spread, type Spread } from './statistics.js'
import { BenchCluster, dataDirectory, removeDirectory, type System } from './systems.js'

const parts = ['insert', 'select', 'failover', 'heavy'] as const
type Part = (typeof parts)[number]

function wholeNumber(text: string): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value < 1) throw new InvalidArgumentError('It must be a whole number from 1.')
  return value
}

function someParts(text: string): Part[] {
  const names = text.split(',')
  const unknown = names.find((name) => !(parts as readonly string[]).includes(name))
  if (unknown !== undefined) throw new InvalidArgumentError(`It must be a list of ${parts.join(', ')}.`)
  return names as Part[]
}

const program = new Command('bench')
  .description('three nodes of ours, and three of C dqlite where it is installed, measured in turn')
  .option('--quick', 'fewer and shorter rounds: under three minutes')
  .option('--only <parts>', `some of ${parts.join(', ')}`, someParts)
  .option('--rounds <n>', 'runs per figure', wholeNumber)
  .option('--seconds <n>', 'measured seconds per run', wholeNumber)
  .option('--own-load', 'put the load on with our own client even where the Go load generator is there')
  .option('--ours-only', 'do not measure C dqlite')
  .option('--json <file>', 'where to write the figures (default: bench/results/TIME.json)')
  .parse()
const flags = program.opts<{
  quick?: boolean
  only?: Part[]
  rounds?: number
  seconds?: number
  ownLoad?: boolean
  oursOnly?: boolean
  json?: string
}>()

const rounds = flags.rounds ?? (flags.quick ? 2 : 5)
const seconds = flags.seconds ?? (flags.quick ? 3 : 6)
const warmupSeconds = 1
const failoverRounds = flags.quick ? { slow: 1, fast: 3 } : { slow: 3, fast: 5 }
const fastLatencyMs = 20
const heavyRows = 24_000_000
const isWanted = (part: Part) => flags.only?.includes(part) ?? true

const say = (text = '') => process.stdout.write(`${text}\n`)
const milliseconds = (ms: number) => (ms >= 100 ? ms.toFixed(0) : ms >= 1 ? ms.toFixed(1) : ms.toFixed(3))
const figure = (n: number) => Math.round(n).toLocaleString('en-US')
const show = ({ median, min, max }: Spread, format: (n: number) => string) =>
  `${format(median)} (${format(min)}–${format(max)})`

interface Run extends LoadResult {
  readonly cpuSecondsPer1000: number
}

interface Measured<T> {
  readonly title: string
  readonly runs: Readonly<Record<string, readonly T[]>>
}

interface Case {
  readonly workload: Workload
  readonly clients: number
  readonly generator: LoadGenerator
}

/** The whole list with the main generator; where that is Go's, the two busiest also with our own client. */
function casesFor(main: LoadGenerator): Case[] {
  const busiest = [
    { workload: 'insert', clients: 64 },
    { workload: 'select', clients: 16 },
  ] as const
  return [
    { workload: 'insert', clients: 1, generator: main },
    { workload: 'insert', clients: 16, generator: main },
    ...busiest.map((one) => ({ ...one, generator: main })),
    ...(main === ownGenerator ? [] : busiest.map((one) => ({ ...one, generator: ownGenerator }))),
  ]
}

const titleOf = ({ workload, clients, generator }: Case) =>
  `${workload} 1 KiB, ${clients} ${clients === 1 ? 'client' : 'clients'}, ${generator.name}`

/** One measurement of every system in turn, `times` times. */
async function inTurn<T>(
  title: string,
  clusters: readonly BenchCluster[],
  times: number,
  measure: (cluster: BenchCluster) => Promise<T>,
) {
  const runs: Record<string, T[]> = Object.fromEntries(clusters.map((cluster) => [cluster.system.name, []]))
  for (let round = 0; round < times; round++)
    for (const cluster of clusters) {
      process.stderr.write(`  ${title}: ${cluster.system.name}, ${round + 1} of ${times}      \r`)
      runs[cluster.system.name]!.push(await measure(cluster))
    }
  process.stderr.write(`${' '.repeat(70)}\r`)
  return { title, runs } satisfies Measured<T>
}

async function measureLoad(cluster: BenchCluster, { workload, clients, generator }: Case): Promise<Run> {
  const before = await cluster.cpuSeconds()
  const result = await generator.run({ addresses: cluster.addresses, workload, clients, warmupSeconds, seconds })
  const cpuSeconds = (await cluster.cpuSeconds()) - before
  // The nodes worked through the warm-up too, at about the same rate.
  const operations = result.opsPerSecond * (seconds + warmupSeconds)
  return { ...result, cpuSecondsPer1000: operations === 0 ? 0 : (cpuSeconds / operations) * 1000 }
}

const failoverLimitMs = 60_000

/** Kills the leader; milliseconds until the next write succeeds. Then the dead node comes back. */
async function measureFailover(cluster: BenchCluster, peers: Peers | undefined): Promise<number> {
  let ms: number
  if (peers !== undefined && flags.ownLoad !== true) {
    const args = ['--workload', 'failover', '--pid-file-dir', cluster.pidDir, '--timeout', `${failoverLimitMs}ms`]
    ms = Number((await goLoadgen(peers.loadgen, ['--addr', cluster.addresses.join(), ...args]))['ms'])
  } else {
    const client = new Client({ addresses: cluster.addresses, database: 'bench', timeoutMs: failoverLimitMs })
    try {
      await client.exec('CREATE TABLE IF NOT EXISTS fo (t INTEGER)')
      const { address } = await client.leader()
      const beganMs = performance.now()
      await cluster.kill(address)
      await client.exec('INSERT INTO fo VALUES (?)', [Date.now()], { idempotent: true })
      ms = performance.now() - beganMs
    } finally {
      await client.close()
    }
  }
  await cluster.restartDead()
  // The returned node has to catch up before the next leader may die; nothing says when it has.
  await sleep(1000)
  return ms
}

function loadTable(results: readonly Measured<Run>[], systems: readonly System[]): string {
  const [ours, other] = systems
  const table = new Table({
    head: ['', '', 'ops/s, median (min–max)', 'p50 ms', 'p99 ms', 'BUSY', 'errors', 'CPU s / 1000', 'ratio'],
    style: { head: [], border: [], compact: true },
  })
  for (const { title, runs } of results) {
    const medians = Object.fromEntries(
      systems.map(({ name }) => [name, spread(runs[name]!.map((run) => run.opsPerSecond)).median]),
    )
    for (const { name } of systems) {
      const of = (pick: (run: Run) => number) => spread(runs[name]!.map(pick))
      const isOurs = name === ours!.name
      table.push([
        isOurs ? title : '',
        name,
        show(
          of((run) => run.opsPerSecond),
          figure,
        ),
        milliseconds(of((run) => run.p50Ms).median),
        milliseconds(of((run) => run.p99Ms).median),
        figure(of((run) => run.busy).median),
        figure(of((run) => run.errors).median),
        of((run) => run.cpuSecondsPer1000).median.toFixed(3),
        isOurs && other !== undefined ? `${(medians[name]! / medians[other.name]!).toFixed(2)} x` : '',
      ])
    }
  }
  return table.toString()
}

function failoverTable(results: readonly Measured<number>[], systems: readonly System[]): string {
  const table = new Table({
    head: ['leader killed → next write', '', 'ms, median (min–max)', 'ratio'],
    style: { head: [], border: [], compact: true },
  })
  const [ours, other] = systems
  for (const { title, runs } of results)
    for (const { name } of systems)
      table.push([
        name === ours!.name ? title : '',
        name,
        show(spread(runs[name]!), figure),
        name === ours!.name && other !== undefined
          ? `${(spread(runs[name]!).median / spread(runs[other.name]!).median).toFixed(2)} x`
          : '',
      ])
  return table.toString()
}

function heavyTable(result: Measured<HeavyResult>, systems: readonly System[]): string {
  const table = new Table({
    head: ['selects beside a heavy query', '', 'query s', 'selects', 'p50 ms', 'p99 ms', 'longest ms', 'leader'],
    style: { head: [], border: [], compact: true },
  })
  for (const [i, { name }] of systems.entries()) {
    const runs = result.runs[name]!
    const of = (pick: (run: HeavyResult) => number) => spread(runs.map(pick))
    table.push([
      i === 0 ? `one recursive query` : '',
      name,
      of((run) => run.heavySeconds).median.toFixed(1),
      figure(of((run) => run.selects).median),
      milliseconds(of((run) => run.p50Ms).median),
      milliseconds(of((run) => run.p99Ms).median),
      milliseconds(of((run) => run.maxMs).max),
      runs.some((run) => run.leaderChanged) ? 'CHANGED' : 'the same',
    ])
  }
  return table.toString()
}

async function bench(): Promise<void> {
  const found = flags.oursOnly === true ? { missing: 'not asked for' } : findPeers()
  const peers = 'missing' in found ? undefined : found
  if ('missing' in found) say(`C dqlite is not measured: ${found.missing}.`)
  const generator = peers !== undefined && flags.ownLoad !== true ? goGenerator(peers.loadgen) : ownGenerator
  const systems: System[] = [
    { name: 'dqlite for Node' },
    ...(peers === undefined ? [] : [{ name: 'C dqlite', program: peers.node }]),
  ]

  const beganAt = new Date()
  const dir = await dataDirectory()
  const running: BenchCluster[] = []
  const startAll = async (name: string, latencyMs: number | undefined) => {
    const clusters: BenchCluster[] = []
    for (const system of systems) {
      const cluster = await BenchCluster.start(
        system,
        path.join(dir, name, system.name.replaceAll(' ', '-')),
        latencyMs,
      )
      running.push(cluster)
      clusters.push(cluster)
      await generator.setUp(cluster.addresses)
    }
    return clusters
  }
  const stopAll = async (clusters: readonly BenchCluster[]) => {
    await Promise.all(clusters.map((cluster) => cluster.stop()))
  }

  say(
    `three nodes each on 127.0.0.1, data in ${dir}; load by ${generator.name}; ${availableParallelism()} CPUs, Node ${process.versions.node}, Linux ${release()}`,
  )
  const load: Measured<Run>[] = []
  const failover: Measured<number>[] = []
  let heavy: Measured<HeavyResult> | undefined
  try {
    const clusters = await startAll('default', undefined)
    for (const one of casesFor(generator).filter(({ workload }) => isWanted(workload)))
      load.push(await inTurn(titleOf(one), clusters, rounds, (cluster) => measureLoad(cluster, one)))
    if (isWanted('heavy'))
      heavy = await inTurn('heavy query', clusters, 1, (cluster) => heavyQuery(cluster.addresses, heavyRows))
    if (isWanted('failover')) {
      failover.push(
        await inTurn('default timeouts', clusters, failoverRounds.slow, (cluster) => measureFailover(cluster, peers)),
      )
      await stopAll(clusters)
      const fast = await startAll('fast', fastLatencyMs)
      failover.push(
        await inTurn(`network latency ${fastLatencyMs} ms`, fast, failoverRounds.fast, (cluster) =>
          measureFailover(cluster, peers),
        ),
      )
    }
  } finally {
    await stopAll(running)
    await removeDirectory(dir)
  }

  if (load.length > 0) say(loadTable(load, systems))
  if (failover.length > 0) say(failoverTable(failover, systems))
  if (heavy !== undefined) say(heavyTable(heavy, systems))

  const file =
    flags.json ?? path.join(projectRoot, 'bench', 'results', `${beganAt.toISOString().replaceAll(':', '-')}.json`)
  const { version } = JSON.parse(await readFile(path.join(projectRoot, 'package.json'), 'utf8')) as { version: string }
  const machine = {
    cpus: availableParallelism(),
    memoryBytes: totalmem(),
    node: process.versions.node,
    kernel: release(),
  }
  await mkdir(path.dirname(path.resolve(file)), { recursive: true })
  await writeFile(
    file,
    `${JSON.stringify({ version, beganAt, tookSeconds: (Date.now() - beganAt.getTime()) / 1000, machine, generator: generator.name, rounds, seconds, load, failover, heavy }, undefined, 2)}\n`,
  )
  say(`figures: ${file}`)
}

await bench()
