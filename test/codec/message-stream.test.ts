import test from 'ava'
import fc from 'fast-check'
import { messageHeader } from '../../lib/codec/client-protocol.js'
import { MessageStream, type RawMessage } from '../../lib/codec/message-stream.js'

const message = (type: number, bodyBytes: number, schema = 0): Buffer =>
  Buffer.concat([messageHeader(type, bodyBytes, schema), Buffer.alloc(bodyBytes, type)])

function collect(stream: MessageStream): RawMessage[] {
  const result: RawMessage[] = []
  for (let next = stream.next(); next !== undefined; next = stream.next()) result.push(next)
  return result
}

test('messages come out whole however the bytes are cut', (t) => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 600 }), { minLength: 1, maxLength: 10 }),
      fc.array(fc.integer({ min: 1, max: 2000 }), { minLength: 1, maxLength: 40 }),
      (words, cuts) => {
        const bytes = Buffer.concat(words.map((n, i) => message(i, n * 8, i % 2)))
        const stream = new MessageStream({ bodyBytesMax: 600 * 8 })
        const got: RawMessage[] = []
        let at = 0
        for (let i = 0; at < bytes.length; i++) {
          const end = at + cuts[i % cuts.length]!
          stream.push(Buffer.from(bytes.subarray(at, end)))
          got.push(...collect(stream))
          at = end
        }
        t.deepEqual(
          got.map((m) => [m.type, m.schema, m.body.byteLength]),
          words.map((n, i) => [i, i % 2, n * 8]),
        )
        for (const m of got) t.true(m.body.every((byte) => byte === m.type))
        t.is(stream.takeRest().byteLength, 0)
      },
    ),
    { numRuns: 100 },
  )
})

test('single bytes are enough', (t) => {
  const stream = new MessageStream({ bodyBytesMax: 1024 })
  const got: RawMessage[] = []
  for (const byte of Buffer.concat([message(1, 8), message(2, 1024), message(3, 16)])) {
    stream.push(Buffer.from([byte]))
    got.push(...collect(stream))
  }
  t.deepEqual(
    got.map((m) => m.type),
    [1, 2, 3],
  )
})

test('bodies within a chunk are views of it', (t) => {
  const chunk = Buffer.concat([message(1, 8), message(2, 64)])
  const stream = new MessageStream({ bodyBytesMax: 64 })
  stream.push(chunk)
  for (const m of collect(stream)) t.is(m.body.buffer, chunk.buffer)
})

test('an empty body and one above the limit are refused by their header alone', (t) => {
  for (const header of ['0000000001000000', '0900000001000000', 'ffffffff01000000', '0100001001000000']) {
    const stream = new MessageStream({ bodyBytesMax: 64 })
    stream.push(Buffer.from(header, 'hex'))
    t.throws(() => stream.next(), { code: 'MALFORMED' })
    t.throws(() => stream.next(), { code: 'MALFORMED' })
  }
})

test('the bytes after a message can be taken over', (t) => {
  const stream = new MessageStream({ bodyBytesMax: 64 })
  stream.push(message(11, 24))
  stream.push(Buffer.from('raft'))
  t.is(stream.next()?.type, 11)
  stream.push(Buffer.from(' bytes'))
  t.is(Buffer.from(stream.takeRest()).toString(), 'raft bytes')
})

test('a hundred thousand small messages in one chunk, and 32 MiB in small chunks, take linear time', (t) => {
  const started = performance.now()
  const many = new MessageStream({ bodyBytesMax: 1024 })
  many.push(Buffer.concat(Array.from({ length: 100_000 }, () => message(1, 8))))
  t.is(collect(many).length, 100_000)
  const large = new MessageStream({ bodyBytesMax: 32 * 1024 * 1024 })
  large.push(messageHeader(1, 32 * 1024 * 1024))
  for (let i = 0; i < 32 * 1024; i++) {
    large.push(Buffer.alloc(1024))
    if (i < 32 * 1024 - 1) t.is(large.next(), undefined)
  }
  t.is(large.next()?.body.byteLength, 32 * 1024 * 1024)
  t.true(performance.now() - started < 10_000)
})
