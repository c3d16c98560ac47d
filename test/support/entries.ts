/** Small log entries for tests of storage and its neighbours. */
import { configurationBytes, entryData, entryTypeCode } from '../../lib/codec/log-entry.js'
import type { CommandEntry, Configuration, ConfigurationEntry, Entry, Index, Term } from '../../lib/raft/types.js'

export const configuration: Configuration = {
  servers: [
    { id: 1n, address: '127.0.0.1:9001', role: 'voter' },
    { id: 0x2dc171858c3155ben, address: '127.0.0.1:9002', role: 'standby' },
    { id: 3n, address: '127.0.0.1:9003', role: 'spare' },
  ],
}

export const configurationEntry = (index: Index, term: Term = 1): ConfigurationEntry => ({
  type: 'configuration',
  index,
  term,
  byteLength: configurationBytes(configuration),
  configuration,
})

/** A command whose bytes say which entry it is. `bytes`: a multiple of 8. */
export function commandEntry(index: Index, bytes = 64, term: Term = 1): CommandEntry {
  const data = Buffer.alloc(bytes)
  for (let at = 0; at + 8 <= bytes; at += 8) {
    data.writeUInt32LE(index, at)
    data.writeUInt32LE(at ^ term, at + 4)
  }
  return { type: 'command', index, term, byteLength: bytes, data }
}

/** Entries `first` to `last`; entry 1 is a configuration, as in every log. */
export function entriesBetween(first: Index, last: Index, bytes = 64, term: Term = 1): Entry[] {
  const entries: Entry[] = []
  for (let index = first; index <= last; index++)
    entries.push(index === 1 ? configurationEntry(1, term) : commandEntry(index, bytes, term))
  return entries
}

/** Everything that an entry says, comparable; evicted data is `undefined`. */
export function described(entry: Entry): string {
  const data =
    entry.type === 'command' && entry.data === undefined ? 'evicted' : Buffer.from(entryData(entry)).toString('hex')
  return `${entry.index}/${entry.term} ${entryTypeCode(entry.type)} ${entry.byteLength} ${data}`
}
