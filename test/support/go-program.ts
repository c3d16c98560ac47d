/**
 * Finds Go, and gives the Go program of the interoperability tests (test/interop/go/main.go says what it checks) a cluster
 * of three of our nodes. Knows nothing of how the program was built.
 */
import type { ExecutionContext } from 'ava'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { projectRoot } from '../../bench/peers.js'
import { freePorts, NodeProcess } from '../../lib/cli/node-process.js'

/** How to run Go; undefined where it is not installed. */
export const go = ['go', '/usr/local/go/bin/go', '/usr/lib/go/bin/go'].find(
  (candidate) => spawnSync(candidate, ['version'], { stdio: 'ignore' }).status === 0,
)
export const goSources = path.join(projectRoot, 'test/interop/go')
const networkLatencyNs = 20_000_000

/** Builds without C and keeps what it compiled for the next run; never fetches another Go. */
export function goEnvironment(): NodeJS.ProcessEnv {
  const cache = path.join(tmpdir(), 'dqlite-go-cache')
  mkdirSync(cache, { recursive: true })
  return { ...process.env, CGO_ENABLED: '0', GOTOOLCHAIN: 'local', GOFLAGS: '', GOCACHE: cache }
}

/** Runs a built program against three fresh nodes, logs its lines and believes its status. */
export async function runGoProgram(
  t: ExecutionContext,
  { program, dir, parametersMax }: { program: string; dir: string; parametersMax: number },
): Promise<void> {
  const nodes: NodeProcess[] = []
  t.teardown(() => Promise.all(nodes.map((node) => node.kill('SIGKILL'))))
  for (const [i, port] of (await freePorts(3)).entries())
    nodes.push(
      await NodeProcess.start({
        id: BigInt(i + 1),
        address: `127.0.0.1:${port}`,
        dir: path.join(dir, String(i + 1)),
        flags: ['--network-latency-ns', String(networkLatencyNs)],
      }),
    )

  const client = spawn(
    program,
    [
      ...['--addr', nodes.map((node) => node.options.address).join()],
      ...['--pids', nodes.map((node) => node.pid).join()],
      ...['--parameters', String(parametersMax)],
    ],
    { stdio: ['ignore', 'pipe', 'pipe'] },
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
}
