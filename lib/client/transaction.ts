/**
 * A transaction: one session for itself from BEGIN to COMMIT or ROLLBACK, its calls one after the other, savepoints
 * for transactions in transactions. Knows whether anything can have been committed, which decides whether the
 * callback may run again. Does not know how a session is found.
 *
 *   BEGIN ─► open ─┬─ callback returns ─► COMMIT ─┬─► done
 *                  │                              ├─► refused: ROLLBACK, nothing happened
 *                  │                              └─► no answer: outcome unknown, never again
 *                  ├─ callback throws ──► ROLLBACK, nothing happened
 *                  └─ connection or leadership lost, time limit, abort ─► the server rolls back, nothing happened
 */
import type { RowOptions } from '../codec/tuple.js'
import { DqliteError } from '../errors.js'
import { Calls, execOn, run, type Call, type Executor, type Lease } from './calls.js'
import { Deadline, nothingHappened } from './deadline.js'
import type { PreparedText, Session } from './session.js'

export type TransactionMode = 'deferred' | 'immediate' | 'exclusive'

export interface PinnedOptions {
  readonly session: Session
  readonly rowDefaults: RowOptions
  /** For each call in the transaction. */
  readonly timeoutMs: number
}

const rollbackTimeoutMs = 2000

/** After these nothing is left of the transaction but its right to be run again. */
const lostCodes: ReadonlySet<string> = new Set(['NOT_LEADER', 'LEADERSHIP_LOST', 'CONNECTION_LOST'])
const rerunCodes: ReadonlySet<string> = new Set([...lostCodes, 'BUSY', 'BUSY_SNAPSHOT'])

/** The session of a running transaction, shared by the transactions nested in it. */
export class Pinned {
  readonly options: PinnedOptions
  readonly session: Session
  /** How many transactions are open in each other: only the innermost may be used. */
  depth = 0
  /** Why there is no transaction any more. */
  failure: DqliteError | undefined
  /** A text that can have contained COMMIT was sent. */
  mayHaveCommitted = false
  #isStreaming = false
  #isBusy = false
  /** A statement failed: SQLite may have rolled everything back (ON CONFLICT ROLLBACK, disk full). */
  #suspicion: DqliteError | undefined
  #tail: Promise<void> = Promise.resolve()
  readonly #texts = new Set<PreparedText>()
  /** Errors that came from the session, not from the callback's own logic. */
  readonly #own = new WeakSet<DqliteError>()

  constructor(options: PinnedOptions) {
    this.options = options
    this.session = options.session
  }

  async lease<T>(
    depth: number,
    call: Call,
    act: (session: Session, deadline: Deadline) => Promise<T>,
  ): Promise<Lease<T>> {
    this.check(depth)
    const timeoutMs = call.timeoutMs ?? this.options.timeoutMs
    const deadline = new Deadline({ timeoutMs, signals: [call.signal], what: call.what })
    let leave: (() => void) | undefined
    try {
      leave = await this.#turn(deadline)
      this.check(depth)
      if (this.#suspicion) await this.#verify(deadline)
      if (call.isStream) this.#isStreaming = true
      if (call.mayCommit) this.mayHaveCommitted = true
      const value = await act(this.session, deadline)
      return {
        value,
        session: this.session,
        deadline,
        drainMs: timeoutMs,
        judge: (error) => this.#judge(error),
        release: () => {
          deadline.dispose()
          if (call.isStream) this.#isStreaming = false
          leave?.()
        },
      }
    } catch (error) {
      deadline.dispose()
      if (leave && call.isStream) this.#isStreaming = false
      leave?.()
      throw this.#judge(error)
    }
  }

  remember(text: PreparedText): void {
    this.#texts.add(text)
  }

  forget(text: PreparedText): void {
    this.#texts.delete(text)
    this.session.forget(text)
  }

  /** The end, whichever it was: the session goes back without anything of ours on it. */
  end(): void {
    for (const text of this.#texts) this.session.forget(text)
    this.#texts.clear()
  }

  /** True if running the callback again may help, and nothing that it did was committed. */
  mayRunAgain(error: unknown): boolean {
    return (
      error instanceof DqliteError &&
      this.#own.has(error) &&
      error.retryable &&
      !this.mayHaveCommitted &&
      rerunCodes.has(error.code)
    )
  }

  /** Throws what is known of the outcome. Calls that nobody awaited come first, later ones find it ended. */
  async commit(deadline: Deadline): Promise<void> {
    this.check(this.depth)
    if (this.depth > 1) throw new DqliteError('SQLITE_ERROR', 'a nested transaction is still open')
    const leave = await this.#turn(deadline)
    this.depth = 0
    try {
      if (this.failure) throw this.failure
      await execOn(this.session, 'COMMIT', [], this.options.rowDefaults, deadline)
    } catch (error) {
      // NOT_FOUND: the server lost its leadership and regained it, the transaction went with the first.
      if (error instanceof DqliteError && error.code === 'NOT_FOUND') throw this.#judge(error)
      if (error instanceof DqliteError) this.#own.add(error)
      throw error
    } finally {
      leave()
    }
  }

  /** Never throws: a session that cannot roll back is closed, and then the server does it. */
  async rollback(): Promise<void> {
    if (!this.session.isUsable) return
    if (this.failure || this.#isBusy) {
      this.session.close()
      return
    }
    const deadline = new Deadline({ timeoutMs: rollbackTimeoutMs, what: 'ROLLBACK' })
    try {
      await execOn(this.session, 'ROLLBACK', [], this.options.rowDefaults, deadline)
    } catch (error) {
      // Code 1 is "no transaction is active": SQLite had rolled back already.
      if (!(error instanceof DqliteError && error.code === 'SQLITE_ERROR')) this.session.close()
    } finally {
      deadline.dispose()
    }
  }

  check(depth: number): void {
    if (this.failure) throw this.failure
    if (depth > this.depth) throw new DqliteError('CLOSED', 'the transaction has ended')
    if (depth < this.depth)
      throw new DqliteError('CLOSED', 'use the innermost transaction: one that is nested in this one is still open')
    if (this.#isStreaming)
      throw new DqliteError(
        'SQLITE_ERROR',
        'a stream of this transaction is open: read it to its end, or leave its loop',
      )
  }

  /** First come, first served. */
  async #turn(deadline: Deadline): Promise<() => void> {
    const before = this.#tail
    let leave: () => void = () => undefined
    this.#tail = new Promise((resolve) => {
      leave = () => {
        this.#isBusy = false
        resolve()
      }
    })
    try {
      await deadline.race(before)
    } catch (error) {
      void before.then(leave) // never rejects; the next one still waits for the one before
      throw error
    }
    this.#isBusy = true
    return leave
  }

  /** BEGIN fails inside a transaction; where it does not, there was none left. */
  async #verify(deadline: Deadline): Promise<void> {
    const cause = this.#suspicion
    try {
      await execOn(this.session, 'BEGIN', [], this.options.rowDefaults, deadline)
    } catch (error) {
      if (!(error instanceof DqliteError && error.code === 'SQLITE_ERROR')) throw error
      this.#suspicion = undefined
      return
    }
    this.failure = new DqliteError(
      'SQLITE_ERROR',
      `a failed statement has rolled the whole transaction back: ${cause?.message ?? ''}`,
      { cause },
    )
    throw this.failure
  }

  #judge(error: unknown): unknown {
    if (!(error instanceof DqliteError)) {
      // A mistake in this client: the session's state is not known.
      this.session.close()
      return error
    }
    if (this.failure) return this.failure
    const isLost = !this.session.isUsable || lostCodes.has(error.code) || error.code === 'NOT_FOUND'
    if (isLost) {
      const isForgotten = error.code === 'NOT_FOUND' // "no database opened": leadership was lost and regained
      const lost = isForgotten ? new DqliteError('LEADERSHIP_LOST', error.message, { cause: error }) : error
      // Without a COMMIT nothing of a transaction survives its session.
      this.failure = this.mayHaveCommitted ? lost : nothingHappened(lost)
      this.#own.add(this.failure)
      this.session.close(this.failure)
      return this.failure
    }
    if (error.wire !== undefined) {
      this.#suspicion = error
      this.#own.add(error)
    }
    return error
  }
}

/** What the callback gets. */
export class Transaction extends Calls {
  protected readonly sharesSessions = false
  protected readonly executor: Executor
  readonly #pinned: Pinned
  readonly #depth: number

  /** @internal */
  constructor(pinned: Pinned) {
    super()
    this.#pinned = pinned
    const depth = ++pinned.depth
    this.#depth = depth
    this.executor = {
      rowDefaults: pinned.options.rowDefaults,
      lease: (call, act) => pinned.lease(depth, call, act),
      remember: (text) => {
        pinned.remember(text)
      },
      forget: (text) => {
        pinned.forget(text)
      },
    }
  }

  /** A transaction in this one: what it did is undone alone when its callback throws. */
  async transaction<T>(callback: (tx: Transaction) => Promise<T>): Promise<T> {
    const pinned = this.#pinned
    pinned.check(this.#depth)
    const name = `dqlite_${this.#depth}`
    const inner = new Transaction(pinned)
    try {
      await inner.#exec(`SAVEPOINT ${name}`)
      try {
        const value = await callback(inner)
        await inner.#exec(`RELEASE ${name}`)
        return value
      } catch (error) {
        await inner.#undo(name)
        throw error
      }
    } finally {
      inner.end()
    }
  }

  /** RELEASE of a savepoint commits nothing. */
  #exec(sql: string): Promise<unknown> {
    const call = { what: sql, isRead: false, isRepeatable: false }
    return run(this.executor, call, (session, deadline) => execOn(session, sql, [], {}, deadline))
  }

  /** What cannot be undone alone must not be committed with the rest. */
  async #undo(name: string): Promise<void> {
    try {
      if (!this.#pinned.failure) await this.#exec(`ROLLBACK TO ${name}; RELEASE ${name}`)
    } catch (error) {
      this.#pinned.failure ??= new DqliteError('SQLITE_ERROR', 'a nested transaction could not be undone', {
        cause: error,
      })
    }
  }

  /** @internal */
  end(): void {
    if (this.#pinned.depth >= this.#depth) this.#pinned.depth = this.#depth - 1
  }
}
