/** `dqlite start` from outside: its status, its words, and that nothing of it outlives it. */
import test, { type ExecutionContext } from 'ava'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { cliPath } from '../../lib/cli/node-process.js'

function start(t: ExecutionContext, ...flags: string[]) {
  t.timeout(120_000)
  const parent = mkdtempSync(path.join(tmpdir(), 'dqlite-start-test-'))
  const dir = path.join(parent, 'cluster')
  const child = spawn(process.execPath, [cliPath, 'start', '--seconds', '2', '--dir', dir, ...flags], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.teardown(() => {
    child.kill('SIGKILL')
    rmSync(parent, { recursive: true, force: true })
  })
  let stdout = ''
  let stderr = ''
  let onPlaying: () => void
  const playing = new Promise<void>((resolve) => (onPlaying = resolve))
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
    if (stdout.includes('Ctrl-C ends it')) onPlaying()
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text))
  const ended = once(child, 'close').then((closed) => {
    onPlaying()
    return { status: closed[0] as number | null, stdout, stderr }
  })
  /** Processes of the three nodes, as the invitation to play lists them. */
  const pids = () => [...stdout.matchAll(/kill -9 (\d+) {4}#/g)].map(([, pid]) => Number(pid))
  return { child, ended, playing, pids, dir }
}

async function allGone(pids: readonly number[]): Promise<boolean> {
  for (let tries = 0; tries < 200; tries++) {
    if (!pids.some((pid) => existsSync(`/proc/${pid}`))) return true
    await sleep(50) // they are not our children: nothing tells us
  }
  return false
}

test.serial('with --once it ends with status 0 and says that everything held', async (t) => {
  const { status, stdout, stderr } = await start(t, '--once').ended
  t.is(status, 0, stderr)
  t.regex(stdout, /leads, and is killed: kill -9 \d+/)
  t.regex(stdout, /acknowledged and lost +│ 0 /)
  t.regex(stdout, /identical, byte for byte/)
  t.regex(stdout, /Everything held/)
  t.is(stderr, '')
})

test.serial('told to end it ends its nodes, with status 0', async (t) => {
  const { child, ended, playing, pids, dir } = start(t)
  await playing
  t.is(pids().length, 3)
  child.kill('SIGTERM')
  const { status, stderr } = await ended
  t.is(status, 0, stderr)
  t.true(await allGone(pids()))
  t.true(existsSync(dir), 'a directory that was asked for is kept')
})

test.serial('when it is killed its nodes end by themselves', async (t) => {
  const { child, ended, playing, pids } = start(t)
  await playing
  t.is(pids().length, 3)
  child.kill('SIGKILL')
  await ended
  t.true(await allGone(pids()))
})

test.serial('a directory that is not empty is refused in one line', async (t) => {
  const { status, stderr } = await start(t, '--once', '--dir', tmpdir()).ended
  t.is(status, 1)
  t.regex(stderr, /^dqlite: .* is not empty; a new cluster needs an empty directory\n$/)
})
