/**
 * Opens a data directory: takes its lock, reads it, repairs what an interrupted stop left behind, and hands out its three
 * stores. In this order, and back in reverse. Knows who is opened when; what the files mean is recovery.ts's.
 */
import path from 'node:path'
import { lockFileName } from '../codec/data-directory.js'
import { DqliteError } from '../errors.js'
import type { Entry, ServerId, SnapshotDescription, Term } from '../raft/types.js'
import { type AppendWriter, type Disk, type DiskLock, NodeDisk, diskFailed } from './disk.js'
import { DiskLogStore, type LogStore } from './log-store.js'
import { DiskMetadataStore, type MetadataStore } from './metadata-store.js'
import { type Findings, readDirectory } from './recovery.js'
import { DiskSnapshotStore, type SnapshotStore } from './snapshot-store.js'

export const defaultSegmentBytes = 8 * 1024 * 1024

export interface OpenOptions {
  readonly dir: string
  readonly disk?: Disk
  /** Damage that costs nothing is repaired; see recovery.ts. Other damage is refused in any case. */
  readonly autoRecovery: boolean
  /** Command bytes in `restored.entries`: the newest ones. */
  readonly logCacheBytesMax: number
  readonly segmentBytes?: number
  readonly trace?: (text: string) => void
  readonly onWarning?: (text: string) => void
}

export interface OpenedDirectory {
  readonly restored: {
    readonly term: Term
    readonly votedFor: ServerId | undefined
    readonly snapshot: SnapshotDescription | undefined
    /** Contiguous; older commands without data. */
    readonly entries: readonly Entry[]
  }
  readonly log: LogStore
  readonly metadata: MetadataStore
  readonly snapshots: SnapshotStore
  /** What was found and repaired, and what went wrong in the background since. */
  readonly warnings: readonly string[]
  /** Waits for what runs, closes segments, removes prepared ones, gives the lock up. Twice is fine. */
  close(): Promise<void>
}

export async function openDataDirectory(options: OpenOptions): Promise<OpenedDirectory> {
  const { dir } = options
  const disk = options.disk ?? new NodeDisk()
  const trace = options.trace ?? (() => undefined)
  const warnings: string[] = []
  const onWarning = (text: string): void => {
    warnings.push(text)
    trace(`warning: ${text}`)
    options.onWarning?.(text)
  }
  const lock = await takeLock(disk, dir)
  let device: AppendWriter | undefined
  try {
    const { autoRecovery, logCacheBytesMax } = options
    const findings = await readDirectory({ disk, dir, autoRecovery, logCacheBytesMax, onWarning })
    await findings.repair()
    device = await disk.appendWriter(dir).catch((cause: unknown) => {
      throw diskFailed(`write to ${dir}`, cause)
    })
    trace(`entries up to ${findings.next - 1}, term ${findings.metadata.term}; log written by ${device.method}`)
    return openStores({ options, disk, device, lock, findings, warnings, onWarning })
  } catch (error) {
    await device?.close()
    await giveBack(disk, dir, lock)
    throw error
  }
}

/** The lock of a data directory, which is created if it is missing. Rejects with DIRECTORY_LOCKED. */
export async function takeLock(disk: Disk, dir: string): Promise<DiskLock> {
  let lock: DiskLock | undefined
  try {
    await disk.createDirectory(dir)
    lock = await disk.lock(path.join(dir, lockFileName))
  } catch (cause) {
    throw diskFailed(`use ${dir} as a data directory`, cause)
  }
  if (lock === undefined) throw new DqliteError('DIRECTORY_LOCKED', `another process uses ${dir}`)
  return lock
}

/** A directory that is refused is left as it was found. */
export async function giveBack(disk: Disk, dir: string, lock: DiskLock): Promise<void> {
  if (lock.isNew) await Promise.allSettled([disk.unlink(path.join(dir, lockFileName))])
  await Promise.allSettled([lock.release()])
}

function openStores(parts: {
  options: OpenOptions
  disk: Disk
  device: AppendWriter
  lock: DiskLock
  findings: Findings
  warnings: readonly string[]
  onWarning: (text: string) => void
}): OpenedDirectory {
  const { options, disk, device, lock, findings, warnings, onWarning } = parts
  const { dir } = options
  const log = new DiskLogStore({
    disk,
    dir,
    device,
    segmentBytes: options.segmentBytes ?? defaultSegmentBytes,
    segments: findings.segments,
    stale: findings.stale,
    next: findings.next,
    onWarning,
  })
  const metadata = new DiskMetadataStore({ disk, dir, current: findings.metadata, slots: findings.metadataSlots })
  const snapshots = new DiskSnapshotStore({
    disk,
    dir,
    snapshots: findings.snapshot === undefined ? [] : [findings.snapshot],
    older: findings.olderSnapshots,
    barrier: () => log.barrier(),
    onWarning,
  })
  log.start()
  let closing: Promise<void> | undefined
  return {
    restored: {
      term: findings.metadata.term,
      votedFor: findings.metadata.votedFor,
      snapshot: findings.snapshot?.description,
      entries: findings.entries,
    },
    log,
    metadata,
    snapshots,
    warnings,
    close: () =>
      (closing ??= (async () => {
        try {
          await snapshots.close()
          await log.close()
          await metadata.close()
        } finally {
          await lock.release()
        }
      })()),
  }
}
