/**
 * Clusters whose members are processes of two kinds, ours and C dqlite's, on the same directories and addresses: a
 * member can come back as the other kind. Knows how both are started and which of them lead; does not know what is
 * written. Ends everything that it started.
 */
import type { ExecutionContext } from 'ava'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { gatherEvidence, imageOf, judge } from '../../lib/cli/evidence.js'
import { freePorts, NodeProcess } from '../../lib/cli/node-process.js'
import { Workload, workloadDatabase } from '../../lib/cli/workload.js'
import { Client, type ClientOptions } from '../../lib/client/client.js'
import { DqliteError } from '../../lib/errors.js'
import { cNodeProgram, hasCNode } from './cluster.js'

export type Kind = 'ours' | 'C'

/** Elections within two seconds on a busy machine; the same for both kinds, or one kind would win them all. */
export const latencyMs = 40

/** Tests that run for longer where there is time for it. */
export const interopSeconds = Number(process.env.INTEROP_SECONDS ?? 0)

export const cMissing = hasCNode()
  ? undefined
  : `skipped: there is no C dqlite node at ${cNodeProgram} (PEERS_BIN says where)`
if (cMissing !== undefined) console.log(cMissing)

export interface MemberOptions {
  readonly id: number
  readonly address: string
  readonly dir: string
  /** Of `dqlite serve`; C dqlite's program has none. */
  readonly flags?: readonly string[]
}

export class MemberProcess {
  kind: Kind
  readonly options: MemberOptions
  #process: NodeProcess | undefined
  /** C nodes that ended by themselves, and how. */
  readonly deaths: string[] = []

  private constructor(kind: Kind, options: MemberOptions) {
    this.kind = kind
    this.options = options
  }

  static async start(kind: Kind, options: MemberOptions): Promise<MemberProcess> {
    const member = new MemberProcess(kind, options)
    await member.start()
    return member
  }

  get id(): bigint {
    return BigInt(this.options.id)
  }

  get address(): string {
    return this.options.address
  }

  get pid(): number {
    return this.#running().pid
  }

  /** What it said on standard error. */
  get lastWords(): string {
    return this.#process?.lastWords ?? ''
  }

  get isRunning(): boolean {
    return this.#process !== undefined && !this.#process.hasEnded
  }

  async start(kind: Kind = this.kind): Promise<void> {
    const { id, address, dir, flags = [] } = this.options
    this.kind = kind
    const node = await NodeProcess.start({
      id: BigInt(id),
      address,
      dir,
      ...(kind === 'C'
        ? { command: [cNodeProgram, String(id), address, dir, String(latencyMs)] }
        : { flags: ['--network-latency-ns', String(latencyMs * 1_000_000), ...flags] }),
    })
    this.#process = node
    void node.ended.then((how) => {
      if (this.#process === node) this.deaths.push(`${kind} node ${id} ended with ${how}: ${node.lastWords}`)
    })
  }

  /** Without goodbye. */
  async kill(): Promise<void> {
    const node = this.#process
    this.#process = undefined
    await node?.kill('SIGKILL')
  }

  /** As an operator would end it. */
  async stop(): Promise<void> {
    const node = this.#process
    this.#process = undefined
    await node?.stop()
  }

  signal(signal: NodeJS.Signals): void {
    this.#running().signal(signal)
  }

  #running(): NodeProcess {
    if (this.#process === undefined) throw new Error(`member ${this.options.id} is not running`)
    return this.#process
  }
}

const convergeMs = 30_000
const pageBytes = 4096

/** In-header size, big-endian. */
const headerPages = (image: Buffer): number => (image.length === 0 ? 0 : image.readUInt32BE(28))

async function imageAt(address: string, database: string): Promise<Buffer> {
  const client = new Client({ addresses: [address] })
  try {
    const { main, wal } = await client.dump(database, { address })
    const image = imageOf(main, wal)
    return Buffer.from(image.buffer, image.byteOffset, image.byteLength)
  } catch (error) {
    // A member that has just come back may not know the database yet.
    if (error instanceof DqliteError && error.code === 'UNKNOWN_DATABASE') return Buffer.alloc(0)
    throw error
  } finally {
    await client.close()
  }
}

/** Processes say nothing when they have done something: asking again is the only way. */
export async function eventually(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadlineMs = performance.now() + convergeMs
  while (!(await condition())) {
    if (performance.now() > deadlineMs) throw new Error(`never happened: ${what}`)
    await pause(20)
  }
}

/** Indexes of the snapshots in a data directory, the newest first (disk-format §1). */
export function snapshotsIn(dir: string): number[] {
  return readdirSync(dir)
    .flatMap((name, _i, names) => (names.includes(`${name}.meta`) ? [name] : []))
    .flatMap((name) => /^snapshot-\d+-(\d+)-\d+$/.exec(name)?.[1] ?? [])
    .map(Number)
    .sort((one, other) => other - one)
}

export class MixedCluster {
  readonly members: MemberProcess[] = []
  readonly dir: string
  readonly #t: ExecutionContext
  #lastId = 0

  private constructor(t: ExecutionContext, dir: string) {
    this.#t = t
    this.dir = dir
  }

  /** The first member bootstraps; the others are running, and voters where `joins`. Ids are 1, 2, … */
  static async start(
    t: ExecutionContext,
    kinds: readonly Kind[],
    { flags = [], joins = true }: { readonly flags?: readonly string[]; readonly joins?: boolean } = {},
  ): Promise<MixedCluster> {
    const dir = mkdtempSync(path.join(os.tmpdir(), 'dqlite-interop-'))
    const cluster = new MixedCluster(t, dir)
    t.teardown(async () => {
      // A stopped process must be able to die.
      await Promise.all(cluster.members.map((member) => member.kill()))
      rmSync(dir, { recursive: true, force: true })
    })
    for (const kind of kinds) await cluster.launch(kind, flags)
    if (joins) for (const member of cluster.members.slice(1)) await cluster.add(member)
    return cluster
  }

  /** Starts one more, which is not a member yet. */
  async launch(kind: Kind, flags: readonly string[] = []): Promise<MemberProcess> {
    const id = ++this.#lastId
    const [port] = await freePorts(1)
    const options = { id, address: `127.0.0.1:${port!}`, dir: path.join(this.dir, String(id)), flags }
    const member = await MemberProcess.start(kind, options)
    this.members.push(member)
    return member
  }

  async add(member: MemberProcess, role: 'voter' | 'standby' | 'spare' = 'voter'): Promise<void> {
    await this.with((client) => client.add({ id: member.id, address: member.address, role }), { retryBusy: true })
  }

  /** Takes it out of the cluster, ends it and forgets its directory: its id never comes back. */
  async remove(member: MemberProcess): Promise<void> {
    await this.with((client) => client.remove(member.id), { retryBusy: true })
    await member.stop()
    this.members.splice(this.members.indexOf(member), 1)
    rmSync(member.options.dir, { recursive: true })
  }

  get running(): MemberProcess[] {
    return this.members.filter((member) => member.isRunning)
  }

  get addresses(): string[] {
    return this.members.map((member) => member.address)
  }

  client(options: Partial<ClientOptions> = {}): Client {
    const client = new Client({ addresses: this.addresses, timeoutMs: 30_000, ...options })
    this.#t.teardown(() => client.close({ timeoutMs: 1 }))
    return client
  }

  async with<T>(act: (client: Client) => Promise<T>, options: Partial<ClientOptions> = {}): Promise<T> {
    const client = this.client(options)
    try {
      return await act(client)
    } finally {
      await client.close()
    }
  }

  /** Who leads by its own word, among `members`. */
  async leader(): Promise<MemberProcess> {
    const address = await this.with(async (client) => (await client.leader()).address)
    const member = this.members.find((candidate) => candidate.address === address)
    if (member === undefined) throw new Error(`${address} leads, which is none of ours`)
    return member
  }

  /** TRANSFER until it leads: another election may come between. */
  async leadBy(member: MemberProcess): Promise<void> {
    for (let tries = 0; tries < 20; tries++) {
      if ((await this.leader()) === member) return
      try {
        await this.with((client) => client.transfer(member.id))
      } catch (error) {
        // "leadership transfer failed", or the leader changed on the way: look again.
        if (!(error instanceof DqliteError)) throw error
        await pause(latencyMs)
      }
    }
    throw new Error(`member ${member.options.id} did not become leader`)
  }

  /**
   * Waits until every running member has the same content of the database, merged from file and WAL. C 1.11 never
   * shrinks a database (raft-wire §5.2): `upToHeaderSize` compares as many pages as the header counts. The sizes in
   * pages, by member.
   */
  async identical(database: string, { upToHeaderSize = false } = {}): Promise<number[]> {
    const deadlineMs = performance.now() + convergeMs
    for (;;) {
      const images = await Promise.all(this.running.map((member) => imageAt(member.address, database)))
      const compared = upToHeaderSize
        ? images.map((image) => image.subarray(0, headerPages(image) * pageBytes))
        : images
      const sizes = images.map((image) => image.length / pageBytes)
      if (compared.every((image) => image.length > 0 && image.equals(compared[0]!))) return sizes
      if (performance.now() > deadlineMs) {
        const differing = compared.flatMap((image, i) => (image.equals(compared[0]!) ? [] : [i + 1]))
        throw new Error(`members ${differing.join()} differ from the first; pages: ${sizes.join()}`)
      }
      await pause(20)
    }
  }

  async startWorkload(clients = 4): Promise<Workload> {
    const workload = new Workload({ addresses: this.addresses, clients, timeoutMs: 10_000 })
    // A test that has failed must not leave its writers behind; what they met is not its failure.
    this.#t.teardown(() => workload.stop().catch(() => undefined))
    await workload.start()
    return workload
  }

  /** Every member has the same content, nothing acknowledged is missing, nobody has died by itself. */
  async holds(workload: Workload): Promise<void> {
    const t = this.#t
    const evidence = await gatherEvidence(
      this.running.map((member) => member.address),
      workloadDatabase,
    )
    t.is(evidence.copies.length, this.members.length)
    const { faults, unknownPresent } = judge(evidence, workload.ledger)
    t.deepEqual(faults, [])
    t.deepEqual(
      this.members.flatMap((member) => member.deaths),
      [],
    )
    const { acknowledged, unknown, refused } = workload.ledger
    t.log(`${acknowledged.size} acknowledged, ${unknown.size} unknown (${unknownPresent} there), ${refused} refused`)
  }
}
