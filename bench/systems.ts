/**
 * The clusters under test: three processes on loopback with their data on disk, ours or C dqlite's, joined, restarted
 * and weighed. Does not know what is measured.
 */
import { mkdtemp, readFile, rm, statfs, writeFile, mkdir } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { freePorts, NodeProcess } from '../lib/cli/node-process.js'
import { joinAll } from '../lib/cli/local-cluster.js'

export interface System {
  readonly name: string
  /** The program of a C node; absent: ours. */
  readonly program?: string
}

/** Memory posing as a disk would make every figure a lie. */
const tmpfsType = 0x01021994

/** A directory on a real disk. */
export async function dataDirectory(): Promise<string> {
  for (const parent of [tmpdir(), '/var/tmp', process.cwd()])
    if ((await statfs(parent)).type !== tmpfsType) return mkdtemp(path.join(parent, 'dqlite-bench-'))
  throw new Error('every candidate for the data is in memory; set TMPDIR to a folder on a disk')
}

const ticksPerSecond = 100 // USER_HZ, fixed on Linux

/** User and system time of a process so far, in seconds. */
async function cpuSeconds(pid: number): Promise<number> {
  const stat = await readFile(`/proc/${pid}/stat`, 'latin1')
  // The second field is the name in brackets and may contain anything; fields 14 and 15 are utime and stime.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / ticksPerSecond
}

export class BenchCluster {
  readonly system: System
  readonly #nodes: NodeProcess[]
  readonly #pidDir: string

  private constructor(system: System, nodes: NodeProcess[], pidDir: string) {
    this.system = system
    this.#nodes = nodes
    this.#pidDir = pidDir
  }

  static async start(system: System, dir: string, networkLatencyMs: number | undefined): Promise<BenchCluster> {
    const ports = await freePorts(3)
    const nodes: NodeProcess[] = []
    const pidDir = path.join(dir, 'pids')
    await mkdir(pidDir, { recursive: true })
    const cluster = new BenchCluster(system, nodes, pidDir)
    try {
      for (const [i, port] of ports.entries()) {
        const address = `127.0.0.1:${port}`
        const nodeDir = path.join(dir, String(i + 1))
        nodes.push(
          await NodeProcess.start({
            id: BigInt(i + 1),
            address,
            dir: nodeDir,
            ...(system.program !== undefined
              ? { command: [system.program, String(i + 1), address, nodeDir, String(networkLatencyMs ?? 0)] }
              : networkLatencyMs !== undefined && {
                  flags: ['--network-latency-ns', String(networkLatencyMs * 1_000_000)],
                }),
          }),
        )
      }
      await cluster.#writePids()
      await joinAll(cluster.addresses)
    } catch (error) {
      await cluster.stop()
      throw error
    }
    return cluster
  }

  get addresses(): string[] {
    return this.#nodes.map((node) => node.options.address)
  }

  /** Files named by address that hold the process id: whom the load generator kills. */
  get pidDir(): string {
    return this.#pidDir
  }

  /** Of all three processes together. */
  async cpuSeconds(): Promise<number> {
    const living = this.#nodes.filter((node) => !node.hasEnded)
    const each = await Promise.all(living.map((node) => cpuSeconds(node.pid)))
    return each.reduce((sum, seconds) => sum + seconds, 0)
  }

  /** Kills the node at this address. */
  async kill(address: string): Promise<void> {
    await this.#nodes.find((node) => node.options.address === address)?.kill('SIGKILL')
  }

  /** Brings back whoever has been killed. */
  async restartDead(): Promise<void> {
    for (const [i, node] of this.#nodes.entries())
      if (node.hasEnded) this.#nodes[i] = await NodeProcess.start(node.options)
    await this.#writePids()
  }

  async stop(): Promise<void> {
    await Promise.all(this.#nodes.map((node) => node.stop()))
  }

  async #writePids(): Promise<void> {
    for (const node of this.#nodes) await writeFile(path.join(this.#pidDir, node.options.address), String(node.pid))
  }
}

export const removeDirectory = (dir: string) => rm(dir, { recursive: true, force: true })
