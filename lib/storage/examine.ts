/**
 * A data directory described, file by file, and what a start would make of it: for operators and their tools. Only reads:
 * not even the lock is created. Reading beside a running node is allowed; what it says then may be a moment old. Knows
 * what files hold; does not know databases: who wants their rows applies `content` (node/inspection.ts).
 */
import path from 'node:path'
import {
  type SnapshotName,
  compareSnapshotNames,
  corruptPrefix,
  decodeMetadata,
  lockFileName,
  metadataBytes,
  metadataFileName,
  parseFileName,
  snapshotFileName,
  snapshotMetaFileName,
} from '../codec/data-directory.js'
import { DqliteError } from '../errors.js'
import type { Configuration, Entry, EntryId, Index, ServerId, Term } from '../raft/types.js'
import { crc32 } from './addon-storage.js'
import { type Disk, NodeDisk, diskFailed, readFully, readWhole } from './disk.js'
import { type Findings, readDirectory } from './recovery.js'
import { entryAt, scanSegment } from './segment.js'
import { decodeContent, verifySnapshot } from './snapshot-store.js'

export interface MetadataReport {
  readonly file: string
  readonly bytes: number
  /** Absent if the file is not readable. */
  readonly version?: number
  readonly term?: Term
  readonly votedFor?: ServerId | undefined
  readonly problem?: string
}

export interface SegmentReport {
  readonly file: string
  readonly kind: 'closed' | 'open'
  readonly bytes: number
  /** Format word and good batches. */
  readonly usedBytes: number
  readonly entries: number
  readonly batches: number
  /** As far as the entries are good. An open segment's follow from the files before it. */
  readonly firstIndex: Index
  readonly lastIndex: Index
  /** What follows the good batches. `torn`: neither nothing nor zeros. */
  readonly tail: 'none' | 'zeros' | 'torn'
  readonly problem?: string
}

export interface SnapshotReport {
  readonly file: string
  readonly bytes: number
  readonly index: Index
  readonly term: Term
  /** Milliseconds since the writer's boot. */
  readonly timestampMs: number
  /** An LZ4 frame; its checksums hold unless there is a problem. Otherwise raw. */
  readonly isCompressed: boolean
  /** Absent if it does not verify. */
  readonly contentBytes?: number
  readonly configurationIndex?: Index
  readonly configuration?: Configuration
  readonly databases?: readonly { readonly name: string; readonly mainBytes: number; readonly walBytes: number }[]
  readonly problem?: string
}

/** What a start would go on with. */
export interface DirectoryContent {
  readonly term: Term
  readonly votedFor: ServerId | undefined
  readonly last: EntryId
  readonly configuration: { readonly index: Index; readonly configuration: Configuration } | undefined
  /** The newest good snapshot's content, to be read once. */
  snapshot(): AsyncGenerator<Uint8Array> | undefined
  /** The entries behind the snapshot, all with data, in order. One segment in memory at a time. */
  entries(): AsyncGenerator<Entry>
}

export interface Examination {
  /** A node held the lock when the examination began. */
  readonly isInUse: boolean
  readonly metadata: readonly MetadataReport[]
  readonly segments: readonly SegmentReport[]
  readonly snapshots: readonly SnapshotReport[]
  /** Names that mean nothing to a node. */
  readonly otherFiles: readonly string[]
  /** Everything that a directory after a clean stop does not have, in plain words. */
  readonly irregularities: readonly string[]
  /** Undefined: a start is refused; the last irregularity says why. */
  readonly content: DirectoryContent | undefined
}

export interface ExamineOptions {
  readonly dir: string
  readonly disk?: Disk
}

const lz4Magic = 0x184d2204

/** Rejects with DISK_FAILED if the directory cannot be read at all; everything else is an irregularity. */
export async function examineDirectory(options: ExamineOptions): Promise<Examination> {
  const disk = options.disk ?? new NodeDisk()
  const { dir } = options
  try {
    return await new Examiner(disk, dir).examine()
  } catch (cause) {
    throw diskFailed(`read ${dir}`, cause)
  }
}

class Examiner {
  readonly #disk: Disk
  readonly #dir: string
  readonly #irregularities: string[] = []

  constructor(disk: Disk, dir: string) {
    this.#disk = disk
    this.#dir = dir
  }

  async examine(): Promise<Examination> {
    const names = (await this.#disk.list(this.#dir)).sort()
    const isInUse = await this.#disk.isLocked(path.join(this.#dir, lockFileName))
    if (isInUse) this.#odd('a node uses this directory: its files may change while they are read')
    const otherFiles = names.filter((name) => name !== lockFileName && parseFileName(name) === undefined)
    const metadata = await this.#metadata(names)
    const snapshots = await this.#snapshots(names)
    const segments = await this.#segments(names, snapshots)
    this.#strangers(names)
    const content = await this.#content()
    return { isInUse, metadata, segments, snapshots, otherFiles, irregularities: this.#irregularities, content }
  }

  #odd(text: string): void {
    this.#irregularities.push(text)
  }

  /** A file's bytes, or why not. */
  async #read(name: string, bytesMax: number): Promise<{ bytes: Buffer; problem?: string }> {
    try {
      const bytes = await readWhole(this.#disk, path.join(this.#dir, name), bytesMax)
      if (bytes === undefined) return { bytes: Buffer.alloc(0), problem: 'it vanished while the directory was read' }
      return bytes.byteLength > bytesMax ? { bytes, problem: `it is longer than ${bytesMax} bytes` } : { bytes }
    } catch (cause) {
      return { bytes: Buffer.alloc(0), problem: reasonOf(cause) }
    }
  }

  async #size(name: string): Promise<number> {
    try {
      const file = await this.#disk.open(path.join(this.#dir, name), 'read')
      try {
        return await file.size()
      } finally {
        await file.close()
      }
    } catch (cause) {
      this.#odd(`${name} cannot be read: ${reasonOf(cause)}`)
      return 0
    }
  }

  // --------------------------------------------------------------------------------------------------- metadata

  async #metadata(names: readonly string[]): Promise<MetadataReport[]> {
    const reports: MetadataReport[] = []
    for (const file of [metadataFileName(1), metadataFileName(2)]) {
      if (!names.includes(file)) continue
      const { bytes, problem } = await this.#read(file, metadataBytes)
      const report = { file, bytes: bytes.byteLength }
      try {
        if (problem !== undefined) throw new DqliteError('DATA_CORRUPT', problem)
        reports.push({ ...report, ...decodeMetadata(bytes) })
      } catch (cause) {
        reports.push({ ...report, problem: reasonOf(cause) })
        this.#odd(`${file} holds no term and vote: ${reasonOf(cause)}`)
      }
    }
    return reports
  }

  // -------------------------------------------------------------------------------------------------- snapshots

  async #snapshots(names: readonly string[]): Promise<SnapshotReport[]> {
    const found: SnapshotName[] = []
    for (const name of names) {
      const parsed = parseFileName(name)
      if (parsed?.kind === 'snapshot') {
        const meta = snapshotMetaFileName(parsed.snapshot)
        if (!names.includes(meta)) this.#odd(`${name} has no ${meta}: half a snapshot, which a start deletes`)
        else found.push(parsed.snapshot)
      } else if (parsed?.kind === 'snapshotMeta' && !names.includes(snapshotFileName(parsed.snapshot)))
        this.#odd(`${name} has no content beside it: half a snapshot, which a start deletes`)
    }
    const reports: SnapshotReport[] = []
    for (const name of found.sort(compareSnapshotNames)) reports.push(await this.#snapshot(name))
    return reports
  }

  async #snapshot(name: SnapshotName): Promise<SnapshotReport> {
    const file = snapshotFileName(name)
    const bytes = await this.#size(file)
    const isCompressed = await this.#isFrame(file)
    const report = { file, bytes, index: name.index, term: name.term, timestampMs: name.timestampMs, isCompressed }
    try {
      const { description, contentBytes, databases } = await verifySnapshot(this.#disk, this.#dir, name)
      const { configuration, configurationIndex } = description
      return { ...report, contentBytes, configurationIndex, configuration, databases }
    } catch (cause) {
      const problem = bytes === 0 ? 'it is empty: half a snapshot, which a start deletes' : reasonOf(cause)
      this.#odd(bytes === 0 ? `${file}: ${problem}` : problem)
      return { ...report, problem }
    }
  }

  async #isFrame(name: string): Promise<boolean> {
    const head = Buffer.alloc(4)
    try {
      const file = await this.#disk.open(path.join(this.#dir, name), 'read')
      try {
        return (await readFully(file, head, 0)) === head.byteLength && head.readUInt32LE(0) === lz4Magic
      } finally {
        await file.close()
      }
    } catch {
      return false // said by whoever reads the whole file
    }
  }

  // --------------------------------------------------------------------------------------------------- segments

  async #segments(names: readonly string[], snapshots: readonly SnapshotReport[]): Promise<SegmentReport[]> {
    const closed: { name: string; first: Index; last: Index }[] = []
    const open: { name: string; counter: number }[] = []
    for (const name of names) {
      const parsed = parseFileName(name)
      if (parsed?.kind === 'closedSegment') closed.push({ name, first: parsed.first, last: parsed.last })
      if (parsed?.kind === 'openSegment') open.push({ name, counter: parsed.counter })
    }
    closed.sort((a, b) => a.first - b.first || a.last - b.last)
    open.sort((a, b) => a.counter - b.counter)
    const snapshotIndex = snapshots.findLast(({ problem }) => problem === undefined)?.index ?? 0
    this.#seams(closed, snapshotIndex)

    const reports: SegmentReport[] = []
    for (const { name, first, last } of closed) {
      const report = await this.#segment(name, 'closed', first)
      const problem =
        report.problem ?? (report.lastIndex === last ? undefined : `it ends with entry ${report.lastIndex}`)
      if (problem !== undefined) this.#odd(`${name} is damaged: ${problem}`)
      reports.push(problem === undefined ? report : { ...report, problem })
    }
    let next = Math.max(closed.at(-1)?.last ?? snapshotIndex, closed.length === 0 ? snapshotIndex : 0) + 1
    for (const { name } of open) {
      const report = await this.#segment(name, 'open', next)
      if (report.tail === 'torn')
        this.#odd(`${name} has a torn tail: ${report.problem ?? 'its last batch is not whole'}`)
      next = report.lastIndex + 1
      reports.push(report)
    }
    return reports
  }

  /** Where closed segments do not follow each other. */
  #seams(closed: readonly { name: string; first: Index; last: Index }[], snapshotIndex: Index): void {
    let before: { name: string; last: Index } | undefined
    for (const file of closed) {
      if (before !== undefined && file.first <= before.last)
        this.#odd(
          `${before.name} and ${file.name} overlap: both hold entries ${file.first} to ${Math.min(before.last, file.last)}`,
        )
      const from = (before?.last ?? Math.min(snapshotIndex, file.first - 1)) + 1
      if (file.first > from) {
        const isCovered = file.first - 1 <= snapshotIndex
        this.#odd(
          `no segment holds entries ${from} to ${file.first - 1}${isCovered ? ', which a snapshot covers' : ': a gap'}`,
        )
      }
      if (before === undefined || file.last > before.last) before = file
    }
  }

  async #segment(file: string, kind: 'closed' | 'open', first: Index): Promise<SegmentReport> {
    const { bytes, problem } = await this.#read(file, segmentBytesMax)
    const nothing = { entries: 0, batches: 0, usedBytes: 0, firstIndex: first, lastIndex: first - 1 }
    const report = { file, kind, bytes: bytes.byteLength }
    if (problem !== undefined) return { ...report, ...nothing, tail: 'none', problem }
    try {
      const { segment, batches, goodBytes, damage, isTailZero } = scanSegment(bytes, file, first, crc32)
      const tail = goodBytes === bytes.byteLength ? 'none' : isTailZero ? 'zeros' : 'torn'
      const isExpected = damage === undefined || (kind === 'open' && isTailZero)
      return {
        ...report,
        usedBytes: goodBytes,
        entries: segment.count,
        batches,
        firstIndex: first,
        lastIndex: segment.last,
        tail,
        ...(!isExpected && { problem: `${damage.problem}, at byte ${damage.offset}` }),
      }
    } catch (cause) {
      return { ...report, ...nothing, tail: 'torn', problem: reasonOf(cause) }
    }
  }

  // ---------------------------------------------------------------------------------------------------- others

  #strangers(names: readonly string[]): void {
    for (const name of names) {
      if (parseFileName(name)?.kind === 'temporary')
        this.#odd(`${name} is a temporary file of an interrupted write, which a start deletes`)
      else if (name.startsWith(corruptPrefix)) this.#odd(`${name} was set aside by an earlier start, and is never read`)
      else if (name === 'database')
        this.#odd(`${name} is left from disk mode (dqlite 1.12 to 1.18.2): nothing in it counts`)
      else if (parseFileName(name) === undefined && /^(metadata\d|open-|snapshot-|\d+-\d+)/.test(name))
        this.#odd(`${name} is not a name that a node reads, though it looks like one`)
    }
  }

  // ---------------------------------------------------------------------------------------------------- content

  async #content(): Promise<DirectoryContent | undefined> {
    let findings: Findings
    try {
      findings = await readDirectory({
        disk: this.#disk,
        dir: this.#dir,
        autoRecovery: true,
        logCacheBytesMax: 0,
        onWarning: (text) => this.#odd(`a start warns: ${text}`),
      })
    } catch (cause) {
      this.#odd(`a start is refused: ${reasonOf(cause)}`)
      return undefined
    }
    for (const name of findings.stale) this.#odd(`${name} no longer belongs to the log; it is deleted after a snapshot`)
    const { metadata, snapshot, entries } = findings
    const last = entries.at(-1)
    const newest = entries.findLast((entry) => entry.type === 'configuration')
    return {
      term: metadata.term,
      votedFor: metadata.votedFor,
      last: last !== undefined ? { index: last.index, term: last.term } : (snapshot?.description.last ?? nobody),
      configuration:
        newest !== undefined
          ? { index: newest.index, configuration: newest.configuration }
          : snapshot !== undefined
            ? { index: snapshot.description.configurationIndex, configuration: snapshot.description.configuration }
            : undefined,
      snapshot: () => (snapshot === undefined ? undefined : this.#snapshotContent(snapshotFileName(snapshot.name))),
      entries: () => this.#entries(findings),
    }
  }

  async *#snapshotContent(name: string): AsyncGenerator<Uint8Array> {
    const file = await this.#disk.open(path.join(this.#dir, name), 'read')
    try {
      yield* decodeContent(file, name)
    } finally {
      await file.close()
    }
  }

  async *#entries({ segments, openNames, snapshot }: Findings): AsyncGenerator<Entry> {
    const after = snapshot?.name.index ?? 0
    for (const segment of segments) {
      if (segment.last <= after) continue
      const name = openNames.get(segment.name) ?? segment.name
      const { bytes, problem } = await this.#read(name, segmentBytesMax)
      // A running node may have closed the segment in the meantime.
      if (problem !== undefined) throw new DqliteError('DATA_CORRUPT', `${name} cannot be read: ${problem}`)
      for (let index = Math.max(segment.first, after + 1); index <= segment.last; index++) {
        const place = segment.place(index)
        yield entryAt(index, place, bytes, place.offset)
      }
    }
  }
}

/** As recovery.ts reads them. */
const segmentBytesMax = 2 ** 32 - 2
const nobody: EntryId = { index: 0, term: 0 }

const reasonOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause))
