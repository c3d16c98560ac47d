/**
 * Real nodes for tests: ours, in this process, and C dqlite's, as child processes where a build of them is at hand.
 * Ends everything that it started.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { connect } from '../../lib/client/client.js'
import { dial } from '../../lib/network/dial.js'

export interface TestNode {
  readonly id: bigint
  readonly address: string
  /** Without goodbye. */
  kill(): Promise<void>
}

export interface TestCluster {
  readonly nodes: readonly TestNode[]
  readonly addresses: readonly string[]
  /** Where the data directories are, by id. */
  readonly root: string
  stop(): Promise<void>
}

type StartNode = (id: number, dir: string) => Promise<TestNode>

/** Node 1 bootstraps, the others are added as voters. */
async function startCluster(size: number, start: StartNode): Promise<TestCluster> {
  const root = await mkdtemp(path.join(os.tmpdir(), 'dqlite-test-'))
  const nodes: TestNode[] = []
  const stop = async (): Promise<void> => {
    await Promise.all(nodes.map((node) => node.kill()))
    await rm(root, { recursive: true, force: true })
  }
  try {
    for (let id = 1; id <= size; id++) nodes.push(await start(id, path.join(root, String(id))))
    await using client = await connect({ addresses: [nodes[0]!.address] })
    for (const { id, address } of nodes.slice(1)) await client.add({ id, address })
  } catch (error) {
    await stop()
    throw error
  }
  return { nodes, addresses: nodes.map((node) => node.address), root, stop }
}

// ---------------------------------------------------------------------------------------------------- our own

/** Elections within a second: the nodes are on one machine. */
const ownLatencyNs = 20_000_000

/** In this process. `kill` is a `stop`: what a process that is killed leaves behind is tested elsewhere. */
export function startOwnCluster(size: number): Promise<TestCluster> {
  return startCluster(size, async (id, dir) => {
    const address = await freeAddress()
    await mkdir(dir, { recursive: true })
    const { Node } = await import('../../lib/node/node.js') // the addon is loaded by those who need it
    const node = await Node.start({ id, address, dir, networkLatencyNs: ownLatencyNs })
    return { id: BigInt(id), address, kill: () => node.stop() }
  })
}

async function freeAddress(): Promise<string> {
  const listener = net.createServer()
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve))
  const { port } = listener.address() as net.AddressInfo
  await new Promise((resolve) => listener.close(resolve))
  return `127.0.0.1:${port}`
}

// ---------------------------------------------------------------------------------------------------- C dqlite

export const cNodeProgram = path.join(
  process.env.PEERS_BIN ?? path.join(process.env.TMPDIR ?? '/tmp', 'dqlite-peers-bin'),
  'dqlite-node',
)

export const hasCNode = (): boolean => existsSync(cNodeProgram)

export function startCCluster(size: number, firstPort: number): Promise<TestCluster> {
  return startCluster(size, async (id, dir) => {
    const address = `127.0.0.1:${firstPort + id - 1}`
    await mkdir(dir, { recursive: true })
    const child = spawn(cNodeProgram, [String(id), address, dir], { stdio: 'ignore' })
    await listening(address, child)
    return { id: BigInt(id), address, kill: () => killed(child) }
  })
}

async function listening(address: string, child: ChildProcess): Promise<void> {
  for (let tries = 0; tries < 100; tries++) {
    if (child.exitCode !== null) throw new Error(`the node at ${address} ended with ${child.exitCode}`)
    try {
      const socket = await dial(address, { timeoutMs: 1000 })
      socket.destroy()
      return
    } catch {
      await pause(50) // not yet
    }
  }
  throw new Error(`nobody listens at ${address}`)
}

async function killed(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  const ended = new Promise((resolve) => child.once('exit', resolve))
  child.kill('SIGKILL')
  await ended
}
