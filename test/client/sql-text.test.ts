import test from 'ava'
import {
  mayBeSeveralStatements,
  mayCommit,
  mayOpenTransaction,
  onlyReads,
  opensTransaction,
} from '../../lib/client/sql-text.js'

test('a text that only reads is known as such, in doubt it writes', (t) => {
  for (const sql of [
    'SELECT 1',
    'select * from t where a = ?',
    '-- about\nSELECT 1',
    '/* about; */ ; SELECT 1',
    'VALUES (1), (2)',
    'WITH a AS (SELECT 1) SELECT * FROM a',
    'EXPLAIN QUERY PLAN DELETE FROM t',
  ])
    t.true(onlyReads(sql), sql)
  for (const sql of [
    '',
    '--',
    'INSERT INTO t SELECT 1',
    'WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a',
    'WITH a AS (SELECT 1) REPLACE INTO t SELECT * FROM a',
    "WITH a AS (SELECT 'update') SELECT * FROM a",
    'PRAGMA user_version = 3',
    '/* SELECT',
    'SELECTED',
  ])
    t.false(onlyReads(sql), sql)
})

test('several statements are told from one', (t) => {
  for (const sql of [
    'a',
    'a;',
    'a; ;\n',
    "a ';b'",
    'a "x;y"',
    'a -- ; b',
    'a /* ; b */',
    'a; -- b',
    'a [;b]',
    'a `;b`',
    "a 'it''s; b'",
  ])
    t.false(mayBeSeveralStatements(sql), sql)
  for (const sql of ['a;b', 'a; b;', "a ';' ; b", 'a -- x\n; b', 'a /* x */; b'])
    t.true(mayBeSeveralStatements(sql), sql)
})

test('words of transactions are found', (t) => {
  t.true(opensTransaction(' begin immediate'))
  t.true(opensTransaction('/* a */ SAVEPOINT b'))
  t.false(opensTransaction('INSERT INTO begin'))
  t.true(mayOpenTransaction('INSERT; BEGIN; INSERT'))
  t.false(mayOpenTransaction('INSERT INTO beginnings'))
  t.true(mayCommit('INSERT; COMMIT'))
  t.true(mayCommit('END TRANSACTION'))
  t.false(mayCommit('INSERT INTO commits'))
})

test('a long text of unfinished comments does not take long', (t) => {
  const start = performance.now()
  t.false(onlyReads('/*'.repeat(200_000)))
  t.false(onlyReads('-- \n'.repeat(200_000)))
  mayBeSeveralStatements(`${"'".repeat(100_001)}; ${'/* '.repeat(100_000)}`)
  t.true(performance.now() - start < 2000)
})
