// Brings SQLite's amalgamation and liblz4 into native/vendor/ from pinned npm tarballs (native/sqlite/sources.json).
// The tarball's integrity is npm's own sha512; a mismatch stops the build. Does nothing when everything is there.
import { createHash } from 'node:crypto'
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')
const vendor = path.join(root, 'native', 'vendor')
const stamp = path.join(vendor, '.sources')

export function fetchSources() {
  const text = readFileSync(path.join(root, 'native', 'sqlite', 'sources.json'), 'utf8')
  const { tarballs } = JSON.parse(text)
  const wanted = createHash('sha256').update(text).digest('hex')
  const complete = tarballs.every((t) => Object.values(t.files).every((f) => existsSync(path.join(vendor, f))))
  // The published package carries the sources without the stamp: what it packed was checked when it was packed.
  if (complete && (!existsSync(stamp) || readFileSync(stamp, 'utf8') === wanted)) return false
  for (const tarball of tarballs) {
    console.log(`dqlite: fetching ${tarball.package} for its C sources`)
    const tmp = mkdtempSync(path.join(tmpdir(), 'dqlite-sources-'))
    try {
      const [{ filename }] = JSON.parse(
        execFileSync('npm', ['pack', tarball.package, '--json', '--pack-destination', tmp, '--ignore-scripts'], {
          encoding: 'utf8',
          cwd: tmp,
          stdio: ['ignore', 'pipe', 'pipe'],
        }),
      )
      const file = path.join(tmp, filename.replaceAll('/', '-').replace(/^@/, ''))
      const integrity = `sha512-${createHash('sha512').update(readFileSync(file)).digest('base64')}`
      if (integrity !== tarball.integrity)
        throw new Error(
          `${tarball.package} has integrity ${integrity}, expected ${tarball.integrity}: refusing to compile it`,
        )
      execFileSync('tar', ['xzf', file, '-C', tmp, ...Object.keys(tarball.files)])
      for (const [from, to] of Object.entries(tarball.files)) {
        const target = path.join(vendor, to)
        mkdirSync(path.dirname(target), { recursive: true })
        writeFileSync(target + '.tmp', readFileSync(path.join(tmp, from)))
        renameSync(target + '.tmp', target)
      }
    } finally {
      rmSync(tmp, { recursive: true, force: true })
    }
  }
  writeFileSync(stamp, wanted)
  return true
}

if (process.argv[1] === fileURLToPath(import.meta.url)) fetchSources()
