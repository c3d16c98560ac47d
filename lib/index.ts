/**
 * The public surface: a member of a cluster in this process, a client of any cluster, tools for data directories, and the
 * errors of all. What is not exported here is not for applications.
 */
export { Node, type NodeOptions, type NodeStatus } from './node/node.js'
export {
  inspect,
  type DatabaseReport,
  type Inspection,
  type MetadataReport,
  type SegmentReport,
  type SnapshotReport,
} from './node/inspection.js'
export { lastEntry, recover, type OfflineOptions, type RecoveredServer } from './storage/offline.js'
export {
  Client,
  connect,
  type ClientOptions,
  type DumpedDatabase,
  type LeaderInfo,
  type MemberCallOptions,
  type TransactionOptions,
} from './client/client.js'
export type {
  CallOptions,
  ExecOptions,
  ExecResult,
  Parameters,
  QueryOptions,
  Row,
  RowList,
  RowStream,
  Statement,
} from './client/calls.js'
export type { Member } from './client/discovery.js'
export type { Dial } from './client/session.js'
export type { Transaction, TransactionMode } from './client/transaction.js'
export type { SqlValue } from './codec/tuple.js'
export { DqliteError, errorKinds, type ErrorCode, type ErrorKind } from './errors.js'
export type { ClientLimits, NodeLimits, SnapshotStrategy } from './options.js'
export type { EntryId, Role, Server, ServerId } from './raft/types.js'
