/**
 * `dqlite start`, which is `npm start`: shows what the library promises, with processes, disks, sockets and a
 * SIGKILL. Knows the plot and the report. What holds is decided by evidence.ts.
 */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import Table from 'cli-table3'
import { DqliteError } from '../errors.js'
import { gatherEvidence, judge, type Evidence } from './evidence.js'
import { LocalCluster } from './local-cluster.js'
import { cliPath, type NodeProcess } from './node-process.js'
import { whenAskedToEnd } from './serve.js'
import { Workload, workloadDatabase } from './workload.js'

export interface StartFlags {
  readonly once?: boolean
  readonly dir?: string
  readonly port?: string
  readonly seconds: string
  readonly clients: string
}

/** Loopback: heartbeat 30 ms, election timeout 300 to 600 ms. The default is made for slower networks. */
const networkLatencyNs = 20_000_000
const resumeMs = 60_000

function wholeNumber(flag: string, text: string, min: number, max: number): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value < min || value > max)
    throw new DqliteError('BAD_OPTION', `option ${flag} is ${JSON.stringify(text)}; it must be from ${min} to ${max}`)
  return value
}

const say = (text = '') => process.stdout.write(`${text}\n`)
const count = (n: number) => n.toLocaleString('en-US')
const nameOf = (node: NodeProcess) => `node ${String(node.options.id)}`

function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  // No colours of its own: the output is read in files as often as in terminals.
  const style = { head: [], border: [], compact: true }
  const result = new Table({ ...(head.length > 0 && { head: [...head] }), style })
  for (const row of rows) result.push([...row])
  return result.toString()
}

const pause = (ms: number, ending: AbortSignal) =>
  new Promise<void>((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer)
      reject(new DqliteError('ABORTED', 'ended before the report'))
    }
    if (ending.aborted) {
      reject(new DqliteError('ABORTED', 'ended before the report'))
      return
    }
    const timer = setTimeout(() => {
      ending.removeEventListener('abort', stop)
      resolve()
    }, ms)
    ending.addEventListener('abort', stop, { once: true })
  })

interface Story {
  readonly evidence: Evidence
  readonly workload: Workload
  readonly writingMs: number
  readonly killed: NodeProcess
  readonly leaderAfter: NodeProcess
  readonly pauseMs: number
}

/** Writes, kills, brings back, looks. */
async function tellStory(cluster: LocalCluster, clients: number, seconds: number, ending: AbortSignal): Promise<Story> {
  const actMs = (seconds * 1000) / 3
  const workload = new Workload({ addresses: cluster.addresses, clients })
  await workload.start()
  const beganMs = performance.now()
  const clock = () => `${((performance.now() - beganMs) / 1000).toFixed(1).padStart(6)} s  `
  say(`${clock()}${count(clients)} clients write one row per transaction`)

  try {
    await pause(actMs, ending)
    const killed = await cluster.leader()
    const killedAtMs = performance.now()
    await killed.kill('SIGKILL')
    say(`${clock()}${nameOf(killed)} leads, and is killed: kill -9 ${killed.pid}`)

    // Acknowledgements that were under way when it died do not count: the new leader has to give one.
    const leaderAfter = await cluster.leader()
    const resumed = workload.ledger.nextAcknowledgement()
    const limit = new AbortController()
    try {
      await Promise.race([
        resumed,
        pause(resumeMs, AbortSignal.any([ending, limit.signal])).then(() => {
          throw new DqliteError('TIMEOUT', `no write succeeded within ${resumeMs} ms after the leader was killed`)
        }),
      ])
    } finally {
      limit.abort()
    }
    const pauseMs = workload.ledger.longestPauseMs(killedAtMs)
    say(`${clock()}${nameOf(leaderAfter)} leads; no write succeeded for ${count(Math.round(pauseMs))} ms`)

    await pause(actMs, ending)
    const back = await cluster.restart(killed)
    say(`${clock()}${nameOf(back)} is back as process ${back.pid}, and catches up while the others write`)

    await pause(actMs, ending)
    await workload.stop()
    const writingMs = performance.now() - beganMs
    say(`${clock()}the clients stop; every node is asked for its copy`)
    const evidence = await gatherEvidence(cluster.addresses, workloadDatabase)
    return { evidence, workload, writingMs, killed, leaderAfter, pauseMs }
  } finally {
    await workload.stop().catch(() => undefined) // the first failure is the one to report
  }
}

function report({ evidence, workload, writingMs, killed, leaderAfter, pauseMs }: Story): readonly string[] {
  const { ledger } = workload
  const verdict = judge(evidence, ledger)
  say()
  say(
    table(
      ['copy of', 'bytes', 'SHA-256'],
      evidence.copies.map(({ address, byteLength, sha256 }) => [address, count(byteLength), sha256]),
    ),
  )
  say(
    table(
      [],
      [
        [
          'acknowledged',
          `${count(ledger.acknowledged.size)} rows, ${count(Math.round(ledger.acknowledged.size / (writingMs / 1000)))} per second`,
        ],
        ['acknowledged and lost', count(verdict.lost)],
        ['outcome unknown', `${count(ledger.unknown.size)} rows, of which ${count(verdict.unknownPresent)} are there`],
        ['refused, nothing happened', count(ledger.refused)],
        ['failover', `${nameOf(killed)} to ${nameOf(leaderAfter)}, ${count(Math.round(pauseMs))} ms without a write`],
        ['rows in the database', count(evidence.keys.size)],
        ['copies', verdict.identical ? 'identical, byte for byte' : 'DIFFERENT'],
        ["SQLite's integrity check", evidence.integrity],
      ],
    ),
  )
  return verdict.faults
}

function inviteToPlay(cluster: LocalCluster): void {
  const relative = path.relative(process.cwd(), cliPath)
  const cli = `node ${relative.startsWith('..') ? cliPath : relative}`
  const addresses = cluster.addresses.join(',')
  say()
  say('The cluster keeps running. Play with it from another terminal, in this folder:')
  say()
  say(`  ${cli} sql --addresses ${addresses} --database ${workloadDatabase} "SELECT count(*) FROM event"`)
  say(`  ${cli} members --addresses ${addresses}`)
  for (const node of cluster.nodes) say(`  kill -9 ${node.pid}    # ${nameOf(node)}; it is started again`)
  say()
  say(`Its data is in ${cluster.dir}. Ctrl-C ends it.`)
}

/** Brings back whoever the player kills, until it is time to end. */
async function keepAlive(cluster: LocalCluster, ending: AbortSignal): Promise<void> {
  const watch = async (node: NodeProcess): Promise<void> => {
    const how = await node.ended
    if (ending.aborted) return
    say(`${nameOf(node)} ended with ${how}`)
    await pause(1000, ending)
    const again = await cluster.restart(node)
    say(`${nameOf(again)} is back as process ${again.pid}`)
    return watch(again)
  }
  const ended = new Promise<void>((resolve) => ending.addEventListener('abort', () => resolve(), { once: true }))
  await Promise.race([ended, Promise.all(cluster.nodes.map(watch))])
}

export async function start(flags: StartFlags): Promise<void> {
  const seconds = wholeNumber('--seconds', flags.seconds, 1, 3600)
  const clients = wholeNumber('--clients', flags.clients, 1, 1000)
  const port = flags.port === undefined ? undefined : wholeNumber('--port', flags.port, 1, 65_533)
  const dir = flags.dir === undefined ? await mkdtemp(path.join(tmpdir(), 'dqlite-start-')) : path.resolve(flags.dir)

  const ending = new AbortController()
  void whenAskedToEnd({ stdin: false }).then(() => ending.abort())
  let cluster: LocalCluster | undefined
  try {
    say('dqlite: three nodes on this machine, each a process with its data on disk')
    cluster = await LocalCluster.start({
      dir,
      flags: ['--network-latency-ns', String(networkLatencyNs)],
      ...(port !== undefined && { port }),
    })
    const nodes = cluster.nodes.map((node) => [nameOf(node), node.options.address, node.pid, node.options.dir])
    say(table(['', 'address', 'process', 'data'], nodes))
    const faults = report(await tellStory(cluster, clients, seconds, ending.signal))
    if (faults.length > 0) throw new DqliteError('DATA_CORRUPT', `it did not hold: ${faults.join('; ')}`)
    say('Everything held: no acknowledged row was lost, and all three nodes have the same content.')
    if (flags.once === true) return
    inviteToPlay(cluster)
    await keepAlive(cluster, ending.signal).catch((error: unknown) => {
      if (!ending.signal.aborted) throw error
    })
  } finally {
    ending.abort()
    await cluster?.stop()
    if (flags.dir === undefined) await rm(dir, { recursive: true, force: true })
  }
}
