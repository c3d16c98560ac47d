/**
 * The README tells the truth: its tables are those of the code, its links lead somewhere, its JavaScript runs and
 * prints what it says.
 */
import test from 'ava'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { freePorts } from '../lib/cli/node-process.js'
import { projectRoot, readmePath, tables, withTables } from './support/readme-tables.js'

const readme = readFileSync(readmePath, 'utf8')

/** Fenced blocks of a language, in order. */
const blocks = (language: string) =>
  [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n([^]*?)^\`\`\`$`, 'gm'))].map(([, text]) => text!)

test('its tables of options and errors are those of the code', (t) => {
  for (const name of Object.keys(tables)) t.true(readme.includes(`<!-- table ${name} -->`), name)
  t.is(withTables(readme), readme, 'run: npm run build && node dist/test/support/readme-tables.js')
})

test('its links to files of the project lead to files', (t) => {
  const pages = ['README.md', 'CONTRIBUTING.md', 'docs/architecture.md', 'docs/formats.md', 'docs/operations.md']
  const broken = pages.flatMap((page) => {
    const text = readFileSync(path.join(projectRoot, page), 'utf8')
    return [...text.matchAll(/\]\((?!https?:)([^)#]+)(#[^)]*)?\)/g)]
      .map(([, target]) => target!)
      .filter((target) => !existsSync(path.join(projectRoot, path.dirname(page), target)))
      .map((target) => `${page}: ${target}`)
  })
  t.deepEqual(broken, [])
})

test('every section that the code cites is in docs/formats.md', (t) => {
  const formats = readFileSync(path.join(projectRoot, 'docs', 'formats.md'), 'utf8')
  const missing = new Set<string>()
  let citations = 0
  for (const room of ['lib', 'native'])
    for (const file of readdirSync(path.join(projectRoot, room), { recursive: true, encoding: 'utf8' })) {
      if (file.startsWith('vendor') || !/\.(ts|cc|h)$/.test(file)) continue
      const text = readFileSync(path.join(projectRoot, room, file), 'utf8')
      // One citation may name several sections of its format: `raft-wire §1.2–§1.4, §2`.
      for (const [, name, sections] of text.matchAll(
        /(client-protocol|raft-wire|disk-format) ((?:§[\d.]+(?:, |–| and )?)+)/g,
      )) {
        const chapter = formats.split(`\n## ${name!}\n`)[1]!.split('\n## ')[0]!
        citations++
        for (const [, section] of sections!.matchAll(/§(\d+(?:\.\d+)?)/g))
          if (!new RegExp(`\\*\\*§${section!.replace('.', '\\.')}[ *]`).test(chapter))
            missing.add(`${file}: ${name!} §${section!}`)
      }
    }
  t.deepEqual([...missing], [])
  t.true(citations > 20, `${citations} citations`)
})

test('the npm commands it names exist', (t) => {
  const { scripts } = JSON.parse(readFileSync(path.join(projectRoot, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>
  }
  const named = [...readme.matchAll(/npm (?:run )?(start|test[:\w]*|build|lint|bench|sim)\b/g)].map(([, name]) => name!)
  t.true(named.includes('start') && named.includes('test'))
  t.deepEqual(
    named.filter((name) => !(name in scripts)),
    [],
  )
})

test('its JavaScript is one program that runs and prints what its comments say', async (t) => {
  const [port, ...others] = await freePorts(3)
  const address = new Map([
    ['127.0.0.1:9001', `127.0.0.1:${port}`],
    ['127.0.0.1:9002', `127.0.0.1:${others[0]}`],
    ['127.0.0.1:9003', `127.0.0.1:${others[1]}`],
  ])
  const program = blocks('js')
    .join('\n')
    .replaceAll(/127\.0\.0\.1:900[123]/g, (name) => address.get(name)!)
  const promised = [...program.matchAll(/\/\/ → (.*)$/gm)].map(([, text]) => text!)
  t.true(promised.length > 0)

  // Inside the package its own name resolves to itself, through the same exports that an application sees.
  const folder = path.join(projectRoot, 'dist', 'readme')
  mkdirSync(folder, { recursive: true })
  const file = path.join(folder, `${process.pid}.mjs`)
  writeFileSync(file, program)
  const cwd = mkdtempSync(path.join(tmpdir(), 'dqlite-readme-'))
  t.teardown(() => {
    rmSync(cwd, { recursive: true, force: true })
    rmSync(file)
  })
  const child = spawn(process.execPath, [file], { cwd, stdio: ['ignore', 'pipe', 'pipe'] })
  t.teardown(() => child.kill('SIGKILL'))
  let stdout = ''
  let stderr = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const [status] = (await once(child, 'close')) as [number | null]
  t.is(status, 0, stderr)
  t.deepEqual(stdout.trimEnd().split('\n'), promised, stderr)
})
