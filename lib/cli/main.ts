#!/usr/bin/env node
/**
 * The command `dqlite`: flags, help, one line per failure, exit statuses. Does not know what a command does, and loads
 * only the one that was asked for.
 */
import { Command, CommanderError } from 'commander'
import { readFileSync } from 'node:fs'
import type { DirectoryFlags, InspectFlags, RecoverFlags } from './directory.js'
import type { ServeFlags } from './serve.js'
import type { ClusterFlags, SqlFlags } from './sql.js'
import type { StartFlags } from './start.js'

const { version } = JSON.parse(readFileSync(new URL('../../../package.json', import.meta.url), 'utf8')) as {
  version: string
}

const collect = (value: string, values: readonly string[]) => [...values, value]

const program = new Command('dqlite')
  .description('Distributed SQLite for Node.js')
  .version(version)
  .showSuggestionAfterError(false)
  .exitOverride()
  // Failures are said once, by the code at the end of this file.
  .configureOutput({ outputError: () => undefined, writeErr: () => undefined })

program
  .command('serve')
  .description('run one node until SIGTERM, or until standard input closes; prints "ready ADDRESS" once it listens')
  .requiredOption('--id <n>', 'id of this node; 1 and 3297041220608546238 start a new cluster in an empty directory')
  .requiredOption('--address <address>', 'the address that the cluster knows this node by')
  .requiredOption('--dir <dir>', 'data directory; created if it does not exist')
  .option('--bind <address>', 'where to listen: host:port, /path/of/a/socket or @name (default: the address)')
  .option(
    '--dial-proxy <path>',
    'reach other nodes through the Unix socket of a process that answers "ADDRESS" with "OK" and then carries the stream',
  )
  .option('--network-latency-ns <ns>', 'one-way latency L between nodes: heartbeat 1.5 L, election timeout 15 L')
  .option('--failure-domain <n>', 'a number that nodes sharing a fate have in common')
  .option('--snapshot-threshold <entries>', 'applied entries after which a snapshot is taken')
  .option('--snapshot-trailing <entries>', 'entries kept before a snapshot')
  .option(
    '--snapshot-strategy <strategy>',
    'static, or dynamic: keep entries only while they are smaller than the snapshot',
  )
  .option(
    '--auto-recovery <0|1>',
    'at start set aside a damaged file whose content something else here holds (1, the default), or refuse (0)',
  )
  .option('--set <name=value>', 'set a limit, see the README; may be repeated', collect, [])
  .action(async (flags: ServeFlags) => (await import('./serve.js')).serve(flags))

program
  .command('start')
  .description('show it: three nodes as processes, a workload, the leader killed in the middle of it, the proof')
  .option('--once', 'end after the report; status 0 only if everything held')
  .option('--dir <dir>', 'keep the data there instead of a temporary directory')
  .option('--port <n>', 'first of three consecutive ports (default: free ones)')
  .option('--seconds <s>', 'how long to write', '6')
  .option('--clients <n>', 'concurrent writers', '8')
  .action(async (flags: StartFlags) => (await import('./start.js')).start(flags))

program
  .command('sql <statement>')
  .description('run one statement on the leader and show its rows')
  .requiredOption('--addresses <list>', 'addresses of some members, separated by commas')
  .requiredOption('--database <name>', 'the database; created if it does not exist')
  .action(async (statement: string, flags: SqlFlags) => (await import('./sql.js')).sql(statement, flags))

program
  .command('members')
  .description('show the members of a cluster and who leads')
  .requiredOption('--addresses <list>', 'addresses of some members, separated by commas')
  .action(async (flags: ClusterFlags) => (await import('./sql.js')).members(flags))

program
  .command('inspect')
  .description('show what is in a data directory: files, configuration, rows, and everything odd; changes nothing')
  .requiredOption('--dir <dir>', 'data directory')
  .option('--json', 'as JSON')
  .action(async (flags: InspectFlags) => (await import('./directory.js')).inspect(flags))

program
  .command('last-entry')
  .description('print index and term of the last entry in the data directory of a stopped node')
  .requiredOption('--dir <dir>', 'data directory')
  .action(async (flags: DirectoryFlags) => (await import('./directory.js')).lastEntry(flags))

program
  .command('recover')
  .description('after a majority was lost for good: give the data directory of a stopped node a new configuration')
  .requiredOption('--dir <dir>', 'data directory')
  .requiredOption(
    '--cluster <json>',
    'the members, as [{"id":"1","address":"10.0.0.1:9001","role":0}, …]; role 0 voter, 1 stand-by, 2 spare',
  )
  .action(async (flags: RecoverFlags) => (await import('./directory.js')).recover(flags))

/** One line: what went wrong, and after it what caused it. */
function oneLine(error: unknown): string {
  const parts: string[] = []
  let cause = error
  for (; cause instanceof Error && parts.length < 5; cause = cause.cause) parts.push(cause.message)
  return (parts.join(': ') || 'no reason was given').replaceAll(/\s*\n\s*/g, ' ')
}

try {
  await program.parseAsync()
} catch (error) {
  // Help and version end with status 0, having printed what was asked for.
  if (!(error instanceof CommanderError && error.exitCode === 0)) {
    const isHelp = error instanceof CommanderError && error.code === 'commander.help'
    const text = isHelp ? 'a command is missing; see dqlite --help' : oneLine(error).replace(/^error: /, '')
    process.stderr.write(`dqlite: ${text}\n`)
    process.exitCode = 1
  }
}
// A node that has stopped leaves nothing behind that could keep the process; what a dependency leaves must not either.
process.exit()
