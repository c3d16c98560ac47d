/**
 * The words of Raft that every room shares: plain values, no behaviour.
 * Knows nothing of bytes, sockets, files or time.
 */

/** Position in the log, from 1. Safe to 2^53 (asserted where bytes become numbers). */
export type Index = number
export type Term = number
/** 64 bits: ids are random in the dqlite world and do not fit a number. 0n is never a server. */
export type ServerId = bigint

export type Role = 'voter' | 'standby' | 'spare'

/** A member as the configuration lists it. The address is an opaque string, compared byte for byte. */
export interface Server {
  readonly id: ServerId
  readonly address: string
  readonly role: Role
}

/** Order of addition; ids and addresses are unique. */
export interface Configuration {
  readonly servers: readonly Server[]
}

export interface EntryId {
  readonly index: Index
  readonly term: Term
}

interface EntryBase extends EntryId {
  /** Bytes of the entry's data on disk and on the wire, a multiple of 8. */
  readonly byteLength: number
}

export interface CommandEntry extends EntryBase {
  readonly type: 'command'
  /** `undefined`: evicted from memory, the log store still has it. */
  readonly data: Uint8Array | undefined
}

export interface BarrierEntry extends EntryBase {
  readonly type: 'barrier'
}

export interface ConfigurationEntry extends EntryBase {
  readonly type: 'configuration'
  readonly configuration: Configuration
}

export type Entry = CommandEntry | BarrierEntry | ConfigurationEntry

/** What a snapshot stands for: the state after `last`, with the last committed configuration at or before it. */
export interface SnapshotDescription {
  readonly last: EntryId
  readonly configuration: Configuration
  readonly configurationIndex: Index
}

// ---------------------------------------------------------------------------------------------------- messages

export interface RequestVote {
  readonly type: 'requestVote'
  /** For a pre-vote: the candidate's current term + 1. */
  readonly term: Term
  readonly last: EntryId
  readonly disruptLeader: boolean
  readonly preVote: boolean
}

export interface RequestVoteResult {
  readonly type: 'requestVoteResult'
  readonly term: Term
  readonly granted: boolean
  /** `undefined`: a legacy peer that does not say. */
  readonly preVote: boolean | undefined
}

export interface AppendEntries {
  readonly type: 'appendEntries'
  readonly term: Term
  readonly prev: EntryId
  readonly commitIndex: Index
  /** Empty: a heartbeat. Command entries may be evicted (`data` undefined): whoever sends them fetches the data. */
  readonly entries: readonly Entry[]
}

export interface AppendEntriesResult {
  readonly type: 'appendEntriesResult'
  readonly term: Term
  /** 0: success. Else the prev index that was refused (or the snapshot's index for a failed install). */
  readonly rejected: Index
  readonly lastLogIndex: Index
  /** Bits; 0 from C members. Bit 0: this member keeps silent on votes for one election timeout after it starts. */
  readonly features: number
}

export interface InstallSnapshot {
  readonly type: 'installSnapshot'
  readonly term: Term
  /** The content is not part of the value: the host streams it beside the message. */
  readonly snapshot: SnapshotDescription
}

export interface TimeoutNow {
  readonly type: 'timeoutNow'
  readonly term: Term
  readonly last: EntryId
}

export type Message =
  RequestVote | RequestVoteResult | AppendEntries | AppendEntriesResult | InstallSnapshot | TimeoutNow

/** A message with its destination. Replies go to the address that the requester announced, not to the configured one. */
export interface Envelope {
  readonly to: ServerId
  readonly address: string
  readonly message: Message
}

// ---------------------------------------------------------------------------------------------------- events, Ready

export type Proposal = { readonly type: 'command'; readonly data: Uint8Array } | { readonly type: 'barrier' }

export type ConfigurationChange =
  | { readonly type: 'add'; readonly id: ServerId; readonly address: string }
  | { readonly type: 'assign'; readonly id: ServerId; readonly role: Role }
  | { readonly type: 'remove'; readonly id: ServerId }

export type RaftEvent =
  | { readonly type: 'tick' }
  | { readonly type: 'receive'; readonly from: ServerId; readonly address: string; readonly message: Message }
  | { readonly type: 'propose'; readonly entries: readonly Proposal[] }
  /** Our disk holds the log up to here; the term says which log (a truncated tail must not count). */
  | { readonly type: 'persisted'; readonly last: EntryId }
  /** Our disk failed to store entries from `first` on: they are not ours any more, a leader steps down. */
  | { readonly type: 'persistFailed'; readonly first: Index }
  | { readonly type: 'applied'; readonly index: Index }
  /** A local snapshot is on disk: the log may be trimmed, keeping `trailing` entries before it. */
  | { readonly type: 'snapshotTaken'; readonly snapshot: SnapshotDescription; readonly trailing: number }
  /** The snapshot that a Ready asked for is on disk and in the state machine; or it could not be installed. */
  | { readonly type: 'snapshotInstalled'; readonly last: EntryId }
  | { readonly type: 'snapshotFailed'; readonly last: EntryId }
  /** A message to `to` could not be sent (no connection, queue full): replication goes back to probing. */
  | { readonly type: 'unreachable'; readonly to: ServerId }
  | { readonly type: 'readIndex'; readonly id: number }
  /** `request` names the answer in `Ready.outcomes`. */
  | { readonly type: 'change'; readonly request: number; readonly change: ConfigurationChange }
  /** `to` undefined: pick the voter that is furthest. */
  | { readonly type: 'transfer'; readonly request: number; readonly to: ServerId | undefined }

/** Why an event was refused at once; nothing has changed. Texts and codes of the wire are the handlers' business. */
export type Refusal =
  | 'notLeader'
  | 'changeInProgress'
  | 'duplicateId'
  | 'duplicateAddress'
  | 'unknownId'
  | 'badRole'
  | 'badTarget'
  | 'noTarget'
  /** A bounded number of entries or bytes waits to be committed; try again when the commit index has moved. */
  | 'pipelineFull'

/** How an accepted change or transfer ended. */
export interface Outcome {
  readonly request: number
  readonly result: 'done' | 'leadershipLost' | 'noConnection' | 'timedOut'
}

export interface Ready {
  readonly vote?: { readonly term: Term; readonly votedFor: ServerId | undefined }
  /** Install the received snapshot with this description: replaces log and state machine. Comes alone with its reply due later. */
  readonly snapshot?: SnapshotDescription
  /** Forget entries above this index, before appending. */
  readonly truncateAfter?: Index
  readonly entries: readonly Entry[]
  /** May leave now, beside the disk write. */
  readonly messages: readonly Envelope[]
  /** Votes and acknowledgements: only once vote and entries of this Ready are durable. */
  readonly messagesAfterPersist: readonly Envelope[]
  /** Apply in order; commands may be evicted. */
  readonly committed: readonly Entry[]
  readonly reads: readonly { readonly id: number; readonly index: Index }[]
  readonly outcomes: readonly Outcome[]
}

export type RaftState = 'follower' | 'candidate' | 'leader'
