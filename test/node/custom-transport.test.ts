// Clusters whose connections are the application's: over its HTTPS server with client certificates, over bare TLS. The
// nodes listen nowhere themselves.
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import type http from 'node:http'
import https from 'node:https'
import net from 'node:net'
import os from 'node:os'
import path from 'node:path'
import { PassThrough } from 'node:stream'
import tls from 'node:tls'
import test, { type ExecutionContext } from 'ava'

import { connect, Node, type NodeOptions } from '../../lib/index.js'
import { until } from '../network/sockets.js'
import { testCertificate, testKey } from '../support/test-certificate.js'

/** Everybody shows the one certificate, and asks for it. */
const mutual = {
  key: testKey,
  cert: testCertificate,
  ca: testCertificate,
  requestCert: true,
  rejectUnauthorized: true,
}

type DialOptions = Parameters<NonNullable<NodeOptions['dial']>>[1]

/** As LXD's daemons do it: an HTTPS request with `Upgrade: dqlite`, then dqlite (client-protocol §12.6). */
function dialHttps(address: string, { signal }: DialOptions, certificates: object = mutual): Promise<net.Socket> {
  const [host, port] = address.split(':')
  return new Promise((resolve, reject) => {
    const request = https.request({
      host,
      port,
      path: '/internal/database',
      agent: false,
      headers: { Connection: 'Upgrade', Upgrade: 'dqlite' },
      ...certificates,
      ...(signal && { signal }),
    })
    request.once('upgrade', (response: http.IncomingMessage, socket: net.Socket, head: Buffer) => {
      t0(response.statusCode === 101)
      if (head.byteLength > 0) socket.unshift(head)
      resolve(socket)
    })
    request.once('response', (response) => {
      response.resume()
      reject(new Error(`HTTP ${String(response.statusCode)}`))
    })
    request.once('error', reject)
    request.end()
  })
}

function t0(condition: boolean): void {
  if (!condition) throw new Error('not switched')
}

interface Member {
  readonly address: string
  readonly node: Node
  readonly server: net.Server
  stop(): Promise<void>
}

/** A daemon: its server is there before its node, its address is the server's. */
async function member(
  t: ExecutionContext,
  id: number,
  dir: string,
  kind: 'https' | 'tls',
  options: Partial<NodeOptions> = {},
): Promise<Member> {
  const started: { node?: Node } = {}
  const server =
    kind === 'https'
      ? https.createServer(mutual, (_, response) => response.end('the rest of the daemon'))
      : tls.createServer(mutual, (socket) => {
          if (started.node === undefined) socket.destroy()
          else started.node.accept(socket)
        })
  if (kind === 'https')
    server.on('upgrade', (request: http.IncomingMessage, socket: tls.TLSSocket, head: Buffer) => {
      if (started.node === undefined || request.headers.upgrade !== 'dqlite') return socket.destroy()
      socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: dqlite\r\nConnection: Upgrade\r\n\r\n')
      started.node.accept(socket, head)
      return undefined
    })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = `127.0.0.1:${(server.address() as net.AddressInfo).port}`
  const dial: NonNullable<NodeOptions['dial']> =
    kind === 'https'
      ? dialHttps
      : async (to) => {
          const [host, port] = to.split(':')
          const socket = tls.connect({ ...mutual, host, port: Number(port) })
          await once(socket, 'secureConnect')
          return socket
        }
  const node = await Node.start({
    id,
    address,
    dir: path.join(dir, String(id)),
    bind: false,
    dial,
    networkLatencyNs: 20_000_000,
    ...options,
  })
  started.node = node
  const stop = async (): Promise<void> => {
    await node.stop()
    if (server.listening) {
      server.close()
      await once(server, 'close')
    }
  }
  t.teardown(stop)
  return { address, node, server, stop }
}

async function temporaryDirectory(t: ExecutionContext): Promise<string> {
  const dir = await mkdtemp(path.join(os.tmpdir(), 'dqlite-transport-'))
  t.teardown(() => rm(dir, { recursive: true, force: true }))
  return dir
}

test('three nodes behind HTTPS servers with client certificates replicate, fail over and catch up by snapshot', async (t) => {
  const dir = await temporaryDirectory(t)
  const limits = { snapshotThreshold: 16, snapshotTrailing: 16 }
  const members: Member[] = []
  for (const id of [1, 2, 3]) members.push(await member(t, id, dir, 'https', { limits }))
  t.is(members[0]!.node.bindAddress, undefined)
  const addresses = members.map(({ address }) => address)
  await using db = await connect({ addresses, database: 'app', dial: dialHttps })
  await db.add({ id: 2n, address: addresses[1]! })
  await db.exec('CREATE TABLE t (x)')
  // 4 MB in the database: the third member gets it as a snapshot, which is larger than every buffer on the way.
  for (let i = 0; i < 40; i++) await db.exec('INSERT INTO t VALUES (randomblob(100000))')
  await db.add({ id: 3n, address: addresses[2]! })
  t.is((await db.cluster()).filter(({ role }) => role === 'voter').length, 3)
  await until(() => members[2]!.node.status.lastApplied >= members[0]!.node.status.commitIndex - 1, 'member 3 is there')

  // The daemon is still a daemon.
  const body = await new Promise<string>((resolve, reject) => {
    const [host, port] = addresses[0]!.split(':')
    https
      .get({ host, port, agent: false, ...mutual }, (response) => {
        response.setEncoding('utf8').once('data', resolve)
      })
      .once('error', reject)
  })
  t.is(body, 'the rest of the daemon')

  const leader = (await db.leader()).id
  await members.find(({ node }) => node.id === leader)!.stop()
  await db.exec('INSERT INTO t VALUES (1)', [], { idempotent: true })
  t.true((await db.query<{ n: number }>('SELECT count(*) AS n FROM t'))[0]!.n >= 41)
})

test('without a certificate there is no connection', async (t) => {
  const dir = await temporaryDirectory(t)
  const { address } = await member(t, 1, dir, 'https')
  const stranger = (to: string, options: DialOptions) => dialHttps(to, options, { ca: testCertificate })
  await t.throwsAsync(connect({ addresses: [address], database: 'app', dial: stranger, timeoutMs: 1000 }), {
    code: 'NO_LEADER',
  })
})

test('nodes behind bare TLS replicate, and stop with connections open', async (t) => {
  const dir = await temporaryDirectory(t)
  const one = await member(t, 1, dir, 'tls')
  const two = await member(t, 2, dir, 'tls')
  const dial = async (to: string): Promise<net.Socket> => {
    const socket = tls.connect({ ...mutual, host: '127.0.0.1', port: Number(to.split(':')[1]) })
    await once(socket, 'secureConnect')
    return socket
  }
  await using db = await connect({ addresses: [one.address], database: 'app', dial })
  await db.add({ id: 2n, address: two.address })
  await db.exec('CREATE TABLE t (x)')
  await db.exec('INSERT INTO t VALUES (1)')
  await until(() => two.node.status.lastApplied === one.node.status.lastApplied, 'both have it')
  t.is(one.node.status.lastApplied, two.node.status.lastApplied)
  await Promise.all([one.stop(), two.stop()])
  t.is(await new Promise((resolve) => one.server.getConnections((_, count) => resolve(count))), 0)
})

test('what is no socket is refused, and a stopped node closes what it is given', async (t) => {
  const dir = await temporaryDirectory(t)
  const address = `@dqlite-transport-${process.pid}-${Math.random()}`
  const node = await Node.start({ id: 1, address, dir, bind: false })
  t.throws(() => node.accept(new PassThrough()), { code: 'BAD_OPTION', message: /net\.Socket/ })
  t.throws(() => node.accept({} as net.Socket), { code: 'BAD_OPTION' })
  const encoded = new net.Socket().setEncoding('utf8')
  t.throws(() => node.accept(encoded), { code: 'BAD_OPTION', message: /encoding/ })
  t.throws(() => node.accept(new net.Socket(), 'head' as unknown as Buffer), { code: 'BAD_OPTION', message: /head/ })
  await node.stop()
  const socket = new net.Socket()
  node.accept(socket)
  t.true(socket.destroyed)
  await t.throwsAsync(Node.start({ id: 1, address, dir, bind: false, dial: 7 as never }), {
    code: 'BAD_OPTION',
    message: /dial/,
  })
})
