/**
 * What the executor and the handlers may ask of replication: the one seam between "execute SQL" and "run Raft".
 * Knows the words of both sides and how each question can fail; holds no behaviour. The raft driver implements it.
 *
 * Everything here is called on the loop thread. Calls are synchronous where they return a value; a call never runs a
 * callback that was given to it by an *earlier* call, with one exception that is named below (`hold`).
 */
import type { Database } from '../engine/database.js'
import type { DqliteError } from '../errors.js'
import type { Configuration, ConfigurationChange, Index, Refusal, ServerId } from '../raft/types.js'

export interface Replicator {
  /**
   * This node leads and is not handing leadership over: writes, reads and membership changes may start. While a
   * transfer runs it is `false` (client-protocol §7.12: everything is refused with 10250), and may become `true` again
   * without a change of leadership when the transfer fails.
   */
  readonly isLeader: boolean

  /** This node leads, but hands leadership over. The handlers let `change` and `transfer` word the refusal. */
  readonly isTransferring: boolean

  readonly id: ServerId

  /** As advertised, byte for byte. */
  readonly address: string

  /** The leader that this node knows in its current term; `undefined` for a candidate and while transferring (§7.1). */
  leader(): { readonly id: ServerId; readonly address: string } | undefined

  /** The newest configuration in this node's log, committed or not. No servers: never configured. */
  configuration(): Configuration

  /** Highest index whose effects are in the committed view of every database. */
  readonly lastApplied: Index

  /**
   * Appends a FRAMES command just captured from `database` and remembers that `database.publish()` is due when it
   * commits. On return the entry is in the leader's log, in call order; it leaves with the next Ready of this turn.
   * A Refusal means that nothing was appended: 'notLeader' (not leading, or transferring), 'pipelineFull' (never when
   * `pipelineFull` was false in the same turn: one transaction larger than the room that is left is accepted).
   * After a refusal the captured frames are void and every later one of that database with them (C1.3): the caller
   * closes the connections and drops the tail, unless the loss of leadership does it anyway.
   */
  propose(database: Database, command: Uint8Array): Index | Refusal

  /**
   * Resolves when everything in the log up to now, with an entry of the own term, is applied (barriers are merged).
   * Rejects NOT_LEADER "not leader" when this node does not lead or is transferring at the call,
   * LEADERSHIP_LOST "leadership lost" when it stops leading before.
   */
  barrier(): Promise<void>

  /** Leader whose first entry of the own term is not applied yet: statements outside a transaction wait (§9.4). */
  readonly needsBarrier: boolean

  /** Linearizable read point (dissertation §6.4). Rejects as `barrier` does. */
  readIndex(): Promise<void>

  /** Resolves once `index` is applied and published here, as the leader. Rejects LEADERSHIP_LOST "leadership lost". */
  whenApplied(index: Index): Promise<void>

  /**
   * The cheap form of `whenApplied`, for responses: `release(undefined)` when `index` is applied and published and this
   * node leads in the term in which `hold` was called; `release(LEADERSHIP_LOST "leadership lost")` as soon as it does
   * not any more, even if the entry survives. Exactly once; in order of index. Already applied: called at once, inside
   * `hold`. A release may write to sockets and may call `hold`; it never calls `propose` (callers defer that to a turn
   * of their own), so the driver may release in the middle of its own work. It does not throw.
   */
  hold(index: Index, release: (error: DqliteError | undefined) => void): void

  /**
   * Resolves when the changed configuration is committed. Rejects (client-protocol §7.9–§7.11, §8.2)
   *   NOT_LEADER      "server is not the leader"                      not leading, or transferring
   *   LEADERSHIP_LOST "server has lost leadership"                    before it was committed
   *   BUSY            "a configuration change is already in progress"
   *   SQLITE_ERROR    "server ID already in use" | "server address already in use"         add
   *   SQLITE_ERROR    "Resource not found" | "server role is not valid"                    assign: unknown id | same role
   *   SQLITE_ERROR    "no connection to remote server available"                           assign: never caught up
   *   SQLITE_ERROR    "server ID is not valid"                                             remove: unknown id
   */
  change(change: ConfigurationChange): Promise<void>

  /**
   * Resolves when this node has stopped leading. `undefined`: the furthest voter. Rejects (client-protocol §7.12)
   *   NOT_LEADER   "server is not the leader"         not leading, or a transfer runs already
   *   SQLITE_ERROR "Resource not found"               no voter to pick
   *   SQLITE_ERROR "server ID is not valid"           unknown id, self, or not a voter
   *   SQLITE_ERROR "leadership transfer failed"       still leading after one election timeout
   */
  transfer(to: ServerId | undefined): Promise<void>

  /**
   * `listener` runs each time this node stops leading (not for a transfer that has only begun), in this order:
   * 1. `isLeader` is false; 2. every hold is released and every promise above rejected; 3. the listeners run;
   * 4. once all promises of the listeners have resolved (no SQLite connection is open, nothing runs on a worker) the
   * driver calls `dropSpeculative()` on every database whose `speculative` is not 0; 5. only then entries of the next
   * leader are applied. A listener never throws and its promise never rejects.
   */
  onLeadershipLost(listener: () => void | Promise<void>): void

  /** Uncommitted entries or bytes are at their limit: new writers wait. */
  readonly pipelineFull: boolean

  /** Resolves when `pipelineFull` may be false again, or leadership was lost: the caller looks again. Never rejects. */
  whenPipelineHasRoom(): Promise<void>
}
