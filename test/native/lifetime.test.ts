import { execFile } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import test from 'ava'

const run = promisify(execFile)
const engine = fileURLToPath(new URL('../../lib/engine/database.js', import.meta.url))
const support = fileURLToPath(new URL('../support/engine.js', import.meta.url))
const imports = `
  import { Engine } from ${JSON.stringify(engine)}
  import { endless, exec, execOnWorker, query, queryOnWorker, replicate } from ${JSON.stringify(support)}
`
const node = (source: string, ...flags: string[]): Promise<{ stdout: string; stderr: string }> =>
  run(process.execPath, [...flags, '--input-type=module', '--eval', imports + source], { timeout: 30_000 })

test('a process exits while a worker runs a statement', async (t) => {
  const { stdout } = await node(`
    const database = Engine.create().database('a')
    for (let i = 0; i < 3; i++) void queryOnWorker(database.connect(), endless)
    setTimeout(() => { console.log('exit'); process.exit(0) }, 30)
  `)
  t.is(stdout, 'exit\n')
})

test('an idle engine does not keep the process alive, a running statement does', async (t) => {
  const { stdout } = await node(`
    const database = Engine.create().database('a')
    const connection = database.connect()
    exec(connection, 'CREATE TABLE t(a)')
    replicate(database)
    const rows = await queryOnWorker(connection,
      'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) SELECT count(*) FROM n')
    console.log(String(rows[0][0]))
  `)
  t.is(stdout, '300000\n')
})

test('garbage collection in any order gives everything back', async (t) => {
  const { stdout } = await node(
    `
    const used = () => process.memoryUsage().rss
    function round() {
      const engine = Engine.create()
      const database = engine.database('a')
      const connection = database.connect()
      exec(connection, 'CREATE TABLE t(a)')
      exec(connection, 'INSERT INTO t VALUES(zeroblob(1000000))')
      database.openImage()
      database.restore(8192).write(new Uint8Array(5000))
      connection.prepareCached(Buffer.from('SELECT 1')).statement.release()
      connection.prepare(Buffer.from('SELECT 2'))
    }
    async function rounds(count) {
      for (let i = 0; i < count; i++) { round(); if (i % 5 === 0) { gc(); await new Promise(setImmediate) } }
      gc(); await new Promise(setImmediate); gc()
    }
    await rounds(60)
    const before = used()
    await rounds(120)
    const grown = used() - before
    console.log(grown < 60e6 ? 'flat' : 'grown by ' + grown)
  `,
    '--expose-gc',
  )
  t.is(stdout, 'flat\n')
})

test('a worker may run while nobody holds the engine any more', async (t) => {
  const { stdout } = await node(
    `
    let answer
    ;(() => {
      const connection = Engine.create().database('a').connect()
      answer = queryOnWorker(connection,
        'WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 500000) SELECT count(*) FROM n')
    })()
    for (let i = 0; i < 5; i++) { gc(); await new Promise(setImmediate) }
    console.log(String((await answer)[0][0]))
  `,
    '--expose-gc',
  )
  t.is(stdout, '500000\n')
})

const threadSource = `
  ${imports}
  import { parentPort } from 'node:worker_threads'
  const engine = Engine.create()
  const database = engine.database('same name')
  const connection = database.connect()
  exec(connection, 'CREATE TABLE t(a)')
  for (let i = 0; i < 200; i++) exec(connection, 'INSERT INTO t VALUES(' + i + ')')
  replicate(database)
  const [[count]] = await queryOnWorker(connection, 'SELECT count(*) FROM t')
  for (let i = 0; i < 2; i++) void queryOnWorker(database.connect(), endless)
  parentPort.postMessage(Number(count))
  setInterval(() => {}, 1000)
`

test('several threads load the addon, each with its own databases, and end while statements run', async (t) => {
  // As a data: URL the module keeps its absolute imports.
  const url = new URL(`data:text/javascript,${encodeURIComponent(threadSource.replaceAll('"/', '"file:///'))}`)
  for (let round = 0; round < 3; round++) {
    const workers = Array.from({ length: 4 }, () => new Worker(url))
    const counts = await Promise.all(
      workers.map(
        (worker) =>
          new Promise<number>((resolve, reject) => {
            worker.once('message', resolve)
            worker.once('error', reject)
          }),
      ),
    )
    t.deepEqual(counts, [200, 200, 200, 200])
    await Promise.all(workers.map((worker) => worker.terminate()))
  }
})
