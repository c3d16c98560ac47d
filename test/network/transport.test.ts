import test from 'ava'
import type net from 'node:net'
import {
  encodeConnect,
  encodeInstallSnapshotHeader,
  encodeMessage,
  PeerMessageStream,
} from '../../lib/codec/peer-protocol.js'
import { MessageStream } from '../../lib/codec/message-stream.js'
import type { DqliteError } from '../../lib/errors.js'
import { dial } from '../../lib/network/dial.js'
import { Listener } from '../../lib/network/listener.js'
import { Transport, type TransportOptions } from '../../lib/network/transport.js'
import type { AppendEntries, Entry, Envelope, InstallSnapshot, Message, ServerId } from '../../lib/raft/types.js'
import { closed, connectTo, rawServer, until } from './sockets.js'

const MiB = 1024 * 1024

interface Member {
  id: ServerId
  address: string
  transport: Transport
  received: { from: ServerId; address: string; message: Message }[]
  unreachable: ServerId[]
  warnings: string[]
  dials: number
  close(): Promise<void>
}

async function member(id: ServerId, options: Partial<TransportOptions> = {}): Promise<Member> {
  // The transport is made when its address is known; nobody knows the address before.
  const listener = await Listener.listen({
    bind: '127.0.0.1:0',
    connectionsMax: 10,
    onClient: ({ socket }) => socket.destroy(),
    onPeer: (peer) => self.transport.accept(peer),
  })
  const self: Member = {
    id,
    address: listener.address,
    received: [],
    unreachable: [],
    warnings: [],
    dials: 0,
    transport: new Transport({
      id,
      address: listener.address,
      sendQueueBytesMax: 4 * MiB,
      connectTimeoutMs: 2000,
      reconnectMs: 400,
      progressTimeoutMs: 10_000,
      dial: (address, dialOptions) => {
        self.dials++
        return dial(address, dialOptions)
      },
      onMessage: (from, address, message) => self.received.push({ from, address, message }),
      onSnapshot: (_from, _address, _message, _bytes, content) => void drain(content),
      onUnreachable: (to) => self.unreachable.push(to),
      onWarning: (text) => self.warnings.push(text),
      ...options,
    }),
    close: async () => {
      await listener.close()
      await self.transport.close()
    },
  }
  return self
}

async function drain(content: AsyncIterable<Uint8Array>): Promise<number> {
  let bytes = 0
  for await (const chunk of content) bytes += chunk.byteLength
  return bytes
}

/** An address that nobody can take meanwhile, as somebody might take a port. */
const nobodyThere = (): string => `@dqlite-test-${process.pid}-${Math.random()}`

const vote = (term: number): Message => ({ type: 'requestVoteResult', term, granted: true, preVote: false })
const append = (first: number, count: number, bytes: number): AppendEntries => ({
  type: 'appendEntries',
  term: 1,
  prev: { index: first - 1, term: 1 },
  commitIndex: 0,
  entries: Array.from({ length: count }, (_, i): Entry => ({
    type: 'command',
    index: first + i,
    term: 1,
    byteLength: bytes,
    data: Buffer.alloc(bytes, first + i),
  })),
})
const to = (peer: { id: ServerId; address: string }, message: Message): Envelope => ({
  to: peer.id,
  address: peer.address,
  message,
})
const terms = (m: Member): number[] => m.received.map(({ message }) => message.term)
const snapshot: InstallSnapshot = {
  type: 'installSnapshot',
  term: 9,
  snapshot: {
    last: { index: 5, term: 2 },
    configuration: { servers: [{ id: 1n, address: 'a', role: 'voter' }] },
    configurationIndex: 1,
  },
}

/** What a raw server got on a stream: CONNECT, then messages. */
function parse(bytes: Buffer): Message[] {
  const client = new MessageStream({ bodyBytesMax: 4096 })
  client.push(bytes.subarray(8))
  if (client.next()?.type !== 11) return []
  const peer = new PeerMessageStream({ headerBytesMax: MiB, payloadBytesMax: 64 * MiB })
  peer.push(client.takeRest())
  const messages: Message[] = []
  for (let next = peer.next(); next !== undefined; next = peer.next()) messages.push(next.message)
  return messages
}

test.serial('messages arrive in order, with the announced id and address, on one stream each way', async (t) => {
  const [a, b] = [await member(1n), await member(2n)]
  a.transport.send([to(b, vote(1)), to(b, append(1, 3, 4096)), to(b, vote(2))])
  a.transport.send([to(b, vote(3))])
  await until(() => b.received.length === 4, 'messages')
  t.deepEqual(
    b.received.map(({ message }) => message),
    [vote(1), append(1, 3, 4096), vote(2), vote(3)],
  )
  t.true(b.received.every(({ from, address }) => from === 1n && address === a.address))
  b.transport.send([{ to: 1n, address: b.received[0]!.address, message: vote(4) }])
  await until(() => a.received.length === 1, 'answer')
  t.is(a.dials + b.dials, 2)
  t.deepEqual([...a.unreachable, ...b.unreachable], [])
  await a.close()
  await b.close()
})

test.serial('the messages of one call to one peer are one write', async (t) => {
  const chunks: Buffer[] = []
  const server = await rawServer((socket) => socket.on('data', (chunk) => chunks.push(chunk)))
  const a = await member(1n)
  const peer = { id: 2n, address: server.address }
  a.transport.send([to(peer, vote(1)), to(peer, vote(2))])
  await until(() => chunks.length > 0, 'the first write')
  t.is(chunks.length, 1)
  t.deepEqual(parse(chunks[0]!), [vote(1), vote(2)])
  a.transport.send(Array.from({ length: 50 }, (_, i) => to(peer, append(i + 1, 2, 512))))
  await until(() => chunks.length > 1, 'the second write')
  t.is(parse(Buffer.concat(chunks)).length, 52)
  t.is(chunks.length, 2)
  await a.close()
  await server.close()
})

test.serial('a new address of a peer is a new stream, and the old one ends', async (t) => {
  const [old, next] = [await rawServer(), await rawServer()]
  const a = await member(1n)
  a.transport.send([to({ id: 2n, address: old.address }, vote(1))])
  await until(() => old.sockets.length === 1, 'first stream')
  const got: Buffer[] = []
  next.server.on('connection', (socket) => socket.on('data', (chunk: Buffer) => got.push(chunk)))
  a.transport.send([to({ id: 2n, address: next.address }, vote(2))])
  await closed(old.sockets[0]!)
  await until(() => got.length > 0, 'second stream')
  t.deepEqual(parse(Buffer.concat(got)), [vote(2)])
  await a.close()
  await old.close()
  await next.close()
})

test.serial('a peer that is not there is reported, not hammered, and reached once it is back', async (t) => {
  const gone = { address: nobodyThere() }
  const peer = { id: 2n, address: gone.address }
  const a = await member(1n)
  const timer = setInterval(() => a.transport.send([to(peer, vote(1))]), 2)
  await new Promise((resolve) => setTimeout(resolve, 1000))
  clearInterval(timer)
  t.true(a.unreachable.length >= 3)
  t.true(a.unreachable.every((id) => id === 2n))
  // 50 + 100 + 200 + 400 + 400 ms of pauses.
  t.true(a.dials >= 3 && a.dials <= 7, `${a.dials} attempts`)
  const listener = await Listener.listen({
    bind: gone.address,
    connectionsMax: 1,
    onClient: () => t.fail(),
    onPeer: ({ socket, rest }) => {
      t.true(rest.byteLength > 0)
      socket.resume()
      back = true
    },
  })
  let back = false
  await until(() => a.dials > 0, 'dials')
  // One message in the pause is enough: it is sent when the pause is over.
  a.transport.send([to(peer, vote(2))])
  await until(() => back, 'reconnected')
  await a.close()
  await listener.close()
})

test.serial('without a send there is no attempt', async (t) => {
  const gone = { address: nobodyThere() }
  const a = await member(1n)
  a.transport.send([to({ id: 2n, address: gone.address }, vote(1))])
  await until(() => a.unreachable.length === 1, 'report')
  await new Promise((resolve) => setTimeout(resolve, 300))
  t.is(a.dials, 1)
  await a.close()
})

test.serial(
  'while there is no connection the newest messages are kept and the loss is reported once a turn',
  async (t) => {
    const b = await member(2n)
    let open = (): void => undefined
    const gate = new Promise<void>((resolve) => (open = resolve))
    const a = await member(1n, { dial: async (address, options) => (await gate, dial(address, options)) })
    for (let term = 1; term <= 30; term++) a.transport.send([to(b, vote(term))])
    t.deepEqual(a.unreachable, [])
    await Promise.resolve()
    t.deepEqual(a.unreachable, [2n])
    open()
    await until(() => b.received.length === 8, 'the newest')
    t.deepEqual(terms(b), [23, 24, 25, 26, 27, 28, 29, 30])
    await a.close()
    await b.close()
  },
)

test.serial('a peer that does not read costs at most the bound, then its connection', async (t) => {
  const server = await rawServer((socket) => socket.pause())
  const a = await member(1n, { progressTimeoutMs: 300, sendQueueBytesMax: 4 * MiB })
  const peer = { id: 2n, address: server.address }
  a.transport.send([to(peer, vote(1))])
  await until(() => server.sockets.length === 1, 'connection')
  const before = process.memoryUsage().arrayBuffers
  const message = append(1, 1, MiB)
  for (let i = 0; i < 200; i++) {
    a.transport.send([to(peer, message)])
    if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve))
  }
  t.true(a.unreachable.length > 0)
  t.true(process.memoryUsage().arrayBuffers - before < 16 * MiB)
  const reports = a.unreachable.length
  await until(() => a.unreachable.length > reports, 'the connection is given up')
  await a.close()
  await server.close()
})

test.serial('one message above the bound still leaves when nothing waits before it', async (t) => {
  const b = await member(2n)
  const a = await member(1n, { sendQueueBytesMax: 64 * 1024 })
  const large = append(1, 1, 3 * MiB)
  a.transport.send([to(b, large)])
  await until(() => b.received.length === 1, 'the large message')
  const got = b.received[0]!.message
  t.is(got.type === 'appendEntries' ? got.entries[0]!.byteLength : 0, 3 * MiB)
  t.deepEqual(a.unreachable, [])
  await a.close()
  await b.close()
})

test.serial('a lost connection is reported and made again', async (t) => {
  const b = await member(2n)
  let breakIt = false
  const server = await rawServer((socket) => {
    if (breakIt) socket.destroy()
    socket.resume()
  })
  const a = await member(1n)
  const peer = { id: 2n, address: server.address }
  a.transport.send([to(peer, vote(1))])
  await until(() => server.sockets.length === 1, 'connection')
  server.sockets[0]!.destroy()
  await until(() => a.unreachable.length === 1, 'report')
  a.transport.send([to(peer, vote(2))])
  await until(() => server.sockets.length === 2, 'connection again')
  // One that ends at once, again and again, is not made without pause.
  breakIt = true
  server.sockets[1]!.destroy()
  const dials = a.dials
  const timer = setInterval(() => a.transport.send([to(peer, vote(3))]), 2)
  await new Promise((resolve) => setTimeout(resolve, 700))
  clearInterval(timer)
  t.true(a.dials - dials <= 6, `${a.dials - dials} attempts`)
  await a.close()
  await b.close()
  await server.close()
})

test.serial('a peer that takes everything and never answers gets a new connection', async (t) => {
  const server = await rawServer((socket) => socket.resume())
  const a = await member(1n, { silenceTimeoutMs: 100 })
  const peer = { id: 2n, address: server.address }
  a.transport.send([to(peer, vote(1))])
  await until(() => server.sockets.length === 1, 'connection')
  await new Promise((resolve) => setTimeout(resolve, 150))
  a.transport.send([to(peer, vote(2))])
  await until(() => server.sockets.length === 2, 'new connection')
  await closed(server.sockets[0]!)
  // Whoever answers keeps its connection.
  const answering = await connectTo(a.address)
  answering.write(encodeConnect(2n, server.address))
  for (let i = 0; i < 10; i++) {
    answering.write(Buffer.concat(encodeMessage(vote(7) as never, 2n)))
    a.transport.send([to(peer, vote(3))])
    await new Promise((resolve) => setTimeout(resolve, 40))
  }
  t.is(server.sockets.length, 2)
  answering.destroy()
  await a.close()
  await server.close()
})

test.serial('an inbound stream may come in single bytes', async (t) => {
  const a = await member(1n)
  const raw = await connectTo(a.address)
  raw.setNoDelay(true)
  const bytes = Buffer.concat([
    encodeConnect(2n, 'x:1'),
    ...encodeMessage(append(1, 2, 8), 2n),
    ...encodeMessage(vote(3) as never, 2n),
  ])
  for (const byte of bytes) {
    raw.write(Buffer.from([byte]))
    await new Promise((resolve) => setImmediate(resolve))
  }
  await until(() => a.received.length === 2, 'messages')
  t.deepEqual(a.received[0], { from: 2n, address: 'x:1', message: append(1, 2, 8) })
  raw.destroy()
  await a.close()
})

test.serial('nobody may call himself nobody, or us', async (t) => {
  const a = await member(1n)
  for (const id of [0n, 1n]) {
    const raw = await connectTo(a.address)
    raw.write(encodeConnect(id, 'x:1'))
    await closed(raw)
  }
  t.is(a.warnings.length, 2)
  await a.close()
})

test.serial('a stream that does not decode is closed with one warning, and what came before it counts', async (t) => {
  const a = await member(1n)
  const raw = await connectTo(a.address)
  raw.write(Buffer.concat([encodeConnect(2n, 'x:1'), ...encodeMessage(vote(3) as never, 2n), Buffer.alloc(4096, 0xcc)]))
  await closed(raw)
  t.deepEqual(terms(a), [3])
  t.is(a.warnings.length, 1)
  t.regex(a.warnings[0]!, /server 2 at x:1/)
  await a.close()
})

test.serial('a peer that connects again replaces its older connection', async (t) => {
  const a = await member(1n)
  const first = await connectTo(a.address)
  first.write(encodeConnect(2n, 'x:1'))
  await new Promise((resolve) => setTimeout(resolve, 50))
  const second = await connectTo(a.address)
  second.write(encodeConnect(2n, 'x:1'))
  await closed(first)
  second.write(Buffer.concat(encodeMessage(vote(3) as never, 2n)))
  await until(() => a.received.length === 1, 'message')
  t.pass()
  second.destroy()
  await a.close()
})

// ------------------------------------------------------------------------------------------------------ snapshots

/** Content of `bytes`, in chunks; says how much has been asked for and whether it was ended. */
function source(
  bytes: number,
  chunkBytes = 64 * 1024,
): { content: AsyncIterable<Uint8Array>; produced: () => number; ended: () => boolean } {
  let produced = 0
  let ended = false
  async function* content(): AsyncGenerator<Uint8Array> {
    try {
      while (produced < bytes) {
        const size = Math.min(chunkBytes, bytes - produced)
        const chunk = Buffer.alloc(size, produced / chunkBytes)
        produced += size
        yield chunk
      }
    } finally {
      ended = true
    }
  }
  return { content: content(), produced: () => produced, ended: () => ended }
}

test.serial('a snapshot of 50 MB passes a slow reader with little memory, and messages wait behind it', async (t) => {
  const bytes = 50 * MiB
  const from = source(bytes)
  let consumed = 0
  let aheadMax = 0
  let done = false
  let orderKept = true
  const b: Member = await member(2n, {
    onSnapshot: (id, address, message, contentBytes, content) => {
      t.is(id, 1n)
      t.is(address, a.address)
      t.deepEqual(message, snapshot)
      t.is(contentBytes, bytes)
      void (async () => {
        let chunks = 0
        for await (const chunk of content) {
          const expected = Math.floor(consumed / (64 * 1024)) % 256
          if (chunk[0] !== expected) t.fail(`byte ${consumed} is ${chunk[0]}, expected ${expected}`)
          consumed += chunk.byteLength
          aheadMax = Math.max(aheadMax, from.produced() - consumed)
          if (b.received.length > 1) orderKept = false
          if (chunks++ % 16 === 0) await new Promise((resolve) => setTimeout(resolve, 1))
        }
        done = true
      })()
    },
  })
  const a: Member = await member(1n)
  const before = process.memoryUsage().arrayBuffers
  let memoryMax = 0
  const watch = setInterval(() => (memoryMax = Math.max(memoryMax, process.memoryUsage().arrayBuffers - before)), 5)
  a.transport.send([to(b, vote(1))])
  await until(() => b.received.length === 1, 'connected')
  const sent = a.transport.sendSnapshot(to(b, snapshot), bytes, from.content)
  a.transport.send([to(b, vote(2))])
  await sent
  a.transport.send([to(b, vote(3))])
  await until(() => done && b.received.length === 3, 'everything')
  clearInterval(watch)
  t.is(consumed, bytes)
  t.deepEqual(terms(b), [1, 2, 3])
  t.true(orderKept)
  // The system's own buffers are most of it.
  t.log(`at most ${(aheadMax / MiB).toFixed(1)} MiB ahead, ${(memoryMax / MiB).toFixed(1)} MiB of buffers`)
  t.true(aheadMax < 16 * MiB, `${aheadMax} bytes ahead`)
  t.true(from.ended())
  await a.close()
  await b.close()
})

test.serial('a reader that stops early leaves the stream in step', async (t) => {
  const b = await member(2n, {
    onSnapshot: (_from, _address, _message, _bytes, content) =>
      void (async () => {
        for await (const chunk of content) if (chunk.byteLength > 0) break
      })(),
  })
  const a = await member(1n)
  await a.transport.sendSnapshot(to(b, snapshot), 5 * MiB, source(5 * MiB).content)
  // Without content there is nothing to read; the message counts all the same.
  await a.transport.sendSnapshot(to(b, snapshot), 0, source(0).content)
  a.transport.send([to(b, vote(2))])
  await until(() => b.received.length === 1, 'the message behind')
  t.deepEqual(b.warnings, [])
  await a.close()
  await b.close()
})

test.serial('messages behind a snapshot are bounded too', async (t) => {
  let release = (): void => undefined
  const gate = new Promise<void>((resolve) => (release = resolve))
  async function* slow(): AsyncGenerator<Uint8Array> {
    yield Buffer.alloc(1024)
    await gate
    yield Buffer.alloc(1024)
  }
  const b = await member(2n)
  const a = await member(1n, { sendQueueBytesMax: 2 * MiB })
  a.transport.send([to(b, vote(1))])
  await until(() => b.received.length === 1, 'connected')
  const sending = a.transport.sendSnapshot(to(b, snapshot), 2048, slow())
  for (let i = 0; i < 10; i++) a.transport.send([to(b, append(1, 1, MiB))])
  await until(() => a.unreachable.length === 1, 'report')
  release()
  await sending
  await until(() => b.received.length === 2, 'what had room')
  t.is(b.received.length, 2)
  await a.close()
  await b.close()
})

test.serial('a sender whose content fails, is too short or too long cuts the stream and says so', async (t) => {
  const ends: string[] = []
  const b = await member(2n, {
    onSnapshot: (_from, _address, _message, _bytes, content) =>
      void drain(content).then(
        () => ends.push('complete'),
        (error: DqliteError) => ends.push(error.code),
      ),
  })
  const a = await member(1n)
  async function* failing(): AsyncGenerator<Uint8Array> {
    yield Buffer.alloc(100_000)
    throw new Error('disk on fire')
  }
  await t.throwsAsync(a.transport.sendSnapshot(to(b, snapshot), MiB, failing()), { message: 'disk on fire' })
  await until(() => ends.length === 1, 'the end of the first')
  await t.throwsAsync(a.transport.sendSnapshot(to(b, snapshot), MiB, source(1024).content), { message: /shorter/ })
  await until(() => ends.length === 2, 'the end of the second')
  await t.throwsAsync(a.transport.sendSnapshot(to(b, snapshot), 1024, source(MiB).content), { message: /longer/ })
  a.transport.send([to(b, vote(1))])
  await until(() => b.received.length === 1, 'the stream works again')
  t.deepEqual(ends.slice(0, 2), ['CONNECTION_LOST', 'CONNECTION_LOST'])
  t.true(a.unreachable.length > 0)
  await a.close()
  await b.close()
})

test.serial('a receiver that vanishes ends the sending, and the content is ended', async (t) => {
  const server = await rawServer((socket) => socket.once('data', () => socket.destroy()))
  const a = await member(1n)
  const from = source(50 * MiB)
  const peer = { id: 2n, address: server.address }
  await t.throwsAsync(a.transport.sendSnapshot(to(peer, snapshot), 50 * MiB, from.content), { code: 'NO_CONNECTION' })
  t.true(from.ended())
  t.true(from.produced() < 50 * MiB)
  await server.close()
  const again = source(MiB)
  await t.throwsAsync(a.transport.sendSnapshot(to(peer, snapshot), MiB, again.content), { code: 'NO_CONNECTION' })
  t.is(again.produced(), 0)
  await a.close()
})

test.serial('a receiver that stops reading is given up', async (t) => {
  const server = await rawServer((socket) => socket.pause())
  const a = await member(1n, { progressTimeoutMs: 200 })
  const peer = { id: 2n, address: server.address }
  const from = source(50 * MiB)
  await t.throwsAsync(a.transport.sendSnapshot(to(peer, snapshot), 50 * MiB, from.content), { code: 'NO_CONNECTION' })
  t.true(from.ended())
  await a.close()
  await server.close()
})

test.serial('a sender that stops, and a reader that never reads, end the inbound stream', async (t) => {
  let content: AsyncIterable<Uint8Array> | undefined
  const a = await member(1n, {
    progressTimeoutMs: 150,
    onSnapshot: (_from, _address, _message, _bytes, given) => (content = given),
  })
  const header = Buffer.concat([encodeConnect(2n, 'x:1'), encodeInstallSnapshotHeader(snapshot, MiB)])
  for (const reads of [true, false]) {
    const raw = await connectTo(a.address)
    raw.write(Buffer.concat([header, Buffer.alloc(1000)]))
    content = undefined
    await until(() => content !== undefined, 'snapshot')
    if (reads) await t.throwsAsync(drain(content!), { code: 'CONNECTION_LOST' })
    await closed(raw)
  }
  t.pass()
  await a.close()
})

test.serial('a second snapshot to the same peer is refused while one is on its way', async (t) => {
  const b = await member(2n)
  const a = await member(1n)
  const second = source(MiB)
  const first = a.transport.sendSnapshot(to(b, snapshot), MiB, source(MiB).content)
  await t.throwsAsync(a.transport.sendSnapshot(to(b, snapshot), MiB, second.content), { code: 'NO_CONNECTION' })
  await first
  t.is(second.produced(), 0)
  await a.close()
  await b.close()
})

// ---------------------------------------------------------------------------------------------------------- close

test.serial('close ends streams, attempts and snapshots, and nothing happens afterwards', async (t) => {
  const [reader, server] = [await member(2n), await rawServer((socket) => socket.pause())]
  const never = new Promise<net.Socket>(() => undefined)
  const a = await member(1n, {
    dial: (address, options) =>
      address === 'never'
        ? Promise.race([
            never,
            new Promise<never>((_, reject) =>
              options.signal!.addEventListener('abort', () => reject(new Error('abort'))),
            ),
          ])
        : dial(address, options),
  })
  a.transport.send([to(reader, vote(1)), to({ id: 3n, address: 'never' }, vote(1))])
  const from = source(50 * MiB)
  const sending = a.transport.sendSnapshot(to({ id: 4n, address: server.address }, snapshot), 50 * MiB, from.content)
  const failed = t.throwsAsync(sending)
  await until(() => reader.received.length === 1 && server.sockets.length === 1, 'everything runs')
  const raw = await connectTo(a.address)
  raw.write(encodeConnect(7n, 'x:1'))
  await new Promise((resolve) => setTimeout(resolve, 50))
  await a.transport.close()
  await a.transport.close()
  await failed
  t.true(from.ended())
  await closed(raw)
  const reports = a.unreachable.length
  const { dials } = a
  a.transport.send([to(reader, vote(2))])
  await t.throwsAsync(a.transport.sendSnapshot(to(reader, snapshot), 0, source(0).content), { code: 'CLOSED' })
  await new Promise((resolve) => setTimeout(resolve, 100))
  t.is(a.unreachable.length, reports)
  t.is(a.dials, dials)
  t.deepEqual(terms(reader), [1])
  await a.close()
  await reader.close()
  await server.close()
})

test.serial('forgetting a server ends its stream', async (t) => {
  const server = await rawServer((socket) => socket.resume())
  const a = await member(1n)
  a.transport.send([to({ id: 2n, address: server.address }, vote(1))])
  await until(() => server.sockets.length === 1, 'connection')
  a.transport.forget(2n)
  await closed(server.sockets[0]!)
  t.deepEqual(a.unreachable, [])
  await a.close()
  await server.close()
})
