/**
 * The same bytes to a C 1.11 node and to ours. An answer that differs must be one of those that docs/compatibility.md
 * lists with their reasons; the table below is that list.
 */
import anyTest, { type ExecutionContext } from 'ava'
import { mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { freePorts } from '../../lib/cli/node-process.js'
import { play, type Step } from '../support/exchange.js'
import { cMissing, interopSeconds, MemberProcess } from '../support/members.js'
import { deadly, fixed, generated, type Sequence } from './differential-cases.js'
import { differences } from './differences.js'

const test = cMissing === undefined ? anyTest.serial : anyTest.serial.skip

const seeds = interopSeconds > 0 ? 2000 : 150

async function start(t: ExecutionContext, kind: 'ours' | 'C'): Promise<MemberProcess> {
  const dir = mkdtempSync(path.join(os.tmpdir(), 'dqlite-differential-'))
  t.teardown(() => rmSync(dir, { recursive: true, force: true }))
  const [port] = await freePorts(1)
  // C 1.11 refuses a second writer at once.
  const flags = ['--set', 'busyTimeoutMs=0']
  const member = await MemberProcess.start(kind, { id: 1, address: `127.0.0.1:${port!}`, dir, flags })
  t.teardown(() => member.kill())
  return member
}

interface Found {
  readonly sequence: Sequence
  readonly step: Step
  readonly theirs: string
  readonly ours: string
}

/** A sequence ends where one of them ends the connection or falls silent. */
async function compare(
  members: { readonly c: MemberProcess; readonly ours: MemberProcess },
  sequences: readonly Sequence[],
  used: Map<string, number>,
): Promise<{ compared: number; unexpected: Found[] }> {
  let compared = 0
  const unexpected: Found[] = []
  for (const sequence of sequences) {
    const theirs = await play(members.c.address, sequence.steps, sequence.protocol)
    const ours = await play(members.ours.address, sequence.steps, sequence.protocol)
    for (const [i, step] of sequence.steps.entries()) {
      const [their, our] = [theirs[i] ?? 'not asked', ours[i] ?? 'not asked']
      if (their === 'not asked' || our === 'not asked') break
      compared++
      if (their === our) continue
      const known = differences.find((each) =>
        each.is({ sequence: sequence.name, request: step.text, theirs: their, ours: our }),
      )
      if (known === undefined) unexpected.push({ sequence, step, theirs: their, ours: our })
      else used.set(known.name, (used.get(known.name) ?? 0) + 1)
    }
    if (!members.c.isRunning || !members.ours.isRunning) {
      const deaths = [...members.c.deaths, ...members.ours.deaths].join()
      throw new Error(`after "${sequence.name}": ${deaths}`)
    }
  }
  return { compared, unexpected }
}

const shown = ({ sequence, step, theirs, ours }: Found): string =>
  `${sequence.name}: ${step.text}\n      C:    ${theirs.slice(0, 400)}\n      ours: ${ours.slice(0, 400)}`

test('a C node and ours answer the same requests alike, but for the differences that are known', async (t) => {
  t.timeout(300_000)
  const members = { c: await start(t, 'C'), ours: await start(t, 'ours') }
  const used = new Map<string, number>()
  const listed = await compare(members, fixed, used)
  const made = await compare(
    members,
    Array.from({ length: seeds }, (_, seed) => generated(seed + 1)),
    used,
  )
  const unexpected = [...listed.unexpected, ...made.unexpected]
  t.log(`${fixed.length} sequences and ${seeds} made from seeds: ${listed.compared + made.compared} answers compared`)
  for (const [name, times] of used) t.log(`${times} × ${name}`)
  t.is(unexpected.length, 0, unexpected.slice(0, 40).map(shown).join('\n'))
  // A difference that is gone must leave the table, and the page.
  t.deepEqual(
    differences.map(({ name }) => name).filter((name) => !used.has(name)),
    [],
  )
})

test('what C 1.11 does not survive, ours does', async (t) => {
  const ours = await start(t, 'ours')
  for (const { name, steps, answer } of deadly) {
    const last = (await play(ours.address, steps)).at(-1)!
    if (typeof answer === 'string') t.is(last, answer, name)
    else t.regex(last, answer, name)
  }
  t.true(ours.isRunning)
  t.deepEqual(ours.deaths, [])
})
