/**
 * An unmodified go-dqlite client and driver against three of our nodes. The Go program (go/main.go) says what it checks;
 * here it is built against Debian's package, given a cluster, and believed. Skipped where Go or the package is absent.
 */
import test from 'ava'
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { projectRoot } from '../../bench/peers.js'
import { freePorts, NodeProcess } from '../../lib/cli/node-process.js'

const goPath = '/usr/share/gocode'
const packageFolder = path.join(goPath, 'src/github.com/canonical/go-dqlite/driver')
const go = ['go', '/usr/local/go/bin/go', '/usr/lib/go/bin/go'].find(
  (candidate) => spawnSync(candidate, ['version'], { stdio: 'ignore' }).status === 0,
)
const missing =
  go === undefined ? 'Go is not installed' : existsSync(packageFolder) ? undefined : 'go-dqlite for Go is not installed'
if (missing !== undefined) console.log(`interop with go-dqlite is skipped: ${missing}`)
const whereGoIs = missing === undefined ? test : test.skip

const networkLatencyNs = 20_000_000

whereGoIs("go-dqlite's client and driver work with three of our nodes, through a change of leaders", async (t) => {
  t.timeout(180_000)
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-go-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))

  const program = path.join(dir, 'go-client')
  const cache = path.join(tmpdir(), 'dqlite-go-cache')
  mkdirSync(cache, { recursive: true })
  const build = spawnSync(go!, ['build', '-o', program, 'main.go'], {
    cwd: path.join(projectRoot, 'test/interop/go'),
    encoding: 'utf8',
    env: { ...process.env, CGO_ENABLED: '0', GO111MODULE: 'off', GOFLAGS: '', GOPATH: goPath, GOCACHE: cache },
  })
  t.is(build.status, 0, build.stderr)

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
    ['--addr', nodes.map((node) => node.options.address).join(), '--pids', nodes.map((node) => node.pid).join()],
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
})
