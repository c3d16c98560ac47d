/**
 * Finds, or builds where that is possible, the programs we are compared with: a C dqlite node and a load generator on
 * go-dqlite. They live beside the project, not in it; where they are missing, callers go on without and say so.
 */
import { spawnSync } from 'node:child_process'
import { accessSync, constants, existsSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export interface Peers {
  /** `dqlite-node ID ADDRESS DIR [NETWORK_LATENCY_MS]`; prints `ready`, ends on SIGTERM. */
  readonly node: string
  /** `loadgen --addr LIST --workload W …`; one JSON object on standard output. */
  readonly loadgen: string
}

export const projectRoot = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..')
const buildMs = 600_000

function isExecutable(file: string): boolean {
  try {
    accessSync(file, constants.X_OK)
    return true
  } catch {
    return false
  }
}

/** The folder beside the project with programs and samples of others, if there is one. */
export function sharedFolder(): string | undefined {
  const candidates = [process.env['DQLITE_SHARED'], path.resolve(projectRoot, '..', 'shared')]
  return candidates.find((folder) => folder !== undefined && existsSync(folder))
}

/** The peers, or why there are none. */
export function findPeers(): Peers | { readonly missing: string } {
  const out = process.env['PEERS_BIN'] ?? path.join(tmpdir(), 'dqlite-peers-bin')
  const peers = { node: path.join(out, 'dqlite-node'), loadgen: path.join(out, 'loadgen') }
  if (isExecutable(peers.node) && isExecutable(peers.loadgen)) return peers
  const shared = sharedFolder()
  const build = shared === undefined ? undefined : path.join(shared, 'peers', 'build.sh')
  if (build === undefined || !isExecutable(build)) return { missing: 'C dqlite and its load generator are not here' }
  const { status, stderr } = spawnSync(build, [out], {
    encoding: 'utf8',
    timeout: buildMs,
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  if (status === 0 && isExecutable(peers.node) && isExecutable(peers.loadgen)) return peers
  return { missing: `C dqlite could not be built: ${stderr.trim().split('\n').pop() ?? 'no message'}` }
}
