/**
 * Reads a data directory and decides what it means: which snapshot, which entries, what to clean (disk-format §5, §11).
 * `readDirectory` only reads; `Findings.repair` is what a start changes. So a directory that is refused stays as it is.
 *
 * What counts as damage, and what is done about it:
 *
 * - The end of the last open segment, however it ends: an interrupted write, which nobody was told had succeeded. Cut
 *   off. Batches that run past the end of the file are the same thing.
 * - A damaged snapshot, while the log reaches from an older good snapshot (or from entry 1) over its index, in its term:
 *   with `autoRecovery` it is set aside and the older one is used. Nothing is lost. Without `autoRecovery`: refused.
 * - A damaged closed segment whose entries a good snapshot holds: with `autoRecovery` it is set aside. Nothing is lost.
 *   Without: refused.
 * - One of the two metadata files is missing though the other one is not the first ever written: the newer one may be
 *   gone, with a vote, and who votes twice in a term elects two leaders. Refused. C dqlite takes what is left.
 * - Any other damage may have hit entries that were acknowledged, and a member that forgets those can make the cluster
 *   lose them. Always refused with DATA_CORRUPT, which names the file and the command that resolves it; moving the file
 *   away is the operator's consent. C dqlite sets such files aside silently; we do not (disk-format §5,
 *   recommendations).
 */
import path from 'node:path'
import {
  type FileName,
  type Metadata,
  type SnapshotName,
  closedSegmentName,
  compareSnapshotNames,
  corruptPrefix,
  decodeMetadata,
  formatOf,
  isNewerFormat,
  metadataBytes,
  metadataFileName,
  metadataSlot,
  parseFileName,
  snapshotFileName,
  snapshotMetaFileName,
} from '../codec/data-directory.js'
import { DqliteError } from '../errors.js'
import type { Configuration, Entry, Index, Role } from '../raft/types.js'
import { crc32 } from './addon-storage.js'
import { type Disk, diskFailed, readWhole } from './disk.js'
import { type Segment, entryAt, isAllZero, scanSegment } from './segment.js'
import { type StoredSnapshot, verifySnapshot } from './snapshot-store.js'

/** Segments are 8 MiB, or as long as one huge entry; a file beyond is not read. */
const segmentBytesMax = 2 ** 32 - 2
/** Besides the newest snapshot only the one before it is kept, and tried. */
const snapshotsTried = 2
/** A command that would move more files than this says it in words. */
const filesNamedMax = 16

export interface RecoveryOptions {
  readonly disk: Disk
  readonly dir: string
  readonly autoRecovery: boolean
  readonly logCacheBytesMax: number
  /** `accept`: whoever reads makes sure that a forgotten term or vote does no harm. Default: refuse. */
  readonly lostMetadata?: 'refuse' | 'accept'
  readonly onWarning: (text: string) => void
}

export interface Findings {
  /** Version 0, term 0: a new directory. */
  readonly metadata: Metadata
  readonly metadataSlots: ReadonlySet<1 | 2>
  readonly snapshot: StoredSnapshot | undefined
  readonly olderSnapshots: readonly SnapshotName[]
  /** Contiguous; those that were open have the names that they get. */
  readonly segments: readonly Segment[]
  /** Where those that were open are before the repair: their names now, by their names then. */
  readonly openNames: ReadonlyMap<string, string>
  /** Closed segments that no longer belong to the log. */
  readonly stale: readonly string[]
  readonly entries: readonly Entry[]
  readonly next: Index
  /** Everything that changes on disk, in order. */
  readonly repair: () => Promise<void>
}

interface ClosedFile {
  readonly name: string
  readonly first: Index
  readonly last: Index
}

interface Listing {
  readonly metadata: ReadonlyMap<1 | 2, string>
  readonly closed: ClosedFile[]
  readonly open: { name: string; counter: number }[]
  /** Oldest first. */
  readonly snapshots: SnapshotName[]
  /** Snapshots' content without metadata; they are litter too. */
  readonly orphans: { readonly name: string; readonly snapshot: SnapshotName }[]
  /** Temporary files and halves of snapshots. */
  readonly litter: string[]
}

type Step = () => Promise<void>

export async function readDirectory(options: RecoveryOptions): Promise<Findings> {
  const recovery = new Recovery(options)
  return recovery.read()
}

class Recovery {
  readonly #disk: Disk
  readonly #dir: string
  readonly #options: RecoveryOptions
  readonly #entries: EntryCache
  readonly #steps: Step[] = []
  readonly #openNames = new Map<string, string>()

  constructor(options: RecoveryOptions) {
    this.#disk = options.disk
    this.#dir = options.dir
    this.#options = options
    this.#entries = new EntryCache(options.logCacheBytesMax)
  }

  async read(): Promise<Findings> {
    const listing = await this.#list()
    const litter = [...listing.litter]
    const { metadata, slots, short } = await this.#readMetadata(listing)
    const isMetadataLost = metadata.version > 1 && slots.size === 1
    litter.push(...short)
    if (litter.length > 0) this.#steps.push(() => this.#unlink(litter))

    const { snapshot, damaged } = await this.#chooseSnapshot(listing)
    const log = await this.#readLog(listing, snapshot).catch((error: unknown) => {
      const newest = damaged[0]
      throw newest === undefined ? error : refused(newest.error, this.#snapshotAdvice(false, newest.name))
    })
    const kept = this.#reconcile(log, snapshot)

    for (const { name, error } of damaged) {
      const covers =
        log.first <= (snapshot?.name.index ?? 0) + 1 && kept && this.#entries.termAt(name.index) === name.term
      if (!covers || !this.#options.autoRecovery) throw refused(error, this.#snapshotAdvice(covers, name))
      this.#options.onWarning(`${error.message}; it is set aside, the log replaces it`)
      this.#steps.push(() => this.#setAside([snapshotFileName(name), snapshotMetaFileName(name)]))
    }
    const last = kept ? log.next - 1 : (snapshot?.name.index ?? 0)
    this.#checkOrphans(listing, last)
    this.#check({ metadata, isMetadataLost, short, snapshot, kept })

    const chosen = snapshot?.name
    return {
      metadata,
      metadataSlots: slots,
      snapshot,
      olderSnapshots:
        chosen === undefined ? [] : listing.snapshots.filter((name) => compareSnapshotNames(name, chosen) < 0),
      segments: kept ? log.segments : [],
      openNames: this.#openNames,
      stale: kept ? log.stale : [],
      entries: kept ? this.#entries.entries : [],
      next: last + 1,
      repair: async () => {
        for (const step of this.#steps) await step()
      },
    }
  }

  // ---------------------------------------------------------------------------------------------------- listing

  async #list(): Promise<Listing> {
    const names = await this.#disk.list(this.#dir).catch((cause: unknown) => {
      throw diskFailed(`list ${this.#dir}`, cause)
    })
    const metadata = new Map<1 | 2, string>()
    const closed: ClosedFile[] = []
    const open: { name: string; counter: number }[] = []
    const litter: string[] = []
    const contents = new Map<string, SnapshotName>()
    const metas = new Map<string, SnapshotName>()
    for (const name of names.sort()) {
      const parsed: FileName | undefined = parseFileName(name)
      switch (parsed?.kind) {
        case undefined:
          break
        case 'metadata':
          metadata.set(parsed.slot, name)
          break
        case 'closedSegment':
          closed.push({ name, first: parsed.first, last: parsed.last })
          break
        case 'openSegment':
          open.push({ name, counter: parsed.counter })
          break
        case 'snapshot':
          contents.set(name, parsed.snapshot)
          break
        case 'snapshotMeta':
          metas.set(name, parsed.snapshot)
          break
        case 'temporary':
          litter.push(name)
          break
      }
    }
    const snapshots: SnapshotName[] = []
    const orphans: Listing['orphans'] = []
    for (const [name, snapshot] of contents) {
      if (!metas.delete(`${name}.meta`)) {
        litter.push(name)
        if (!(await this.#isEmpty(name))) orphans.push({ name, snapshot })
      } else if (await this.#isEmpty(name)) litter.push(`${name}.meta`, name)
      else snapshots.push(snapshot)
    }
    litter.push(...metas.keys())
    return {
      metadata,
      closed: closed.sort((a, b) => a.first - b.first || a.last - b.last),
      open: open.sort((a, b) => a.counter - b.counter),
      snapshots: snapshots.sort(compareSnapshotNames),
      orphans,
      litter,
    }
  }

  async #isEmpty(name: string): Promise<boolean> {
    try {
      const file = await this.#disk.open(path.join(this.#dir, name), 'read')
      try {
        return (await file.size()) === 0
      } finally {
        await file.close()
      }
    } catch (cause) {
      throw diskFailed(`open ${name}`, cause)
    }
  }

  async #readFile(name: string, bytesMax: number): Promise<Buffer> {
    const bytes = await readWhole(this.#disk, path.join(this.#dir, name), bytesMax).catch((cause: unknown) => {
      throw diskFailed(`read ${name}`, cause)
    })
    if (bytes === undefined) throw corrupt(name, 'it vanished while the directory was read')
    if (bytes.byteLength > bytesMax) throw corrupt(name, `it is longer than ${bytesMax} bytes`)
    return bytes
  }

  // --------------------------------------------------------------------------------------------------- metadata

  async #readMetadata(listing: Listing): Promise<{ metadata: Metadata; slots: Set<1 | 2>; short: string[] }> {
    const slots = new Set<1 | 2>()
    const short: string[] = []
    let metadata: Metadata = { version: 0, term: 0, votedFor: undefined }
    for (const [slot, name] of listing.metadata) {
      const bytes = await this.#readFile(name, metadataBytes)
      // Never completely written: its creation was not acknowledged.
      if (bytes.byteLength < metadataBytes || isAllZero(bytes, 0)) {
        short.push(name)
        continue
      }
      const format = formatOf(bytes)
      if (isNewerFormat(format))
        throw new DqliteError('DIRECTORY_FOREIGN', `${name} has format ${format.toString()}: a newer dqlite wrote it`)
      let found: Metadata
      try {
        found = decodeMetadata(bytes)
      } catch (cause) {
        throw corrupt(name, cause instanceof Error ? cause.message : 'not readable', cause)
      }
      if (metadataSlot(found.version) !== slot)
        throw corrupt(
          name,
          `it holds version ${found.version}, which belongs to ${metadataFileName(slot === 1 ? 2 : 1)}`,
        )
      slots.add(slot)
      if (found.version > metadata.version) metadata = found
    }
    return { metadata, slots, short }
  }

  // -------------------------------------------------------------------------------------------------- snapshots

  /** The newest good one, and newer ones that are not good. */
  async #chooseSnapshot(
    listing: Listing,
  ): Promise<{ snapshot: StoredSnapshot | undefined; damaged: { name: SnapshotName; error: DqliteError }[] }> {
    const damaged: { name: SnapshotName; error: DqliteError }[] = []
    for (const name of listing.snapshots.slice(-snapshotsTried).reverse()) {
      try {
        return { snapshot: await verifySnapshot(this.#disk, this.#dir, name), damaged }
      } catch (error) {
        if (!(error instanceof DqliteError) || error.code !== 'DATA_CORRUPT') throw error
        damaged.push({ name, error })
      }
    }
    return { snapshot: undefined, damaged }
  }

  #snapshotAdvice(covers: boolean, name: SnapshotName): string {
    const files = `${snapshotFileName(name)} and its .meta`
    return covers
      ? `An older snapshot and the log hold everything: start with autoRecovery (dqlite serve --auto-recovery 1), which ` +
          `sets ${files} aside, or do it: ${setAsideCommand(this.#dir, [snapshotFileName(name), snapshotMetaFileName(name)])}`
      : `The log does not replace it: ${restoreAdvice(this.#dir)}`
  }

  // ------------------------------------------------------------------------------------------------------- log

  async #readLog(
    listing: Listing,
    snapshot: StoredSnapshot | undefined,
  ): Promise<{ first: Index; next: Index; segments: Segment[]; stale: string[]; open: string[] }> {
    const snapshotIndex = snapshot?.name.index ?? 0
    const run = this.#contiguousRun(listing, snapshotIndex)
    const stale = listing.closed.filter((file) => !run.includes(file)).map((file) => file.name)
    let segments: Segment[] = []
    for (const file of run) {
      const bytes = await this.#readFile(file.name, segmentBytesMax)
      const { segment, damage } = scanSegment(bytes, file.name, file.first, crc32)
      const problem =
        damage !== undefined
          ? `${damage.problem}, at byte ${damage.offset}`
          : segment.last !== file.last
            ? `it ends with entry ${segment.last}`
            : undefined
      if (problem === undefined) {
        segments.push(segment)
        this.#entries.take(segment, bytes)
        continue
      }
      const error = corrupt(file.name, problem)
      if (file.last > snapshotIndex) throw refused(error, this.#lossAdvice(listing, file.name, segment.last + 1))
      if (!this.#options.autoRecovery)
        throw refused(
          error,
          `A snapshot holds its entries: start with autoRecovery (dqlite serve --auto-recovery 1), which sets it aside, ` +
            `or do it: ${setAsideCommand(this.#dir, [file.name])}`,
        )
      this.#options.onWarning(`${error.message}; it is set aside, a snapshot holds its entries`)
      this.#steps.push(() => this.#setAside([file.name]))
      // The log begins after it.
      stale.push(...segments.map((s) => s.name))
      segments = []
      this.#entries.clear()
    }
    let next = (segments.at(-1)?.last ?? run.at(-1)?.last ?? snapshotIndex) + 1
    const first = segments[0]?.first ?? next
    next = await this.#readOpenSegments(listing, segments, next)
    return { first, next, segments, stale, open: listing.open.map((o) => o.name) }
  }

  /** The closed segments that are the log: contiguous up to the last one. */
  #contiguousRun(listing: Listing, snapshotIndex: Index): ClosedFile[] {
    const files: ClosedFile[] = []
    /** What interrupted truncations wrote. */
    const cuts: ClosedFile[] = []
    for (const file of [...listing.closed]) {
      const before = files.at(-1)
      if (before !== undefined && before.first === file.first) {
        // An interrupted truncation: its result beside the original (disk-format §4.6). The original is taken, as if the
        // truncation had not begun: nothing can have been appended after it, since appends wait for its end, and the
        // leader will ask for it again. The other way round could lose entries: C dqlite, started in this state with a
        // snapshot, may have gone on with the original.
        files[files.length - 1] = file
        this.#steps.push(() => this.#unlink([before.name]))
        this.#options.onWarning(`${before.name} is left from an interrupted truncation and is deleted`)
        listing.closed.splice(listing.closed.indexOf(before), 1)
        cuts.push(before)
        continue
      }
      if (before !== undefined && file.first <= before.last) {
        const cut = cuts.find((one) => one.first === before.first && one.last + 1 === file.first)
        throw refused(
          corrupt(file.name, `${before.name} holds some of its entries too`),
          cut === undefined
            ? this.#lossAdvice(listing, file.name, file.first, file.last <= before.last)
            : // Nothing follows a truncation that did not happen.
              `The log was cut after entry ${cut.last} (${cut.name}) and went on in ${file.name}, so that ${before.name} is ` +
                `what the cut should have deleted: ${setAsideCommand(this.#dir, [before.name])}`,
        )
      }
      files.push(file)
    }
    let from = Math.max(0, files.length - 1)
    while (from > 0 && files[from - 1]!.last + 1 === files[from]!.first) from--
    const run = files.slice(from)
    const first = run[0]?.first ?? snapshotIndex + 1
    if (first > snapshotIndex + 1)
      throw refused(
        corrupt(
          run[0]!.name,
          `no file holds the entries from ${(files[from - 1]?.last ?? snapshotIndex) + 1} to ${first - 1}`,
        ),
        from === 0 && snapshotIndex === 0
          ? restoreAdvice(this.#dir)
          : this.#lossAdvice(listing, run[0]!.name, (files[from - 1]?.last ?? snapshotIndex) + 1),
      )
    return run
  }

  /** Continues the log through the open segments, which become closed ones. The index after the last entry. */
  async #readOpenSegments(listing: Listing, segments: Segment[], from: Index): Promise<Index> {
    let next = from
    /** An open segment that ended early: nothing written later may follow. */
    let ended: { name: string; problem: string } | undefined
    for (const { name } of listing.open) {
      const bytes = await this.#readFile(name, segmentBytesMax)
      if (isAllZero(bytes, 0)) {
        this.#steps.push(() => this.#unlink([name]))
        ended ??= { name, problem: 'nothing was written to it' }
        continue
      }
      if (ended !== undefined)
        throw refused(
          corrupt(ended.name, `${ended.problem}, but ${name}, which is written later, holds something`),
          this.#lossAdvice(listing, name, next),
        )
      const scanned = scanSegment(bytes, name, next, crc32)
      const { segment, damage, goodBytes } = scanned
      if (damage?.kind === 'foreign')
        throw refused(
          corrupt(name, `${damage.problem}, at byte ${damage.offset}`),
          this.#lossAdvice(listing, name, segment.last + 1),
        )
      if (goodBytes === 0) {
        // The first block was never written, but a later one was; or the block is damaged. Kept, in case of the latter.
        if (bytes.byteLength >= 8 && formatOf(bytes) !== 0n)
          throw refused(corrupt(name, damage!.problem), this.#lossAdvice(listing, name, next))
        this.#options.onWarning(`${name} has no beginning: its first write was interrupted; it is set aside`)
        this.#steps.push(() => this.#setAside([name]))
        ended = { name, problem: 'its first write was interrupted' }
        continue
      }
      if (damage !== undefined) {
        ended = { name, problem: `${damage.problem}, at byte ${damage.offset}` }
        if (!scanned.isTailZero)
          this.#options.onWarning(
            `${name}: ${damage.problem}, at byte ${damage.offset}: an interrupted write; the log ends with entry ${segment.last}`,
          )
      }
      if (segment.count === 0) {
        this.#steps.push(() => this.#unlink([name]))
        continue
      }
      const closedName = closedSegmentName(segment.first, segment.last)
      this.#steps.push(() => this.#close(name, closedName, goodBytes))
      this.#openNames.set(closedName, name)
      this.#entries.take(segment, bytes)
      segment.name = closedName
      segments.push(segment)
      next = segment.last + 1
      if (damage !== undefined && scanned.isTailZero) ended = undefined
    }
    return next
  }

  /**
   * Whether the log goes on from the snapshot. A log that ends before it, or that holds another entry at its index, is
   * what an installation was interrupted from replacing (dissertation §5.3: then the whole log is discarded).
   */
  #reconcile(
    log: { first: Index; next: Index; segments: Segment[]; stale: string[] },
    snapshot?: StoredSnapshot,
  ): boolean {
    if (snapshot === undefined) return true
    const { index, term } = snapshot.name
    const termThere = this.#entries.termAt(index)
    if (log.next - 1 >= index && (termThere === undefined || termThere === term)) return true
    if (log.segments.length === 0 && log.stale.length === 0) return log.next === index + 1
    const why = log.next - 1 < index ? `ends with entry ${log.next - 1}` : `has another entry ${index}`
    this.#options.onWarning(`the log ${why}, before the snapshot at ${index}: it is dropped, the snapshot replaces it`)
    // After the open segments have been closed, from the end: what remains after a crash is contiguous.
    const names = [...log.stale, ...log.segments.map((segment) => segment.name)].reverse()
    this.#steps.push(async () => {
      for (const name of names) await this.#unlink([name])
    })
    return false
  }

  /**
   * Content is written after its metadata, and removed after it (disk-format §7.1): without metadata it is what is left
   * of an old snapshot. One that knows more than all that is left was not removed by us.
   */
  #checkOrphans(listing: Listing, last: Index): void {
    const orphan = listing.orphans.find(({ snapshot }) => snapshot.index > last)
    if (orphan === undefined) return
    const { name, snapshot } = orphan
    throw refused(
      corrupt(`${name}.meta`, `it is missing, and nothing but ${name} holds the entries up to ${snapshot.index}`),
      `Bring ${name}.meta back from where ${this.#dir} was copied, or ${restoreAdvice(this.#dir)}. To go on without these ` +
        `entries: ${setAsideCommand(this.#dir, [name])}`,
    )
  }

  #check(found: {
    metadata: Metadata
    isMetadataLost: boolean
    short: readonly string[]
    snapshot: StoredSnapshot | undefined
    kept: boolean
  }): void {
    const { metadata, snapshot, kept, short } = found
    const entries = kept ? this.#entries.entries : []
    const first = entries[0]
    if (first?.index === 1 && first.type !== 'configuration')
      throw refused(corrupt('the log', 'entry 1 is not a configuration'), restoreAdvice(this.#dir))
    if (this.#options.lostMetadata === 'accept') return
    const isEmpty = first === undefined && snapshot === undefined
    if (metadata.version === 0 && !isEmpty)
      throw refused(
        corrupt('metadata1', 'term and vote are missing (metadata1, metadata2), but there are entries'),
        this.#metadataAdvice(entries, snapshot),
      )
    if (found.isMetadataLost) {
      const other = metadataFileName(metadataSlot(metadata.version))
      const name = metadataFileName(metadataSlot(metadata.version + 1))
      const problem = short.includes(name) ? 'it is too short' : 'it is missing'
      throw refused(
        corrupt(
          name,
          `${problem}, and may have held a newer term or vote than version ${metadata.version} in ${other}`,
        ),
        this.#metadataAdvice(entries, snapshot),
      )
    }
    // Not only the last one: a recovery ends the log with an entry of term 1 (disk-format §5).
    const term = entries.reduce((max, entry) => Math.max(max, entry.term), snapshot?.name.term ?? 0)
    if (term > metadata.term)
      throw refused(
        corrupt(metadataFileName(metadataSlot(metadata.version)), `term ${metadata.term}, but entries of term ${term}`),
        this.#metadataAdvice(entries, snapshot),
      )
  }

  #metadataAdvice(entries: readonly Entry[], snapshot: StoredSnapshot | undefined): string {
    const newest = entries.findLast((entry) => entry.type === 'configuration')
    const configuration = newest?.configuration ?? snapshot?.description.configuration
    return (
      `If other members of the cluster hold its data, ${restoreAdvice(this.#dir)}. If this directory was copied from ` +
      `another member, copy metadata1 and metadata2 too. If it is all that is left of the cluster: ` +
      recoverCommand(this.#dir, configuration ?? { servers: [] })
    )
  }

  /** What to do when entries from `index` on are in doubt. The command moves `name` and, by default, all that follows. */
  #lossAdvice(listing: Listing, name: string, index: Index, isAlone = false): string {
    const after = [...listing.closed, ...listing.open].map((file) => file.name)
    const names = isAlone ? [name] : after.slice(after.indexOf(name))
    return (
      `Entries from ${index} on may have been acknowledged, so nothing was changed. If other members of the cluster hold ` +
      `them, ${restoreAdvice(this.#dir)}. To go on without them: ` +
      (names.length <= filesNamedMax
        ? setAsideCommand(this.#dir, names)
        : `move ${name} and every segment after it out of ${this.#dir}`)
    )
  }

  // ----------------------------------------------------------------------------------------------------- repair

  async #unlink(names: readonly string[]): Promise<void> {
    await this.#doing(`delete ${names.join(', ')}`, async () => {
      for (const name of names) await this.#disk.unlink(path.join(this.#dir, name))
      await this.#disk.syncDirectory(this.#dir)
    })
  }

  /** Each made durable before the next: an open segment has no index of its own (disk-format §4.3). */
  async #close(name: string, closedName: string, bytes: number): Promise<void> {
    await this.#doing(`close ${name}`, async () => {
      const file = await this.#disk.open(path.join(this.#dir, name), 'write')
      try {
        await file.truncate(bytes)
        await file.sync()
      } finally {
        await file.close()
      }
      await this.#disk.rename(path.join(this.#dir, name), path.join(this.#dir, closedName))
      await this.#disk.syncDirectory(this.#dir)
    })
  }

  async #setAside(names: readonly string[]): Promise<void> {
    const prefix = `${corruptPrefix}${Date.now()}000000-`
    await this.#doing(`rename ${names.join(', ')}`, async () => {
      for (const name of names) await this.#disk.rename(path.join(this.#dir, name), path.join(this.#dir, prefix + name))
      await this.#disk.syncDirectory(this.#dir)
    })
  }

  async #doing(what: string, work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (cause) {
      throw diskFailed(what, cause)
    }
  }
}

const corrupt = (name: string, problem: string, cause?: unknown): DqliteError =>
  new DqliteError('DATA_CORRUPT', `${name} is damaged: ${problem}`, cause === undefined ? {} : { cause })

const refused = (error: DqliteError, advice: string): DqliteError =>
  new DqliteError('DATA_CORRUPT', `${error.message}. ${advice}.`, { cause: error })

/** A word for a shell. */
const quoted = (word: string): string => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`)

/** Moves files to a directory beside this one. */
const setAsideCommand = (dir: string, names: readonly string[]): string => {
  const aside = quoted(`${dir.replace(/\/+$/, '')}.set-aside`)
  return `mkdir -p ${aside} && mv ${names.map((name) => quoted(path.join(dir, name))).join(' ')} ${aside}/`
}

const roleCodes: Readonly<Record<Role, number>> = { voter: 0, standby: 1, spare: 2 }

const recoverCommand = (dir: string, { servers }: Configuration): string => {
  const cluster = servers.map(({ id, address, role }) => ({ id: id.toString(), address, role: roleCodes[role] }))
  return `dqlite recover --dir ${quoted(dir)} --cluster ${quoted(JSON.stringify(cluster))}`
}

const restoreAdvice = (dir: string): string =>
  `restore ${dir} from a backup, or remove this member from the cluster and let it join again with an empty directory`

/** All entries read so far, with the data of the newest ones. */
class EntryCache {
  readonly #bytesMax: number
  #entries: Entry[] = []
  #bytes = 0
  /** Commands before this position have lost their data. */
  #evicted = 0

  constructor(bytesMax: number) {
    this.#bytesMax = bytesMax
  }

  get entries(): readonly Entry[] {
    return this.#entries
  }

  take(segment: Segment, bytes: Buffer): void {
    for (let index = segment.first; index <= segment.last; index++) {
      const place = segment.place(index)
      let entry: Entry
      try {
        entry = entryAt(index, place, bytes, place.offset)
      } catch (cause) {
        throw corrupt(segment.name, `entry ${index} does not decode`, cause)
      }
      this.#entries.push(entry)
      if (entry.type === 'command') this.#bytes += entry.byteLength
    }
    this.#evict()
  }

  #evict(): void {
    for (; this.#bytes > this.#bytesMax; this.#evicted++) {
      const entry = this.#entries[this.#evicted]!
      if (entry.type !== 'command') continue
      this.#entries[this.#evicted] = { ...entry, data: undefined }
      this.#bytes -= entry.byteLength
    }
  }

  termAt(index: Index): number | undefined {
    const first = this.#entries[0]
    return first === undefined ? undefined : this.#entries[index - first.index]?.term
  }

  clear(): void {
    this.#entries = []
    this.#bytes = 0
    this.#evicted = 0
  }
}
