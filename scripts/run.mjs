// What every npm script calls: installs and builds what is missing or stale, says so, then does the job.
// Nothing is done twice: each step compares the newest input with its output.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, readdirSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')
const at = (...parts) => path.join(root, ...parts)

function run(command, args, env = process.env) {
  const { status, signal, error } = spawnSync(command, args, { cwd: root, stdio: 'inherit', env })
  if (error) {
    console.error(`dqlite: cannot run ${command}: ${error.message}`)
    process.exit(1)
  }
  if (signal) process.kill(process.pid, signal)
  if (status !== 0) process.exit(status ?? 1)
}

function newest(entry) {
  if (!existsSync(entry)) return 0
  const stat = statSync(entry)
  if (!stat.isDirectory()) return stat.mtimeMs
  return Math.max(
    0,
    ...readdirSync(entry)
      .filter((n) => n !== 'vendor')
      .map((n) => newest(path.join(entry, n))),
  )
}
const stale = (output, inputs) =>
  !existsSync(at(output)) || Math.max(...inputs.map((i) => newest(at(i)))) > statSync(at(output)).mtimeMs

function install() {
  if (!stale('node_modules/.dqlite-installed', ['package-lock.json'])) return
  console.log('dqlite: installing the development tools (npm ci)')
  run('npm', ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel', 'error'])
  writeFileSync(at('node_modules/.dqlite-installed'), '')
}
function buildAddon() {
  if (!stale('build/Release/dqlite.node', ['native', 'CMakeLists.txt', 'scripts/build-native.mjs'])) return
  console.log('dqlite: compiling the native addon with SQLite (about a minute, once)')
  run(process.execPath, [at('scripts/build-native.mjs')])
  const now = new Date()
  utimesSync(at('build/Release/dqlite.node'), now, now)
}
function buildTypeScript() {
  if (!stale('dist/.tsbuildinfo', ['lib', 'test', 'bench', 'tsconfig.json'])) return
  console.log('dqlite: compiling TypeScript')
  run(process.execPath, [at('node_modules/typescript/bin/tsc'), '-p', at('tsconfig.json')])
  const now = new Date()
  utimesSync(at('dist/.tsbuildinfo'), now, now)
}
function build() {
  install()
  buildAddon()
  buildTypeScript()
}

// For a job that runs until it is told to end: signals reach it, and its end is ours.
function handOver(file, ...more) {
  const child = spawn(process.execPath, [at(file), ...more], { cwd: root, stdio: 'inherit' })
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.on(signal, () => child.kill(signal))
  child.on('close', (status) => process.exit(status ?? 1))
  // npm's shell dies of a signal without handing it on. Nothing tells us, except that we have another parent then.
  const parent = process.ppid
  const look = () => process.ppid !== parent && child.kill('SIGTERM')
  if (process.env.npm_lifecycle_event !== undefined) setInterval(look, 500)
}

const [job, ...args] = process.argv.slice(2)
const node = (file, ...more) => run(process.execPath, [at(file), ...more])
switch (job) {
  case 'build':
    build()
    break
  case 'start':
    build()
    handOver('dist/lib/cli/main.js', 'start', ...args)
    break
  case 'test':
    build()
    node('node_modules/ava/entrypoints/cli.mjs', ...args)
    break
  case 'test-native':
    install()
    node('scripts/build-native.mjs', '--test', ...args)
    break
  case 'bench':
    build()
    node('dist/bench/run.js', ...args)
    break
  case 'sim':
    build()
    node('dist/test/simulation/main.js', ...args)
    break
  case 'lint':
    install()
    node('node_modules/eslint/bin/eslint.js', '--max-warnings', '0', 'lib', 'test', 'bench', ...args)
    node('node_modules/prettier/bin/prettier.cjs', '--check', '--log-level', 'warn', 'lib', 'test', 'bench', 'scripts')
    break
  case 'format':
    install()
    node('node_modules/prettier/bin/prettier.cjs', '--write', '--log-level', 'warn', 'lib', 'test', 'bench', 'scripts')
    break
  default:
    console.error(`dqlite: no such job: ${job ?? ''}`)
    process.exit(2)
}
