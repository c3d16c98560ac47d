/**
 * The calls that a client, a transaction and a statement have in common: exec, query, stream, prepare. They say what
 * runs on a session; whose session it is and what may be repeated is the business of the `Executor` behind them.
 */
import { encodeParameters, parametersMax, type RowOptions, type Rows, type SqlValue } from '../codec/tuple.js'
import type { ClientRequest, Schema } from '../codec/client-protocol.js'
import { DqliteError } from '../errors.js'
import { knownNotSent, type Deadline } from './deadline.js'
import type { PreparedText, Result, Session } from './session.js'
import { mayBeSeveralStatements, mayCommit, mayOpenTransaction, onlyReads, opensTransaction } from './sql-text.js'

// ------------------------------------------------------------------------------------------------ public words

export interface CallOptions {
  /** Ends the call with ABORTED. What a write did by then is unknown. */
  readonly signal?: AbortSignal | undefined
  /** Instead of the client's; for a stream the time for each batch. */
  readonly timeoutMs?: number | undefined
}

export interface ExecOptions extends CallOptions {
  /** The caller vouches that running it twice does no harm: it is repeated even when its outcome is unknown. */
  readonly idempotent?: boolean | undefined
  /** Wait and try again when another writer holds the database, until the time limit. */
  readonly retryBusy?: boolean | undefined
}

export interface QueryOptions extends ExecOptions, RowOptions {
  /** `object` (default): a row is an object by column name. `array`: values in the order of the columns. */
  readonly rowMode?: 'object' | 'array' | undefined
}

export interface ExecResult {
  /** A bigint where a number would lie, and always with `integers: 'bigint'`. */
  readonly lastInsertRowid: number | bigint
  /** Rows changed by the last INSERT, UPDATE or DELETE. Other statements repeat what the one before them said. */
  readonly changes: number
}

export type Parameters = readonly SqlValue[]
export type Row = Record<string, SqlValue>

/** Rows with the names of their columns, which are there even without rows. */
export type RowList<R> = R[] & { readonly columns: readonly string[] }

// ------------------------------------------------------------------------------------------------ sessions on loan

export interface Call {
  /** For error texts. */
  readonly what: string
  /** Repeating it does no harm, whatever became of it before. */
  readonly isRepeatable: boolean
  /** It changes nothing: however it ends, nothing has happened. */
  readonly isRead: boolean
  /** It holds the session beyond the first answer. */
  readonly isStream?: boolean
  /** NOT_LEADER and BUSY may come after a part of it was committed. */
  readonly isSeveral?: boolean
  readonly mayCommit?: boolean
  readonly retryBusy?: boolean | undefined
  readonly timeoutMs?: number | undefined
  readonly signal?: AbortSignal | undefined
}

export interface Lease<T> {
  readonly value: T
  readonly session: Session
  readonly deadline: Deadline
  /** How long a result that nobody wants may take to end, before its connection is closed instead. */
  readonly drainMs: number
  /** What the caller should see of an error that came after the lease began. */
  judge(error: unknown): unknown
  release(): void
}

export interface Executor {
  readonly rowDefaults: RowOptions
  /** Runs `act` on a session, again on another one where that is safe. The lease must be released. */
  lease<T>(call: Call, act: (session: Session, deadline: Deadline) => Promise<T>): Promise<Lease<T>>
  /** A statement was made; sessions prepare it when they first need it. */
  remember(text: PreparedText): void
  /** A statement was closed: sessions need not keep it. */
  forget(text: PreparedText): void
}

export async function run<T>(
  executor: Pick<Executor, 'lease'>,
  call: Call,
  act: (session: Session, deadline: Deadline) => Promise<T>,
): Promise<T> {
  const lease = await executor.lease(call, act)
  lease.release()
  return lease.value
}

// ------------------------------------------------------------------------------------------------ what runs

/** A text to be run at once, or one that sessions prepare. */
type Command = string | PreparedText

const textOf = (command: Command): string => (typeof command === 'string' ? command : command.sql)

async function requestFor(
  verb: 'exec' | 'query',
  session: Session,
  command: Command,
  parameters: Parameters,
  deadline: Deadline,
): Promise<ClientRequest> {
  const schema: Schema = parameters.length > parametersMax[0] ? 1 : 0
  const params = encodeParameters(parameters, schema)
  if (typeof command === 'string') {
    const type = verb === 'exec' ? 'execSql' : 'querySql'
    return { type, schema, databaseId: BigInt(session.databaseId), sql: command, params }
  }
  const prepared = await session.prepare(command, deadline).catch((error: unknown) => {
    throw knownNotSent(error)
  })
  // Old servers would use the values of the last execution in place of missing ones (client-protocol §4.2).
  if (parameters.length !== prepared.parameterCount)
    throw new DqliteError(
      'BAD_PARAMETER',
      `the statement has ${prepared.parameterCount} parameters, ${parameters.length} were given`,
    )
  return { type: verb, schema, databaseId: session.databaseId, statementId: prepared.id, params }
}

export async function execOn(
  session: Session,
  command: Command,
  parameters: Parameters,
  rowOptions: RowOptions,
  deadline: Deadline,
): Promise<ExecResult> {
  const result = await session.request(
    await requestFor('exec', session, command, parameters, deadline),
    'result',
    deadline,
  )
  return execResult(result, rowOptions)
}

/** For sessions that others use next: whatever transaction the text leaves open is rolled back behind it. */
async function execAndTidy(
  session: Session,
  sql: string,
  parameters: Parameters,
  rowOptions: RowOptions,
  deadline: Deadline,
): Promise<ExecResult> {
  const rollback = await requestFor('exec', session, 'ROLLBACK', [], deadline)
  const request = await requestFor('exec', session, sql, parameters, deadline)
  const [answer, rolledBack] = await session.requests([request, rollback], ['result', 'result'], deadline)
  if (answer instanceof DqliteError) throw answer
  if (!(rolledBack instanceof DqliteError))
    throw new DqliteError(
      'SQLITE_ERROR',
      'the text left a transaction open; it has been rolled back. Use transaction() for transactions that span calls',
    )
  return execResult(answer, rowOptions)
}

function execResult(
  { lastInsertRowid, rowsAffected }: { lastInsertRowid: bigint; rowsAffected: bigint },
  { integers }: RowOptions,
): ExecResult {
  const rowid = Number(lastInsertRowid)
  // The write has been done: an error about its rowid would hide that.
  const isNumber = integers !== 'bigint' && Number.isSafeInteger(rowid)
  return { lastInsertRowid: isNumber ? rowid : lastInsertRowid, changes: Number(rowsAffected) }
}

async function startQuery(
  session: Session,
  command: Command,
  parameters: Parameters,
  rowOptions: RowOptions,
  deadline: Deadline,
): Promise<{ result: Result; first: Rows }> {
  const request = await requestFor('query', session, command, parameters, deadline)
  const result = session.query(request, rowOptions, deadline)
  try {
    return { result, first: await result.next() }
  } catch (error) {
    await endQuietly(result)
    throw error
  }
}

/** Another error is on its way, or nobody wants the rest. A session that cannot be tidied up has closed itself. */
async function endQuietly(result: Result): Promise<void> {
  try {
    await result.cancel()
  } catch (error) {
    if (!(error instanceof DqliteError)) throw error
  }
}

// ------------------------------------------------------------------------------------------------ rows

const unsafeNames = new Set(['__proto__'])

function shaper(columns: readonly string[], rowMode: QueryOptions['rowMode']): (row: SqlValue[]) => unknown {
  if (rowMode === 'array') return (row) => row
  if (columns.some((name) => unsafeNames.has(name)))
    return (row) => {
      const object = {}
      columns.forEach((name, i) => {
        Object.defineProperty(object, name, { value: row[i], enumerable: true, writable: true, configurable: true })
      })
      return object
    }
  return (row) => {
    const object: Row = {}
    for (let i = 0; i < columns.length; i++) object[columns[i]!] = row[i]!
    return object
  }
}

/**
 * Rows as they arrive: at most one batch is in memory, the server produces the next one when the socket has room.
 * Leaving the loop early cancels the rest.
 */
export class RowStream<R> implements AsyncIterableIterator<R> {
  readonly #rows: AsyncGenerator<R, undefined, undefined>
  #columns: readonly string[] | undefined

  constructor(executor: Executor, command: Command, parameters: Parameters, options: QueryOptions) {
    this.#rows = this.#generate(executor, command, parameters, options)
  }

  /** Known from the first `next()` on. */
  get columns(): readonly string[] | undefined {
    return this.#columns
  }

  next(): Promise<IteratorResult<R, undefined>> {
    return this.#rows.next()
  }

  return(): Promise<IteratorResult<R, undefined>> {
    return this.#rows.return(undefined)
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return()
  }

  async *#generate(
    executor: Executor,
    command: Command,
    parameters: Parameters,
    options: QueryOptions,
  ): AsyncGenerator<R, undefined, undefined> {
    const rowOptions = rowOptionsOf(executor, options)
    const call = { ...queryCall(command, options), isStream: true }
    const lease = await executor.lease(call, (session, deadline) =>
      startQuery(session, command, parameters, rowOptions, deadline),
    )
    const { deadline, value } = lease
    let batch = value.first
    try {
      for (;;) {
        this.#columns = batch.columns
        const shape = shaper(batch.columns, options.rowMode)
        deadline.pause()
        for (const row of batch.rows) {
          if (deadline.error) throw lease.judge(deadline.error)
          yield shape(row) as R
        }
        if (batch.done) return undefined
        deadline.restart()
        try {
          batch = await value.result.next()
        } catch (error) {
          throw lease.judge(error)
        }
      }
    } finally {
      deadline.restart(lease.drainMs)
      await endQuietly(value.result)
      lease.release()
    }
  }
}

async function collect<R>(
  session: Session,
  command: Command,
  parameters: Parameters,
  options: QueryOptions,
  rowOptions: RowOptions,
  deadline: Deadline,
): Promise<RowList<R>> {
  const { result, first } = await startQuery(session, command, parameters, rowOptions, deadline)
  const rows: unknown[] = []
  let batch = first
  try {
    for (;;) {
      const shape = shaper(batch.columns, options.rowMode)
      for (const row of batch.rows) rows.push(shape(row))
      if (batch.done) break
      batch = await result.next()
    }
  } catch (error) {
    await endQuietly(result)
    throw error
  }
  Object.defineProperty(rows, 'columns', { value: batch.columns }) // not enumerable: the list is its rows
  return rows as RowList<R>
}

function queryCall(command: Command, options: QueryOptions): Call {
  const isRead = onlyReads(textOf(command))
  return {
    what: 'the query',
    isRead,
    mayCommit: !isRead && mayCommit(textOf(command)),
    isRepeatable: isRead || options.idempotent === true,
    retryBusy: options.retryBusy,
    timeoutMs: options.timeoutMs,
    signal: options.signal,
  }
}

function rowOptionsOf(executor: Executor, options: RowOptions): RowOptions {
  return { ...executor.rowDefaults, ...pick(options) }
}

function pick({ integers, dates }: RowOptions): RowOptions {
  return { ...(integers && { integers }), ...(dates && { dates }) }
}

// ------------------------------------------------------------------------------------------------ the calls

/** What clients and transactions can do with SQL. */
export abstract class Calls {
  protected abstract readonly executor: Executor
  /** True where the session goes to others afterwards. */
  protected abstract readonly sharesSessions: boolean

  /** Runs every statement of the text; none may yield rows. One round trip. */
  async exec(sql: string, parameters: Parameters = [], options: ExecOptions = {}): Promise<ExecResult> {
    const { rowDefaults } = this.executor
    const tidy = this.sharesSessions && mayOpenTransaction(sql)
    const call = { ...execCall(sql, options), isSeveral: mayBeSeveralStatements(sql) }
    return run(this.executor, call, (session, deadline) =>
      (tidy ? execAndTidy : execOn)(session, sql, parameters, rowDefaults, deadline),
    )
  }

  /** All rows of one statement. `R` is what the caller knows of a row's shape; it is not checked. */
  query<R extends readonly SqlValue[] = SqlValue[]>(
    sql: string,
    parameters: Parameters | undefined,
    options: QueryOptions & { readonly rowMode: 'array' },
  ): Promise<RowList<R>>
  query<R = Row>(sql: string, parameters?: Parameters, options?: QueryOptions): Promise<RowList<R>>
  async query<R>(sql: string, parameters: Parameters = [], options: QueryOptions = {}): Promise<RowList<R>> {
    this.#check(sql)
    return queryWith(this.executor, sql, parameters, options)
  }

  /** The rows of one statement as they arrive. Nothing is sent before the first row is asked for. */
  stream<R extends readonly SqlValue[] = SqlValue[]>(
    sql: string,
    parameters: Parameters | undefined,
    options: QueryOptions & { readonly rowMode: 'array' },
  ): RowStream<R>
  stream<R = Row>(sql: string, parameters?: Parameters, options?: QueryOptions): RowStream<R>
  stream<R>(sql: string, parameters: Parameters = [], options: QueryOptions = {}): RowStream<R> {
    this.#check(sql)
    return new RowStream(this.executor, sql, parameters, options)
  }

  /** A statement to run often. Close it, or let `await using` do so. */
  async prepare(sql: string, options: CallOptions = {}): Promise<Statement> {
    this.#check(sql)
    const text: PreparedText = { sql }
    const call = { what: 'prepare', isRead: true, isRepeatable: true, ...callOptions(options) }
    const { parameterCount } = await run(this.executor, call, (session, deadline) => session.prepare(text, deadline))
    this.executor.remember(text)
    return new Statement(this.executor, text, parameterCount)
  }

  /** A transaction that outlives its call would be found by whoever gets the session next. */
  #check(sql: string): void {
    if (this.sharesSessions && opensTransaction(sql))
      throw new DqliteError('SQLITE_ERROR', 'use transaction() for transactions that span calls')
  }
}

/** A prepared statement. It survives a change of leader: sessions that do not know it yet prepare it first. */
export class Statement {
  readonly sql: string
  readonly parameterCount: number
  readonly #executor: Executor
  readonly #text: PreparedText
  #isClosed = false

  constructor(executor: Executor, text: PreparedText, parameterCount: number) {
    this.#executor = executor
    this.#text = text
    this.sql = text.sql
    this.parameterCount = parameterCount
  }

  async exec(parameters: Parameters = [], options: ExecOptions = {}): Promise<ExecResult> {
    this.#check()
    const { rowDefaults } = this.#executor
    return run(this.#executor, execCall(this.sql, options), (session, deadline) =>
      execOn(session, this.#text, parameters, rowDefaults, deadline),
    )
  }

  query<R extends readonly SqlValue[] = SqlValue[]>(
    parameters: Parameters | undefined,
    options: QueryOptions & { readonly rowMode: 'array' },
  ): Promise<RowList<R>>
  query<R = Row>(parameters?: Parameters, options?: QueryOptions): Promise<RowList<R>>
  async query<R>(parameters: Parameters = [], options: QueryOptions = {}): Promise<RowList<R>> {
    this.#check()
    return queryWith(this.#executor, this.#text, parameters, options)
  }

  stream<R extends readonly SqlValue[] = SqlValue[]>(
    parameters: Parameters | undefined,
    options: QueryOptions & { readonly rowMode: 'array' },
  ): RowStream<R>
  stream<R = Row>(parameters?: Parameters, options?: QueryOptions): RowStream<R>
  stream<R>(parameters: Parameters = [], options: QueryOptions = {}): RowStream<R> {
    this.#check()
    return new RowStream(this.#executor, this.#text, parameters, options)
  }

  /** Twice is fine. */
  close(): Promise<void> {
    if (!this.#isClosed) {
      this.#isClosed = true
      this.#executor.forget(this.#text)
    }
    return Promise.resolve()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #check(): void {
    if (this.#isClosed) throw new DqliteError('CLOSED', 'the statement is closed')
  }
}

async function queryWith<R>(
  executor: Executor,
  command: Command,
  parameters: Parameters,
  options: QueryOptions,
): Promise<RowList<R>> {
  const rowOptions = rowOptionsOf(executor, options)
  const call = queryCall(command, options)
  return run(executor, call, (session, deadline) =>
    collect<R>(session, command, parameters, options, rowOptions, deadline),
  )
}

function execCall(sql: string, options: ExecOptions): Call {
  return {
    what: 'the statement',
    mayCommit: mayCommit(sql),
    isRead: false,
    isRepeatable: options.idempotent === true,
    retryBusy: options.retryBusy,
    ...callOptions(options),
  }
}

const callOptions = ({ timeoutMs, signal }: CallOptions): CallOptions => ({ timeoutMs, signal })
