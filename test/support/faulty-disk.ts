/**
 * A disk in memory that loses what was not synced, and fails where it is told to. Everything follows from the seed and
 * the order of calls, so that a failure repeats. Models what POSIX promises, not what a file system happens to do:
 *
 * - A write is durable after fsync or fdatasync of its file, or when it was an append writer's and has called back. Until
 *   then a crash keeps it, drops it, or keeps some of its 512-byte sectors, each write on its own.
 * - Creating, renaming and removing a name is durable after the fsync of its directory. Until then a crash keeps or drops
 *   each of them on its own.
 * - fsync of a file does not make its name durable.
 */
import assert from 'node:assert/strict'
import path from 'node:path'
import {
  type AppendWriter,
  type Disk,
  type DiskFile,
  type DiskLock,
  blockBytes,
  systemError,
} from '../../lib/storage/disk.js'

const sectorBytes = 512
const EIO = 5
const ENOSPC = 28

export type DiskOperationKind =
  'create' | 'read' | 'write' | 'append' | 'truncate' | 'allocate' | 'sync' | 'rename' | 'unlink' | 'syncDirectory'

export interface DiskOperation {
  readonly kind: DiskOperationKind
  readonly path: string
  /** Counts every operation but reads, from 1. */
  readonly number: number
}

/** `crash`: this operation and all after it fail until `crash()`. `short`: a write that takes only a part. */
export type Fault = 'EIO' | 'ENOSPC' | 'short' | 'crash'

export interface FaultyDiskOptions {
  readonly seed: number
  /** How completions of append writes come back; setImmediate by default. */
  readonly defer?: (complete: () => void) => void
  /** Milliseconds since boot; counts calls by default. */
  readonly monotonicMs?: () => number
  /** Asked before every operation. */
  readonly fault?: (operation: DiskOperation) => Fault | undefined
  /** Bytes of all files together; beyond it ENOSPC. */
  readonly capacityBytes?: number
}

/** Small, fast, good enough: mulberry32. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

interface ContentChange {
  /** `undefined`: only the size changes. */
  readonly bytes: Buffer | undefined
  readonly offset: number
  readonly size: number | undefined
  isDurable: boolean
}

class Content {
  /** What a crash leaves at least. */
  durable: Buffer = Buffer.alloc(0)
  current: Buffer = Buffer.alloc(0)
  changes: ContentChange[] = []

  apply(change: ContentChange): void {
    this.current = applied(this.current, change)
    this.changes.push(change)
  }

  /** Durable changes at the front need not be remembered one by one. */
  fold(): void {
    while (this.changes[0]?.isDurable === true) this.durable = applied(this.durable, this.changes.shift()!)
  }

  sync(): void {
    for (const change of this.changes) change.isDurable = true
    this.changes = []
    this.durable = Buffer.from(this.current)
  }

  crash(random: () => number): void {
    // Some crashes lose a suffix of what was written, others anything.
    const inOrder = random() < 0.3 ? Math.floor(random() * (this.changes.length + 1)) : undefined
    for (const [i, change] of this.changes.entries()) {
      if (change.isDurable) this.durable = applied(this.durable, change)
      else if (inOrder !== undefined) {
        if (i < inOrder) this.durable = applied(this.durable, change)
      } else {
        const fate = random()
        if (fate < 0.4) this.durable = applied(this.durable, change)
        else if (fate < 0.7 && change.bytes !== undefined) this.durable = torn(this.durable, change, random)
      }
    }
    this.changes = []
    this.current = Buffer.from(this.durable)
  }
}

function resized(content: Buffer, size: number): Buffer {
  if (size <= content.byteLength) return Buffer.from(content.subarray(0, size))
  const wider = Buffer.alloc(size)
  content.copy(wider)
  return wider
}

function applied(content: Buffer, { bytes, offset, size }: ContentChange): Buffer {
  if (bytes === undefined) return resized(content, size!)
  const end = offset + bytes.byteLength
  const target = end > content.byteLength ? resized(content, end) : content
  bytes.copy(target, offset)
  return target
}

/** Whole sectors of the file are written or not. */
function torn(content: Buffer, { bytes, offset }: ContentChange, random: () => number): Buffer {
  let result = content
  for (let at = 0; at < bytes!.byteLength;) {
    const end = Math.min(bytes!.byteLength, at + sectorBytes - ((offset + at) % sectorBytes))
    const part = { bytes: bytes!.subarray(at, end), offset: offset + at, size: undefined, isDurable: true }
    if (random() < 0.5) result = applied(result, part)
    at = end
  }
  return result
}

type NameChange =
  | { readonly type: 'create'; readonly path: string; readonly content: Content }
  | { readonly type: 'rename'; readonly path: string; readonly to: string; readonly content: Content }
  | { readonly type: 'unlink'; readonly path: string; readonly content: Content }

function applyName(names: Map<string, Content>, change: NameChange): void {
  switch (change.type) {
    case 'create':
      names.set(change.path, change.content)
      break
    case 'rename':
      if (names.get(change.path) === change.content) names.delete(change.path)
      names.set(change.to, change.content)
      break
    case 'unlink':
      if (names.get(change.path) === change.content) names.delete(change.path)
      break
  }
}

export class FaultyDisk implements Disk {
  readonly #options: FaultyDiskOptions
  readonly #random: () => number
  #names = new Map<string, Content>()
  #durableNames = new Map<string, Content>()
  #nameChanges: NameChange[] = []
  readonly #directories = new Set<string>()
  readonly #locks = new Set<string>()
  /** Handles of an earlier life fail. */
  #life = 0
  #hasCrashed = false
  #operations = 0
  #clock = 0
  fault: FaultyDiskOptions['fault']
  capacityBytes: number

  constructor(options: FaultyDiskOptions) {
    this.#options = options
    this.#random = seededRandom(options.seed)
    this.fault = options.fault
    this.capacityBytes = options.capacityBytes ?? Infinity
  }

  /** So far, reads not counted. */
  get operations(): number {
    return this.#operations
  }

  /** The machine loses power and starts again: unsynced changes are lost or not, locks are free, handles are dead. */
  crash(): void {
    this.#life++
    this.#hasCrashed = false
    this.#locks.clear()
    const names = this.#durableNames
    const inOrder = this.#random() < 0.3 ? Math.floor(this.#random() * (this.#nameChanges.length + 1)) : undefined
    for (const [i, change] of this.#nameChanges.entries())
      if (inOrder === undefined ? this.#random() < 0.5 : i < inOrder) applyName(names, change)
    this.#nameChanges = []
    for (const content of new Set(names.values())) content.crash(this.#random)
    this.#names = new Map(names)
    this.#durableNames = names
  }

  /** The process ends, the machine does not: nothing is lost. */
  kill(): void {
    this.#life++
    this.#hasCrashed = false
    this.#locks.clear()
  }

  /** The content of a file now, for assertions; a view. */
  peek(file: string): Buffer | undefined {
    return this.#names.get(file)?.current
  }

  /** Replaces a file, durably, without counting. */
  poke(file: string, bytes: Uint8Array | undefined): void {
    this.#directories.add(path.dirname(file))
    if (bytes === undefined) {
      this.#names.delete(file)
      this.#durableNames.delete(file)
      return
    }
    const content = new Content()
    content.current = Buffer.from(bytes)
    content.durable = Buffer.from(bytes)
    this.#names.set(file, content)
    this.#durableNames.set(file, content)
  }

  paths(): string[] {
    return [...this.#names.keys()].sort()
  }

  // ------------------------------------------------------------------------------------------------------ Disk

  async createDirectory(dir: string): Promise<void> {
    this.#directories.add(dir)
  }

  async list(dir: string): Promise<string[]> {
    this.#begin('read', dir)
    return [...this.#names.keys()].filter((name) => path.dirname(name) === dir).map((name) => path.basename(name))
  }

  async syncDirectory(dir: string): Promise<void> {
    this.#begin('syncDirectory', dir)
    const [here, elsewhere] = [[] as NameChange[], [] as NameChange[]]
    for (const change of this.#nameChanges) (path.dirname(change.path) === dir ? here : elsewhere).push(change)
    for (const change of here) applyName(this.#durableNames, change)
    this.#nameChanges = elsewhere
  }

  async open(file: string, mode: 'read' | 'write' | 'create'): Promise<DiskFile> {
    return this.#open(file, mode)
  }

  #open(file: string, mode: 'read' | 'write' | 'create'): MemoryFile {
    const existing = this.#names.get(file)
    if (mode === 'create') {
      this.#begin('create', file)
      if (existing !== undefined) throw systemError(17, `open ${file}`)
      if (!this.#directories.has(path.dirname(file))) throw systemError(2, `open ${file}`)
      const content = new Content()
      this.#rename({ type: 'create', path: file, content })
      return this.#file(file, content)
    }
    this.#begin('read', file)
    if (existing === undefined) throw systemError(2, `open ${file}`)
    return this.#file(file, existing)
  }

  async rename(from: string, to: string): Promise<void> {
    this.#begin('rename', from)
    const content = this.#names.get(from)
    if (content === undefined) throw systemError(2, `rename ${from}`)
    this.#rename({ type: 'rename', path: from, to, content })
  }

  async unlink(file: string): Promise<void> {
    this.#begin('unlink', file)
    const content = this.#names.get(file)
    if (content === undefined) throw systemError(2, `unlink ${file}`)
    this.#rename({ type: 'unlink', path: file, content })
  }

  #rename(change: NameChange): void {
    applyName(this.#names, change)
    this.#nameChanges.push(change)
  }

  async lock(file: string): Promise<DiskLock | undefined> {
    const isNew = !this.#names.has(file)
    if (isNew) this.#open(file, 'create')
    if (this.#locks.has(file)) return undefined
    this.#locks.add(file)
    const life = this.#life
    return {
      isNew,
      release: async () => {
        if (life === this.#life) this.#locks.delete(file)
      },
    }
  }

  async isLocked(file: string): Promise<boolean> {
    return this.#locks.has(file)
  }

  async appendWriter(dir: string): Promise<AppendWriter> {
    this.#begin('read', dir)
    return new MemoryAppendWriter(this, this.#options.defer ?? ((complete) => void setImmediate(complete)))
  }

  alignedBuffer(bytes: number): Buffer {
    return Buffer.alloc(bytes)
  }

  monotonicMs(): number {
    return this.#options.monotonicMs?.() ?? ++this.#clock
  }

  // -------------------------------------------------------------------------------------------- for the two below

  #file(file: string, content: Content): MemoryFile {
    const life = this.#life
    return new MemoryFile(content, {
      begin: (kind) => {
        if (life !== this.#life) throw systemError(EIO, `${kind} ${file} after a crash`)
        return this.#begin(kind, file)
      },
      grow: (bytes) => {
        if (bytes > 0 && this.#totalBytes() + bytes > this.capacityBytes) throw systemError(ENOSPC, `write ${file}`)
      },
      isAlive: () => life === this.#life && !this.#hasCrashed,
    })
  }

  createAppendFile(file: string): MemoryFile {
    return this.#open(file, 'create')
  }

  #totalBytes(): number {
    let total = 0
    for (const content of new Set(this.#names.values())) total += content.current.byteLength
    return total
  }

  #begin(kind: DiskOperationKind, file: string): Fault | undefined {
    if (this.#hasCrashed) throw systemError(EIO, `${kind} ${file}: the disk is gone`)
    if (kind !== 'read') this.#operations++
    const fault = this.fault?.({ kind, path: file, number: this.#operations })
    if (fault === 'crash') {
      this.#hasCrashed = true
      throw systemError(EIO, `${kind} ${file}: the disk is gone`)
    }
    if (fault === 'EIO') throw systemError(EIO, `${kind} ${file}`)
    if (fault === 'ENOSPC') throw systemError(ENOSPC, `${kind} ${file}`)
    return fault
  }
}

interface Hooks {
  readonly begin: (kind: DiskOperationKind) => Fault | undefined
  readonly grow: (bytes: number) => void
  readonly isAlive: () => boolean
}

class MemoryFile implements DiskFile {
  readonly content: Content
  readonly hooks: Hooks

  constructor(content: Content, hooks: Hooks) {
    this.content = content
    this.hooks = hooks
  }

  async read(target: Uint8Array, position: number): Promise<number> {
    const isShort = this.hooks.begin('read') === 'short'
    const { current } = this.content
    const wanted = isShort ? Math.ceil(target.byteLength / 2) : target.byteLength
    const end = Math.min(current.byteLength, position + wanted)
    if (end <= position) return 0
    target.set(current.subarray(position, end))
    return end - position
  }

  async write(source: Uint8Array, position: number): Promise<number> {
    const isShort = this.hooks.begin('write') === 'short'
    return this.put(source, isShort ? Math.ceil(source.byteLength / 2) : source.byteLength, position).bytes!.byteLength
  }

  /** Visible at once, durable later. */
  put(source: Uint8Array, length: number, position: number): ContentChange {
    this.hooks.grow(position + length - this.content.current.byteLength)
    const bytes = Buffer.from(source.subarray(0, length))
    const change = { bytes, offset: position, size: undefined, isDurable: false }
    this.content.apply(change)
    return change
  }

  async size(): Promise<number> {
    this.hooks.begin('read')
    return this.content.current.byteLength
  }

  async truncate(bytes: number): Promise<void> {
    this.hooks.begin('truncate')
    this.content.apply({ bytes: undefined, offset: 0, size: bytes, isDurable: false })
  }

  async allocate(bytes: number): Promise<boolean> {
    this.hooks.begin('allocate')
    const more = bytes - this.content.current.byteLength
    this.hooks.grow(more)
    if (more > 0) this.content.apply({ bytes: undefined, offset: 0, size: bytes, isDurable: false })
    return true
  }

  async dataSync(): Promise<void> {
    return this.sync()
  }

  async sync(): Promise<void> {
    this.hooks.begin('sync')
    this.content.sync()
  }

  async close(): Promise<void> {
    // Nothing to give back.
  }
}

class MemoryAppendWriter implements AppendWriter {
  readonly method = 'memory'
  readonly #disk: FaultyDisk
  readonly #defer: (complete: () => void) => void
  #isBusy = false

  constructor(disk: FaultyDisk, defer: (complete: () => void) => void) {
    this.#disk = disk
    this.#defer = defer
  }

  async create(file: string): Promise<DiskFile> {
    return this.#disk.createAppendFile(file)
  }

  write(target: DiskFile, bytes: Buffer, length: number, position: number, done: (result: number) => void): void {
    assert(!this.#isBusy, 'one write in flight')
    assert(length > 0 && length % blockBytes === 0 && position % blockBytes === 0)
    this.#isBusy = true
    const file = target as MemoryFile
    let result: number
    let change: ContentChange | undefined
    try {
      const isShort = file.hooks.begin('append') === 'short'
      result = isShort ? Math.ceil(length / 2) : length
      change = file.put(bytes, result, position)
    } catch (error) {
      result = (error as NodeJS.ErrnoException).errno ?? -EIO
    }
    this.#defer(() => {
      this.#isBusy = false
      if (change !== undefined) {
        if (file.hooks.isAlive()) {
          change.isDurable = true
          file.content.fold()
        } else {
          result = -EIO
        }
      }
      done(result)
    })
  }

  async close(): Promise<void> {
    // Nothing to give back.
  }
}
