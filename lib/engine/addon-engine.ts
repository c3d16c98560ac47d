/**
 * What the native side of the engine exports (native/engine_binding.cc), as types. Numbers and bytes only; the classes of
 * connection.ts and database.ts give them meaning.
 */
import { addon } from '../addon.js'

/** Outcome of a run; `rows` adds 8 × the bytes of the message. */
export const nativeOutcome = { done: 0, row: 1, part: 2, overBudget: 3, error: 4 } as const

export interface NativeStatement {
  /** Bit 0 read-only · 1 VACUUM · 2 may be cached · 3 runs inline only · from bit 4: number of parameters. */
  info(): number
  columnCount(): number
  prefersWorker(): boolean
  /** Number of values in the tuple; -1: it does not decode; -2: SQLite refuses it. */
  bind(body: Uint8Array, offset: number, schema: number, skip: number): number
  execute(): number
  /** A number at once is the outcome `error`: it did not begin. */
  executeOnWorker(): number | Promise<number>
  /** The message is in `target` if it fits behind `offset`, else `takeRows` has it. */
  rows(target: Uint8Array, offset: number, batchBytes: number): number
  rowsOnWorker(batchBytes: number): number | Promise<number>
  reset(): number
  finalize(): void
}

export interface NativeConnection {
  /** `null`: no statement in the text; `undefined`: failed, see `errorCode`. */
  prepare(sql: Uint8Array, offset: number): NativeStatement | null | undefined
  tail(): number
  inTransaction(): boolean
  isWriting(): boolean
  isBusy(): boolean
  errorCode(): number
  errorMessage(): string
  writeResult(target: Uint8Array, offset: number): void
  rowsBytes(): number
  takeRows(target: Uint8Array, offset: number): void
  interrupt(): void
  close(): void
}

export interface NativeImage {
  byteLength(): number
  read(target: Uint8Array): number
  close(): void
}

export interface NativeRestore {
  /** Here and below, a text: what is wrong. */
  write(chunk: Uint8Array): string | undefined
}

export interface NativeDatabase {
  connect(): NativeConnection | readonly [code: number, message: string]
  connections(): number
  speculative(): number
  /** Bytes written; 0: nothing is captured; negative: the bytes it needs, nothing was taken. */
  takeCaptured(target: Uint8Array, offset: number): number
  publish(): boolean
  dropSpeculative(): boolean
  apply(command: Uint8Array): string | undefined
  walFrames(): number
  isDeleted(): boolean
  checkpoint(): boolean
  openImage(): NativeImage
  restore(byteLength: number): NativeRestore
  finishRestore(restore: NativeRestore): string | undefined
}

export interface NativeEngine {
  /** `undefined`: not a name that a database can have. A replicated one may have any name and no connections. */
  database(name: Uint8Array, isReplicated: boolean): NativeDatabase | undefined
  drop(name: Uint8Array): boolean
  interrupt(): void
  stop(): void
}

export interface EngineAddon {
  readonly Engine: new (
    workerThreadsMax: number,
    statementBudgetMs: number,
    transactionBytesMax: number,
  ) => NativeEngine
}

export const engineAddon = addon as EngineAddon
