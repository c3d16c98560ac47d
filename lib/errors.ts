/**
 * One error class, one table of stable codes. Context (which file, which peer, which option) is added once, at the
 * door where an outside failure enters. Does not know who catches.
 */

/**
 * What a code means to a caller:
 * `retry: 'safe'` — nothing happened, the same request may be sent again (elsewhere or later);
 * `retry: 'unknown'` — it may or may not have happened: only an idempotent request may be repeated;
 * `retry: 'no'` — sending it again will fail again.
 */
export interface ErrorKind {
  /** The FAILURE code of the client protocol, where the error travels on the wire. */
  readonly wire?: number
  readonly retry: 'safe' | 'unknown' | 'no'
  readonly meaning: string
}

export const errorKinds = {
  // Wire codes: client protocol §8.1.
  SQLITE_ERROR: { wire: 1, retry: 'no', meaning: 'SQL or request error; the text says which' },
  BUSY: { wire: 5, retry: 'safe', meaning: 'the writer queue or a configuration change did not get its turn in time' },
  BUSY_SNAPSHOT: { wire: 517, retry: 'safe', meaning: 'a read transaction tried to write after somebody else had' },
  IO_ERROR: { wire: 10, retry: 'no', meaning: 'the node could not execute the request' },
  NOT_FOUND: { wire: 12, retry: 'no', meaning: 'no database opened, or no statement with that id' },
  DATABASE_FULL: { wire: 13, retry: 'no', meaning: 'no space' },
  CANNOT_OPEN: { wire: 14, retry: 'no', meaning: 'not a name a database can have' },
  PROTOCOL: { wire: 15, retry: 'no', meaning: 'a request field has a value that does not exist' },
  TOO_BIG: { wire: 18, retry: 'no', meaning: 'larger than a limit allows' },
  NOT_AUTHORIZED: { wire: 23, retry: 'no', meaning: 'a statement that a replicated database refuses' },
  UNKNOWN_DATABASE: { wire: 1002, retry: 'no', meaning: 'no database of that name' },
  PARSE: { wire: 1005, retry: 'no', meaning: 'unknown request type, format or schema' },
  NOT_LEADER: { wire: 10250, retry: 'safe', meaning: 'another member leads, or none does' },
  LEADERSHIP_LOST: { wire: 10506, retry: 'unknown', meaning: 'leadership changed while the request was in flight' },
  /** Any other SQLite result, with its extended code in `DqliteError.wire`. */
  SQLITE: { retry: 'no', meaning: "SQLite's own code and text" },

  // Client side.
  NO_LEADER: { retry: 'safe', meaning: 'no member named a leader in time' },
  CONNECTION_LOST: { retry: 'unknown', meaning: 'the connection ended before the answer came' },
  TIMEOUT: { retry: 'unknown', meaning: 'the time limit passed before the answer came' },
  ABORTED: { retry: 'unknown', meaning: "the caller's signal ended the request" },
  CLOSED: { retry: 'no', meaning: 'the client, transaction, statement or node is closed' },
  UNSAFE_INTEGER: { retry: 'no', meaning: 'an integer beyond 2^53 and the policy is number' },
  BAD_PARAMETER: { retry: 'no', meaning: 'a value that has no SQL type' },
  BAD_RESPONSE: { retry: 'unknown', meaning: 'the server sent bytes that the protocol does not allow' },

  // Node side.
  BAD_OPTION: { retry: 'no', meaning: 'an option has a value that cannot be; nothing was started' },
  ADDRESS_IN_USE: { retry: 'no', meaning: 'somebody else listens there' },
  DIRECTORY_LOCKED: { retry: 'no', meaning: 'another process uses the data directory' },
  DIRECTORY_FOREIGN: { retry: 'no', meaning: 'not a data directory of ours, or of a newer format' },
  DATA_CORRUPT: { retry: 'no', meaning: 'a file fails its checks; the message names it and what resolves it' },
  DISK_FAILED: { retry: 'no', meaning: 'the operating system refused a disk operation' },
  MALFORMED: { retry: 'no', meaning: 'bytes that do not decode; the connection is closed' },
  NO_CONNECTION: { retry: 'safe', meaning: 'a peer could not be reached' },
} as const satisfies Record<string, ErrorKind>

export type ErrorCode = keyof typeof errorKinds

export interface DqliteErrorOptions extends ErrorOptions {
  /** The wire code, where it differs from the table's (SQLite's extended codes). */
  readonly wire?: number
  /** What is known here beyond the code: a time limit that passed before anything was sent is `'safe'`. */
  readonly retry?: ErrorKind['retry']
}

export class DqliteError extends Error {
  override readonly name = 'DqliteError'
  readonly code: ErrorCode
  /** FAILURE code on the wire, `undefined` for errors that never travel. */
  readonly wire: number | undefined
  readonly #retry: ErrorKind['retry']

  constructor(code: ErrorCode, message: string, options: DqliteErrorOptions = {}) {
    super(message, options)
    this.code = code
    this.wire = options.wire ?? (errorKinds[code] as ErrorKind).wire
    this.#retry = options.retry ?? errorKinds[code].retry
  }

  /** True if nothing happened and the same request may be sent again. */
  get retryable(): boolean {
    return this.#retry === 'safe'
  }

  /** `'unknown'`: the request may have taken effect. `'none'`: it has not. */
  get outcome(): 'unknown' | 'none' {
    return this.#retry === 'unknown' ? 'unknown' : 'none'
  }
}

const byWire = new Map<number, ErrorCode>(
  Object.entries(errorKinds as Record<ErrorCode, ErrorKind>)
    .filter(([, kind]) => kind.wire !== undefined)
    .map(([code, kind]) => [kind.wire as number, code as ErrorCode]),
)

/**
 * The error that a FAILURE response stands for. 8202 and 8458 are the oldest servers' words for 10250 and 10506. A leader
 * of 1.11 that hands over says 7, its Raft's number for "not leader", with whatever SQLite said last; SQLite's own 7 is
 * out of memory, and always says so.
 */
export function errorFromWire(wire: number, message: string): DqliteError {
  if (wire === 8202 || (wire === 7 && message !== 'out of memory'))
    return new DqliteError('NOT_LEADER', message, { wire })
  if (wire === 8458) return new DqliteError('LEADERSHIP_LOST', message, { wire })
  const code = byWire.get(wire) ?? ((wire & 0xff) === 5 ? 'BUSY' : 'SQLITE')
  return new DqliteError(code, message, { wire })
}
