/**
 * Messages, entries and configurations as short text, for traces and scenario files.
 */
import type { Configuration, Entry, EntryId, Message, Role } from '../../lib/raft/types.js'

const roleLetters: Record<Role, string> = { voter: '', standby: '+', spare: '-' }

export const describeId = ({ index, term }: EntryId): string => `${index}/t${term}`

/** Voters are bare ids, standbys carry a plus, spares a minus: `1 2 3+ 4-`. */
export const describeConfiguration = ({ servers }: Configuration): string =>
  servers.map(({ id, role }) => `${id}${roleLetters[role]}`).join(' ')

const decoder = new TextDecoder()

export function describeData(data: Uint8Array | undefined): string {
  if (data === undefined) return '(evicted)'
  const text = decoder.decode(data).replace(/ +$/, '')
  return /^[\x20-\x7e]*$/.test(text) ? `"${text}"` : `(${data.byteLength} bytes)`
}

export function describeEntry(entry: Entry): string {
  switch (entry.type) {
    case 'command':
      return `${describeId(entry)} ${describeData(entry.data)}`
    case 'barrier':
      return `${describeId(entry)} barrier`
    case 'configuration':
      return `${describeId(entry)} configuration [${describeConfiguration(entry.configuration)}]`
  }
}

export function describeMessage(message: Message): string {
  const { term } = message
  switch (message.type) {
    case 'requestVote':
      return `${message.preVote ? 'preVote' : 'requestVote'} t${term} last=${describeId(message.last)}${message.disruptLeader ? ' disrupt' : ''}`
    case 'requestVoteResult': {
      const phase = message.preVote === undefined ? 'vote?' : message.preVote ? 'preVote' : 'vote'
      return `${phase} t${term} ${message.granted ? 'granted' : 'refused'}`
    }
    case 'appendEntries': {
      const entries = message.entries.length === 0 ? 'heartbeat' : `[${message.entries.map(describeEntry).join(', ')}]`
      return `append t${term} prev=${describeId(message.prev)} commit=${message.commitIndex} ${entries}`
    }
    case 'appendEntriesResult': {
      const verdict = message.rejected === 0 ? 'ok' : `rejected=${message.rejected}`
      return `appendResult t${term} ${verdict} last=${message.lastLogIndex}`
    }
    case 'installSnapshot':
      return `installSnapshot t${term} last=${describeId(message.snapshot.last)} [${describeConfiguration(message.snapshot.configuration)}]@${message.snapshot.configurationIndex}`
    case 'timeoutNow':
      return `timeoutNow t${term} last=${describeId(message.last)}`
  }
}
