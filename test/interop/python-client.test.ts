/**
 * The Python packages for dqlite against three of our nodes (client-protocol §20). The script (python/main.py) says what
 * it checks; here it gets an environment of its own with the packages, a cluster, and is believed. Skipped where Python
 * is too old or the packages cannot be had, as without a network.
 */
import test from 'ava'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { homedir, tmpdir } from 'node:os'
import path from 'node:path'
import { projectRoot } from '../../bench/peers.js'
import { freePorts, NodeProcess } from '../../lib/cli/node-process.js'

const packages = ['dqlite-dbapi==0.8.0', 'dqlite-client==0.8.0', 'dqlite-wire==0.8.0']
const installMs = 40_000
const networkLatencyNs = 20_000_000
const busyTimeoutMs = 300
const isNewEnough = 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 13))'

const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-python-'))
process.on('exit', () => rmSync(dir, { recursive: true, force: true }))

/** Also where pyenv keeps those that are not in the path. */
function findPython(): string | undefined {
  const versions = path.join(process.env['PYENV_ROOT'] ?? path.join(homedir(), '.pyenv'), 'versions')
  let installed: string[] = []
  try {
    installed = readdirSync(versions).map((version) => path.join(versions, version, 'bin/python3'))
  } catch {
    // No pyenv.
  }
  const candidates = ['python3', 'python3.13', 'python3.14', ...installed.reverse()]
  return candidates.find((python) => spawnSync(python, ['-c', isNewEnough], { stdio: 'ignore' }).status === 0)
}

const python = path.join(dir, 'venv/bin/python')

function whyNot(): string | undefined {
  const found = findPython()
  if (found === undefined) return 'Python 3.13 is not installed'
  const pip = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check', '--retries', '0', '--timeout', '10']
  for (const [program, args] of [
    [found, ['-m', 'venv', path.join(dir, 'venv')]],
    [python, [...pip, ...packages]],
  ] as const) {
    const { status, stderr, error } = spawnSync(program, args, { encoding: 'utf8', timeout: installMs })
    if (status !== 0)
      return `its packages cannot be had: ${error?.message ?? stderr.trim().split('\n').pop() ?? 'no message'}`
  }
  return undefined
}

const missing = whyNot()
if (missing !== undefined) console.log(`interop with the Python client is skipped: ${missing}`)
const wherePackagesAre = missing === undefined ? test : test.skip

wherePackagesAre("Python's driver, client and codec work with three of our nodes", async (t) => {
  t.timeout(120_000)
  const nodes: NodeProcess[] = []
  t.teardown(() => Promise.all(nodes.map((node) => node.kill('SIGKILL'))))
  for (const [i, port] of (await freePorts(3)).entries())
    nodes.push(
      await NodeProcess.start({
        id: BigInt(i + 1),
        address: `127.0.0.1:${port}`,
        dir: path.join(dir, String(i + 1)),
        flags: ['--network-latency-ns', String(networkLatencyNs), '--set', `busyTimeoutMs=${busyTimeoutMs}`],
      }),
    )

  const script = path.join(projectRoot, 'test/interop/python/main.py')
  const client = spawn(
    python,
    [script, nodes.map((node) => node.options.address).join(), nodes.map((node) => node.pid).join()],
    { stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, PYTHONDONTWRITEBYTECODE: '1' } },
  )
  t.teardown(() => client.kill('SIGKILL'))
  let output = ''
  client.stdout.setEncoding('utf8').on('data', (text: string) => (output += text))
  client.stderr.setEncoding('utf8').on('data', (text: string) => (output += text))
  const [status] = (await once(client, 'close')) as [number | null]
  for (const line of output.trimEnd().split('\n')) t.log(line)
  t.is(status, 0, output)
  // Who was not killed is still alive: no request of a foreign client brings a node down.
  t.is(nodes.filter((node) => node.hasEnded).length, 1)
})
