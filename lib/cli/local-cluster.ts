/**
 * Three nodes on this machine, each a process, joined into one cluster. Knows addresses, processes and who leads.
 * Does not know what is written to them.
 */
import { mkdir, readdir } from 'node:fs/promises'
import path from 'node:path'
import { Client } from '../client/client.js'
import { DqliteError } from '../errors.js'
import { freePorts, NodeProcess } from './node-process.js'

const size = 3
const joinMs = 30_000

/** Adds every address but the first as a voter with ids 2, 3, … to the cluster that the first bootstrapped. */
export async function joinAll(addresses: readonly string[]): Promise<void> {
  const client = new Client({ addresses: [addresses[0]!], timeoutMs: joinMs })
  try {
    for (const [i, address] of addresses.entries())
      if (i > 0) await client.add({ id: BigInt(i + 1), address, role: 'voter' })
  } finally {
    await client.close()
  }
}

export interface LocalClusterOptions {
  readonly dir: string
  /** First of three consecutive ports; free ones by default. */
  readonly port?: number
  /** More flags of `dqlite serve`, for each node. */
  readonly flags?: readonly string[]
}

export class LocalCluster {
  readonly nodes: NodeProcess[] = []
  readonly #options: LocalClusterOptions

  private constructor(options: LocalClusterOptions) {
    this.#options = options
  }

  static async start(options: LocalClusterOptions): Promise<LocalCluster> {
    await mkdir(options.dir, { recursive: true })
    if ((await readdir(options.dir)).length > 0)
      throw new DqliteError('DIRECTORY_FOREIGN', `${options.dir} is not empty; a new cluster needs an empty directory`)
    const first = options.port
    const ports = first === undefined ? await freePorts(size) : Array.from({ length: size }, (_, i) => first + i)
    const cluster = new LocalCluster(options)
    try {
      for (const [i, port] of ports.entries())
        cluster.nodes.push(
          await NodeProcess.start({
            id: BigInt(i + 1),
            address: `127.0.0.1:${port}`,
            dir: path.join(options.dir, String(i + 1)),
            flags: options.flags ?? [],
          }),
        )
      await joinAll(cluster.addresses)
    } catch (error) {
      await cluster.stop()
      throw error
    }
    return cluster
  }

  get dir(): string {
    return this.#options.dir
  }

  get addresses(): string[] {
    return this.nodes.map((node) => node.options.address)
  }

  /** A client of the whole cluster. */
  connect(database?: string): Client {
    return new Client({ addresses: this.addresses, ...(database !== undefined && { database }) })
  }

  /** The node that leads now, by its own word. */
  async leader(): Promise<NodeProcess> {
    const client = this.connect()
    try {
      const { address } = await client.leader()
      const node = this.nodes.find((candidate) => candidate.options.address === address)
      if (node === undefined) throw new DqliteError('NO_LEADER', `${address} leads, which is none of ours`)
      return node
    } finally {
      await client.close()
    }
  }

  /** Starts the node again, in place, as it was. */
  async restart(node: NodeProcess): Promise<NodeProcess> {
    const again = await NodeProcess.start(node.options)
    this.nodes[this.nodes.indexOf(node)] = again
    return again
  }

  async stop(): Promise<void> {
    await Promise.all(this.nodes.map((node) => node.stop()))
  }
}
