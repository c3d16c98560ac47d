/**
 * `npm run sim -- --seed=N` replays one run and prints what happens in it; `--seeds=K --from=S` runs many and names those
 * that fail. `--profile="failing disks"` lays one of the profiles of swarm.ts over each seed. Exit status 1 if any failed.
 */
import { parseArgs } from 'node:util'
import { addCounts, noCounts } from './checkers.js'
import { simulate } from './simulate.js'
import { profiles, type Profile, type Swarm } from './swarm.js'

function number(name: string, text: string | undefined, fallback: number): number {
  const value = text === undefined ? fallback : Number(text)
  if (Number.isSafeInteger(value) && value >= 0) return value
  console.error(`sim: --${name} must be a whole number`)
  process.exit(2)
}

function runOne(seed: number, profile: Partial<Swarm>, isQuiet: boolean): boolean {
  const swarm = (drawn: Swarm) => ({ ...drawn, ...profile })
  try {
    const { counts } = simulate({ seed, swarm, ...(isQuiet ? {} : { trace: (line: string) => console.log(line) }) })
    console.log(`seed ${seed} passed: ${JSON.stringify(counts)}`)
    return true
  } catch (error) {
    console.log(error instanceof Error ? `FAILED ${error.message}` : 'FAILED')
    if (error instanceof Error && error.cause instanceof Error) console.log(error.cause.stack)
    return false
  }
}

function runMany(from: number, count: number, profile: Partial<Swarm>, replay: string): boolean {
  const swarm = (drawn: Swarm) => ({ ...drawn, ...profile })
  const failed: number[] = []
  const totals = noCounts()
  const started = performance.now()
  for (let seed = from; seed < from + count; seed++) {
    try {
      addCounts(totals, simulate({ seed, swarm }).counts)
    } catch (error) {
      failed.push(seed)
      console.log(`FAILED ${error instanceof Error ? error.message : String(error)}`)
      console.log(`       npm run sim -- --seed=${seed}${replay}`)
    }
  }
  const seconds = (performance.now() - started) / 1000
  console.log(
    `${count} seeds from ${from} in ${seconds.toFixed(1)} s (${(count / seconds).toFixed(0)}/s), ${failed.length} failed`,
  )
  console.log(JSON.stringify(totals))
  if (failed.length > 0) console.log(`failed: ${failed.join(' ')}`)
  return failed.length === 0
}

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    seeds: { type: 'string' },
    from: { type: 'string' },
    profile: { type: 'string' },
    quiet: { type: 'boolean', default: false },
  },
})
if (values.profile !== undefined && !(values.profile in profiles)) {
  console.error(`sim: --profile must be one of: ${Object.keys(profiles).join(', ')}`)
  process.exit(2)
}
const profile = values.profile === undefined ? {} : profiles[values.profile as Profile]
const replay = values.profile === undefined ? '' : ` --profile="${values.profile}"`
const passed =
  values.seed === undefined
    ? runMany(number('from', values.from, 1), number('seeds', values.seeds, 500), profile, replay)
    : runOne(number('seed', values.seed, 0), profile, values.quiet)
process.exitCode = passed ? 0 : 1
