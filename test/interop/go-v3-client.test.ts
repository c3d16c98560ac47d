/**
 * The Go program of go-client.test.ts a second time, built against go-dqlite v3: the generation that remembers leaders,
 * probes in parallel and sends both layouts of parameters (client-protocol §11, §18). go-v3/ pins its modules; where Go
 * or they are not to be had, as without a network, the test is skipped.
 */
import test from 'ava'
import { spawnSync, type SpawnSyncReturns } from 'node:child_process'
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { projectRoot } from '../../bench/peers.js'
import { go, goEnvironment, goSources, runGoProgram } from '../support/go-program.js'

const modules = path.join(projectRoot, 'test/interop/go-v3')
const modulesMs = 40_000
const parametersMax = 32_766

const sources = mkdtempSync(path.join(tmpdir(), 'dqlite-go-v3-sources-'))
process.on('exit', () => rmSync(sources, { recursive: true, force: true }))

/** The same program but for its import paths. */
function writeSources(): void {
  for (const name of ['go.mod', 'go.sum']) copyFileSync(path.join(modules, name), path.join(sources, name))
  const main = readFileSync(path.join(goSources, 'main.go'), 'utf8')
  writeFileSync(path.join(sources, 'main.go'), main.replaceAll('canonical/go-dqlite/', 'canonical/go-dqlite/v3/'))
}

function runGo(...args: string[]): SpawnSyncReturns<string> {
  return spawnSync(go!, args, {
    cwd: sources,
    encoding: 'utf8',
    timeout: modulesMs,
    env: { ...goEnvironment(), GO111MODULE: 'on' },
  })
}

/** Fetches the modules the program imports, and no others; says why that failed. */
function whyNot(): string | undefined {
  if (go === undefined) return 'Go is not installed'
  writeSources()
  const { status, stderr, error } = runGo('list', '-deps', '.')
  if (status === 0) return undefined
  return `its modules cannot be had: ${error?.message ?? stderr.trim().split('\n').pop() ?? 'no message'}`
}

const missing = whyNot()
if (missing !== undefined) console.log(`interop with go-dqlite v3 is skipped: ${missing}`)
const whereModulesAre = missing === undefined ? test : test.skip

whereModulesAre('go-dqlite v3 works with three of our nodes, with up to 32,766 parameters', async (t) => {
  t.timeout(180_000)
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-go-v3-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const program = path.join(dir, 'go-client')
  const build = runGo('build', '-o', program, '.')
  t.is(build.status, 0, build.stderr)
  await runGoProgram(t, { program, dir, parametersMax })
})
