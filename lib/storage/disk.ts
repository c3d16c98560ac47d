/**
 * The one seam between storage/ and an operating system: everything that touches a file goes through `Disk`. NodeDisk
 * is node:fs plus the native log writer. Knows system calls; does not know what a file holds.
 *
 * Errors are the operating system's (`code`, `errno`); the callers give them context.
 */
import fs from 'node:fs'
import { constants as osConstants } from 'node:os'
import path from 'node:path'
import { DqliteError } from '../errors.js'
import { type NativeLogWriter, storageAddon } from './addon-storage.js'

/** Direct writes begin and end on blocks, in the file and in memory (disk-format §4.4). */
export const blockBytes = 4096

export interface DiskFile {
  /** Bytes read; fewer only at the end of the file. */
  read(target: Uint8Array, position: number): Promise<number>
  /** Bytes written, possibly fewer than asked. */
  write(source: Uint8Array, position: number): Promise<number>
  size(): Promise<number>
  truncate(bytes: number): Promise<void>
  /** Reserves the room and sets the size, content zero. False: this file system cannot. */
  allocate(bytes: number): Promise<boolean>
  dataSync(): Promise<void>
  sync(): Promise<void>
  close(): Promise<void>
}

/** Durable writes at given places, one in flight. */
export interface AppendWriter {
  /** How: for traces and benchmarks. */
  readonly method: string
  /** A new file that `write` takes. Written otherwise only in whole aligned blocks. */
  create(path: string): Promise<DiskFile>
  /**
   * Calls back, never synchronously, with the bytes that are durable now or with -errno. `bytes` comes from
   * `alignedBuffer` and is not changed until then; length and position are multiples of a block.
   */
  write(file: DiskFile, bytes: Buffer, length: number, position: number, done: (result: number) => void): void
  /** After the write in flight. */
  close(): Promise<void>
}

export interface DiskLock {
  /** The lock file did not exist before. */
  readonly isNew: boolean
  release(): Promise<void>
}

export interface Disk {
  /** With its parents; nothing if it exists. */
  createDirectory(dir: string): Promise<void>
  list(dir: string): Promise<string[]>
  syncDirectory(dir: string): Promise<void>
  /** `read`, `write`: an existing file. `create`: a new one, mode 0600. */
  open(path: string, mode: 'read' | 'write' | 'create'): Promise<DiskFile>
  rename(from: string, to: string): Promise<void>
  unlink(path: string): Promise<void>
  /** Creates the file if it is missing. `undefined`: somebody else holds the lock. */
  lock(path: string): Promise<DiskLock | undefined>
  /** Whether somebody holds the lock now. Creates nothing; who asks for the lock in this very moment is refused. */
  isLocked(path: string): Promise<boolean>
  /** Probes the directory with a temporary file. */
  appendWriter(dir: string): Promise<AppendWriter>
  alignedBuffer(bytes: number): Buffer
  /** Milliseconds since boot, whole. */
  monotonicMs(): number
}

// ---------------------------------------------------------------------------------------------------- helpers

/** Gives an operating system's error its context, once. */
export function diskFailed(what: string, cause: unknown): DqliteError {
  if (cause instanceof DqliteError) return cause
  const reason = cause instanceof Error ? cause.message : String(cause)
  return new DqliteError('DISK_FAILED', `cannot ${what}: ${reason}`, { cause })
}

export const isMissing = (error: unknown): boolean => (error as NodeJS.ErrnoException | null)?.code === 'ENOENT'

const errorNames = new Map(Object.entries(osConstants.errno).map(([name, number]) => [number, name]))

/** The error that -errno stands for. */
export function systemError(result: number, call: string): NodeJS.ErrnoException {
  const errno = Math.abs(result)
  const code = errorNames.get(errno) ?? `E${errno}`
  return Object.assign(new Error(`${code}, ${call}`), { code, errno: -errno, syscall: call })
}

/** Writes everything, however often the system writes less. */
export async function writeAll(file: DiskFile, bytes: Uint8Array, position: number): Promise<void> {
  for (let done = 0; done < bytes.byteLength;) {
    const written = await file.write(bytes.subarray(done), position + done)
    if (written <= 0) throw systemError(osConstants.errno.ENOSPC, 'write')
    done += written
  }
}

/** Fills the target as far as the file goes. */
export async function readFully(file: DiskFile, target: Uint8Array, position: number): Promise<number> {
  let done = 0
  while (done < target.byteLength) {
    const n = await file.read(target.subarray(done), position + done)
    if (n === 0) break
    done += n
  }
  return done
}

/** A whole file, or `undefined` if there is none. Larger than `bytesMax`: only that much and a byte more. */
export async function readWhole(disk: Disk, file: string, bytesMax: number): Promise<Buffer | undefined> {
  let handle: DiskFile
  try {
    handle = await disk.open(file, 'read')
  } catch (error) {
    if (isMissing(error)) return undefined
    throw error
  }
  try {
    const bytes = Buffer.allocUnsafe(Math.min(await handle.size(), bytesMax + 1))
    return bytes.subarray(0, await readFully(handle, bytes, 0))
  } finally {
    await handle.close()
  }
}

/**
 * A file that is there completely or not at all (disk-format §4.7): temporary name, content, fsync, rename, fsync of
 * the directory. `pieces` are written one after the other.
 */
export async function writeNew(disk: Disk, dir: string, name: string, pieces: readonly Uint8Array[]): Promise<void> {
  const temporary = path.join(dir, `tmp-${name}`)
  const file = await disk.open(temporary, 'create')
  try {
    let position = 0
    for (const piece of pieces) {
      await writeAll(file, piece, position)
      position += piece.byteLength
    }
    await file.sync()
    await file.close()
  } catch (error) {
    await abandon(disk, file, temporary)
    throw error
  }
  await disk.rename(temporary, path.join(dir, name))
  await disk.syncDirectory(dir)
}

/** Removes a temporary file after a failure. What fails here too is left for the next start to clean. */
export async function abandon(disk: Disk, file: DiskFile, temporary: string): Promise<void> {
  await Promise.allSettled([file.close()])
  await Promise.allSettled([disk.unlink(temporary)])
}

// ---------------------------------------------------------------------------------------------------- NodeDisk

const fileMode = 0o600
const directoryMode = 0o700

type Callback<T> = (error: NodeJS.ErrnoException | null, value: T) => void
const call = <T>(start: (done: Callback<T>) => void): Promise<T> =>
  new Promise((resolve, reject) => {
    start((error, value) => {
      if (error) reject(error)
      else resolve(value)
    })
  })

class NodeFile implements DiskFile {
  readonly fd: number
  #closed = false

  constructor(fd: number) {
    this.fd = fd
  }
  read(target: Uint8Array, position: number): Promise<number> {
    return call((done) => fs.read(this.fd, target, 0, target.byteLength, position, done))
  }
  write(source: Uint8Array, position: number): Promise<number> {
    return call((done) => fs.write(this.fd, source, 0, source.byteLength, position, done))
  }
  async size(): Promise<number> {
    return (await call<fs.Stats>((done) => fs.fstat(this.fd, done))).size
  }
  truncate(bytes: number): Promise<void> {
    return call<void>((done) => fs.ftruncate(this.fd, bytes, done))
  }
  async allocate(bytes: number): Promise<boolean> {
    const error = await storageAddon.fallocate(this.fd, bytes)
    if (error === osConstants.errno.EOPNOTSUPP || error === osConstants.errno.ENOSYS) return false
    if (error !== 0) throw systemError(error, 'fallocate')
    return true
  }
  dataSync(): Promise<void> {
    return call<void>((done) => fs.fdatasync(this.fd, done))
  }
  sync(): Promise<void> {
    return call<void>((done) => fs.fsync(this.fd, done))
  }
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await call<void>((done) => fs.close(this.fd, done))
  }
}

export const logWriterMethods = ['io_uring', 'aio', 'thread'] as const
export type LogWriterMethod = (typeof logWriterMethods)[number]

export interface NodeDiskOptions {
  /** Only this way of writing the log; otherwise $DQLITE_LOG_WRITER, otherwise the best that works. */
  readonly logWriter?: LogWriterMethod
}

class NodeAppendWriter implements AppendWriter {
  readonly #native: NativeLogWriter
  readonly #flags: number
  #done: ((result: number) => void) | undefined

  constructor(open: (onDone: (result: number) => void) => NativeLogWriter, flags: number) {
    this.#native = open((result) => this.#onDone(result))
    this.#flags = flags
  }

  get method(): string {
    return this.#native.method
  }

  async create(file: string): Promise<DiskFile> {
    return new NodeFile(await call((done) => fs.open(file, this.#flags, fileMode, done)))
  }

  write(file: DiskFile, bytes: Buffer, length: number, position: number, done: (result: number) => void): void {
    const refused = this.#native.write((file as NodeFile).fd, bytes, length, position)
    if (refused === 0) this.#done = done
    else setImmediate(done, refused)
  }

  #onDone(result: number): void {
    const done = this.#done
    this.#done = undefined
    done?.(result)
  }

  async close(): Promise<void> {
    this.#native.close()
  }
}

export class NodeDisk implements Disk {
  readonly #forced: LogWriterMethod | ''

  constructor(options: NodeDiskOptions = {}) {
    const forced = options.logWriter ?? process.env['DQLITE_LOG_WRITER'] ?? ''
    if (forced !== '' && !logWriterMethods.some((method) => method === forced))
      throw new DqliteError(
        'BAD_OPTION',
        `option logWriter (or $DQLITE_LOG_WRITER) is ${forced}; it must be one of ${logWriterMethods.join(', ')}`,
      )
    this.#forced = forced as LogWriterMethod | ''
  }

  async createDirectory(dir: string): Promise<void> {
    await call((done) => fs.mkdir(dir, { recursive: true, mode: directoryMode }, done))
  }

  list(dir: string): Promise<string[]> {
    return call((done) => fs.readdir(dir, done))
  }

  async syncDirectory(dir: string): Promise<void> {
    const file = await this.open(dir, 'read')
    try {
      await file.sync()
    } finally {
      await file.close()
    }
  }

  async open(file: string, mode: 'read' | 'write' | 'create'): Promise<NodeFile> {
    const flags = { read: 'r', write: 'r+', create: 'wx' }[mode]
    return new NodeFile(await call((done) => fs.open(file, flags, fileMode, done)))
  }

  rename(from: string, to: string): Promise<void> {
    return call<void>((done) => fs.rename(from, to, done))
  }

  unlink(file: string): Promise<void> {
    return call<void>((done) => fs.unlink(file, done))
  }

  async lock(file: string): Promise<DiskLock | undefined> {
    const { O_RDWR, O_CREAT, O_EXCL } = fs.constants
    let isNew = true
    let handle: NodeFile
    try {
      handle = new NodeFile(await call((done) => fs.open(file, O_RDWR | O_CREAT | O_EXCL, fileMode, done)))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      isNew = false
      handle = new NodeFile(await call((done) => fs.open(file, O_RDWR | O_CREAT, fileMode, done)))
    }
    const error = storageAddon.flock(handle.fd)
    if (error === 0) return { isNew, release: () => handle.close() }
    await handle.close()
    if (error === osConstants.errno.EWOULDBLOCK) return undefined
    throw systemError(error, 'flock')
  }

  async isLocked(file: string): Promise<boolean> {
    let handle: NodeFile
    try {
      handle = await this.open(file, 'read')
    } catch (error) {
      if (isMissing(error)) return false
      throw error
    }
    try {
      const error = storageAddon.flock(handle.fd)
      if (error !== 0 && error !== osConstants.errno.EWOULDBLOCK) throw systemError(error, 'flock')
      return error !== 0
    } finally {
      await handle.close()
    }
  }

  async appendWriter(dir: string): Promise<AppendWriter> {
    const { O_WRONLY, O_CREAT, O_EXCL, O_DIRECT } = fs.constants
    const probe = path.join(dir, 'tmp-probe')
    const block = this.alignedBuffer(blockBytes)
    // Direct writes keep the log out of the page cache, and the asynchronous methods need them to be asynchronous.
    // Not every file system has them (disk-format §4.4).
    let failure: unknown
    for (const direct of [O_DIRECT, 0]) {
      const flags = O_WRONLY | O_CREAT | O_EXCL | direct
      try {
        const fd = await call<number>((done) => fs.open(probe, flags, fileMode, done))
        try {
          const isDirect = direct !== 0
          return new NodeAppendWriter(
            (onDone) => new storageAddon.LogWriter(fd, isDirect, this.#forced, block, onDone),
            flags,
          )
        } finally {
          await call<void>((done) => fs.close(fd, done))
        }
      } catch (error) {
        failure = error
      } finally {
        // An open that fails with EINVAL leaves the file behind all the same.
        await this.unlink(probe).catch((error: unknown) => {
          if (!isMissing(error)) throw error
        })
      }
    }
    throw failure
  }

  alignedBuffer(bytes: number): Buffer {
    return storageAddon.alignedBuffer(bytes)
  }

  monotonicMs(): number {
    return Number(process.hrtime.bigint() / 1_000_000n)
  }
}
