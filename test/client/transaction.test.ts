import { setTimeout as pause } from 'node:timers/promises'
import test from 'ava'
import type { Transaction } from '../../lib/client/transaction.js'
import { clientOf, failure, fakeServer, twoServers } from '../support/client-setup.js'
import { rowsMessage, type FakeConnection, type FakeServer } from '../support/fake-server.js'

const sqlOf = (server: FakeServer): string[] =>
  server.log.filter((line) => /^(execSql|querySql)/.test(line)).map((line) => line.replace(/^\w+ /, ''))

/** Fails the first `times` requests with this SQL. */
function failing(
  server: FakeServer,
  sql: string,
  times: number,
  act: (connection: FakeConnection) => 'answered',
): void {
  server.script = (_request, connection, text) => (text === sql && times-- > 0 ? act(connection) : undefined)
}

const busySnapshot = (connection: FakeConnection): 'answered' => connection.fail(517, 'database is locked')

test('a transaction is BEGIN IMMEDIATE, its calls, COMMIT, on one session', async (t) => {
  const server = await fakeServer(t)
  const db = clientOf(t, [server])
  const result = await db.transaction(async (tx) => {
    await tx.exec('INSERT')
    const [row] = await tx.query<{ n: number }>('SELECT 1')
    for await (const { n } of tx.stream<{ n: number }>('SELECT 2')) t.is(n, 1)
    return row!.n
  })
  t.is(result, 1)
  t.deepEqual(sqlOf(server), ['BEGIN IMMEDIATE', 'INSERT', 'SELECT 1', 'SELECT 2', 'COMMIT'])
  t.is(server.connections.length, 1)
  await db.transaction(async () => undefined, { mode: 'deferred' })
  t.is(server.asked('BEGIN DEFERRED'), 1)
  t.is(
    (
      await failure(
        t,
        db.transaction(async () => undefined, { mode: 'wal' as 'deferred' }),
      )
    ).code,
    'BAD_OPTION',
  )
})

test('an error of the callback rolls back and is thrown as it is', async (t) => {
  const server = await fakeServer(t)
  const db = clientOf(t, [server], { sessionsMax: 1 })
  const error = new Error('no money')
  const thrown = await t.throwsAsync(
    db.transaction(async (tx) => {
      await tx.exec('INSERT')
      throw error
    }),
  )
  t.is(thrown, error)
  t.deepEqual(sqlOf(server), ['BEGIN IMMEDIATE', 'INSERT', 'ROLLBACK'])
  await db.exec('NEXT')
  t.is(server.connections.length, 1)
})

test('a transaction cannot be used after its end', async (t) => {
  const db = clientOf(t, [await fakeServer(t)])
  let kept: Transaction | undefined
  await db.transaction(async (tx) => {
    kept = tx
  })
  t.is((await failure(t, kept!.exec('INSERT'))).code, 'CLOSED')
})

test('the callback runs again when nothing was committed', async (t) => {
  const acts: ((connection: FakeConnection) => 'answered')[] = [
    busySnapshot,
    (connection) => connection.fail(5, 'database is locked'),
    (connection) => connection.fail(10250, 'not leader'),
    (connection) => connection.fail(10506, 'leadership lost'),
    (connection) => connection.fail(12, 'no database opened'),
    (connection) => connection.close(),
  ]
  for (const act of acts) {
    const server = await fakeServer(t)
    failing(server, 'INSERT', 2, act)
    let runs = 0
    await clientOf(t, [server]).transaction(async (tx) => {
      runs++
      await tx.exec('INSERT')
    })
    t.is(runs, 3)
    t.is(server.asked('COMMIT'), 1)
  }
})

test('the callback runs a bounded number of times', async (t) => {
  const server = await fakeServer(t)
  failing(server, 'INSERT', 1e9, busySnapshot)
  let runs = 0
  const error = await failure(
    t,
    clientOf(t, [server]).transaction(
      async (tx) => {
        runs++
        await tx.exec('INSERT')
      },
      { runsMax: 4 },
    ),
  )
  t.deepEqual([error.code, error.outcome, runs], ['BUSY_SNAPSHOT', 'none', 4])
})

test('BEGIN waits for its turn, and moves to a new leader', async (t) => {
  const servers = await twoServers(t)
  const [first, second] = servers
  let times = 3
  first.script = (_request, connection, sql) => {
    if (sql !== 'BEGIN IMMEDIATE') return undefined
    if (--times > 0) return connection.fail(5, 'database is locked')
    first.leader = second.leader = second.address
    return connection.fail(10250, 'not leader')
  }
  let runs = 0
  await clientOf(t, servers).transaction(async (tx) => {
    runs++
    await tx.exec('INSERT')
  })
  t.is(runs, 1)
  t.deepEqual(sqlOf(second), ['BEGIN IMMEDIATE', 'INSERT', 'COMMIT'])
})

test('once COMMIT was sent without an answer, the outcome is unknown and the callback does not run again', async (t) => {
  const acts: [string, (connection: FakeConnection) => 'answered'][] = [
    ['CONNECTION_LOST', (connection) => connection.close()],
    ['LEADERSHIP_LOST', (connection) => connection.fail(10506, 'leadership lost')],
    ['TIMEOUT', () => 'answered'],
  ]
  for (const [code, act] of acts) {
    const server = await fakeServer(t)
    failing(server, 'COMMIT', 1, act)
    let runs = 0
    const db = clientOf(t, [server], { timeoutMs: 300 })
    await db.connect()
    const error = await failure(
      t,
      db.transaction(async (tx) => {
        runs++
        await tx.exec('INSERT')
      }),
    )
    t.deepEqual([error.code, error.outcome, runs], [code, 'unknown', 1])
  }
})

test('a COMMIT that was refused did not happen: the callback runs again', async (t) => {
  for (const wire of [5, 10250]) {
    const server = await fakeServer(t)
    failing(server, 'COMMIT', 1, (connection) => connection.fail(wire, 'refused'))
    let runs = 0
    await clientOf(t, [server]).transaction(async () => {
      runs++
    })
    t.is(runs, 2)
  }
})

test('a callback that says COMMIT itself does not run again', async (t) => {
  const server = await fakeServer(t)
  failing(server, 'INSERT', 1, (connection) => connection.close())
  const error = await failure(
    t,
    clientOf(t, [server]).transaction(async (tx) => {
      await tx.exec('COMMIT')
      await tx.exec('INSERT')
    }),
  )
  t.deepEqual([error.code, error.outcome], ['CONNECTION_LOST', 'unknown'])
  t.is(server.asked('COMMIT'), 1)
})

test('a transaction in a transaction is a savepoint', async (t) => {
  const server = await fakeServer(t)
  const db = clientOf(t, [server])
  await db.transaction(async (tx) => {
    await tx.transaction(async (inner) => {
      await inner.exec('INSERT a')
      await inner.transaction((third) => third.exec('INSERT b'))
    })
    const undone = new Error('undo')
    const thrown = await t.throwsAsync(
      tx.transaction(async (inner) => {
        await inner.exec('INSERT c')
        throw undone
      }),
    )
    t.is(thrown, undone)
    await tx.exec('INSERT d')
  })
  t.deepEqual(sqlOf(server), [
    'BEGIN IMMEDIATE',
    'SAVEPOINT dqlite_1',
    'INSERT a',
    'SAVEPOINT dqlite_2',
    'INSERT b',
    'RELEASE dqlite_2',
    'RELEASE dqlite_1',
    'SAVEPOINT dqlite_1',
    'INSERT c',
    'ROLLBACK TO dqlite_1; RELEASE dqlite_1',
    'INSERT d',
    'COMMIT',
  ])
})

test('the outer transaction is refused while an inner one is open: no deadlock, no surprise', async (t) => {
  const db = clientOf(t, [await fakeServer(t)])
  await db.transaction(async (tx) => {
    await tx.transaction(async (inner) => {
      t.regex((await failure(t, tx.exec('INSERT'))).message, /innermost/)
      t.regex(
        (
          await failure(
            t,
            tx.transaction(async () => undefined),
          )
        ).message,
        /innermost/,
      )
      await inner.exec('INSERT')
    })
    await tx.exec('INSERT')
  })
})

test('calls of a transaction that are started together run one after the other', async (t) => {
  const server = await fakeServer(t, async () => {
    await pause(2)
    return undefined
  })
  await clientOf(t, [server]).transaction(async (tx) => {
    await Promise.all(['a', 'b', 'c'].map((sql) => tx.exec(sql)))
    void tx.exec('not awaited')
  })
  t.deepEqual(sqlOf(server), ['BEGIN IMMEDIATE', 'a', 'b', 'c', 'not awaited', 'COMMIT'])
})

test('while a stream of a transaction is open other calls are refused, and leaving it frees them', async (t) => {
  const server = await fakeServer(t, (request, connection) =>
    request.type === 'querySql' ? connection.send(rowsMessage(['n'], [[1]], { done: false })) : undefined,
  )
  await clientOf(t, [server]).transaction(async (tx) => {
    for await (const row of tx.stream('SELECT n')) {
      t.truthy(row)
      t.regex((await failure(t, tx.exec('INSERT'))).message, /stream/)
      break
    }
    await tx.exec('INSERT')
  })
  t.is(server.asked('interrupt'), 1)
  t.deepEqual(sqlOf(server).slice(-2), ['INSERT', 'COMMIT'])
})

test('a statement whose failure rolled everything back is noticed before the next one would commit alone', async (t) => {
  const server = await fakeServer(t, (_request, connection, sql) => {
    if (sql !== 'INSERT OR ROLLBACK') return undefined
    connection.inTransaction = false
    return connection.fail(2067, 'UNIQUE constraint failed: t.a')
  })
  const error = await failure(
    t,
    clientOf(t, [server]).transaction(async (tx) => {
      await failure(t, tx.exec('INSERT OR ROLLBACK'))
      await tx.exec('INSERT b')
    }),
  )
  t.regex(error.message, /rolled the whole transaction back: UNIQUE/)
  t.is(server.asked('INSERT b'), 0)
  t.is(server.asked('COMMIT'), 0)
})

test('a statement that merely failed leaves the transaction usable', async (t) => {
  const server = await fakeServer(t)
  failing(server, 'INSERT a', 1, (connection) => connection.fail(2067, 'UNIQUE constraint failed: t.a'))
  await clientOf(t, [server]).transaction(async (tx) => {
    await failure(t, tx.exec('INSERT a'))
    await tx.exec('INSERT b')
    await tx.exec('INSERT c')
  })
  t.deepEqual(sqlOf(server), ['BEGIN IMMEDIATE', 'INSERT a', 'BEGIN', 'INSERT b', 'INSERT c', 'COMMIT'])
})

test('a signal or a time limit ends a transaction though its callback does not', async (t) => {
  const server = await fakeServer(t)
  const db = clientOf(t, [server])
  await db.connect()
  const never = (): Promise<void> => new Promise(() => undefined)
  const timedOut = await failure(t, db.transaction(never, { timeoutMs: 50 }))
  t.deepEqual([timedOut.code, timedOut.outcome], ['TIMEOUT', 'none'])
  const controller = new AbortController()
  let late: Promise<unknown> = Promise.resolve()
  const aborted = failure(
    t,
    db.transaction(
      async (tx) => {
        await tx.exec('INSERT')
        controller.abort(new Error('enough'))
        await pause(20)
        late = failure(t, tx.exec('INSERT late'))
        await late
      },
      { signal: controller.signal },
    ),
  )
  t.is((await aborted).code, 'ABORTED')
  await pause(40)
  await late
  t.is(server.asked('late'), 0)
  t.is(server.asked('COMMIT'), 0)
  await db.exec('NEXT')
})

test('a statement that is prepared in a transaction ends with it', async (t) => {
  const server = await fakeServer(t)
  const db = clientOf(t, [server], { sessionsMax: 1 })
  await db.transaction(async (tx) => {
    const statement = await tx.prepare('INSERT ?')
    await statement.exec([1])
    await statement.exec([2])
  })
  await db.exec('NEXT')
  t.deepEqual(server.log.slice(-6), ['prepare INSERT ?', 'exec', 'exec', 'execSql COMMIT', 'finalize', 'execSql NEXT'])
})
