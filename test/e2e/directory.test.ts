/** `dqlite inspect`, `last-entry` and `recover` as operators meet them: processes, statuses, one line per refusal. */
import test, { type ExecutionContext } from 'ava'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { cliPath, freePorts, NodeProcess } from '../../lib/cli/node-process.js'
import { connect } from '../../lib/index.js'

function temporaryDirectory(t: ExecutionContext): string {
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-directory-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

async function dqlite(...args: string[]): Promise<{ status: number | null; stdout: string; stderr: string }> {
  const child = spawn(process.execPath, [cliPath, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [status] = (await once(child, 'close')) as [number | null]
  return { status, stdout, stderr }
}

async function refuses(t: ExecutionContext, args: string[], words: RegExp): Promise<void> {
  const { status, stdout, stderr } = await dqlite(...args)
  t.is(status, 1, args.join(' '))
  t.is(stdout, '')
  t.regex(stderr, words)
  t.is(stderr.trimEnd().split('\n').length, 1, stderr)
}

const latency = ['--network-latency-ns', '20000000']

test('a cluster that lost two of three voters goes on from one directory, and from copies of it', async (t) => {
  const dir = temporaryDirectory(t)
  const ports = await freePorts(3)
  const nodes: NodeProcess[] = []
  const startNode = async (id: number, at = path.join(dir, String(id))): Promise<NodeProcess> => {
    const address = `127.0.0.1:${ports[id - 1]}`
    const node = await NodeProcess.start({ id: BigInt(id), address, dir: at, flags: latency })
    t.teardown(() => node.kill('SIGKILL'))
    return node
  }
  for (const id of [1, 2, 3]) nodes.push(await startNode(id))
  const addresses = nodes.map((node) => node.options.address)
  {
    await using db = await connect({ addresses: [addresses[0]!], database: 'app' })
    for (const id of [2, 3]) await db.add({ id: BigInt(id), address: addresses[id - 1]! })
    await db.exec('CREATE TABLE t (x)')
    for (let i = 0; i < 10; i++) await db.exec('INSERT INTO t VALUES (?)', [i])
  }
  const data = path.join(dir, '1')
  const cluster = (ids: readonly number[]) =>
    JSON.stringify(ids.map((id, i) => ({ id: i === 0 ? String(id) : id, address: addresses[id - 1], role: 0 })))
  for (const node of nodes.slice(1)) await node.kill('SIGKILL')

  // The survivor still runs.
  await refuses(t, ['recover', '--dir', data, '--cluster', cluster([1])], new RegExp(`another process uses ${data}`))
  await refuses(t, ['last-entry', '--dir', data], /another process uses/)
  const running = await dqlite('inspect', '--dir', data)
  t.is(running.status, 0)
  t.regex(running.stdout, /in use by a node/)
  await nodes[0]!.kill('SIGKILL')

  const before = await dqlite('last-entry', '--dir', data)
  t.regex(before.stdout, /^\d+ \d+\n$/)
  const last = Number(before.stdout.split(' ')[0])
  const names = readdirSync(data)
  for (const [json, words] of [
    ['', /--cluster/],
    ['[{"id":1,"address":"a:1","role":1}]', /there is no voter/],
  ] as const)
    await refuses(t, ['recover', '--dir', data, '--cluster', json], words)
  t.deepEqual(readdirSync(data), names, 'nothing was written')

  const recovered = await dqlite('recover', '--dir', data, '--cluster', cluster([1, 2]))
  t.is(recovered.status, 0, recovered.stderr)
  t.is(recovered.stdout, `${last + 1} 1\n`)
  t.is((await dqlite('last-entry', '--dir', data)).stdout, `${last + 1} 1\n`)
  const inspection = JSON.parse((await dqlite('inspect', '--dir', data, '--json')).stdout) as {
    configuration: unknown
    databases: { name: string; tables: Record<string, number> }[]
    irregularities: string[]
  }
  t.deepEqual(inspection.configuration, {
    index: last + 1,
    servers: [1, 2].map((id) => ({ id: String(id), address: addresses[id - 1], role: 'voter' })),
  })
  t.like(inspection.databases[0], { name: 'app', tables: { t: 10 } })
  t.deepEqual(inspection.irregularities, [])

  // The second member starts with a copy.
  const copy = path.join(dir, 'copy')
  cpSync(data, copy, { recursive: true })
  await startNode(1)
  await startNode(2, copy)
  await using db = await connect({ addresses: addresses.slice(0, 2), database: 'app' })
  t.is((await db.query('SELECT x FROM t')).length, 10)
  await db.exec('INSERT INTO t VALUES (10)')
  t.deepEqual(
    (await db.cluster()).map(({ id, role }) => [id, role]),
    [
      [1n, 'voter'],
      [2n, 'voter'],
    ],
  )
})

test('a directory that is not there, or holds nothing, is refused and not made', async (t) => {
  const empty = temporaryDirectory(t)
  const missing = path.join(empty, 'missing')
  const cluster = '[{"id":1,"address":"a:1","role":0}]'
  await refuses(t, ['last-entry', '--dir', missing], /missing/)
  await refuses(t, ['inspect', '--dir', missing], /missing/)
  await refuses(t, ['recover', '--dir', missing, '--cluster', cluster], /missing/)
  t.false(existsSync(missing))
  await refuses(t, ['recover', '--dir', empty, '--cluster', cluster], /holds no entries/)
  t.is((await dqlite('last-entry', '--dir', empty)).stdout, '0 0\n')
  t.regex((await dqlite('inspect', '--dir', empty)).stdout, /nothing irregular/)
  t.deepEqual(readdirSync(empty), [])
})
