/** What the client's tests begin with: a fake server, a client, an expected failure; all ended with the test. */
import type { ExecutionContext } from 'ava'
import { Client, type ClientOptions } from '../../lib/client/client.js'
import { DqliteError } from '../../lib/errors.js'
import { FakeServer, type Script } from './fake-server.js'

export async function fakeServer(t: ExecutionContext, script?: Script): Promise<FakeServer> {
  const server = await FakeServer.start(script)
  t.teardown(() => server.stop())
  return server
}

export function clientOf(
  t: ExecutionContext,
  servers: readonly (FakeServer | string)[],
  options: Partial<ClientOptions> = {},
): Client {
  const addresses = servers.map((server) => (typeof server === 'string' ? server : server.address))
  const client = new Client({ addresses, database: 'app', timeoutMs: 5000, ...options })
  t.teardown(() => client.close({ timeoutMs: 1 }))
  return client
}

export async function failure(t: ExecutionContext, promise: Promise<unknown>): Promise<DqliteError> {
  return t.throwsAsync(promise, { instanceOf: DqliteError })
}

/** Two servers of which the first leads, until it is told otherwise. */
export async function twoServers(t: ExecutionContext): Promise<[FakeServer, FakeServer]> {
  const [first, second] = [await fakeServer(t), await fakeServer(t)]
  second.leader = first.address
  return [first, second]
}
