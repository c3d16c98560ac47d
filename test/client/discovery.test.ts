import net from 'node:net'
import test, { type ExecutionContext } from 'ava'
import { Client, connect, type ClientOptions } from '../../lib/client/client.js'
import { DqliteError } from '../../lib/errors.js'
import { clientOf, failure, fakeServer, twoServers } from '../support/client-setup.js'
import { FakeServer } from '../support/fake-server.js'

/** A listener that accepts, says what it is told, and nothing more. */
async function rawServer(t: ExecutionContext, greeting?: Uint8Array): Promise<string> {
  const sockets = new Set<net.Socket>()
  const listener = net.createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined)
    if (greeting) socket.write(greeting)
  })
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    listener.close()
  })
  return `127.0.0.1:${(listener.address() as net.AddressInfo).port}`
}

async function refusingAddress(): Promise<string> {
  const server = await FakeServer.start()
  await server.stop()
  return server.address
}

test("a follower's hint leads to the leader, which is remembered", async (t) => {
  const [leader, follower] = await twoServers(t)
  const db = clientOf(t, [follower])
  await Promise.all([db.query('SELECT 1'), db.query('SELECT 1')])
  t.is(follower.asked('leader'), 1)
  t.is(leader.asked('open'), 2)
  t.deepEqual(await db.leader(), { id: 1n, address: leader.address })
})

test('hints that go in circles end in NO_LEADER, which says what each server said', async (t) => {
  const [a, b] = await twoServers(t)
  a.leader = b.address
  const error = await failure(t, clientOf(t, [a], { timeoutMs: 300 }).query('SELECT 1'))
  t.is(error.code, 'NO_LEADER')
  t.true(error.retryable)
  t.regex(error.message, new RegExp(`${a.address}: says ${b.address} leads`))
  t.regex(error.message, new RegExp(`${b.address}: says ${a.address} leads`))
})

test('servers that are silent, send garbage or refuse do not stand in the way', async (t) => {
  const leader = await fakeServer(t)
  const others = [await rawServer(t), await rawServer(t, Buffer.alloc(64, 0xff)), await refusingAddress()]
  const db = clientOf(t, [...others, leader])
  const start = performance.now()
  t.deepEqual([...(await db.query('SELECT 1'))], [{ n: 1 }])
  t.true(performance.now() - start < 1500)
})

test('NO_LEADER tells silence, garbage, refusal and ignorance apart', async (t) => {
  const ignorant = await fakeServer(t)
  ignorant.leader = undefined
  const silent = await rawServer(t)
  const garbage = await rawServer(t, Buffer.alloc(64, 0xff))
  const refusing = await refusingAddress()
  const addresses = [ignorant.address, silent, garbage, refusing]
  const options = { addresses, database: 'app', timeoutMs: 800, probeTimeoutMs: 200 }
  const { message } = await failure(t, connect(options))
  t.regex(message, new RegExp(`${ignorant.address}: knows no leader`))
  t.regex(message, new RegExp(`${silent}: did not answer within 200 ms`))
  t.regex(message, new RegExp(`${garbage}: .*sent a message that cannot be`))
  t.regex(message, new RegExp(`${refusing}: .*ECONNREFUSED`))
})

test('a leader that is elected during the search is found', async (t) => {
  const late = await fakeServer(t)
  late.leader = undefined
  const query = clientOf(t, [late]).query('SELECT 1')
  setTimeout(() => {
    late.leader = late.address
  }, 200)
  t.is((await query).length, 1)
})

test('members are learned, and asked when the given addresses are gone', async (t) => {
  const [a, b] = [await fakeServer(t), await fakeServer(t)]
  a.members = [
    { id: 1n, address: a.address, role: 'voter' },
    { id: 2n, address: b.address, role: 'voter' },
  ]
  const db = clientOf(t, [a])
  await db.query('SELECT 1')
  await a.stop()
  t.is((await db.query('SELECT 1')).length, 1)
  t.is(b.asked('querySql'), 1)
})

test('at most ten servers are asked at once', async (t) => {
  let dialling = 0
  let most = 0
  const dial: NonNullable<ClientOptions['dial']> = (address, { signal }) =>
    new Promise((_resolve, reject) => {
      most = Math.max(most, ++dialling)
      signal?.addEventListener('abort', () => {
        dialling--
        reject(new Error(`no route to ${address}`))
      })
    })
  const addresses = Array.from({ length: 35 }, (_, i) => `host-${i}`)
  const options = { dial, timeoutMs: 1000, probeTimeoutMs: 50 }
  const error = await failure(t, clientOf(t, addresses, options).query('SELECT 1'))
  t.is(error.code, 'NO_LEADER')
  t.is(most, 10)
  t.is(addresses.filter((address) => error.message.includes(`${address}:`)).length, 35)
  t.is(dialling, 0)
})

test('a search ends with its signal, and with its client', async (t) => {
  const ignorant = await fakeServer(t)
  ignorant.leader = undefined
  const controller = new AbortController()
  const db = clientOf(t, [ignorant])
  const aborted = failure(t, db.query('SELECT 1', [], { signal: controller.signal }))
  setTimeout(() => {
    controller.abort()
  }, 50)
  t.is((await aborted).code, 'ABORTED')
  const closed = failure(t, db.query('SELECT 1'))
  setTimeout(() => void db.close(), 50)
  t.is((await closed).code, 'CLOSED')
  t.is((await failure(t, db.query('SELECT 1'))).code, 'CLOSED')
})

test('a remembered leader that has fallen silent is given up for another', async (t) => {
  const [first, second] = await twoServers(t)
  const db = clientOf(t, [first, second], { probeTimeoutMs: 100, timeoutMs: 3000 })
  await db.query('SELECT 1')
  first.script = () => 'answered'
  second.leader = second.address
  const error = await failure(t, db.exec('INSERT', [], { timeoutMs: 100 }))
  t.is(error.code, 'TIMEOUT')
  t.is((await db.query('SELECT 1')).length, 1)
  t.is(second.asked('querySql'), 1)
})

test('options are checked by name', (t) => {
  const message = (options: unknown): string =>
    t.throws(() => new Client(options as ClientOptions), { instanceOf: DqliteError }).message
  t.regex(message({ addresses: [] }), /addresses/)
  t.regex(message({ addresses: ['127.0.0.1:99999'] }), /99999/)
  t.regex(message({ addresses: ['a:1'], database: '' }), /database/)
  t.regex(message({ addresses: ['a:1'], integers: 'text' }), /integers/)
  t.regex(message({ addresses: ['a:1'], sessionsMax: 0 }), /sessionsMax/)
})
