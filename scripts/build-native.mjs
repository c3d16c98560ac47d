// Compiles the addon by CMakeLists.txt into build/Release/dqlite.node, through cmake-js. `--test` builds and runs
// native_test instead, under ASan and UBSan. binding.gyp calls this file too, so there is one way to build.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { fetchSources } from './fetch-sources.mjs'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')

function run(command, args) {
  const { status, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit' })
  if (error) throw new Error(`cannot run ${command}: ${error.message}`)
  if (status !== 0) process.exit(status ?? 1)
}

// libuv's header comes with Node's own headers. Without it the addon still builds, and completions take a slower way.
function uvInclude() {
  const candidates = [process.env.npm_config_nodedir, path.resolve(process.execPath, '..', '..')]
  for (const prefix of candidates) {
    if (prefix === undefined) continue
    const dir = path.join(prefix, 'include', 'node')
    if (existsSync(path.join(dir, 'uv.h'))) return dir
  }
  return ''
}

export function buildNative() {
  fetchSources()
  const bin = path.join(
    path.dirname(createRequire(import.meta.url).resolve('cmake-js/package.json')),
    'bin',
    'cmake-js',
  )
  run(process.execPath, [
    bin,
    'compile',
    '--config',
    'Release',
    '--parallel',
    String(availableParallelism()),
    `--CDDQLITE_UV_INCLUDE=${uvInclude()}`,
    '--log-level',
    'warn',
  ])
}

export function testNative() {
  fetchSources()
  const dir = path.join(root, 'build', 'sanitize')
  mkdirSync(dir, { recursive: true })
  run('cmake', ['-S', root, '-B', dir, '-DCMAKE_BUILD_TYPE=Debug', '-DDQLITE_NATIVE_TEST=ON'])
  run('cmake', ['--build', dir, '--parallel', String(availableParallelism())])
  run(path.join(dir, 'native_test'), process.argv.slice(3))
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (process.argv[2] === '--test') testNative()
  else buildNative()
}
