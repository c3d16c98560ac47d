/**
 * The types of what storage/ uses of the addon (native/storage_binding.cc). Does not load it: lib/addon.ts does.
 */
import { addon } from '../addon.js'
import type { Crc32 } from '../codec/data-directory.js'

/** One durable write in flight; see native/log_writer.h. */
export interface NativeLogWriter {
  readonly method: string
  /** 0, or -errno. After a 0 `onDone` is called once; until then the bytes are native's and must not change. */
  write(fd: number, bytes: Uint8Array, length: number, position: number): number
  /** Waits for the write in flight, whose `onDone` does not come any more. */
  close(): void
}

export interface NativeFrameWriter {
  begin(target: Uint8Array): number
  update(piece: Uint8Array, target: Uint8Array): number
  end(target: Uint8Array): number
}

export interface NativeFrameReader {
  readonly isFrame: boolean
  /** Uncompressed, as the header says; 0: it does not. */
  readonly contentBytes: number
  readonly isComplete: boolean
  /** Sets `step` to [consumed, produced]. Throws on damage. */
  update(source: Uint8Array, target: Uint8Array, step: Uint32Array): void
}

export interface StorageAddon {
  crc32(bytes: Uint8Array, start: number, end: number, seed: number): number
  /** Zeros that begin on a 4096-byte block. */
  alignedBuffer(bytes: number): Buffer
  /** 0 or errno; exclusive, without waiting. */
  flock(fd: number): number
  /** 0 or errno. */
  fallocate(fd: number, bytes: number): Promise<number>
  readonly LogWriter: new (
    probeFd: number,
    isDirect: boolean,
    forced: '' | 'io_uring' | 'aio' | 'thread',
    block: Uint8Array,
    onDone: (result: number) => void,
  ) => NativeLogWriter
  readonly SnapshotFrameWriter: { new (contentBytes: number): NativeFrameWriter; bound(bytes: number): number }
  readonly SnapshotFrameReader: new (head: Uint8Array) => NativeFrameReader
}

export const storageAddon = addon as StorageAddon
export const crc32: Crc32 = (bytes, start, end, seed) => storageAddon.crc32(bytes, start, end, seed)
