/**
 * Replication by one server on demand: the seam of `Replicator` without Raft. Entries are committed when the test says
 * so, or in the next turn of the loop (`auto`). Does not know SQL.
 */
import assert from 'node:assert/strict'
import type { Database } from '../../lib/engine/database.js'
import { DqliteError } from '../../lib/errors.js'
import type { Replicator } from '../../lib/node/replicator.js'
import type { Configuration, ConfigurationChange, Index, Refusal, Server, ServerId } from '../../lib/raft/types.js'

export class LoopbackReplicator implements Replicator {
  isLeader = true
  isTransferring = false
  readonly id: ServerId
  readonly address: string
  servers: readonly Server[]
  knownLeader: { id: ServerId; address: string } | undefined
  lastApplied: Index = 0
  needsBarrier = false
  /** Commits what was proposed in the next turn; otherwise `commit` does. */
  auto = true
  pipelineEntriesMax = 1000
  /** What the next change or transfer answers; `undefined`: done. */
  nextOutcome: DqliteError | undefined
  readonly changes: (ConfigurationChange | { type: 'transfer'; to: ServerId | undefined })[] = []
  readonly commands: { index: Index; database: string; bytes: number }[] = []

  #lastIndex: Index = 0
  #pending: { index: Index; database: Database }[] = []
  #holds: { index: Index; release: (error: DqliteError | undefined) => void }[] = []
  #barriers: { resolve: () => void; reject: (error: Error) => void }[] = []
  #waiters: (() => void)[] = []
  #listeners: (() => void | Promise<void>)[] = []
  #commitDue = false
  readonly #databases = new Set<Database>()

  constructor(id: ServerId = 1n, address = '127.0.0.1:19101') {
    this.id = id
    this.address = address
    this.servers = [{ id, address, role: 'voter' }]
    this.knownLeader = { id, address }
  }

  leader(): { id: ServerId; address: string } | undefined {
    return this.isTransferring ? undefined : this.knownLeader
  }

  configuration(): Configuration {
    return { servers: this.servers }
  }

  get lastIndex(): Index {
    return this.#lastIndex
  }

  get holds(): number {
    return this.#holds.length
  }

  get pipelineFull(): boolean {
    return this.#pending.length >= this.pipelineEntriesMax
  }

  propose(database: Database, command: Uint8Array): Index | Refusal {
    this.#databases.add(database)
    if (!this.isLeader) return 'notLeader'
    if (this.pipelineFull) return 'pipelineFull'
    assert.equal(command.length % 8, 0)
    const index = ++this.#lastIndex
    this.#pending.push({ index, database })
    this.commands.push({ index, database: database.name, bytes: command.length })
    if (this.auto && !this.#commitDue) {
      this.#commitDue = true
      setImmediate(() => {
        this.#commitDue = false
        if (this.auto) this.commit()
      })
    }
    return index
  }

  /** Everything up to `index` is committed: published, then its answers are released. */
  commit(index: Index = this.#lastIndex): void {
    while (this.#pending.length > 0 && this.#pending[0]!.index <= index) {
      const entry = this.#pending.shift()!
      entry.database.publish()
      this.lastApplied = entry.index
    }
    const due = this.#holds.filter((hold) => hold.index <= this.lastApplied)
    this.#holds = this.#holds.filter((hold) => hold.index > this.lastApplied)
    for (const hold of due) hold.release(undefined)
    for (const resolve of this.#waiters.splice(0)) resolve()
  }

  barrier(): Promise<void> {
    return new Promise((resolve, reject) => this.#barriers.push({ resolve, reject }))
  }

  get barriers(): number {
    return this.#barriers.length
  }

  barrierApplied(): void {
    this.needsBarrier = false
    for (const { resolve } of this.#barriers.splice(0)) resolve()
  }

  async readIndex(): Promise<void> {
    if (!this.isLeader) throw new DqliteError('NOT_LEADER', 'not leader')
  }

  whenApplied(index: Index): Promise<void> {
    return new Promise((resolve, reject) => {
      this.hold(index, (error) => {
        if (error === undefined) resolve()
        else reject(error)
      })
    })
  }

  hold(index: Index, release: (error: DqliteError | undefined) => void): void {
    if (index <= this.lastApplied) release(undefined)
    else this.#holds.push({ index, release })
  }

  async change(change: ConfigurationChange): Promise<void> {
    this.changes.push(change)
    this.#outcome()
  }

  async transfer(to: ServerId | undefined): Promise<void> {
    this.changes.push({ type: 'transfer', to })
    this.#outcome()
  }

  #outcome(): void {
    const outcome = this.nextOutcome
    this.nextOutcome = undefined
    if (outcome !== undefined) throw outcome
  }

  onLeadershipLost(listener: () => void | Promise<void>): void {
    this.#listeners.push(listener)
  }

  /** In the order that `Replicator.onLeadershipLost` promises. */
  async loseLeadership(): Promise<void> {
    this.isLeader = false
    this.isTransferring = false
    this.knownLeader = undefined
    const lost = new DqliteError('LEADERSHIP_LOST', 'leadership lost')
    for (const { release } of this.#holds.splice(0)) release(lost)
    for (const { reject } of this.#barriers.splice(0)) reject(lost)
    for (const resolve of this.#waiters.splice(0)) resolve()
    await Promise.all(this.#listeners.map(async (listener) => listener()))
    for (const database of this.#databases) if (database.speculative > 0) database.dropSpeculative()
    this.#pending = []
    this.#lastIndex = this.lastApplied
  }

  becomeLeader(): void {
    this.isLeader = true
    this.knownLeader = { id: this.id, address: this.address }
  }

  whenPipelineHasRoom(): Promise<void> {
    return new Promise((resolve) => this.#waiters.push(resolve))
  }
}
