import { setTimeout as pause } from 'node:timers/promises'
import test from 'ava'
import { encodeResponse } from '../../lib/codec/client-protocol.js'
import { clientOf, failure, fakeServer } from '../support/client-setup.js'
import { rowsMessage, type FakeConnection } from '../support/fake-server.js'

const isQuery = (type: string): boolean => type === 'querySql' || type === 'query'

test('answers may arrive one byte at a time', async (t) => {
  const server = await fakeServer(t, async (request, { socket }) => {
    if (request.type !== 'querySql') return undefined
    for (const byte of rowsMessage(
      ['a', 'b'],
      [
        [1, 'one'],
        [null, ''],
      ],
    )) {
      socket.write(Buffer.of(byte))
      await pause(0)
    }
    return 'answered'
  })
  const rows = await clientOf(t, [server]).query('SELECT a, b FROM t')
  t.deepEqual(
    [...rows],
    [
      { a: 1, b: 'one' },
      { a: null, b: '' },
    ],
  )
  t.deepEqual(rows.columns, ['a', 'b'])
})

test('a server that does not answer in time: TIMEOUT, the session is not used again', async (t) => {
  const server = await fakeServer(t, (_request, _connection, sql) => (sql === 'SLOW' ? 'answered' : undefined))
  const db = clientOf(t, [server])
  await db.connect()
  const error = await failure(t, db.exec('SLOW', [], { timeoutMs: 50 }))
  t.is(error.code, 'TIMEOUT')
  t.is(error.outcome, 'unknown')
  t.false(error.retryable)
  await db.exec('FAST')
  t.is(server.asked('open'), 2)
  t.is(server.asked('SLOW'), 1)
})

test('an aborted write has an unknown outcome, an aborted read none', async (t) => {
  const server = await fakeServer(t, (_request, _connection, sql) => (/slow/.test(sql) ? 'answered' : undefined))
  const db = clientOf(t, [server])
  await db.connect()
  const after = (ms: number): AbortSignal => AbortSignal.timeout(ms)
  const write = await failure(t, db.exec('INSERT slow', [], { signal: after(50) }))
  t.deepEqual([write.code, write.outcome], ['ABORTED', 'unknown'])
  const read = await failure(t, db.query('SELECT slow', [], { signal: after(50) }))
  t.deepEqual([read.code, read.outcome], ['ABORTED', 'none'])
  const early = await failure(t, db.exec('INSERT slow', [], { signal: AbortSignal.abort() }))
  t.deepEqual([early.code, early.outcome, server.asked('INSERT')], ['ABORTED', 'none', 1])
})

test('bytes that the protocol does not allow: BAD_RESPONSE, never a crash, the session is closed', async (t) => {
  const garbage: Record<string, Uint8Array> = {
    'no words': Buffer.alloc(8),
    'too long': Buffer.from('ffffffff06000000', 'hex'),
    'unknown type': Buffer.from('010000002a0000000000000000000000', 'hex'),
    'wrong type': encodeResponse.welcome(1),
    'too short': Buffer.from('01000000060000000100000000000000', 'hex'),
    'text without end': Buffer.concat([
      Buffer.from('02000000000000000100000000000000', 'hex'),
      Buffer.from('abcdefgh'),
    ]),
  }
  const server = await fakeServer(t, (_request, connection, sql) =>
    garbage[sql] ? connection.send(garbage[sql]) : undefined,
  )
  const db = clientOf(t, [server])
  for (const name of Object.keys(garbage)) {
    const error = await failure(t, db.exec(name))
    t.deepEqual([name, error.code, error.outcome], [name, 'BAD_RESPONSE', 'unknown'])
    await db.exec('FINE')
  }
  t.is(server.connections.length, Object.keys(garbage).length + 1)
})

test('rows that do not decode: BAD_RESPONSE', async (t) => {
  const good = rowsMessage(['a', 'b', 'c'], [[1, 'text', null]])
  let sent: Buffer = good
  const server = await fakeServer(t, (request, connection) =>
    request.type === 'querySql' ? connection.send(sent) : undefined,
  )
  const db = clientOf(t, [server])
  for (let words = 1; words < good.length / 8 - 1; words++) {
    sent = Buffer.from(good.subarray(0, 8 + words * 8))
    sent.writeUInt32LE(words)
    t.is((await failure(t, db.query('SELECT a'))).code, 'BAD_RESPONSE')
  }
  sent = Buffer.from(good)
  sent[8 + 8 + 24] = 0xd7 // types 7 and 13 do not exist
  t.is((await failure(t, db.query('SELECT a'))).code, 'BAD_RESPONSE')
  sent = good
  t.is((await db.query('SELECT a')).length, 1)
})

test('bytes that nobody asked for end the session, not a later call', async (t) => {
  const server = await fakeServer(t, (_request, connection, sql) => {
    if (sql === 'TWICE') return connection.send(encodeResponse.result(1n, 1), encodeResponse.result(2n, 2))
    if (sql === 'LATER') {
      setTimeout(() => connection.send(encodeResponse.result(3n, 3)), 20)
      return connection.send(encodeResponse.result(1n, 1))
    }
    return undefined
  })
  const db = clientOf(t, [server])
  t.is((await db.exec('TWICE')).changes, 1)
  t.is((await db.exec('LATER')).changes, 1)
  await pause(60)
  t.is((await db.exec('OTHER')).lastInsertRowid, 1)
  t.is(server.connections.length, 3)
})

test('a failure that real servers hide behind rows is found', async (t) => {
  // client-protocol §17, E16.
  const columns = ['1', '2', '3', '4', 'abs(-9223372036854775807-1)']
  const rows = rowsMessage(columns, [])
  const body = Buffer.concat([rows.subarray(8, -8), encodeResponse.failure(1, 'integer overflow').subarray(8)])
  const header = Buffer.alloc(8)
  header.writeUInt32LE(body.length / 8)
  const server = await fakeServer(t, (request, connection) =>
    request.type === 'querySql' ? connection.send(header, body) : undefined,
  )
  const error = await failure(t, clientOf(t, [server]).query('SELECT 1'))
  t.deepEqual([error.code, error.message], ['SQLITE_ERROR', 'integer overflow'])
})

// ---------------------------------------------------------------------------------------------------- streams

const batch = (from: number, count: number, done = false): Buffer =>
  rowsMessage(
    ['n'],
    Array.from({ length: count }, (_, i) => [from + i]),
    { done },
  )

test('a stream yields the rows of all batches and gives its session back', async (t) => {
  const server = await fakeServer(t, (request, connection) =>
    isQuery(request.type) ? connection.send(batch(0, 3), batch(3, 3), batch(6, 0, true)) : undefined,
  )
  const db = clientOf(t, [server], { sessionsMax: 1 })
  const stream = db.stream<{ n: number }>('SELECT n')
  const seen: number[] = []
  for await (const { n } of stream) seen.push(n)
  t.deepEqual(seen, [0, 1, 2, 3, 4, 5])
  t.deepEqual(stream.columns, ['n'])
  t.is((await db.query('SELECT n')).length, 6)
  t.is(server.connections.length, 1)
})

test('leaving a stream sends INTERRUPT and drains to EMPTY, whichever way the server answers it', async (t) => {
  for (const late of [true, false]) {
    let finish: (connection: FakeConnection) => void = () => undefined
    const server = await fakeServer(t, (request, connection) => {
      if (isQuery(request.type)) {
        finish = () => late && connection.send(batch(3, 500), batch(503, 500, true))
        return connection.send(batch(0, 3))
      }
      // A server that reads INTERRUPT early answers the query with EMPTY; the others send everything first.
      if (request.type === 'interrupt') finish(connection)
      return undefined
    })
    const db = clientOf(t, [server], { sessionsMax: 1 })
    for await (const row of db.stream('SELECT n')) {
      t.truthy(row)
      break
    }
    t.is(server.asked('interrupt'), 1)
    await db.exec('NEXT')
    t.is(server.connections.length, 1)
  }
})

test('a drain that does not end closes the session instead', async (t) => {
  const server = await fakeServer(t, (request, connection) => {
    if (isQuery(request.type)) return connection.send(batch(0, 3))
    return request.type === 'interrupt' ? 'answered' : undefined
  })
  const db = clientOf(t, [server], { sessionsMax: 1 })
  const start = performance.now()
  for await (const row of db.stream('SELECT n')) {
    t.truthy(row)
    break
  }
  t.true(performance.now() - start < 3000)
  await db.exec('NEXT')
  t.is(server.connections.length, 2)
})

test('a slow consumer stops the server: what is not read stays in the kernel', async (t) => {
  let written = 0
  const server = await fakeServer(t, (request, { socket }) => {
    if (!isQuery(request.type)) return undefined
    const big = rowsMessage(['s'], [['x'.repeat(60_000)]], { done: false })
    const pump = (): void => {
      while (!socket.destroyed && written < 200_000_000) {
        written += big.length
        if (!socket.write(big)) {
          socket.once('drain', pump)
          return
        }
      }
    }
    pump()
    return 'answered'
  })
  const db = clientOf(t, [server])
  const stream = db.stream('SELECT s')
  await stream.next()
  await pause(300)
  const first = written
  t.true(first < 50_000_000, `${first} bytes`)
  await pause(200)
  t.is(written, first)
  for (let i = 0; i < 400; i++) await stream.next()
  t.true(written > first)
  await stream.return()
})

test("a stream's time limit is for the server, not for the consumer", async (t) => {
  const server = await fakeServer(t, (request, connection, sql) => {
    if (!isQuery(request.type)) return undefined
    return connection.send(batch(0, 2), ...(sql.includes('stuck') ? [] : [batch(2, 2, true)]))
  })
  const db = clientOf(t, [server])
  let count = 0
  for await (const row of db.stream('SELECT n', [], { timeoutMs: 100 })) {
    t.truthy(row)
    count++
    await pause(60)
  }
  t.is(count, 4)
  const stuck = db.stream('SELECT stuck', [], { timeoutMs: 100 })
  const error = await failure(
    t,
    (async () => {
      for await (const row of stuck) t.truthy(row)
    })(),
  )
  t.deepEqual([error.code, error.outcome], ['TIMEOUT', 'none'])
})

test("a signal ends a stream while its consumer works, and the stream's rest is not delivered", async (t) => {
  const server = await fakeServer(t, (request, connection) =>
    isQuery(request.type) ? connection.send(batch(0, 5)) : undefined,
  )
  const controller = new AbortController()
  const seen: unknown[] = []
  const error = await failure(
    t,
    (async () => {
      for await (const row of clientOf(t, [server]).stream('SELECT n', [], { signal: controller.signal })) {
        seen.push(row)
        if (seen.length === 2) controller.abort()
      }
    })(),
  )
  t.deepEqual([error.code, seen.length], ['ABORTED', 2])
})

test('an integer beyond 2^53 is refused or a bigint, and the session goes on', async (t) => {
  const big = 2n ** 60n
  const server = await fakeServer(t, (request, connection) =>
    isQuery(request.type)
      ? connection.send(rowsMessage(['n'], [[1], [big]], { done: false }), batch(0, 1, true))
      : undefined,
  )
  const db = clientOf(t, [server], { sessionsMax: 1 })
  t.is((await failure(t, db.query('SELECT n'))).code, 'UNSAFE_INTEGER')
  t.deepEqual([...(await db.query('SELECT n', [], { integers: 'bigint' }))], [{ n: 1n }, { n: big }, { n: 0n }])
  const ownDefault = clientOf(t, [server], { integers: 'bigint' })
  t.deepEqual([...(await ownDefault.query('SELECT n', [], { rowMode: 'array' }))], [[1n], [big], [0n]])
  t.is(server.connections.length, 2)
})

test('a column may have any name', async (t) => {
  const server = await fakeServer(t, (request, connection) =>
    isQuery(request.type) ? connection.send(rowsMessage(['__proto__', 'constructor'], [[1, 2]])) : undefined,
  )
  const [row] = await clientOf(t, [server]).query('SELECT 1')
  t.deepEqual(Object.entries(row!), [
    ['__proto__', 1],
    ['constructor', 2],
  ])
  t.is(Object.getPrototypeOf(row), Object.prototype)
})
