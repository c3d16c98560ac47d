/**
 * The house, checked: which room may import which (docs/architecture.md, section 2), that a file name alone is an
 * address, and that every file of lib/ opens by saying what it knows. Reads sources, runs nothing of them.
 */
import test from 'ava'
import { readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..')
const lib = path.join(root, 'lib')

/** Paths relative to lib/, without `.ts`: `raft/types`, `errors`. */
const files = readdirSync(lib, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .map((name) => name.slice(0, -'.ts'.length).split(path.sep).join('/'))
  .sort()

const source = (file: string) => readFileSync(path.join(lib, `${file}.ts`), 'utf8')

/** What the file imports, re-exports or loads, as written. */
const importsOf = (file: string) =>
  ts.preProcessFile(source(file), true, true).importedFiles.map((imported) => imported.fileName)

/** `raft/` is a whole room, `raft/types` one file. A room always sees itself. Absent: may import everything. */
const mayImport: Readonly<Record<string, readonly string[]>> = {
  raft: [],
  codec: ['raft/types', 'errors'],
  storage: ['codec/', 'raft/types', 'errors', 'options', 'addon'],
  network: ['codec/', 'raft/types', 'errors', 'options'],
  engine: ['codec/log-entry', 'errors', 'addon'],
  node: ['raft/', 'codec/', 'storage/', 'network/', 'engine/', 'errors', 'options', 'lifecycle', 'trace'],
  client: ['codec/', 'network/dial', 'raft/types', 'errors', 'options'],
  errors: [],
  options: ['errors'],
  addon: [],
  lifecycle: ['errors'],
  trace: [],
}
const freeRooms = new Set(['cli', 'index'])

/** Pure rooms decide or translate: no clock, no socket, no file. */
const pureRooms = new Set(['raft', 'codec'])
/** npm packages, and the only room that may know each. */
const packageHomes: Readonly<Record<string, string>> = {
  commander: 'cli',
  'cli-table3': 'cli',
  'node-gyp-build': 'addon',
}

const roomOf = (file: string) => file.split('/')[0]!

test('every room imports only what the table of rooms allows', (t) => {
  t.true(files.length > 0)
  const offences: string[] = []
  for (const file of files) {
    const room = roomOf(file)
    if (freeRooms.has(room)) continue
    const allowed = mayImport[room]
    if (allowed === undefined) {
      offences.push(`${file}: the room ${room} is not in the table`)
      continue
    }
    for (const imported of importsOf(file)) {
      if (!imported.startsWith('.')) continue
      const target = path.posix.normalize(path.posix.join(path.posix.dirname(file), imported)).replace(/\.js$/, '')
      const isAllowed =
        roomOf(target) === room ||
        allowed.some((entry) => (entry.endsWith('/') ? target.startsWith(entry) : target === entry))
      if (!isAllowed) offences.push(`${file} imports ${target}`)
    }
  }
  t.deepEqual(offences, [])
})

test('pure rooms import nothing of Node but assertions', (t) => {
  const offences = files
    .filter((file) => pureRooms.has(roomOf(file)))
    .flatMap((file) =>
      importsOf(file)
        .filter((imported) => !imported.startsWith('.') && imported !== 'node:assert/strict')
        .map((imported) => `${file} imports ${imported}`),
    )
  t.deepEqual(offences, [])
})

test('an npm package is known to one room only, and built-in modules have their prefix', (t) => {
  const offences = files.flatMap((file) =>
    importsOf(file)
      .filter((imported) => !imported.startsWith('.') && !imported.startsWith('node:'))
      .filter((imported) => packageHomes[imported] !== roomOf(file))
      .map((imported) => `${file} imports ${imported}`),
  )
  t.deepEqual(offences, [])
})

test('a file name is unique within lib/, so that a name alone is an address', (t) => {
  const seen = new Map<string, string>()
  const offences: string[] = []
  for (const file of files) {
    const name = path.posix.basename(file)
    const other = seen.get(name)
    if (other !== undefined) offences.push(`${other} and ${file}`)
    seen.set(name, file)
  }
  t.deepEqual(offences, [])
})

test('every file of lib/ opens with what it knows and what it refuses to know', (t) => {
  const offences = files.filter((file) => !/^(#!.*\n)?\/\*\*\n \* \S/.test(source(file)))
  t.deepEqual(offences, [])
})
