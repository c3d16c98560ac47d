/** `dqlite recover --cluster`: what is taken for a list of members, and what is not. */
import test from 'ava'
import { serversFromJson } from '../../lib/cli/directory.js'

test('ids are strings or safe numbers, roles the numbers of the client protocol', (t) => {
  const json =
    '[{"id":"18446744073709551615","address":"a:1","role":0},{"id":2,"address":"b","role":1},{"id":3,"address":"c","role":2}]'
  t.deepEqual(serversFromJson(json), [
    { id: 18446744073709551615n, address: 'a:1', role: 'voter' },
    { id: 2n, address: 'b', role: 'standby' },
    { id: 3n, address: 'c', role: 'spare' },
  ])
})

test('everything else is refused in one line that shows what it should look like', (t) => {
  for (const [json, words] of [
    ['', /JSON/],
    ['[{"id":1,\n"address"', /JSON/],
    ['{"id":1}', /not a list/],
    ['[null]', /member 1 is not an object/],
    ['[[]]', /member 1 is not an object/],
    ['[{"id":1,"address":"a:1"}]', /role undefined/],
    ['[{"id":1,"address":"a:1","role":3}]', /role 3, not 0, 1 or 2/],
    ['[{"id":1,"address":"a:1","role":0.5}]', /role 0.5/],
    ['[{"id":1,"address":"a:1","role":"0"}]', /role "0"/],
    ['[{"id":9007199254740993,"address":"a:1","role":0}]', /the id 9007199254740992/],
    ['[{"id":"x","address":"a:1","role":0}]', /the id "x"/],
    ['[{"id":"-1","address":"a:1","role":0}]', /the id "-1"/],
    ['[{"address":"a:1","role":0}]', /the id undefined/],
    ['[{"id":1,"address":7,"role":0}]', /the address 7/],
    ['[{"id":1,"address":"a:1","role":0,"weight":1}]', /member 1 has "weight"/],
  ] as const) {
    const error = t.throws(() => serversFromJson(json), { code: 'BAD_OPTION', message: words })
    t.regex(error.message, /^option --cluster: .*; it must be JSON like \[\{"id":"1"/)
    t.notRegex(error.message, /\n/)
  }
})
