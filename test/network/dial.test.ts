import test from 'ava'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { dial, guarded, parseAddress } from '../../lib/network/dial.js'
import { rawServer, until } from './sockets.js'

test('the grammar of addresses', (t) => {
  const tcp = (host: string, port: number): object => ({ kind: 'tcp', host, port })
  t.deepEqual(parseAddress('10.0.0.1:9000'), tcp('10.0.0.1', 9000))
  t.deepEqual(parseAddress('10.0.0.1'), tcp('10.0.0.1', 8080))
  t.deepEqual(parseAddress('db-1.example:9000'), tcp('db-1.example', 9000))
  t.deepEqual(parseAddress('localhost'), tcp('localhost', 8080))
  t.deepEqual(parseAddress('[::1]:9000'), tcp('::1', 9000))
  t.deepEqual(parseAddress('[fe80::1%eth0]'), tcp('fe80::1%eth0', 8080))
  t.deepEqual(parseAddress('::1'), tcp('::1', 8080))
  t.deepEqual(parseAddress('@node'), { kind: 'unix', path: '\0node' })
  t.deepEqual(parseAddress('/run/node.sock'), { kind: 'unix', path: '/run/node.sock' })
})

test('what is no address is refused by name', (t) => {
  for (const bad of ['', ':9000', 'a:b', 'a:70000', '[::1', '[a]:1', 'a b:1', 'a:1:2', '::1:x', 'a:', 'x\0:1', 'a@b:1'])
    t.throws(() => parseAddress(bad), { code: 'BAD_OPTION', message: new RegExp(`cannot be used`) }, bad)
})

test('a dialled socket is connected, over TCP, a name, a path and an abstract name', async (t) => {
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-dial-'))
  const file = path.join(dir, 's')
  const abstract = `dqlite-test-${process.pid}-${Math.random()}`
  const tcp = await rawServer()
  const port = tcp.address.split(':')[1]!
  const drop = (socket: net.Socket): void => void socket.resume()
  const unix = [net.createServer(drop).listen({ path: file }), net.createServer(drop).listen({ path: `\0${abstract}` })]
  await Promise.all(unix.map((server) => once(server, 'listening')))
  for (const address of [tcp.address, `localhost:${port}`, file, `@${abstract}`]) {
    const socket = await dial(address, { timeoutMs: 5000 })
    t.false(socket.connecting)
    socket.destroy()
  }
  await tcp.close()
  for (const server of unix) server.close()
  rmSync(dir, { recursive: true })
})

test('nobody there, too slow, and no address are told apart from each other', async (t) => {
  const gone = await rawServer()
  await gone.close()
  await t.throwsAsync(dial(gone.address, { timeoutMs: 5000 }), {
    code: 'NO_CONNECTION',
    message: /cannot connect to 127/,
  })
  await t.throwsAsync(dial('/nowhere/at/all', { timeoutMs: 5000 }), { code: 'NO_CONNECTION' })
  await t.throwsAsync(dial('127.0.0.1:0', { timeoutMs: 5000 }), { code: 'BAD_OPTION' })
  await t.throwsAsync(dial('no address', { timeoutMs: 5000 }), { code: 'BAD_OPTION' })
  // 1 ms is not enough for a name to be looked up.
  await t.throwsAsync(dial('localhost:1', { timeoutMs: 0 }), { code: 'NO_CONNECTION' })
})

test('an aborted dial ends at once', async (t) => {
  const aborted = AbortSignal.abort()
  await t.throwsAsync(dial('127.0.0.1:1', { timeoutMs: 5000, signal: aborted }), { code: 'ABORTED' })
  const controller = new AbortController()
  const attempt = dial('127.0.0.1:1', { timeoutMs: 5000, signal: controller.signal })
  controller.abort()
  await t.throwsAsync(attempt, { code: 'ABORTED' })
})

test('a reset after connecting is no unhandled error', async (t) => {
  const server = await rawServer((socket) => socket.once('data', () => socket.resetAndDestroy()))
  const socket = await dial(server.address, { timeoutMs: 5000 })
  socket.write('x')
  await new Promise((resolve) => void socket.once('close', resolve))
  t.true(socket.destroyed)
  await server.close()
})

test("an application's dial that hangs is given up in time, and a socket that comes too late is closed", async (t) => {
  const server = await rawServer((socket) => void socket.resume())
  const late: net.Socket[] = []
  let signalled = 0
  const hanging = guarded(async (_, { signal }) => {
    signal?.addEventListener('abort', () => signalled++)
    const socket = await dial(server.address, { timeoutMs: 5000 })
    late.push(socket)
    await new Promise((resolve) => setTimeout(resolve, 150))
    return socket
  })
  await t.throwsAsync(hanging('a:1', { timeoutMs: 20 }), { code: 'NO_CONNECTION', message: /a:1 within 20 ms/ })
  const abort = new AbortController()
  setTimeout(() => abort.abort(), 20)
  await t.throwsAsync(hanging('a:1', { timeoutMs: 5000, signal: abort.signal }), { code: 'ABORTED' })
  await t.throwsAsync(hanging('a:1', { timeoutMs: 5000, signal: abort.signal }), { code: 'ABORTED' })
  t.is(signalled, 2)
  await until(() => late.length === 2 && late.every((socket) => socket.destroyed), 'late sockets are closed')
  await server.close()
})

test("an application's dial may throw, reject with anything, or give something else", async (t) => {
  const options = { timeoutMs: 1000 }
  const throwing = (error: unknown) =>
    guarded(() => {
      throw error
    })
  await t.throwsAsync(throwing(new TypeError('no'))('a:1', options), { instanceOf: TypeError, message: 'no' })
  // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- an application may
  await t.throwsAsync(guarded(() => Promise.reject('text'))('a:1', options), { message: 'text' })
  const something = guarded(() => Promise.resolve({} as net.Socket))
  await t.throwsAsync(something('a:1', options), { code: 'BAD_OPTION', message: /not a net\.Socket/ })
})
