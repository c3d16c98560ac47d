/**
 * What an operator does to a data directory while no node runs: asks for its last entry, and gives it a new
 * configuration after a majority was lost for good (disk-format §5, client-protocol §15). Knows when the directory must be
 * left alone. Does not know which of several directories is the best one: that is a comparison of last entries.
 */
import path from 'node:path'
import {
  batchHeaderBytes,
  batchPreambleBytes,
  closedSegmentName,
  lockFileName,
  segmentHeaderBytes,
  writeBatchPreamble,
  writeEntryHeader,
  writeSegmentHeader,
} from '../codec/data-directory.js'
import { encodeConfiguration, entryTypeCode } from '../codec/log-entry.js'
import { DqliteError } from '../errors.js'
import type { EntryId, Role, Server, ServerId, Term } from '../raft/types.js'
import { crc32 } from './addon-storage.js'
import { type Disk, NodeDisk, blockBytes, diskFailed, writeNew } from './disk.js'
import { DiskMetadataStore } from './metadata-store.js'
import { giveBack, takeLock } from './open.js'
import { type Findings, readDirectory } from './recovery.js'

export interface OfflineOptions {
  /** How files are reached; default: the operating system. */
  readonly disk?: Disk
  /** A sentence about something odd that does not stand in the way. */
  readonly onWarning?: (text: string) => void
}

/** A member of the configuration that `recover` writes. */
export interface RecoveredServer {
  /** Unsigned 64 bits, never 0. A number must be a safe integer. */
  readonly id: bigint | number
  readonly address: string
  readonly role: Role
}

/** Dictated by the format: readers take it for what it is, whatever the terms before it (disk-format §5). */
const recoveryTerm: Term = 1
const idMax = (1n << 64n) - 1n

/**
 * Index and term of the last entry that is in the directory, committed or not; 0 and 0 if there is none. Changes nothing.
 * Rejects with DIRECTORY_LOCKED while a node runs there, with DATA_CORRUPT or DIRECTORY_FOREIGN if a node could not start.
 */
export async function lastEntry(dir: string, options: OfflineOptions = {}): Promise<EntryId> {
  const disk = options.disk ?? new NodeDisk()
  await mustExist(disk, dir)
  const isLocked = await disk.isLocked(path.join(dir, lockFileName)).catch((cause: unknown) => {
    throw diskFailed(`look at the lock of ${dir}`, cause)
  })
  if (isLocked) throw new DqliteError('DIRECTORY_LOCKED', `another process uses ${dir}`)
  const findings = await readDirectory({
    disk,
    dir,
    autoRecovery: false,
    logCacheBytesMax: 0,
    onWarning: options.onWarning ?? (() => undefined),
  })
  return lastOf(findings)
}

/**
 * Makes `servers` the configuration of this directory, by an entry at the end of its log: for a cluster that has lost a
 * majority for good. Every entry before it counts as committed. To be done once, in the directory whose last entry is
 * the highest (by term, then by index); the other servers of `servers` start with copies of it. The new last entry.
 *
 * Rejects, having written nothing, with BAD_OPTION, DIRECTORY_LOCKED while a node runs there, DIRECTORY_FOREIGN if there
 * is nothing to recover, DATA_CORRUPT.
 */
export async function recover(
  dir: string,
  servers: readonly RecoveredServer[],
  options: OfflineOptions = {},
): Promise<EntryId> {
  const configuration = checkedServers(servers)
  const disk = options.disk ?? new NodeDisk()
  const onWarning = options.onWarning ?? (() => undefined)
  await mustExist(disk, dir)
  const lock = await takeLock(disk, dir)
  let written = false
  try {
    const findings = await readDirectory({
      disk,
      dir,
      autoRecovery: true,
      logCacheBytesMax: 0,
      lostMetadata: 'accept',
      onWarning,
    })
    if (findings.next === 1)
      throw new DqliteError('DIRECTORY_FOREIGN', `${dir} holds no entries: there is nothing to recover`)
    written = true
    await findings.repair()
    // The term before the entry: half a recovery is none, and may be repeated.
    await saveMetadata(disk, dir, findings)
    const index = findings.next
    const name = closedSegmentName(index, index)
    await writeNew(disk, dir, name, [encodeSegment(configuration)]).catch((cause: unknown) => {
      throw diskFailed(`write ${name}`, cause)
    })
    return { index, term: recoveryTerm }
  } finally {
    if (written) await lock.release()
    else await giveBack(disk, dir, lock)
  }
}

async function mustExist(disk: Disk, dir: string): Promise<void> {
  await disk.list(dir).catch((cause: unknown) => {
    throw diskFailed(`use ${dir} as a data directory`, cause)
  })
}

function lastOf({ entries, snapshot }: Findings): EntryId {
  const last = entries.at(-1)
  if (last !== undefined) return { index: last.index, term: last.term }
  return snapshot?.description.last ?? { index: 0, term: 0 }
}

/**
 * A term after all that is known, in which nobody has voted or led: a single voter leads at its start without an
 * election, in the term that it finds (raft-wire §6.3), and may not write entries into one in which somebody else did.
 * Also the end of a lost vote.
 */
async function saveMetadata(disk: Disk, dir: string, findings: Findings): Promise<void> {
  const { metadata, metadataSlots, entries, snapshot } = findings
  const known = entries.reduce((max, entry) => Math.max(max, entry.term), snapshot?.name.term ?? 0)
  const term = Math.max(metadata.term, known) + 1
  const store = new DiskMetadataStore({ disk, dir, current: metadata, slots: metadataSlots })
  try {
    await store.save({ term, votedFor: undefined })
  } finally {
    await store.close()
  }
}

/** One batch with one entry, as disk-format §4.1 draws it. */
function encodeSegment(data: Buffer): Buffer {
  const dataOffset = segmentHeaderBytes + batchHeaderBytes(1)
  const bytes = Buffer.alloc(dataOffset + data.byteLength)
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  writeSegmentHeader(view, 0)
  const entry = { term: recoveryTerm, typeCode: entryTypeCode('configuration'), byteLength: data.byteLength }
  writeEntryHeader(view, segmentHeaderBytes + batchPreambleBytes, entry)
  data.copy(bytes, dataOffset)
  const batch = { offset: segmentHeaderBytes, entries: 1, dataCrc: crc32(data, 0, data.byteLength, 0) }
  writeBatchPreamble(bytes, view, batch, crc32)
  return bytes
}

/** The configuration's bytes. Throws BAD_OPTION. */
function checkedServers(servers: readonly RecoveredServer[]): Buffer {
  const bad = (why: string): DqliteError => new DqliteError('BAD_OPTION', `the new configuration cannot be: ${why}`)
  const ids = new Set<ServerId>()
  const addresses = new Set<string>()
  const checked: Server[] = []
  for (const { id: given, address, role } of servers) {
    const id = typeof given === 'number' && Number.isSafeInteger(given) ? BigInt(given) : given
    if (typeof id !== 'bigint' || id < 1n || id > idMax) throw bad(`id ${String(given)} is not from 1 to 2^64 - 1`)
    if (typeof address !== 'string' || address === '' || address.includes('\0'))
      throw bad(`server ${id.toString()} has the address ${JSON.stringify(address)}`)
    if (!['voter', 'standby', 'spare'].includes(role)) throw bad(`server ${id.toString()} has the role ${String(role)}`)
    if (ids.has(id)) throw bad(`id ${id.toString()} is there twice`)
    if (addresses.has(address)) throw bad(`address ${address} is there twice`)
    ids.add(id)
    addresses.add(address)
    checked.push({ id, address, role })
  }
  if (!checked.some(({ role }) => role === 'voter')) throw bad('there is no voter')
  const data = encodeConfiguration({ servers: checked })
  // C dqlite reads it only from a single block.
  if (segmentHeaderBytes + batchHeaderBytes(1) + data.byteLength > blockBytes)
    throw bad(`it has ${data.byteLength} bytes, more than fit in a block of ${blockBytes}`)
  return data
}
