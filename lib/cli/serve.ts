/**
 * `dqlite serve`: one node as a process. Knows flags, the ready line and when a process ends. Does not know what a
 * node does.
 *
 * The process lives as long as its standard input: a parent that dies takes its nodes with it, without a pid file.
 */
import { DqliteError } from '../errors.js'
import { Node, type NodeOptions } from '../node/node.js'
import { nodeLimits, nodeOptions, type NodeLimits, snapshotStrategies, type SnapshotStrategy } from '../options.js'

/** Flags as commander hands them over: text, checked here. */
export interface ServeFlags {
  readonly id: string
  readonly address: string
  readonly dir: string
  readonly bind?: string
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
  nodeLimits(limits)

  return {
    id,
    address: flags.address,
    dir: flags.dir,
    limits,
    ...(flags.bind !== undefined && { bind: flags.bind }),
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
 * in the foreground, and says good-bye with SIGHUP.
 */
export function whenAskedToEnd({ stdin }: { readonly stdin: boolean }): Promise<void> {
  return new Promise((resolve) => {
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP'] as const) process.once(signal, () => resolve())
    if (!stdin || process.stdin.isTTY) return
    for (const event of ['end', 'close', 'error'] as const) process.stdin.once(event, () => resolve())
    process.stdin.resume()
  })
}

/** Runs a node until the process is asked to end. Rejects if it cannot start, or fails while it runs. */
export async function serve(flags: ServeFlags): Promise<void> {
  const options = nodeOptionsFromFlags(flags)
  // Listened to from the beginning: who asks while the node starts is answered as soon as it has started.
  const asked = whenAskedToEnd({ stdin: true })
  const node = await Node.start(options)
  process.stdout.write(`ready ${node.bindAddress}\n`)
  await asked
  await node.stop()
}
