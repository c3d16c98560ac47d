import test, { type ExecutionContext } from 'ava'
import { once } from 'node:events'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { spawnSync } from 'node:child_process'
import { encodeHandshake, encodeRequest } from '../../lib/codec/client-protocol.js'
import { encodeConnect } from '../../lib/codec/peer-protocol.js'
import {
  Listener,
  type ClientConnection,
  type ListenerOptions,
  type PeerConnection,
} from '../../lib/network/listener.js'
import { closed, connectTo, until } from './sockets.js'

interface Heard {
  listener: Listener
  clients: ClientConnection[]
  peers: PeerConnection[]
  bytes: Map<net.Socket, Buffer>
  close(): Promise<void>
}

async function listen(options: Partial<ListenerOptions> = {}): Promise<Heard> {
  const clients: ClientConnection[] = []
  const peers: PeerConnection[] = []
  const bytes = new Map<net.Socket, Buffer>()
  const take = ({ socket, rest }: { socket: net.Socket; rest: Uint8Array }): void => {
    bytes.set(socket, Buffer.from(rest))
    socket.on('data', (chunk) => bytes.set(socket, Buffer.concat([bytes.get(socket)!, chunk])))
  }
  const listener = await Listener.listen({
    bind: '127.0.0.1:0',
    connectionsMax: 100,
    onClient: (client) => {
      clients.push(client)
      take(client)
    },
    onPeer: (peer) => {
      peers.push(peer)
      take(peer)
    },
    ...options,
  })
  const close = async (): Promise<void> => {
    for (const { socket } of [...clients, ...peers]) socket.destroy()
    await listener.close()
  }
  return { listener, clients, peers, bytes, close }
}

const leader = encodeRequest({ type: 'leader' })
const word = encodeHandshake()
const connect = encodeConnect(3n, '127.0.0.1:19103')

test('a client is handed over with every byte after its word', async (t) => {
  const heard = await listen()
  const socket = await connectTo(heard.listener.address)
  socket.write(Buffer.concat([word, leader, leader]))
  await until(() => heard.clients.length === 1, 'client')
  t.is(heard.clients[0]!.protocol, 1n)
  socket.write(leader)
  const bytes = (): Buffer => heard.bytes.get(heard.clients[0]!.socket)!
  await until(() => bytes().length === 48, 'bytes')
  t.true(bytes().equals(Buffer.concat([leader, leader, leader])))
  socket.destroy()
  await heard.close()
})

test('the legacy word is a client too, any other word is closed without an answer', async (t) => {
  const heard = await listen()
  const legacy = await connectTo(heard.listener.address)
  legacy.write(Buffer.concat([Buffer.from('e53f4360d74d1086', 'hex'), leader]))
  await until(() => heard.clients.length === 1, 'client')
  t.is(heard.clients[0]!.protocol, 0x86104dd760433fe5n)
  const stranger = await connectTo(heard.listener.address)
  let answered = 0
  stranger.on('data', (chunk: Buffer) => (answered += chunk.length))
  stranger.write('GET / HTTP/1.1\r\n\r\n')
  await closed(stranger)
  t.is(answered, 0)
  legacy.destroy()
  await heard.close()
})

test('a peer is known by CONNECT, byte by byte, and what follows it is not lost', async (t) => {
  const heard = await listen()
  const at = await connectTo(heard.listener.address)
  at.setNoDelay(true)
  for (const byte of connect) {
    at.write(Buffer.from([byte]))
    await new Promise((resolve) => setImmediate(resolve))
  }
  await until(() => heard.peers.length === 1, 'peer')
  const inOne = await connectTo(heard.listener.address)
  inOne.write(Buffer.concat([connect, Buffer.from('raft')]))
  await until(() => heard.peers.length === 2, 'second peer')
  t.like(heard.peers[1], { id: 3n, address: '127.0.0.1:19103' })
  t.is(Buffer.from(heard.peers[1]!.rest).toString(), 'raft')
  at.destroy()
  inOne.destroy()
  t.is(heard.clients.length, 0)
  await heard.close()
})

test('a CONNECT that is broken or far too long is closed', async (t) => {
  const heard = await listen()
  const header = (words: number): Buffer => {
    const bytes = Buffer.alloc(8)
    bytes.writeUInt32LE(words)
    bytes[4] = 11
    return bytes
  }
  for (const bytes of [header(0), header(1000), Buffer.concat([header(2), Buffer.alloc(16, 1)])]) {
    const socket = await connectTo(heard.listener.address)
    socket.write(Buffer.concat([word, bytes]))
    await closed(socket)
  }
  t.is(heard.peers.length + heard.clients.length, 0)
  await heard.close()
})

test('who says nothing is closed in time, who has said the word may be silent', async (t) => {
  const heard = await listen({ handshakeTimeoutMs: 100 })
  const silent = await connectTo(heard.listener.address)
  const partly = await connectTo(heard.listener.address)
  partly.write(word.subarray(0, 7))
  const halfPeer = await connectTo(heard.listener.address)
  halfPeer.write(connect.subarray(0, 20))
  const idle = await connectTo(heard.listener.address)
  idle.write(word)
  await Promise.all([silent, partly, halfPeer].map(closed))
  await new Promise((resolve) => setTimeout(resolve, 300))
  idle.write(leader)
  await until(() => heard.clients.length === 1, 'the idle client')
  idle.destroy()
  t.is(heard.peers.length, 0)
  await heard.close()
})

test('with all places of clients taken one more is closed, and a peer still gets in', async (t) => {
  const heard = await listen({ connectionsMax: 2 })
  const idle = await connectTo(heard.listener.address)
  idle.write(word)
  const busy = await connectTo(heard.listener.address)
  busy.write(Buffer.concat([word, leader]))
  await until(() => heard.clients.length === 1, 'client')
  const extra = await connectTo(heard.listener.address)
  extra.write(Buffer.concat([word, leader]))
  await closed(extra)
  const peer = await connectTo(heard.listener.address)
  peer.write(connect.subarray(0, 8))
  await new Promise((resolve) => setTimeout(resolve, 50))
  peer.write(connect.subarray(8))
  await until(() => heard.peers.length === 1, 'peer')
  busy.destroy()
  await until(() => heard.clients[0]!.socket.closed, 'client gone')
  const next = await connectTo(heard.listener.address)
  next.write(Buffer.concat([word, leader]))
  await until(() => heard.clients.length === 2, 'the place is free again')
  for (const socket of [idle, peer, next]) socket.destroy()
  t.pass()
  await heard.close()
})

test('strangers and peers are bounded', async (t) => {
  const heard = await listen({ strangersMax: 1, peersMax: 1 })
  const first = await connectTo(heard.listener.address)
  await new Promise((resolve) => setTimeout(resolve, 50))
  const second = await connectTo(heard.listener.address)
  await closed(second)
  first.write(connect)
  await until(() => heard.peers.length === 1, 'peer')
  const third = await connectTo(heard.listener.address)
  third.write(connect)
  await closed(third)
  t.is(heard.peers.length, 1)
  first.destroy()
  await heard.close()
})

test('a connection that is reset before or after it is handed over harms nobody', async (t) => {
  const heard = await listen()
  const before = await connectTo(heard.listener.address)
  before.write(word)
  before.resetAndDestroy()
  const after = await connectTo(heard.listener.address)
  after.write(Buffer.concat([word, leader]))
  await until(() => heard.clients.length === 1, 'client')
  after.resetAndDestroy()
  await until(() => heard.clients[0]!.socket.closed, 'end of the client')
  t.pass()
  await heard.close()
})

test('an address in use is named, and free again after close although clients are still served', async (t) => {
  const heard = await listen()
  const { address } = heard.listener
  t.regex(address, /^127\.0\.0\.1:\d+$/)
  await t.throwsAsync(listen({ bind: address }), { code: 'ADDRESS_IN_USE', message: new RegExp(address) })
  const socket = await connectTo(address)
  socket.write(Buffer.concat([word, leader]))
  await until(() => heard.clients.length === 1, 'client')
  const waiting = await connectTo(address)
  await heard.listener.close()
  await heard.listener.close()
  await closed(waiting)
  t.false(heard.clients[0]!.socket.destroyed)
  const again = await listen({ bind: address })
  t.is(again.listener.address, address)
  await again.close()
  socket.destroy()
  await heard.close()
})

test('addresses that cannot be bound are refused', async (t) => {
  for (const bind of ['nonsense::', '192.0.2.1:0', '/no/such/dir/s'])
    await t.throwsAsync(listen({ bind }), { code: 'BAD_OPTION' }, bind)
})

test('paths, abstract names and IPv6 can be listened on', async (t) => {
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-listen-'))
  const file = path.join(dir, 's')
  const name = `@dqlite-test-${process.pid}-${Math.random()}`
  for (const bind of [file, name, '@', '[::1]:0']) {
    const heard = await listen({ bind }).catch((error: Error) => {
      // A machine without IPv6.
      if (bind === '[::1]:0') return undefined
      throw error
    })
    if (heard === undefined) continue
    if (bind === '@') t.regex(heard.listener.address, /^@dqlite-/)
    else if (bind === '[::1]:0') t.regex(heard.listener.address, /^\[::1\]:\d+$/)
    else t.is(heard.listener.address, bind)
    const socket = await connectTo(heard.listener.address)
    socket.write(connect)
    await until(() => heard.peers.length === 1, `peer on ${bind}`)
    if (bind === file) await t.throwsAsync(listen({ bind }), { code: 'ADDRESS_IN_USE' })
    socket.destroy()
    await heard.close()
  }
  rmSync(dir, { recursive: true })
})

test('the path of a listener that was killed can be used again', async (t) => {
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-stale-'))
  const file = path.join(dir, 's')
  const script = `require('net').createServer().listen(${JSON.stringify(file)}, () => process.kill(process.pid, 'SIGKILL'))`
  spawnSync(process.execPath, ['-e', script])
  t.true(existsSync(file))
  const heard = await listen({ bind: file })
  const socket = await connectTo(file)
  socket.write(connect)
  await until(() => heard.peers.length === 1, 'peer')
  const gone = once(socket, 'close')
  await heard.close()
  await gone
  rmSync(dir, { recursive: true })
})

/** Both ends of a connection that somebody else accepted, as an HTTP server would. */
async function foreign(t: ExecutionContext) {
  const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }).listen(0, '127.0.0.1')
  const accepted = once(server, 'connection') as Promise<[net.Socket]>
  await once(server, 'listening')
  const far = await connectTo(`127.0.0.1:${(server.address() as net.AddressInfo).port}`)
  const [near] = await accepted
  near.on('error', () => undefined)
  t.teardown(() => {
    far.destroy()
    near.destroy()
    server.close()
  })
  return { far, near }
}

test('without a socket of its own it takes what others accepted, with what they have read', async (t) => {
  const heard = await listen({ bind: false })
  t.is(heard.listener.address, '')
  const client = await foreign(t)
  const first = Buffer.concat([word, leader])
  heard.listener.accept(client.near, first.subarray(0, 11))
  client.far.write(first.subarray(11))
  await until(() => heard.clients.length === 1, 'a client')
  await until(() => heard.bytes.get(heard.clients[0]!.socket)!.equals(leader), 'its request')

  const peer = await foreign(t)
  heard.listener.accept(peer.near, Buffer.concat([connect, Buffer.from('rest')]))
  await until(() => heard.peers.length === 1, 'a peer')
  t.is(heard.peers[0]!.id, 3n)
  await until(() => heard.bytes.get(heard.peers[0]!.socket)!.equals(Buffer.from('rest')), 'its rest')
  // The other end has nothing more to say: for an HTTP server that would not be the end.
  client.far.end()
  await closed(client.near)
  t.true(client.near.destroyed)
  await heard.close()
})

test('what others accepted counts, is limited in time, and is closed after the end', async (t) => {
  const heard = await listen({ bind: false, connectionsMax: 1, handshakeTimeoutMs: 50 })
  const silent = await foreign(t)
  heard.listener.accept(silent.near, Buffer.alloc(0))
  await closed(silent.far)

  const one = await foreign(t)
  heard.listener.accept(one.near, Buffer.concat([word, leader]))
  await until(() => heard.clients.length === 1, 'a client')
  const two = await foreign(t)
  heard.listener.accept(two.near, Buffer.concat([word, leader]))
  await closed(two.far)
  t.is(heard.clients.length, 1)

  // A connection that is over already is not counted for ever.
  one.far.destroy()
  await closed(one.near)
  const over = await foreign(t)
  over.near.destroy()
  await closed(over.near)
  heard.listener.accept(over.near, Buffer.alloc(0))
  const three = await foreign(t)
  heard.listener.accept(three.near, Buffer.concat([word, leader]))
  await until(() => heard.clients.length === 2, 'another client')

  await heard.close()
  const late = await foreign(t)
  heard.listener.accept(late.near, Buffer.concat([word, leader]))
  await closed(late.far)
  t.is(heard.clients.length, 2)
})
