/** Helpers around lib/engine for tests: SQL as text in, plain values out. Knows the few encodings that tests need. */
import { RowsBuffer } from '../../lib/engine/connection.js'
import type { Connection, StepOutcome } from '../../lib/engine/connection.js'
import type { Database, DatabaseImage } from '../../lib/engine/database.js'

const noBody = new Uint8Array(0)

/** EXEC of every statement of the text, inline. Throws at the first that is not done. */
export function exec(connection: Connection, sql: string): void {
  const bytes = Buffer.from(sql)
  for (let offset = 0; offset < bytes.length;) {
    const { statement, tail } = connection.prepare(bytes, offset)
    if (statement === undefined) return
    offset = tail
    statement.bind(noBody, 0, 0, 0)
    const outcome = statement.execute()
    statement.finalize()
    if (outcome.kind === 'error') throw new Error(`${outcome.code} ${outcome.message}`)
    if (outcome.kind !== 'done') throw new Error(outcome.kind)
  }
}

/** EXEC of one statement, on a worker. */
export async function execOnWorker(connection: Connection, sql: string): Promise<StepOutcome> {
  const { statement } = connection.prepare(Buffer.from(sql))
  statement!.bind(noBody, 0, 0, 0)
  const outcome = await statement!.executeOnWorker()
  if (!connection.isClosed) statement!.finalize()
  return outcome
}

export type Cell = bigint | number | string | Buffer | null

/** The rows of one ROWS message (client-protocol §4.3). */
export function decodeRows(message: Uint8Array): Cell[][] {
  const bytes = Buffer.from(message)
  let at = 8
  const word = (): bigint => bytes.readBigUInt64LE((at += 8) - 8)
  const text = (): string => {
    const end = bytes.indexOf(0, at)
    const value = bytes.toString('utf8', at, end)
    at += Math.ceil((end - at + 1) / 8) * 8
    return value
  }
  const columns = Number(word())
  for (let i = 0; i < columns; i++) text()
  const rows: Cell[][] = []
  while (bytes[at] !== 0xff && bytes[at] !== 0xee) {
    const codes = bytes.subarray(at)
    at += Math.ceil(columns / 16) * 8
    rows.push(
      Array.from({ length: columns }, (_, i): Cell => {
        const code = (codes[i >> 1]! >> (4 * (i & 1))) & 15
        switch (code) {
          case 2:
            return bytes.readDoubleLE((at += 8) - 8)
          case 3:
          case 10:
            return text()
          case 4: {
            const length = Number(word())
            const blob = bytes.subarray(at, at + length)
            at += Math.ceil(length / 8) * 8
            return blob
          }
          case 5:
            word()
            return null
          default:
            return BigInt.asIntN(64, word())
        }
      }),
    )
  }
  return rows
}

function finished(outcome: StepOutcome): boolean {
  if (outcome.kind === 'error') throw new Error(`${outcome.code} ${outcome.message}`)
  if (outcome.kind !== 'done' && outcome.kind !== 'part') throw new Error(outcome.kind)
  return outcome.kind === 'done'
}

/** QUERY of one statement, inline. */
export function query(connection: Connection, sql: string): Cell[][] {
  const { statement } = connection.prepare(Buffer.from(sql))
  const target = new RowsBuffer()
  const rows: Cell[][] = []
  try {
    for (;;) {
      const done = finished(statement!.rows(target))
      rows.push(...decodeRows(target.take()))
      if (done) return rows
    }
  } finally {
    statement!.finalize()
  }
}

export async function queryOnWorker(connection: Connection, sql: string): Promise<Cell[][]> {
  const { statement } = connection.prepare(Buffer.from(sql))
  const target = new RowsBuffer()
  const rows: Cell[][] = []
  try {
    for (;;) {
      const done = finished(await statement!.rowsOnWorker(target))
      rows.push(...decodeRows(target.take()))
      if (done) return rows
    }
  } finally {
    statement!.finalize()
  }
}

export function imageOf(database: Database): Buffer {
  const image: DatabaseImage = database.openImage()
  const bytes = Buffer.alloc(image.byteLength)
  let at = 0
  for (let read = -1; read !== 0; at += read) read = image.read(bytes.subarray(at, at + 10_000))
  image.close()
  return bytes
}

/** Takes everything captured to the follower and publishes it. Returns the number of transactions. */
export function replicate(leader: Database, ...followers: Database[]): number {
  let count = 0
  for (let command = leader.takeCaptured(); command !== undefined; command = leader.takeCaptured()) {
    for (const follower of followers) follower.apply(command)
    leader.publish()
    count++
  }
  return count
}

/** A query that never ends by itself. */
export const endless = 'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n'
