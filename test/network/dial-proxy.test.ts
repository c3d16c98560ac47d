import test, { type ExecutionContext } from 'ava'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import net from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { dialThroughProxy } from '../../lib/network/dial-proxy.js'

/** A proxy that does as told; what it was asked, once it was. */
async function proxy(t: ExecutionContext, answer: (socket: net.Socket) => void) {
  const dir = mkdtempSync(path.join(tmpdir(), 'dqlite-proxy-'))
  const file = path.join(dir, 'socket')
  const sockets: net.Socket[] = []
  let asked: (text: string) => void
  const question = new Promise<string>((resolve) => (asked = resolve))
  const server = net.createServer((socket) => {
    sockets.push(socket)
    socket.on('error', () => undefined)
    socket.once('data', (chunk: Buffer) => {
      asked(chunk.toString())
      answer(socket)
    })
  })
  server.listen(file)
  await once(server, 'listening')
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
    rmSync(dir, { recursive: true, force: true })
  })
  return { dial: dialThroughProxy(file), question, file, sockets }
}

const options = { timeoutMs: 5000 }

test('it asks for the address, and what follows OK belongs to the stream', async (t) => {
  const { dial, question, sockets } = await proxy(t, (socket) => void socket.write('OK\nfirst'))
  const socket = await dial('10.0.0.1:9000', options)
  t.is(await question, '10.0.0.1:9000\n')
  const heard: string[] = []
  socket.on('data', (chunk: Buffer) => heard.push(chunk.toString()))
  await once(socket, 'data')
  sockets[0]!.write(' second')
  await once(socket, 'data')
  t.is(heard.join(''), 'first second')
  socket.write('back')
  const [back] = (await once(sockets[0]!, 'data')) as [Buffer]
  t.is(back.toString(), 'back')
  socket.destroy()
})

test('an answer in pieces is one answer', async (t) => {
  const { dial } = await proxy(t, (socket) => {
    for (const [i, letter] of ['O', 'K', '\n', 'x'].entries()) setTimeout(() => socket.write(letter), 20 * i)
  })
  const socket = await dial('any name', options)
  const [chunk] = (await once(socket, 'data')) as [Buffer]
  t.is(chunk.toString(), 'x')
  socket.destroy()
})

test('a refusal says what the proxy says', async (t) => {
  const { dial, sockets } = await proxy(t, (socket) => void socket.end('ERR certificate expired\n'))
  await t.throwsAsync(dial('a:1', options), {
    code: 'NO_CONNECTION',
    message: 'the proxy did not connect to a:1: certificate expired',
  })
  if (!sockets[0]!.destroyed) await once(sockets[0]!, 'close')
  t.pass('and the connection is closed')
})

const answers: readonly (readonly [string, (socket: net.Socket) => void, RegExp])[] = [
  ['something else', (socket) => void socket.write('HTTP/1.1 200\r\n'), /it answered "HTTP\/1\.1 200\\r"/],
  ['nothing but good-bye', (socket) => void socket.end(), /it closed the connection/],
  ['half a word', (socket) => void socket.end('O'), /it closed the connection/],
  ['a line without an end', (socket) => void socket.write('x'.repeat(5000)), /more than 1024 bytes/],
  ['a line that is too long', (socket) => void socket.write(`ERR ${'x'.repeat(5000)}\n`), /more than 1024 bytes/],
]
for (const [what, answer, words] of answers)
  test(`a proxy that answers ${what} is no connection`, async (t) => {
    const { dial, sockets } = await proxy(t, answer)
    await t.throwsAsync(dial('a:1', options), { code: 'NO_CONNECTION', message: words })
    if (!sockets[0]!.destroyed) await once(sockets[0]!, 'close')
  })

test('a proxy that says nothing is given up in time, or when told to', async (t) => {
  const { dial } = await proxy(t, () => undefined)
  await t.throwsAsync(dial('a:1', { timeoutMs: 500 }), { code: 'NO_CONNECTION', message: /did not answer in time/ })
  const abort = new AbortController()
  setTimeout(() => abort.abort(), 20)
  await t.throwsAsync(dial('a:1', { ...options, signal: abort.signal }), { code: 'ABORTED' })
})

test('a proxy that is not there is no connection', async (t) => {
  const dial = dialThroughProxy('/nowhere/at/all')
  await t.throwsAsync(dial('a:1', options), { code: 'NO_CONNECTION', message: /nowhere/ })
})

test('an address cannot smuggle in a second question, and a proxy is a Unix socket', async (t) => {
  const { dial } = await proxy(t, () => undefined)
  for (const address of ['', 'a:1\nb:2', 'a\r', 'a\0', 'x'.repeat(2000)])
    await t.throwsAsync(dial(address, options), { code: 'BAD_OPTION' })
  t.throws(() => dialThroughProxy('127.0.0.1:1'), { code: 'BAD_OPTION', message: /Unix socket/ })
})
