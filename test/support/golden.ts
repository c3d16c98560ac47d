/** Data directories that C dqlite wrote. They lie beside the checkout where it is developed; a user does not have them. */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..', '..')
const shared = process.env.DQLITE_SHARED ?? path.resolve(root, '..', 'shared')
const archive = path.join(shared, 'golden', 'c-data-dirs.tar.xz')

/** An independent reader of data directories. */
export const parserProgram = path.join(shared, 'peers', 'parse_dqlite_dir.py')

/** Why the tests that need them are skipped; `undefined` if they are here. */
export function goldenMissing(): string | undefined {
  if (!existsSync(archive)) return 'the directories written by C dqlite are not here'
  return undefined
}

export function unpackGolden(dir: string): void {
  execFileSync('tar', ['xJf', archive, '-C', dir])
}
