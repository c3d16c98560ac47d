/**
 * Plays every conversation of test/scenarios and compares what the cluster says. A file is a list of blocks: commands, one per
 * line, `----`, the expected output, an empty line. `SCENARIOS_REWRITE=1` records anew; review the difference.
 */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'ava'
import { Conversation } from '../support/conversation.js'

// Compiled to dist/test/raft; the text files stay in the source tree.
const folder = path.resolve(import.meta.dirname, '../../../test/scenarios')
const isRewriting = process.env['SCENARIOS_REWRITE'] === '1'

interface Block {
  /** Comments and empty lines before the commands, kept as they are. */
  readonly preface: readonly string[]
  readonly commands: readonly string[]
  readonly expected: string
}

function parse(text: string): Block[] {
  const blocks: Block[] = []
  const lines = text.split('\n')
  let preface: string[] = []
  let commands: string[] = []
  for (let at = 0; at < lines.length; at++) {
    const line = lines[at]!
    if (commands.length === 0 && (line === '' || line.startsWith('#'))) {
      preface.push(line)
    } else if (line === '----') {
      const expected: string[] = []
      while (at + 1 < lines.length && lines[at + 1] !== '') expected.push(lines[++at]!)
      blocks.push({ preface, commands, expected: expected.join('\n') })
      preface = []
      commands = []
    } else {
      commands.push(line)
    }
  }
  return blocks
}

for (const name of readdirSync(folder).filter((file) => file.endsWith('.txt'))) {
  const file = path.join(folder, name)
  const text = readFileSync(file, 'utf8')
  const title = /^# (.+)/.exec(text)?.[1] ?? name
  test(`${name}: ${title}`, (t) => {
    const conversation = new Conversation()
    const recorded: string[] = []
    for (const { preface, commands, expected } of parse(text)) {
      const output = commands
        .map((command) => conversation.run(command))
        .filter((said) => said !== '')
        .join('\n')
      recorded.push(...preface, ...commands, '----', ...(output === '' ? [] : [output]))
      if (!isRewriting) t.is(output, expected, commands.join('; '))
    }
    if (isRewriting) writeFileSync(file, recorded.join('\n') + '\n')
    t.pass()
  })
}
