/**
 * What is in a data directory, down to the rows: the files as storage/ describes them, and the databases as a start
 * would rebuild them, if every entry of the log counted as committed. Changes nothing, starts nothing.
 */
import { MessageStream } from '../codec/message-stream.js'
import { decodeRows, type SqlValue } from '../codec/tuple.js'
import { type Connection, RowsBuffer } from '../engine/connection.js'
import { type Database, Engine } from '../engine/database.js'
import { DqliteError } from '../errors.js'
import { nodeLimits } from '../options.js'
import type { EntryId, Index, Server, ServerId, Term } from '../raft/types.js'
import type { Disk } from '../storage/disk.js'
import {
  type DirectoryContent,
  examineDirectory,
  type MetadataReport,
  type SegmentReport,
  type SnapshotReport,
} from '../storage/examine.js'
import { StateMachine } from './state-machine.js'

export type { MetadataReport, SegmentReport, SnapshotReport }

export interface DatabaseReport {
  readonly name: string
  readonly bytes: number
  readonly pages: number
  /** Rows per table. */
  readonly tables: Readonly<Record<string, number>>
  /** Tables that cannot be counted, or a database that cannot be opened, and why. */
  readonly problems: readonly string[]
}

export interface Inspection {
  readonly dir: string
  /** A node ran there: what is said may be a moment old. */
  readonly isInUse: boolean
  readonly metadata: readonly MetadataReport[]
  readonly segments: readonly SegmentReport[]
  readonly snapshots: readonly SnapshotReport[]
  readonly otherFiles: readonly string[]
  /** What a start would go on with; the rest is absent if a start is refused. */
  readonly term?: Term
  readonly votedFor?: ServerId | undefined
  readonly lastEntry?: EntryId
  readonly configuration?: { readonly index: Index; readonly servers: readonly Server[] } | undefined
  readonly databases?: readonly DatabaseReport[]
  /** Everything that is not as after a clean stop, in plain words. */
  readonly irregularities: readonly string[]
}

/** Entries applied, and bytes of results read, before others get their turn. */
const entriesPerTurn = 256
const rowsBytesMax = 16 * 1024 * 1024

/** Rejects with DISK_FAILED if the directory cannot be read at all. */
export async function inspect(dir: string, options: { readonly disk?: Disk } = {}): Promise<Inspection> {
  const { content, irregularities, ...files } = await examineDirectory({ dir, ...options })
  if (content === undefined) return { dir, ...files, irregularities }
  const { term, votedFor, last: lastEntry, configuration } = content
  const found = {
    dir,
    ...files,
    term,
    votedFor,
    lastEntry,
    configuration: configuration && { index: configuration.index, servers: configuration.configuration.servers },
  }
  try {
    const databases = await rebuild(content)
    const problems = databases.flatMap(({ name, problems }) =>
      problems.map((problem) => `database ${name}: ${problem}`),
    )
    return { ...found, databases, irregularities: [...irregularities, ...problems] }
  } catch (cause) {
    if (!(cause instanceof Error)) throw cause
    return { ...found, irregularities: [...irregularities, `the databases cannot be rebuilt: ${cause.message}`] }
  }
}

async function rebuild(content: DirectoryContent): Promise<DatabaseReport[]> {
  const engine = Engine.create()
  try {
    const stateMachine = new StateMachine(engine, nodeLimits())
    const snapshot = content.snapshot()
    if (snapshot !== undefined) await stateMachine.restore(snapshot)
    let applied = 0
    for await (const entry of content.entries()) {
      stateMachine.apply(entry)
      if (++applied % entriesPerTurn === 0) await new Promise(setImmediate)
    }
    const reports: DatabaseReport[] = []
    for (const database of engine.databases()) if (!database.isDeleted) reports.push(await describe(database))
    return reports
  } finally {
    await engine.close()
  }
}

async function describe(database: Database): Promise<DatabaseReport> {
  const image = database.openImage()
  const header = Buffer.alloc(100)
  const bytes = image.byteLength
  image.read(header)
  image.close()
  // The size of a page stands at 16 of the header; 1 means 65536.
  const pageBytes = header.readUInt16BE(16) === 1 ? 65_536 : header.readUInt16BE(16)
  const counts: [string, number][] = []
  const problems: string[] = []
  try {
    const connection = database.connect()
    try {
      const tables = await query(
        connection,
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name",
      )
      for (const [name] of tables) {
        const table = String(name)
        try {
          const [row] = await query(connection, `SELECT count(*) FROM "${table.replaceAll('"', '""')}"`)
          counts.push([table, Number(row![0])])
        } catch (cause) {
          problems.push(`table ${table} cannot be counted: ${(cause as Error).message}`)
        }
      }
    } finally {
      await connection.close()
    }
  } catch (cause) {
    problems.push(`the database cannot be read: ${(cause as Error).message}`)
  }
  const pages = pageBytes === 0 ? 0 : bytes / pageBytes
  return { name: database.name, bytes, pages, tables: Object.fromEntries(counts), problems }
}

/** All rows of a statement, on a worker if it takes long. */
async function query(connection: Connection, sql: string): Promise<SqlValue[][]> {
  const { statement } = connection.prepare(Buffer.from(sql))
  if (statement === undefined) return []
  try {
    const rows: SqlValue[][] = []
    const target = new RowsBuffer()
    for (;;) {
      const outcome = await statement.rowsOnWorker(target)
      if (outcome.kind === 'error') throw new DqliteError('SQLITE', outcome.message, { wire: outcome.code })
      const stream = new MessageStream({ bodyBytesMax: rowsBytesMax })
      stream.push(target.take())
      const batch = decodeRows(stream.next()!.body)
      for (const row of batch.rows) rows.push([...row])
      if (outcome.kind !== 'part') return rows
    }
  } finally {
    statement.finalize()
  }
}
