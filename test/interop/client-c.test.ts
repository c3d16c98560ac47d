/** Our client with a cluster of real C dqlite nodes. */
import test from 'ava'
import { exerciseClient } from '../support/client-suite.js'
import { cNodeProgram, hasCNode, startCCluster } from '../support/cluster.js'

test('the client works with a cluster of C dqlite nodes, through two changes of leader', async (t) => {
  if (!hasCNode()) {
    t.log(`skipped: there is no C dqlite node at ${cNodeProgram} (PEERS_BIN says where)`)
    t.pass()
    return
  }
  t.timeout(120_000)
  const cluster = await startCCluster(3, 19_310)
  t.teardown(() => cluster.stop())
  await exerciseClient(t, cluster)
})
