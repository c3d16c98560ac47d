/** The client with a cluster of our own nodes. */
import test from 'ava'
import { connect } from '../../lib/client/client.js'
import { exerciseClient } from '../support/client-suite.js'
import { startOwnCluster } from '../support/cluster.js'

test.serial('the client works with a cluster of our nodes, through two changes of leader', async (t) => {
  t.timeout(120_000)
  const cluster = await startOwnCluster(3)
  t.teardown(() => cluster.stop())
  await exerciseClient(t, cluster)
})

test.serial('a thousand parameters arrive in order', async (t) => {
  const cluster = await startOwnCluster(1)
  t.teardown(() => cluster.stop())
  await using db = await connect({ addresses: cluster.addresses, database: 'app' })
  const values = Array.from({ length: 1000 }, (_, i) => `value ${i}`)
  const marks = new Array<string>(1000).fill('?').join(', ')
  const [row] = await db.query(`VALUES (${marks})`, values, { rowMode: 'array' })
  t.deepEqual(row, values)
})
