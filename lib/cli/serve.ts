/**
 * `dqlite serve`: one node as a process. Knows flags, the ready line and when a process ends. Does not know what a
 * node does.
 *
 * The process lives as long as its standard input: a parent that dies takes its nodes with it, without a pid file.
 */
import { mkdir, rmdir } from 'node:fs/promises'
import path from 'node:path'
import v8 from 'node:v8'
import { DqliteError } from '../errors.js'
import { dialThroughProxy } from '../network/dial-proxy.js'
import { Node, type NodeOptions } from '../node/node.js'
import { nodeOptions, type NodeLimits, snapshotStrategies, type SnapshotStrategy } from '../options.js'

/** Flags as commander hands them over: text, checked here. */
export interface ServeFlags {
  readonly id: string
  readonly address: string
  readonly dir: string
  readonly bind?: string
  readonly dialProxy?: string
  readonly networkLatencyNs?: string
  readonly failureDomain?: string
  readonly snapshotThreshold?: string
  readonly snapshotTrailing?: string
  readonly snapshotStrategy?: string
  readonly autoRecovery?: string
  readonly set?: readonly string[]
}

const uint64Max = 2n ** 64n - 1n

function bad(flag: string, value: string, mustBe: string): DqliteError {
  return new DqliteError('BAD_OPTION', `option ${flag} is ${JSON.stringify(value)}; it must be ${mustBe}`)
}

function uint64(flag: string, value: string, min: bigint, max = uint64Max): bigint {
  if (!/^[0-9]{1,20}$/.test(value) || BigInt(value) < min || BigInt(value) > max)
    throw bad(flag, value, `a whole number from ${String(min)} to ${String(max)}`)
  return BigInt(value)
}

function wholeNumber(flag: string, value: string, max = Number.MAX_SAFE_INTEGER): number {
  return Number(uint64(flag, value, 0n, BigInt(max)))
}

/** `--set name=value`, any limit of lib/options.ts. */
function limitOverrides(pairs: readonly string[]): Partial<Record<keyof NodeLimits, number>> {
  const overrides: Partial<Record<keyof NodeLimits, number>> = {}
  for (const pair of pairs) {
    const [, name, value] = /^([A-Za-z]+)=(.*)$/.exec(pair) ?? []
    if (name === undefined || value === undefined) throw bad('--set', pair, 'name=value')
    if (!Object.hasOwn(nodeOptions, name))
      throw new DqliteError('BAD_OPTION', `option --set ${pair}: there is no limit named ${name}; see the README`)
    overrides[name as keyof NodeLimits] = wholeNumber(`--set ${name}`, value)
  }
  return overrides
}

/** Checks every flag before anything is opened. Throws BAD_OPTION that names the flag. */
export function nodeOptionsFromFlags(flags: ServeFlags): NodeOptions {
  const id = uint64('--id', flags.id, 1n)
  for (const [flag, value] of [
    ['--address', flags.address],
    ['--dir', flags.dir],
    ['--bind', flags.bind],
    ['--dial-proxy', flags.dialProxy],
  ] as const)
    if (value === '') throw bad(flag, value, 'not empty')

  const { snapshotThreshold: threshold, snapshotTrailing: trailing, snapshotStrategy: strategy } = flags
  if ((threshold === undefined) !== (trailing === undefined))
    throw new DqliteError('BAD_OPTION', 'options --snapshot-threshold and --snapshot-trailing come together')
  if (strategy !== undefined && threshold === undefined)
    throw new DqliteError('BAD_OPTION', 'option --snapshot-strategy needs --snapshot-threshold and --snapshot-trailing')
  if (strategy !== undefined && !(snapshotStrategies as readonly string[]).includes(strategy))
    throw bad('--snapshot-strategy', strategy, snapshotStrategies.join(' or '))
  if (flags.autoRecovery !== undefined && !/^[01]$/.test(flags.autoRecovery))
    throw bad('--auto-recovery', flags.autoRecovery, '0 or 1')

  const limits = limitOverrides(flags.set ?? [])
  if (threshold !== undefined) limits.snapshotThreshold = wholeNumber('--snapshot-threshold', threshold)
  if (trailing !== undefined) limits.snapshotTrailing = wholeNumber('--snapshot-trailing', trailing)

  return {
    id,
    address: flags.address,
    dir: flags.dir,
    limits,
    ...(flags.bind !== undefined && { bind: flags.bind }),
    ...(flags.dialProxy !== undefined && { dial: dialThroughProxy(flags.dialProxy) }),
    // 1 ms to 1 h, as the C library's call takes it (raft-wire §6.1).
    ...(flags.networkLatencyNs !== undefined && {
      networkLatencyNs: Number(uint64('--network-latency-ns', flags.networkLatencyNs, 1_000_000n, 3_600_000_000_000n)),
    }),
    ...(flags.failureDomain !== undefined && { failureDomain: uint64('--failure-domain', flags.failureDomain, 0n) }),
    ...(strategy !== undefined && { snapshotStrategy: strategy as SnapshotStrategy }),
    ...(flags.autoRecovery !== undefined && { autoRecovery: flags.autoRecovery === '1' }),
  }
}

/**
 * Resolves when the operator or the parent wants the process to end. A terminal is not read: it belongs to whoever is
 * in the foreground, and says good-bye with SIGHUP. Signals often come twice (from the terminal, and from npm): the first
 * counts.
 */
export function whenAskedToEnd({ stdin }: { readonly stdin: boolean }): Promise<undefined> {
  return new Promise((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.on(signal, () => resolve(undefined))
    if (!stdin || process.stdin.isTTY) return
    for (const event of ['end', 'close', 'error'] as const) process.stdin.once(event, () => resolve(undefined))
    process.stdin.resume()
  })
}

/** The first directory that had to be made, if any. */
async function makeDirectory(dir: string): Promise<string | undefined> {
  try {
    return await mkdir(dir, { recursive: true, mode: 0o700 })
  } catch (cause) {
    throw new DqliteError('DISK_FAILED', `cannot make the data directory ${dir}`, { cause })
  }
}

/** A node that was refused leaves nothing behind: the directories made for it go, unless somebody has put something in. */
async function unmakeDirectory(dir: string, created: string | undefined): Promise<void> {
  if (created === undefined) return
  try {
    for (let each = path.resolve(dir); each.length >= created.length; each = path.dirname(each)) await rmdir(each)
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOTEMPTY')) throw error
  }
}

/** Runs a node until the process is asked to end. Rejects if it cannot start, or fails while it runs. */
export async function serve(flags: ServeFlags): Promise<void> {
  const options = nodeOptionsFromFlags(flags)
  // Listened to from the beginning: who asks while the node starts is answered as soon as it has started.
  const asked = whenAskedToEnd({ stdin: true })
  const warnings: string[] = []
  let warn = (text: string) => void warnings.push(text)
  let fail: (error: DqliteError) => void
  const failed = new Promise<DqliteError>((resolve) => (fail = resolve))

  const created = await makeDirectory(options.dir)
  let node: Node
  try {
    // Pages pass through as Buffers, a few MB of them alive at a time. V8 counts what passed against its small heap and
    // would mark it ten times a second under load; a larger step costs memory in the tens of MB.
    v8.setFlagsFromString('--heap-growing-percent=1500')
    node = await Node.start({ ...options, onWarning: (text) => warn(text), onFailure: (error) => fail(error) })
  } catch (error) {
    await unmakeDirectory(options.dir, created)
    throw error
  }
  // A start that fails says one thing; what was odd about one that succeeds is said after it.
  warn = (text) => void process.stderr.write(`dqlite: warning: ${text.replaceAll(/\s*\n\s*/g, ' ')}\n`)
  process.stdout.write(`ready ${node.bindAddress ?? options.address}\n`)
  for (const text of warnings) warn(text)

  const failure = await Promise.race([asked, failed])
  await node.stop()
  if (failure !== undefined) throw failure
}
