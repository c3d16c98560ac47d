/**
 * Nodes as child processes: start until ready, kill, stop, notice their end; and free ports for them. Does not know
 * what a cluster is, nor what a node prints besides its ready line and its last words.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readFile } from 'node:fs/promises'
import net from 'node:net'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { DqliteError } from '../errors.js'

/** The command itself, as a file. */
export const cliPath = path.join(path.dirname(fileURLToPath(import.meta.url)), 'main.js')
const readyMs = 30_000
const stopMs = 15_000
const lastWordsCharactersMax = 4096

export interface NodeProcessOptions {
  readonly id: bigint
  readonly address: string
  readonly dir: string
  /** More flags of `dqlite serve`. */
  readonly flags?: readonly string[]
  /** A program other than `dqlite serve` that prints `ready`, with its arguments. */
  readonly command?: readonly [string, ...string[]]
}

export class NodeProcess {
  readonly options: NodeProcessOptions
  /** Settles when the process is gone: `status 0`, `SIGKILL`. */
  readonly ended: Promise<string>
  readonly #child: ChildProcess
  #lastWords = ''
  #hasEnded = false

  private constructor(options: NodeProcessOptions, child: ChildProcess) {
    this.options = options
    this.#child = child
    this.ended = new Promise((resolve) => {
      child.once('close', (status, signal) => {
        this.#hasEnded = true
        resolve(signal ?? `status ${String(status)}`)
      })
      // A program that cannot be run has no close event to rely on; the reason is its last words.
      child.once('error', (error) => {
        this.#lastWords = error.message
        this.#hasEnded = true
        resolve('not started')
      })
    })
    child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#lastWords = (this.#lastWords + text).slice(-lastWordsCharactersMax)
    })
    // Writing to a process that is gone is no news: `ended` says it.
    child.stdin?.on('error', () => undefined)
  }

  /** Resolves once the node accepts connections; rejects with what it said if it ends before. */
  static async start(options: NodeProcessOptions): Promise<NodeProcess> {
    await mkdir(options.dir, { recursive: true })
    const [program, ...args] = options.command ?? [
      process.execPath,
      cliPath,
      'serve',
      ...['--id', String(options.id), '--address', options.address, '--dir', options.dir, ...(options.flags ?? [])],
    ]
    // Standard input is a pipe that nobody writes to: it closes when we die, and the node ends with us.
    const node = new NodeProcess(options, spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] }))
    try {
      await node.#ready()
    } catch (error) {
      await node.kill('SIGKILL')
      throw error
    }
    return node
  }

  get pid(): number {
    return this.#child.pid ?? 0
  }

  get hasEnded(): boolean {
    return this.#hasEnded
  }

  /** What it wrote on standard error, at least the end of it. */
  get lastWords(): string {
    return this.#lastWords.trim()
  }

  /** Sends the signal and waits for the end. */
  async kill(signal: NodeJS.Signals): Promise<string> {
    if (!this.#hasEnded) this.#child.kill(signal)
    return this.ended
  }

  /** Sends a signal that does not end it: SIGSTOP, SIGCONT. */
  signal(signal: NodeJS.Signals): void {
    this.#child.kill(signal)
  }

  /** Asks the node to end, the way a parent's death does; who does not listen is killed. */
  async stop(): Promise<string> {
    this.#child.stdin?.end()
    if (this.options.command !== undefined && !this.#hasEnded) this.#child.kill('SIGTERM')
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), stopMs)
    try {
      return await this.ended
    } finally {
      clearTimeout(timer)
    }
  }

  #ready(): Promise<void> {
    const stdout = this.#child.stdout
    return new Promise((resolve, reject) => {
      let text = ''
      const timer = setTimeout(() => {
        reject(new DqliteError('TIMEOUT', `node ${String(this.options.id)} was not ready after ${readyMs} ms`))
      }, readyMs)
      stdout?.setEncoding('utf8').on('data', (chunk: string) => {
        if (text.length > lastWordsCharactersMax) return
        text += chunk
        if (!/^ready .*$/m.test(text)) return
        clearTimeout(timer)
        resolve()
      })
      void this.ended.then((how) => {
        clearTimeout(timer)
        const words = this.lastWords.replaceAll(/\s*\n\s*/g, ' ')
        reject(new DqliteError('NO_CONNECTION', `node ${String(this.options.id)} ended with ${how}: ${words}`))
      })
    })
  }
}

/** True if nobody listens there now. */
export async function isPortFree(port: number): Promise<boolean> {
  const server = net.createServer()
  try {
    server.listen({ host: '127.0.0.1', port, exclusive: true })
    await once(server, 'listening')
    return true
  } catch {
    // In use, or not ours to use: either way not free. The node that gets it anyway says why.
    return false
  } finally {
    await new Promise((resolve) => server.close(resolve))
  }
}

/**
 * Ports below the range from which the kernel takes those of outgoing connections: otherwise, while a killed node is
 * away, a connection of somebody else could sit on its port.
 */
export async function freePorts(count: number): Promise<number[]> {
  const range = await readFile('/proc/sys/net/ipv4/ip_local_port_range', 'utf8').catch(() => '32768 60999')
  const end = Number.parseInt(range, 10) > 12_000 ? Number.parseInt(range, 10) : 32_768
  const begin = Math.floor(end / 2)
  const found: number[] = []
  for (let attempt = 0; found.length < count; attempt++) {
    if (attempt > 1000) throw new DqliteError('ADDRESS_IN_USE', `no ${count} free ports from ${begin} to ${end - 1}`)
    const port = begin + Math.floor(Math.random() * (end - begin))
    if (!found.includes(port) && (await isPortFree(port))) found.push(port)
  }
  return found
}
