/**
 * `dqlite inspect`, `last-entry` and `recover`: what an operator asks of a data directory while its node is stopped. Knows
 * flags and how to print. What files mean is storage/'s.
 */
import Table from 'cli-table3'
import { DqliteError } from '../errors.js'
import { inspect as inspectDirectory, type Inspection } from '../node/inspection.js'
import type { Role } from '../raft/types.js'
import { lastEntry as lastEntryOf, recover as recoverDirectory, type RecoveredServer } from '../storage/offline.js'

export interface DirectoryFlags {
  readonly dir: string
}
export interface InspectFlags extends DirectoryFlags {
  readonly json?: boolean
}
export interface RecoverFlags extends DirectoryFlags {
  readonly cluster: string
}

const say = (text = ''): void => void process.stdout.write(`${text}\n`)
const warn = (text: string): void =>
  void process.stderr.write(`dqlite: warning: ${text.replaceAll(/\s*\n\s*/g, ' ')}\n`)

export async function lastEntry({ dir }: DirectoryFlags): Promise<void> {
  const { index, term } = await lastEntryOf(directory(dir), { onWarning: warn })
  say(`${index} ${term}`)
}

export async function recover({ dir, cluster }: RecoverFlags): Promise<void> {
  const servers = serversFromJson(cluster)
  const { index, term } = await recoverDirectory(directory(dir), servers, { onWarning: warn })
  say(`${index} ${term}`)
}

function directory(dir: string): string {
  if (dir === '') throw new DqliteError('BAD_OPTION', 'option --dir is ""; it must not be empty')
  return dir
}

// -------------------------------------------------------------------------------------------------------- recover

/** The client protocol's numbers (client-protocol §5). */
const roles: readonly Role[] = ['voter', 'standby', 'spare']
const keys = new Set(['id', 'address', 'role'])

/** Shape and types; whether the members make a cluster is checked where it is written. Throws BAD_OPTION. */
export function serversFromJson(json: string): RecoveredServer[] {
  const bad = (why: string): DqliteError =>
    new DqliteError(
      'BAD_OPTION',
      `option --cluster: ${why}; it must be JSON like [{"id":"1","address":"10.0.0.1:9001","role":0}]`,
    )
  let parsed: unknown
  try {
    parsed = JSON.parse(json)
  } catch (cause) {
    throw bad((cause as Error).message.replaceAll(/\s+/g, ' '))
  }
  if (!Array.isArray(parsed)) throw bad('it is not a list')
  return parsed.map((each: unknown, i): RecoveredServer => {
    if (typeof each !== 'object' || each === null || Array.isArray(each)) throw bad(`member ${i + 1} is not an object`)
    const { id, address, role } = each as Record<string, unknown>
    const stranger = Object.keys(each).find((key) => !keys.has(key))
    if (stranger !== undefined) throw bad(`member ${i + 1} has ${JSON.stringify(stranger)}`)
    // A number beyond 2^53 has lost digits by now.
    if (typeof id === 'number' ? !Number.isSafeInteger(id) : typeof id !== 'string' || !/^[0-9]{1,20}$/.test(id))
      throw bad(`member ${i + 1} has the id ${JSON.stringify(id)}`)
    if (typeof address !== 'string') throw bad(`member ${i + 1} has the address ${JSON.stringify(address)}`)
    const name = typeof role === 'number' ? roles[role] : undefined
    if (name === undefined) throw bad(`member ${i + 1} has the role ${JSON.stringify(role)}, not 0, 1 or 2`)
    return { id: BigInt(id as string | number), address, role: name }
  })
}

// -------------------------------------------------------------------------------------------------------- inspect

export async function inspect({ dir, json }: InspectFlags): Promise<void> {
  const inspection = await inspectDirectory(directory(dir))
  if (json === true) say(JSON.stringify(inspection, (_, value: unknown) => plain(value), 2))
  else print(inspection)
}

/** Ids have 64 bits, more than a reader of JSON may keep: they are strings. */
const plain = (value: unknown): unknown => (typeof value === 'bigint' ? value.toString() : value)

const style = { head: [], border: [], compact: true }

function print(inspection: Inspection): void {
  const { dir, metadata, snapshots, segments, otherFiles, configuration, lastEntry, databases } = inspection
  say(`data directory ${dir}${inspection.isInUse ? ', in use by a node' : ''}`)
  if (inspection.term !== undefined)
    say(
      `term ${inspection.term}, vote for ${inspection.votedFor === undefined ? 'nobody' : String(inspection.votedFor)}`,
    )
  if (lastEntry !== undefined) say(`last entry ${lastEntry.index} of term ${lastEntry.term}`)
  table(
    ['metadata', 'bytes', 'version', 'term', 'vote for', ''],
    metadata.map((file) => [
      file.file,
      file.bytes,
      file.version ?? '',
      file.term ?? '',
      file.version === undefined ? '' : String(file.votedFor ?? 'nobody'),
      file.problem ?? '',
    ]),
  )
  table(
    ['snapshot', 'bytes', 'index', 'term', 'form', 'databases', ''],
    snapshots.map((file) => [
      file.file,
      file.bytes,
      file.index,
      file.term,
      file.isCompressed ? 'LZ4' : 'raw',
      (file.databases ?? []).map((each) => `${each.name} ${each.mainBytes}+${each.walBytes}`).join(', '),
      file.problem ?? 'ok',
    ]),
  )
  table(
    ['segment', 'bytes', 'used', 'entries', 'batches', 'first', 'last', 'tail', ''],
    segments.map((file) => [
      file.file,
      file.bytes,
      file.usedBytes,
      file.entries,
      file.batches,
      ...(file.entries === 0 ? ['', ''] : [file.firstIndex, file.lastIndex]),
      file.tail,
      file.problem ?? 'ok',
    ]),
  )
  if (configuration !== undefined)
    table(
      ['member', 'address', 'role', `by entry ${configuration.index}`],
      configuration.servers.map(({ id, address, role }) => [String(id), address, role, '']),
    )
  table(
    ['database', 'pages', 'table', 'rows'],
    (databases ?? []).flatMap(({ name, pages, tables }): (string | number)[][] => {
      const rows = Object.entries(tables)
      return rows.length === 0 ? [[name, pages, '', '']] : rows.map(([each, count]) => [name, pages, each, count])
    }),
  )
  if (otherFiles.length > 0) say(`\nother files: ${otherFiles.join(', ')}`)
  say()
  if (inspection.irregularities.length === 0) say('nothing irregular')
  for (const text of inspection.irregularities) say(`! ${text}`)
}

function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): void {
  if (rows.length === 0) return
  const result = new Table({ head: [...head], style })
  for (const row of rows) result.push([...row])
  say(result.toString())
}
