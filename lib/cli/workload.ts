/**
 * Concurrent clients that write rows, and the ledger of what each was told: acknowledged, refused, or unknown. Knows
 * the client's promises about outcomes. Does not know which nodes are alive.
 */
import { Client } from '../client/client.js'
import { DqliteError } from '../errors.js'

export const workloadDatabase = 'demo'
const createTable = `CREATE TABLE event (
  writer INTEGER NOT NULL, number INTEGER NOT NULL, note TEXT NOT NULL, PRIMARY KEY (writer, number)
) WITHOUT ROWID`
/** One row is `writer/number`. */
export const selectKeys = "SELECT writer || '/' || number FROM event"
const insertRow = 'INSERT INTO event (writer, number, note) VALUES (?, ?, ?)'

/** What the writers know. Rows are named by their keys, which no two attempts share. */
export class Ledger {
  readonly acknowledged = new Set<string>()
  /** The answer never came, or said that leadership was lost: the row may be there or not. */
  readonly unknown = new Set<string>()
  /** Attempts that certainly changed nothing. */
  refused = 0
  /** When each acknowledgement came, in the order they came. */
  readonly acknowledgedAtMs: number[] = []
  #onAcknowledged: (() => void) | undefined

  acknowledge(key: string): void {
    this.acknowledged.add(key)
    this.acknowledgedAtMs.push(performance.now())
    this.#onAcknowledged?.()
    this.#onAcknowledged = undefined
  }

  /** The next acknowledgement from now on. */
  nextAcknowledgement(): Promise<void> {
    return new Promise((resolve) => {
      const earlier = this.#onAcknowledged
      this.#onAcknowledged = () => {
        earlier?.()
        resolve()
      }
    })
  }

  /** The longest time without an acknowledgement from `sinceMs` on. */
  longestPauseMs(sinceMs: number): number {
    let longest = 0
    let previous = sinceMs
    for (const at of this.acknowledgedAtMs) {
      if (at < sinceMs) continue
      longest = Math.max(longest, at - previous)
      previous = at
    }
    return longest
  }
}

export interface WorkloadOptions {
  readonly addresses: readonly string[]
  readonly clients: number
  /** For one row; the client's default otherwise. */
  readonly timeoutMs?: number
}

export class Workload {
  readonly ledger = new Ledger()
  readonly #options: WorkloadOptions
  readonly #writers: Promise<void>[] = []
  #isStopping = false

  constructor(options: WorkloadOptions) {
    this.#options = options
  }

  /** Creates the table and starts every writer. */
  async start(): Promise<void> {
    const { addresses, clients } = this.#options
    const client = new Client({ addresses, database: workloadDatabase })
    try {
      await client.exec(createTable)
    } finally {
      await client.close()
    }
    for (let writer = 1; writer <= clients; writer++) {
      const written = this.#write(writer)
      written.catch(() => undefined) // stop() reports it
      this.#writers.push(written)
    }
  }

  /** Lets every writer finish the row it is at. Rejects if one of them met an error that no failover explains. */
  async stop(): Promise<void> {
    this.#isStopping = true
    await Promise.all(this.#writers)
  }

  async #write(writer: number): Promise<void> {
    const { ledger } = this
    const { addresses, timeoutMs } = this.#options
    const client = new Client({
      addresses,
      database: workloadDatabase,
      sessionsMax: 1,
      retryBusy: true,
      ...(timeoutMs !== undefined && { timeoutMs }),
    })
    try {
      for (let number = 1; !this.#isStopping; number++) {
        const key = `${writer}/${number}`
        try {
          await client.exec(insertRow, [writer, number, `row ${number} of writer ${writer}, written over the wire`])
          ledger.acknowledge(key)
        } catch (error) {
          // A key is never tried twice: an unknown outcome stays unknown until somebody looks.
          if (!(error instanceof DqliteError)) throw error
          if (error.outcome === 'unknown') ledger.unknown.add(key)
          else if (error.retryable) ledger.refused++
          else throw error
        }
      }
    } finally {
      await client.close()
    }
  }
}
