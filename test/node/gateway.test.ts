import test from 'ava'
import { encodeRequest, legacyProtocolVersion } from '../../lib/codec/client-protocol.js'
import { fromHex, settled, startServer, summary, until, WireClient, words, type TestServer } from '../support/wire.js'

const flat = (text: string): string => words(fromHex(text))

/** '>' lines are sent, '<' lines must come back byte for byte; other lines continue the one before. */
type Step = { readonly direction: '>' | '<'; readonly hex: string }

function conversation(text: string): Step[] {
  const steps: { direction: '>' | '<'; hex: string }[] = []
  for (const line of text.split('\n').map((each) => each.replace(/ {2,}[^0-9a-f<> ].*$/, '').trim())) {
    if (line === '') continue
    if (line.startsWith('>') || line.startsWith('<'))
      steps.push({ direction: line[0] as '>' | '<', hex: line.slice(1).trim() })
    else steps.at(-1)!.hex += ` ${line}`
  }
  return steps
}

// client-protocol §17: what real servers and clients said. E1, E3–E12, E14, E15, E21 on one connection.
const typedTable = 'CREATE TABLE t(i INTEGER PRIMARY KEY, r REAL, s TEXT, b BLOB, d DATETIME, o BOOLEAN, x)'
const e1 = `
> 0100000000000000 0000000000000000
< 0300000001000000 0100000000000000 3132372e302e302e 313a313931303100
> 0100000001000000 3412000000000000
< 0100000002000000 983a000000000000
`
const e3 = `
> 0400000003000000 7465737400000000 0000000000000000 766f6c6174696c65 0000000000000000
< 0100000004000000 0000000000000000
> 0400000003000000 7465737400000000 0000000000000000 766f6c6174696c65 0000000000000000
< 0700000000000000 0500000000000000 6120646174616261 736520666f722074 68697320636f6e6e 656374696f6e2069 7320616c72656164 79206f70656e0000
`
const e4 = `
> 0600000004000000 0000000000000000 494e534552542049 4e544f2074205641 4c554553283f2c3f 2c3f2c3f2c3f2c3f 2c3f290000000000
< 0200000005000000 0000000000000000 0700000000000000
`
const e5 = `
> 0600000004010000 0000000000000000 53454c454354202a 2046524f4d207420 574845524520693d 3f3b2053454c4543 5420320000000000
< 0300000005010000 0000000001000000 0100000000000000 1a00000000000000
`
const e6 = `
> 0d00000005000000 0000000000000000
  07010203040a0b05
  feffffffffffffff
  000000000000f83f
  68c3a96c6c6f0000
  0300000000000000 0102030000000000
  323032342d30312d 30322030333a3034 3a30352b30303a30 3000000000000000
  0100000000000000
  0000000000000000
< 0200000006000000 feffffffffffffff 0100000000000000
`
const e7 = `
> 0c00000005010000 0000000000000000 0700000001050304 010b020000000000
  0700000000000000 0000000000000000 3132333435363738 0000000000000000 0800000000000000 3132333435363738
  00f1536500000000 0500000000000000 0000000000000440
< 0200000006000000 0700000000000000 0100000000000000
`
const e8 = `
> 0300000006000000 0000000001000000 0101000000000000 feffffffffffffff
< 1500000007000000 0700000000000000
  6900000000000000 7200000000000000 7300000000000000 6200000000000000 6400000000000000 6f00000000000000 7800000000000000
  2143ba0500000000
  feffffffffffffff 000000000000f83f 68c3a96c6c6f0000 0300000000000000 0102030000000000
  323032342d30312d 30322030333a3034 3a30352b30303a30 3000000000000000 0100000000000000 0000000000000000
  ffffffffffffffff
`
const e9 = `
> 0300000006000000 0000000001000000 0101000000000000 0700000000000000
< 1300000007000000 0700000000000000
  6900000000000000 7200000000000000 7300000000000000 6200000000000000 6400000000000000 6f00000000000000 7800000000000000
  5143b90200000000
  0700000000000000 0000000000000000 3132333435363738 0000000000000000 0800000000000000 3132333435363738
  00f1536500000000 0100000000000000 0000000000000440
  ffffffffffffffff
`
const e14 = `
> 0b00000008000000 0000000000000000 494e534552542049 4e544f2074286929 2056414c55455328 3f293b20494e5345
  525420494e544f20 742869292056414c 554553283f290000 0201010000000000 c800000000000000 c900000000000000
< 0200000006000000 c900000000000000 0100000000000000
`
const e15 = `
> 0b00000008000000 0000000000000000 494e534552542049 4e544f2074286929 2056414c55455328 3f293b20494e5345
  525420494e544f20 742869292056414c 554553283f290000 0201010000000000 c800000000000000 c900000000000000
< 0500000000000000 1306000000000000 554e495155452063 6f6e73747261696e 74206661696c6564 3a20742e69000000
> 0100000002000000 0000000000000000
< 0500000000000000 ed03000000000000 756e7265636f676e 697a656420726571 7565737420747970 6500000000000000
> 0200000009000000 0000000000000000 202d2d0000000000
< 0300000000000000 0000000000000000 656d707479207374 6174656d656e7400
`
const e21 = `
> 0100000007000000 0000000001000000
< 0100000008000000 0000000000000000
`
const wholeStory = [e1, e3, e4, e5, e6, e7, e8, e9, e14, e15, e21].map(conversation).flat()

async function withTable(server: TestServer): Promise<void> {
  const client = await WireClient.open(server)
  await client.exec(typedTable)
  await client.end()
}

// The boolean 5 was bound as 1 (§4.1), so the row of E7 reads back as true.
test('the conversations E1 to E15 and E21 of the protocol are answered byte for byte', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await withTable(server)
  const client = await WireClient.connect(server)
  for (const { direction, hex } of wholeStory)
    if (direction === '>') client.sendHex(hex)
    else t.is(await client.hex(), flat(hex))
  t.deepEqual(server.internalErrors, [])
})

test('the same bytes one at a time get the same answers', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await withTable(server)
  const client = await WireClient.connect(server)
  for (const { direction, hex } of wholeStory)
    if (direction === '>')
      for (const byte of fromHex(hex)) {
        client.send(Uint8Array.of(byte))
        await new Promise((resolve) => setImmediate(resolve))
      }
    else t.is(await client.hex(), flat(hex))
})

test('the same requests in one write are answered in order', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await withTable(server)
  const client = await WireClient.connect(server)
  client.send(Buffer.concat(wholeStory.filter((s) => s.direction === '>').map((s) => fromHex(s.hex))))
  for (const { hex } of wholeStory.filter((s) => s.direction === '<')) t.is(await client.hex(), flat(hex))
})

test('E2: no leader known, or not a voter, is id 0 and an empty address', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.connect(server)
  const nobody = flat('0200000001000000 0000000000000000 0000000000000000')
  const ask = async (): Promise<string | undefined> => {
    client.sendHex('0100000000000000 0000000000000000')
    return client.hex()
  }
  server.replicator.knownLeader = undefined
  t.is(await ask(), nobody)
  server.replicator.knownLeader = { id: 1n, address: '127.0.0.1:19101' }
  for (const role of ['standby', 'spare'] as const) {
    server.replicator.servers = [{ id: 1n, address: '127.0.0.1:19101', role }]
    t.is(await ask(), nobody)
  }
  server.replicator.servers = []
  t.is(await ask(), nobody)
  server.replicator.servers = [{ id: 1n, address: '127.0.0.1:19101', role: 'voter' }]
  server.replicator.isTransferring = true
  t.is(await ask(), nobody)
})

test('E1: the legacy protocol word changes the answer to LEADER to the address alone, and tests no role', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  server.replicator.servers = []
  const client = await WireClient.connect(server, legacyProtocolVersion)
  client.sendHex('0100000000000000 0000000000000000')
  t.is(await client.hex(), flat('0200000001000000 3132372e302e302e 313a313931303100'))
})

test('E10, E12: NULL in typed columns, empty results and statements without columns', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await withTable(server)
  const client = await WireClient.open(server)
  await client.exec('INSERT INTO t(i) VALUES(1)')
  client.requestQuery('SELECT d FROM t WHERE d IS NULL')
  t.is(
    await client.hex(),
    flat('0500000007000000 0100000000000000 6400000000000000 0a00000000000000 0000000000000000 ffffffffffffffff'),
  )
  client.requestQuery('SELECT o FROM t WHERE o IS NULL')
  t.is(
    await client.hex(),
    flat('0500000007000000 0100000000000000 6f00000000000000 0b00000000000000 0000000000000000 ffffffffffffffff'),
  )
  client.requestQuery('SELECT i FROM t WHERE 0')
  t.is(await client.hex(), flat('0300000007000000 0100000000000000 6900000000000000 ffffffffffffffff'))
  client.requestQuery('INSERT INTO t(i) VALUES(2)')
  t.is(await client.hex(), flat('0200000007000000 0000000000000000 ffffffffffffffff'))
  t.is(await client.value('SELECT count(*) FROM t'), 2)
})

test('typed columns with values of other storage classes get the plain type', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  await withTable(server)
  const client = await WireClient.open(server)
  await client.exec("INSERT INTO t(i, d, o) VALUES(1, 1.5, 'abc'), (2, x'01', x'02')")
  const { rows } = await client.query('SELECT d, o FROM t ORDER BY i')
  t.deepEqual(rows[0], [1.5, 'abc'])
  t.deepEqual(
    rows[1]!.map((value) => [...(value as Uint8Array)]),
    [[1], [2]],
  )
})

test('E11: a row header has four bits per column, in whole words', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  for (const columns of [1, 16, 17, 33, 300]) {
    const values = Array.from({ length: columns }, (_, i) => i)
    const answer = await client.query(`SELECT ${values.join(', ')}`)
    t.deepEqual(answer.rows, [values])
    // The names and the row of 300 columns alone fill a batch.
    t.is(answer.parts, columns === 300 ? 2 : 1)
  }
  client.requestQuery(`SELECT ${Array.from({ length: 17 }, (_, i) => `${i} AS a`).join(', ')}`)
  const hex = (await client.hex())!
  t.true(hex.includes('1111111111111111 0100000000000000 0000000000000000 0100000000000000'))
})

test('E13: a batch closes at 4 KiB before the next row, and an exact end is an empty DONE', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  const counted = 'WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < ?) SELECT n FROM c'
  client.requestQuery(counted, 255)
  const part = (await client.hex())!.split(' ')
  t.is(part.length, 514)
  t.is(part[0], '0102000007000000')
  t.deepEqual(part.slice(1, 5), ['0100000000000000', '6e00000000000000', '0100000000000000', '0100000000000000'])
  t.deepEqual(part.slice(-2), ['ff00000000000000', 'eeeeeeeeeeeeeeee'])
  t.is(await client.hex(), flat('0300000007000000 0100000000000000 6e00000000000000 ffffffffffffffff'))
  t.is((await client.query(counted, 254)).parts, 1)
  t.is((await client.query(counted, 256)).rows.length, 256)
})

test('one huge row is one batch, and 600 columns with long names make progress', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  const blob = await client.query("SELECT zeroblob(300000) AS b UNION ALL SELECT x'01'")
  t.is((blob.rows[0]![0] as Uint8Array).length, 300_000)
  t.is(blob.rows.length, 2)
  const wide = `SELECT ${Array.from({ length: 600 }, (_, i) => `n AS a_rather_long_name_of_a_column_${i}`).join(', ')}
    FROM (SELECT 1 AS n UNION ALL SELECT 2 UNION ALL SELECT 3)`
  t.is((await client.query(wide)).rows.length, 3)
})

test('E16: a query that fails in its first or in a later batch ends in a clean FAILURE', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  client.requestQuery('SELECT 1,2,3,4,abs(-9223372036854775807-1)')
  t.is(await client.hex(), flat('0400000000000000 0100000000000000 696e746567657220 6f766572666c6f77 0000000000000000'))
  client.requestQuery(
    `WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 100000)
     SELECT CASE WHEN n < 5000 THEN n ELSE abs(-9223372036854775807-1) END FROM c`,
  )
  t.is(await client.rows(), '1 integer overflow')
  t.is(await client.value('SELECT 7'), 7)
})

test('E17: CLUSTER in both formats, and no other', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.connect(server)
  client.sendHex('0100000010000000 0100000000000000')
  t.is(
    await client.hex(),
    flat('0500000003000000 0100000000000000 0100000000000000 3132372e302e302e 313a313931303100 0000000000000000'),
  )
  client.sendHex('0100000010000000 0000000000000000')
  t.is(await client.hex(), flat('0400000003000000 0100000000000000 0100000000000000 3132372e302e302e 313a313931303100'))
  t.is(summary(await client.ask({ type: 'cluster', format: 2n })), '1005 unrecognized cluster format')
  server.replicator.servers = []
  client.sendHex('0100000010000000 0100000000000000')
  t.is(await client.hex(), flat('0100000003000000 0000000000000000'))
})

test('E18: membership requests, DESCRIBE and WEIGHT', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.connect(server)
  const empty = flat('0100000008000000 0000000000000000')
  for (const request of [
    '030000000c000000 0900000000000000 3132372e302e302e 313a313931303100',
    '020000000d000000 0200000000000000 0100000000000000',
    '010000000d000000 0200000000000000',
    '010000000e000000 0300000000000000',
    '0100000011000000 0200000000000000',
    '0100000011000000 0000000000000000',
    '0100000013000000 2a00000000000000',
  ]) {
    client.sendHex(request)
    t.is(await client.hex(), empty)
  }
  t.deepEqual(server.replicator.changes, [
    { type: 'add', id: 9n, address: '127.0.0.1:19101' },
    { type: 'assign', id: 2n, role: 'standby' },
    { type: 'assign', id: 2n, role: 'voter' },
    { type: 'remove', id: 3n },
    { type: 'transfer', to: 2n },
    { type: 'transfer', to: undefined },
  ])
  client.sendHex('0100000012000000 0000000000000000')
  t.is(await client.hex(), flat('020000000a000000 6400000000000000 2a00000000000000'))
  client.sendHex('0100000012000000 0100000000000000')
  t.is(summary(await client.next()), '15 bad format version')
})

test('E19: DUMP sends the merged image and an empty write-ahead log', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  await client.exec('CREATE TABLE a(x); CREATE TABLE b(x)')
  const other = await WireClient.connect(server)
  other.sendHex('010000000f000000 7465737400000000')
  const hex = (await other.hex())!.split(' ')
  t.deepEqual(hex.slice(0, 4), ['0606000009000000', '0200000000000000', '7465737400000000', '0030000000000000'])
  t.is(hex[4], words(Buffer.from('SQLite f')))
  t.deepEqual(hex.slice(-3), ['746573742d77616c', '0000000000000000', '0000000000000000'])
  t.is(hex.length, 4 + 12288 / 8 + 3)
  t.is(summary(await other.ask({ type: 'dump', name: 'none' })), '1002 database does not exists')
  // Also where no leader is.
  server.replicator.isLeader = false
  t.is((await other.ask({ type: 'dump', name: 'test' })).type, 'files')
})

test('DUMP of a large database is streamed, and a client that leaves in the middle frees the image', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  await client.exec('CREATE TABLE a(x)')
  for (let i = 0; i < 20; i++) await client.exec('INSERT INTO a VALUES(zeroblob(1000000))')
  const dumped = await client.ask({ type: 'dump', name: 'test' })
  t.true(dumped.type === 'files' && dumped.files[0]!.content.length > 20_000_000)
  const slow = await WireClient.connect(server)
  slow.socket.pause()
  slow.request({ type: 'dump', name: 'test' })
  await settled()
  const [socket] = [...server.sockets].slice(-1)
  t.true(socket!.writableLength < 1_000_000)
  await slow.end()
  await until(() => server.gateways.connections === 1)
  t.is(await client.exec('INSERT INTO a VALUES(1)'), '21/1')
  t.deepEqual(server.internalErrors, [])
})

test('malformed input closes the connection, or is refused where it may go on', async (t) => {
  const server = await startServer({ requestBytesMax: 1024 * 1024 })
  t.teardown(() => server.close())
  // §1.5: what closes.
  for (const bytes of [
    '0000000000000000', // 0 words
    'ffffff1f00000000', // above every limit, on the 8 header bytes alone
    '0100001000000000',
    '0100020000000000', // one word above requestBytesMax
    '0100000003000000 7465737474657374', // OPEN: text without NUL
    '0100000004000000 0000000000000000', // PREPARE without sql
    '0100000003000000 7465737400000000', // OPEN without flags
    '010000000c000000 0100000000000000', // ADD without address
  ]) {
    const client = await WireClient.connect(server)
    client.sendHex(bytes)
    t.true(await client.closed(), bytes)
  }
  // What is refused; the connection stays usable.
  const client = await WireClient.open(server)
  for (const [bytes, expected] of [
    ['0100000014000000 0000000000000000', '1005 unrecognized request type'],
    ['01000000ff000000 0000000000000000', '1005 unrecognized request type'],
    ['0100000000010000 0000000000000000', '1005 unrecognized schema version'],
    ['0200000004020000 0000000000000000 0000000000000000', '1 unrecognized schema version'],
    ['0100000005020000 0000000000000000', '1 unrecognized schema version'],
    ['0200000009020000 0000000000000000 0000000000000000', '1 unrecognized schema version'],
    ['0300000008000000 0000000000000000 53454c4543540000 ff01010101010101', '1 bind parameters'],
  ] as const) {
    client.sendHex(bytes)
    const answer = summary(await client.next())
    if (expected !== '1 bind parameters') t.is(answer, expected, bytes)
  }
  // Extra bytes and a non-zero "extra" field are ignored.
  client.sendHex('0300000001004711 0100000000000000 ffffffffffffffff ffffffffffffffff')
  t.is((await client.next()).type, 'welcome')
  t.is(await client.value('SELECT 1'), 1)
  t.deepEqual(server.internalErrors, [])
  await client.end()
  await until(() => server.gateways.connections === 0)
})

test('a tuple that does not fit its body is "bind parameters", and nothing is executed', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  await client.exec('CREATE TABLE a(x)')
  for (const type of ['execSql', 'querySql'] as const)
    for (const [schema, tuple] of [
      [0, '0201010000000000 0100000000000000'], // two values announced, one there
      [0, 'ff01010101010101'],
      [1, 'ffffffff01010101 0100000000000000'],
      [0, '0109000000000000 0100000000000000'], // UNIXTIME is no parameter
      [0, '0163000000000000 0100000000000000'], // no such type
      [0, '0103000000000000 6161616161616161'], // text without NUL
      [0, '0104000000000000 ffffff7f00000000'], // blob longer than the body
    ] as const) {
      const sql = 'INSERT INTO a VALUES(?1), (?2)'
      client.request({ type, schema, databaseId: 0n, sql, params: fromHex(tuple) })
      t.is(summary(await client.next()), '1 bind parameters', `${type} ${tuple}`)
    }
  t.is(await client.value('SELECT count(*) FROM a'), 0)
})

test('CONNECT among other requests hands the stream over with everything behind it', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.connect(server)
  client.send(
    Buffer.concat([
      encodeRequest({ type: 'client', id: 1n }),
      encodeRequest({ type: 'connect', id: 7n, address: '127.0.0.1:7' }),
      Buffer.from('raft follows'),
    ]),
  )
  t.is((await client.next()).type, 'welcome')
  await until(() => server.peers.length === 1)
  const [peer] = server.peers
  t.is(peer!.id, 7n)
  t.is(peer!.address, '127.0.0.1:7')
  t.is(Buffer.from(peer!.rest).toString(), 'raft follows')
  t.is(server.gateways.connections, 0)
  peer!.socket.destroy()
})

test('random bytes never harm the server', async (t) => {
  const server = await startServer({ requestBytesMax: 64 * 1024 })
  t.teardown(() => server.close())
  let seed = 8412
  const random = (below: number): number => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
    return seed % below
  }
  for (let round = 0; round < 150; round++) {
    const client = await WireClient.connect(server)
    if (random(2) === 0) client.request({ type: 'open', name: 'fuzz', flags: 0n, vfs: '' })
    for (let i = 0; i < 5; i++) {
      const body = Buffer.alloc(8 * (1 + random(12)))
      for (let at = 0; at < body.length; at++) body[at] = random(3) === 0 ? random(256) : 0
      const head = Buffer.alloc(8)
      head.writeUInt32LE(body.length / 8)
      head[4] = random(22) === 11 ? 10 : random(22)
      if (head[4] === 11) head[4] = 10
      head[5] = random(3)
      client.send(Buffer.concat([head, body]))
    }
    await client.end()
  }
  await until(() => server.gateways.connections === 0)
  t.deepEqual(server.internalErrors, [])
  const client = await WireClient.open(server)
  t.is(await client.value('SELECT 1'), 1)
})

test('a connection above the limit is closed at once', async (t) => {
  const server = await startServer({ connectionsMax: 2 })
  t.teardown(() => server.close())
  const first = await WireClient.open(server)
  await WireClient.open(server)
  const third = await WireClient.connect(server)
  t.true(await third.closed())
  await first.end()
  await until(() => server.gateways.connections === 1)
  await WireClient.open(server)
  t.pass()
})

const many = 'WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < ?) SELECT n FROM c'

test('E20: INTERRUPT ends a stream of rows with one EMPTY', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  client.requestQuery(many, 2_000_000)
  t.is((await client.raw())!.type, 7)
  client.sendHex('010000000a000000 0000000000000000')
  let rows = 0
  for (;;) {
    const message = (await client.raw())!
    if (message.type !== 7) {
      t.is(message.type, 8)
      break
    }
    rows++
  }
  t.true(rows < 1000)
  t.is(await client.value('SELECT 5'), 5)
  // Idle: one EMPTY each.
  for (let i = 0; i < 3; i++) client.request({ type: 'interrupt' })
  client.requestQuery('SELECT 6')
  for (let i = 0; i < 3; i++) t.is((await client.next()).type, 'empty')
  t.is((await client.next()).type, 'rows')
})

test('two INTERRUPTs behind one query get two EMPTYs', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  client.requestQuery(many, 2_000_000)
  client.request({ type: 'interrupt' })
  client.request({ type: 'interrupt' })
  client.requestQuery('SELECT 6')
  const types: number[] = []
  while (types.filter((type) => type === 8).length < 2) types.push((await client.raw())!.type)
  t.deepEqual(await client.rows(), { columns: ['6'], rows: [[6]], parts: 1 })
})

test('INTERRUPT stops a statement on a worker', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  client.requestQuery(`SELECT count(*) FROM (${many}) a`, 2_000_000_000)
  await settled()
  client.request({ type: 'interrupt' })
  t.is((await client.next()).type, 'empty')
  t.is(await client.value('SELECT 5'), 5)
  client.requestExec(`CREATE TABLE big AS ${many}`, 2_000_000_000)
  await settled()
  client.request({ type: 'interrupt' })
  t.is((await client.next()).type, 'empty')
  t.is(await client.value("SELECT count(*) FROM sqlite_schema WHERE name = 'big'"), 0)
  t.is(await client.exec('CREATE TABLE big(x)'), '0/0')
})

test('INTERRUPT of RETURNING after its first batch keeps the write', async (t) => {
  for (const rows of [20_000, 300_000]) {
    const server = await startServer({}, { statementBudgetMs: rows > 100_000 ? 1 : 10_000 })
    t.teardown(() => server.close())
    const client = await WireClient.open(server)
    await client.exec('CREATE TABLE a(x)')
    client.requestQuery(`INSERT INTO a SELECT n FROM (${many}) RETURNING x`, rows)
    t.is((await client.raw())!.type, 7)
    client.socket.pause()
    await settled()
    client.request({ type: 'interrupt' })
    await settled()
    client.socket.resume()
    let batches = 0
    for (;;) {
      const response = await client.next()
      if (response.type === 'empty') break
      t.is(response.type, 'rows')
      batches++
    }
    t.true(batches < rows / 1000)
    t.is(await client.value('SELECT count(*) FROM a'), rows)
    t.regex(await client.exec('INSERT INTO a VALUES(1)'), /\/1$/)
  }
})

test('a slow reader of 100 000 rows costs the server one batch, and everything arrives', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  const rows = 100_000
  await client.exec('CREATE TABLE a(n INTEGER, s TEXT)')
  await client.exec(`INSERT INTO a SELECT n, 'some text to make it longer ' || n FROM (${many})`, rows)
  client.socket.pause()
  client.requestQuery('SELECT n, s FROM a ORDER BY n')
  await settled()
  const [socket] = [...server.sockets]
  t.true(socket!.writableLength <= 256 * 1024, `${socket!.writableLength} bytes wait in the socket`)
  // A writer is not held up by the reader.
  const writer = await WireClient.open(server)
  t.regex(await writer.exec('INSERT INTO a VALUES(0, NULL)'), /\/1$/)
  client.socket.resume()
  const answer = await client.rows()
  if (typeof answer === 'string') return t.fail(answer)
  t.is(answer.rows.length, rows)
  t.true(answer.rows.every((row, i) => row[0] === i + 1))
  t.true(answer.parts > 10)
})

test('a client that sends much and reads nothing is not read any further', async (t) => {
  const server = await startServer()
  t.teardown(() => server.close())
  const client = await WireClient.open(server)
  client.socket.pause()
  const request = encodeRequest({
    type: 'querySql',
    schema: 0,
    databaseId: 0n,
    sql: 'SELECT zeroblob(50000)',
    params: new Uint8Array(),
  })
  const requests = 400
  client.send(Buffer.concat(Array.from({ length: requests }, () => request)))
  await settled()
  const [socket] = [...server.sockets]
  t.true(socket!.writableLength < 300_000, `${socket!.writableLength}`)
  client.socket.resume()
  for (let i = 0; i < requests; i++) t.is((await client.next()).type, 'rows')
})

test('closing all gateways ends connections in every state', async (t) => {
  const server = await startServer({}, { statementBudgetMs: 1 })
  const idle = await WireClient.open(server)
  await idle.exec('CREATE TABLE a(x)')
  const transaction = await WireClient.open(server)
  await transaction.exec('BEGIN IMMEDIATE; INSERT INTO a VALUES(1)')
  const queued = await WireClient.open(server)
  queued.requestExec('INSERT INTO a VALUES(2)')
  const worker = await WireClient.open(server)
  worker.requestQuery(`SELECT count(*) FROM (${many}) a`, 2_000_000_000)
  const streaming = await WireClient.open(server)
  streaming.socket.pause()
  streaming.requestQuery(many, 10_000_000)
  await settled()
  await server.gateways.closeAll()
  await server.gateways.closeAll()
  t.is(server.engine.find('test')!.connections, 0)
  t.is(server.gateways.connections, 0)
  for (const client of [idle, transaction, queued, worker]) t.true(await client.closed())
  await streaming.end()
  await server.close()
  t.deepEqual(server.internalErrors, [])
})
