/**
 * `dqlite serve` as operators meet it: real processes, their exit statuses and their last words. What a node does while it
 * runs is tested elsewhere.
 */
import test, { type ExecutionContext } from 'ava'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { freePorts } from '../../lib/cli/node-process.js'
import { connect } from '../../lib/index.js'
import { dialThroughProxy } from '../../lib/network/dial-proxy.js'

const cli = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', '..', 'lib', 'cli', 'main.js')

function temporaryDirectory(t: ExecutionContext): string {
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-serve-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

interface Run {
  readonly child: ChildProcess
  readonly ended: Promise<{ status: number | null; stdout: string; stderr: string }>
  /** The line `ready …`, or undefined if it ended before. */
  readonly ready: Promise<string | undefined>
}

function dqlite(t: ExecutionContext, args: readonly string[], stdin: 'pipe' | 'ignore' = 'pipe'): Run {
  const child = spawn(process.execPath, [cli, ...args], { stdio: [stdin, 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  let stdout = ''
  let stderr = ''
  let onReady: (line: string | undefined) => void
  const ready = new Promise<string | undefined>((resolve) => (onReady = resolve))
  child.stdout!.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
    const line = /^ready .*$/m.exec(stdout)?.[0]
    if (line !== undefined) onReady(line)
  })
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const ended = once(child, 'close').then((closed) => {
    const [status] = closed as [number | null]
    onReady(undefined)
    return { status, stdout, stderr }
  })
  return { child, ended, ready }
}

const serve = (t: ExecutionContext, options: Readonly<Record<string, string>>, stdin?: 'pipe' | 'ignore') =>
  dqlite(t, ['serve', ...Object.entries(options).flatMap(([name, value]) => [`--${name}`, value])], stdin)

async function freeAddress(): Promise<string> {
  const [port] = await freePorts(1)
  return `127.0.0.1:${port}`
}

/** Ends with status 1 after one line on standard error that matches, and nothing on standard output. */
async function refuses(t: ExecutionContext, run: Run, words: RegExp): Promise<void> {
  const { status, stdout, stderr } = await run.ended
  t.is(status, 1, stderr)
  t.regex(stderr, words)
  t.is(stderr.trimEnd().split('\n').length, 1, `one line, but: ${stderr}`)
  t.is(stdout, '')
}

test('it says where it listens, and ends with status 0 on SIGTERM', async (t) => {
  const address = await freeAddress()
  const run = serve(t, { id: '1', address, dir: temporaryDirectory(t) })
  t.is(await run.ready, `ready ${address}`)
  run.child.kill('SIGTERM')
  const { status, stderr } = await run.ended
  t.is(status, 0)
  t.is(stderr, '')
})

test('it ends with status 0 when its standard input closes', async (t) => {
  const run = serve(t, { id: '1', address: await freeAddress(), dir: temporaryDirectory(t) })
  t.truthy(await run.ready)
  run.child.stdin!.end()
  t.is((await run.ended).status, 0)
})

test('with no standard input at all it ends at once, with status 0', async (t) => {
  const run = serve(t, { id: '1', address: await freeAddress(), dir: temporaryDirectory(t) }, 'ignore')
  t.is((await run.ended).status, 0)
})

test('it listens on a Unix socket, leaves no file behind, and ends like any other', async (t) => {
  const dir = temporaryDirectory(t)
  const bind = path.join(dir, 'socket')
  const run = serve(t, { id: '1', address: 'node-one', dir: path.join(dir, 'data'), bind })
  t.is(await run.ready, `ready ${bind}`)
  const socket = net.connect(bind)
  await once(socket, 'connect')
  socket.destroy()
  run.child.stdin!.end()
  t.is((await run.ended).status, 0)
  t.false(existsSync(bind))
})

test('it listens on an abstract socket', async (t) => {
  const bind = `@dqlite-serve-test-${process.pid}`
  const run = serve(t, { id: '1', address: 'node-one', dir: temporaryDirectory(t), bind })
  t.is(await run.ready, `ready ${bind}`)
  run.child.kill('SIGTERM')
  t.is((await run.ended).status, 0)
})

test('a node with an id of 64 bits bootstraps', async (t) => {
  const run = serve(t, { id: '3297041220608546238', address: await freeAddress(), dir: temporaryDirectory(t) })
  t.truthy(await run.ready)
  run.child.kill('SIGTERM')
  t.is((await run.ended).status, 0)
})

const badOptions: readonly (readonly [string, Readonly<Record<string, string>>, RegExp])[] = [
  ['an id that is no number', { id: 'x' }, /--id is "x"; it must be a whole number from 1 to 18446744073709551615/],
  ['the id 0', { id: '0' }, /--id is "0"/],
  ['an id beyond 64 bits', { id: '18446744073709551616' }, /--id is "18446744073709551616"/],
  ['an empty address', { address: '' }, /--address is ""/],
  ['an address nobody can listen on', { address: 'one:two:three' }, /one:two:three/],
  ['a latency below a millisecond', { 'network-latency-ns': '999999' }, /--network-latency-ns is "999999"/],
  ['a negative failure domain', { 'failure-domain': '-1' }, /--failure-domain is "-1"/],
  ['a threshold without trailing', { 'snapshot-threshold': '8' }, /--snapshot-threshold and --snapshot-trailing/],
  ['trailing below the threshold', { 'snapshot-threshold': '8', 'snapshot-trailing': '4' }, /snapshotTrailing is 4/],
  [
    'an unknown strategy',
    { 'snapshot-threshold': '8', 'snapshot-trailing': '8', 'snapshot-strategy': 'bold' },
    /--snapshot-strategy is "bold"; it must be static or dynamic/,
  ],
  ['auto recovery that is neither', { 'auto-recovery': 'yes' }, /--auto-recovery is "yes"; it must be 0 or 1/],
  ['an unknown limit', { set: 'speed=11' }, /there is no limit named speed/],
  ['a limit out of its range', { set: 'heartbeatMs=0' }, /heartbeatMs is 0; it must be a whole number of ms from 1/],
  ['an unknown flag', { fast: '1' }, /unknown option '--fast'/],
]
for (const [what, options, words] of badOptions)
  test(`${what} is refused in one line, and nothing is written`, async (t) => {
    const dir = path.join(temporaryDirectory(t), 'data')
    await refuses(t, serve(t, { id: '1', address: await freeAddress(), dir, ...options }), words)
    t.false(existsSync(dir))
  })

test('a missing flag is refused in one line', async (t) => {
  await refuses(t, dqlite(t, ['serve', '--id', '1']), /--address/)
})

test('a missing or unknown command is refused in one line', async (t) => {
  await refuses(t, dqlite(t, []), /command/)
  await refuses(t, dqlite(t, ['swerve']), /swerve/)
})

test('a busy address is refused in one line, and nothing is written', async (t) => {
  const dir = path.join(temporaryDirectory(t), 'data')
  const other = net.createServer().listen(0, '127.0.0.1')
  await once(other, 'listening')
  t.teardown(() => other.close())
  const address = `127.0.0.1:${(other.address() as net.AddressInfo).port}`
  await refuses(t, serve(t, { id: '1', address, dir }), new RegExp(address))
  t.true(!existsSync(dir) || readdirSync(dir).length === 0)
})

test('a directory that another node uses is refused in one line that names it', async (t) => {
  const dir = temporaryDirectory(t)
  const first = serve(t, { id: '1', address: await freeAddress(), dir })
  t.truthy(await first.ready)
  await refuses(t, serve(t, { id: '1', address: await freeAddress(), dir }), new RegExp(dir))
  first.child.kill('SIGTERM')
  t.is((await first.ended).status, 0)
})

test('a directory where a file is, is refused in one line that names it', async (t) => {
  const dir = path.join(temporaryDirectory(t), 'data')
  writeFileSync(dir, 'not a directory')
  await refuses(t, serve(t, { id: '1', address: await freeAddress(), dir }), new RegExp(dir))
})

test('a data directory of a newer format is refused in one line that names the file', async (t) => {
  const dir = path.join(temporaryDirectory(t), 'data')
  mkdirSync(dir)
  const metadata = Buffer.alloc(32)
  for (const [i, word] of [2n, 1n, 1n, 0n].entries()) metadata.writeBigUInt64LE(word, i * 8) // format 2
  writeFileSync(path.join(dir, 'metadata1'), metadata)
  const before = readdirSync(dir)
  await refuses(t, serve(t, { id: '1', address: await freeAddress(), dir }), /metadata1/)
  t.deepEqual(
    readdirSync(dir).filter((name) => name !== 'dqlite-lock'),
    before,
  )
})

test('a node comes back on its directory with its address and its data', async (t) => {
  const dir = temporaryDirectory(t)
  const address = await freeAddress()
  for (let round = 0; round < 3; round++) {
    const run = serve(t, { id: '1', address, dir })
    t.is(await run.ready, `ready ${address}`)
    run.child.kill(round === 1 ? 'SIGKILL' : 'SIGTERM')
    t.is((await run.ended).status, round === 1 ? null : 0)
  }
})

test('help and version end with status 0', async (t) => {
  const help = await dqlite(t, ['serve', '--help']).ended
  t.is(help.status, 0)
  t.regex(help.stdout, /--network-latency-ns/)
  const version = await dqlite(t, ['--version']).ended
  t.is(version.status, 0)
  t.regex(version.stdout, /^\d+\.\d+\.\d+\n$/)
})

test('nodes whose connections a dial proxy makes form a cluster, and go on without one of them', async (t) => {
  const dir = temporaryDirectory(t)
  const ids = [1, 2, 3]
  const socketOf = (id: number) => path.join(dir, `node-${id}`)
  const proxy = path.join(dir, 'proxy')
  const program = path.join(path.dirname(fileURLToPath(import.meta.url)), '..', 'support', 'dial-proxy.js')
  const child = spawn(process.execPath, [program, proxy, ...ids.map((id) => `member-${id}=${socketOf(id)}`)], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  t.teardown(() => child.kill('SIGKILL'))
  await once(child.stdout, 'data')
  // Their addresses are names that mean something to the proxy only.
  const runs = ids.map((id) =>
    serve(t, {
      id: String(id),
      address: `member-${id}`,
      dir: path.join(dir, `data-${id}`),
      bind: socketOf(id),
      'dial-proxy': proxy,
      'network-latency-ns': '20000000',
    }),
  )
  for (const [i, run] of runs.entries()) t.is(await run.ready, `ready ${socketOf(ids[i]!)}`)
  const dial = dialThroughProxy(proxy)
  await using db = await connect({ addresses: ids.map((id) => `member-${id}`), database: 'app', dial })
  for (const id of [2, 3]) await db.add({ id: BigInt(id), address: `member-${id}` })
  await db.exec('CREATE TABLE t (x)')
  await db.exec('INSERT INTO t VALUES (randomblob(3000000))')
  const leader = Number((await db.leader()).id)
  runs[leader - 1]!.child.kill('SIGKILL')
  await db.exec('INSERT INTO t VALUES (1)', [], { idempotent: true })
  t.true((await db.query<{ n: number }>('SELECT count(*) AS n FROM t'))[0]!.n >= 2)
  for (const [i, run] of runs.entries()) {
    if (i === leader - 1) continue
    run.child.stdin!.end()
    t.is((await run.ended).status, 0)
  }
})

test('a dial proxy that cannot be one is refused in one line', async (t) => {
  const dir = path.join(temporaryDirectory(t), 'data')
  const options = { id: '1', address: await freeAddress(), dir, 'dial-proxy': '127.0.0.1:9' }
  await refuses(t, serve(t, options), /dial proxy "127\.0\.0\.1:9" must be/)
  t.false(existsSync(dir))
})
