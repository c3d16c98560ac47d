/**
 * An unmodified go-dqlite client and driver against three of our nodes. The Go program (go/main.go) says what it checks;
 * here it is built against Debian's package, given a cluster, and believed. Skipped where Go or the package is absent.
 */
import test from 'ava'
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { go, goEnvironment, goSources, runGoProgram } from '../support/go-program.js'

const goPath = '/usr/share/gocode'
const packageFolder = path.join(goPath, 'src/github.com/canonical/go-dqlite/driver')
const missing =
  go === undefined ? 'Go is not installed' : existsSync(packageFolder) ? undefined : 'go-dqlite for Go is not installed'
if (missing !== undefined) console.log(`interop with go-dqlite is skipped: ${missing}`)
const whereGoIs = missing === undefined ? test : test.skip

// Debian's 1.11.5 knows schema 0 alone (client-protocol §18).
const parametersMax = 255

whereGoIs("go-dqlite's client and driver work with three of our nodes, through a change of leaders", async (t) => {
  t.timeout(180_000)
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-go-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))

  const program = path.join(dir, 'go-client')
  const build = spawnSync(go!, ['build', '-o', program, 'main.go'], {
    cwd: goSources,
    encoding: 'utf8',
    env: { ...goEnvironment(), GO111MODULE: 'off', GOPATH: goPath },
  })
  t.is(build.status, 0, build.stderr)
  await runGoProgram(t, { program, dir, parametersMax })
})
