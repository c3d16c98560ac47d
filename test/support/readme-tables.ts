/**
 * The README's tables, written from the code they describe. Run as a program it puts them into README.md, between
 * `<!-- table NAME -->` and `<!-- end -->`; test/readme.test.ts says when that was forgotten.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { errorKinds, type ErrorKind } from '../../lib/errors.js'
import { clientOptions, nodeOptions } from '../../lib/options.js'

export const projectRoot = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..', '..')
export const readmePath = path.join(projectRoot, 'README.md')

const KiB = 1024
/** 67108864 bytes are 64 MiB to a reader. */
function amount(value: number, unit: string): string {
  if (unit === 'bytes' && value > 0)
    for (const [size, name] of [
      [KiB ** 3, 'GiB'],
      [KiB ** 2, 'MiB'],
      [KiB, 'KiB'],
    ] as const)
      if (value % size === 0) return `${value / size} ${name}`
  return `${value} ${unit}`
}

function markdown(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`
  return [line(head), line(head.map(() => '---')), ...rows.map(line)].join('\n')
}

const repeating: Readonly<Record<ErrorKind['retry'], string>> = {
  safe: 'yes',
  unknown: 'only if repeating is harmless',
  no: 'no',
}

const limitsTable = (limits: typeof nodeOptions | typeof clientOptions) =>
  markdown(
    ['Limit', 'Default', 'From', 'To', 'What it sets, and what happens at it'],
    Object.entries(limits).map(([name, { default: value, min, max, unit, text }]) => [
      `\`${name}\``,
      ...[value, min, max].map((n) => amount(n, unit)),
      text,
    ]),
  )

export const tables: Readonly<Record<string, string>> = {
  options: limitsTable(nodeOptions),
  client: limitsTable(clientOptions),
  errors: markdown(
    ['`code`', 'Number on the wire', 'What it means', 'May the request be repeated?'],
    Object.entries(errorKinds as Record<string, ErrorKind>).map(([code, { wire, meaning, retry }]) => [
      `\`${code}\``,
      wire === undefined ? '' : String(wire),
      meaning,
      repeating[retry],
    ]),
  ),
}

/** The text with every marked table as it should be. */
export function withTables(readme: string): string {
  return readme.replace(
    /(<!-- table (\w+) -->\n)[^]*?(<!-- end -->)/g,
    (whole, begin: string, name: string, end: string) => {
      const table = tables[name]
      return table === undefined ? whole : `${begin}\n${table}\n\n${end}`
    },
  )
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  writeFileSync(readmePath, withTables(readFileSync(readmePath, 'utf8')))
