/**
 * The simulation as part of the test suite: past failures, a number of seeds (SIM_SEEDS, SIM_FROM), and proof that the
 * checkers can fail and that the runs are not idle.
 */
import test from 'ava'
import { brokenCores } from './broken-cores.js'
import { addCounts, noCounts } from './checkers.js'
import { regressions } from './regressions.js'
import { simulate, SimulationFailure } from './simulate.js'
import { profiles, type Swarm } from './swarm.js'

const seedCount = Number(process.env['SIM_SEEDS'] ?? 400)
const firstSeed = Number(process.env['SIM_FROM'] ?? 1)
const brokenSeedsMax = 300

function failureOf(run: () => void): string | undefined {
  try {
    run()
    return undefined
  } catch (error) {
    if (error instanceof SimulationFailure) return error.message
    throw error
  }
}

test('seeds that failed in the past pass', (t) => {
  for (const { seed, profile, found } of regressions) {
    const swarm = (drawn: Swarm) => ({ ...drawn, ...(profile === undefined ? {} : profiles[profile]) })
    t.is(
      failureOf(() => simulate({ seed, swarm })),
      undefined,
      found,
    )
  }
  t.pass()
})

test(`no schedule among ${seedCount} seeds breaks safety or stops progress`, async (t) => {
  t.timeout(600_000 + seedCount * 1000)
  const totals = noCounts()
  for (let seed = firstSeed; seed < firstSeed + seedCount; seed++) {
    const failure = failureOf(() => {
      addCounts(totals, simulate({ seed }).counts)
    })
    if (failure !== undefined) t.fail(`${failure}\nreplay: npm run sim -- --seed=${seed}`)
    // Lets ava breathe between seeds.
    if (seed % 20 === 0) await new Promise(setImmediate)
  }
  t.log(JSON.stringify(totals))
  if (seedCount < 100) return
  for (const [name, count] of Object.entries(totals)) t.true(count > 0, `the seeds never saw any of: ${name}`)
})

for (const [name, profile] of Object.entries(profiles)) {
  const count = Math.ceil(seedCount / 8)
  test(`no schedule among ${count} seeds with ${name} does`, async (t) => {
    t.timeout(600_000 + count * 1000)
    for (let seed = firstSeed; seed < firstSeed + count; seed++) {
      const failure = failureOf(() => simulate({ seed, swarm: (drawn) => ({ ...drawn, ...profile }) }))
      if (failure !== undefined) t.fail(`${failure}\nreplay: npm run sim -- --seed=${seed} --profile="${name}"`)
      if (seed % 20 === 0) await new Promise(setImmediate)
    }
    t.pass()
  })
}

test('a seed replays exactly', (t) => {
  const record = (seed: number) => {
    const lines: string[] = []
    simulate({ seed, trace: (line) => lines.push(line) })
    return lines.join('\n')
  }
  t.is(record(7), record(7))
  t.not(record(7), record(8))
})

for (const [fault, { createRaft, notices, swarm }] of Object.entries(brokenCores)) {
  test(`the checkers notice a core that ${fault}`, (t) => {
    for (let seed = 1; seed <= brokenSeedsMax; seed++) {
      const failure = failureOf(() => simulate({ seed, createRaft, swarm: (drawn) => ({ ...drawn, ...swarm }) }))
      if (failure === undefined || !notices.test(failure)) continue
      t.log(failure)
      t.pass()
      return
    }
    t.fail(`${brokenSeedsMax} seeds noticed nothing`)
  })
}
