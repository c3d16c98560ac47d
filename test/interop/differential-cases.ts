/**
 * What is asked of a C 1.11 node and of ours, byte for byte the same: a fixed list, and statements made from a seed.
 * Requests that 1.11 does not survive are listed apart, with the reason (client-protocol §19); ours gets those too.
 */
import { ByteWriter } from '../../lib/codec/bytes.js'
import { ask, on, raw, text, words, type Step, type Value } from '../support/exchange.js'
import { Random } from '../support/random.js'

export interface Sequence {
  readonly name: string
  readonly steps: readonly Step[]
  readonly protocol?: bigint
}

const { execSql: E, querySql: Q, prepare: P, exec: X, query: Y, finalize: F } = ask

let databases = 0
/** On a database of its own that is open. */
function sql(name: string, ...steps: Step[]): Sequence {
  const opened = [...new Set(steps.map((step) => step.connection))].sort()
  const database = `d${++databases}`
  return { name, steps: [...opened.map((each) => on(each, ask.open(database))), ...steps] }
}
/** Nothing is open. */
const bare = (name: string, ...steps: Step[]): Sequence => ({ name, steps })

/** Each statement alone through EXEC_SQL. */
const execs = (name: string, setup: string, ...statements: string[]): Sequence =>
  sql(name, E(setup), ...statements.map((statement) => E(statement)))
const queries = (name: string, setup: string, ...statements: string[]): Sequence =>
  sql(name, E(setup), ...statements.map((statement) => Q(statement)))

const table = 'CREATE TABLE t (i INTEGER PRIMARY KEY, r REAL, s TEXT, b BLOB, d DATETIME, o BOOLEAN, x)'
const rawValue = (code: number, ...value: (number | bigint)[]): Value => ({ code, bytes: words(...value) })
const isoValue = (value: string): Value => ({ code: 10, bytes: text(value) })
const marks = (count: number): string => new Array<string>(count).fill('?').join(', ')
const numbers = (count: number): number[] => Array.from({ length: count }, (_, i) => i + 1)
const series = (count: number): string =>
  `WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ${count}) SELECT`

// ------------------------------------------------------------------------------------------------------ fixed list

const life: Sequence[] = [
  bare('leader and client', ask.leader, ask.client(7n), ask.leader, ask.client(2n ** 64n - 1n)),
  { name: 'leader of the oldest protocol', steps: [ask.leader, ask.client(1n)], protocol: 0x86104dd760433fe5n },
  { name: 'a protocol that does not exist', steps: [ask.leader], protocol: 99n },
  bare('nothing is open', E('SELECT 1'), Q('SELECT 1'), P('SELECT 1'), X(0), Y(0), F(0), ask.interrupt),
  sql(
    'another database id',
    E('SELECT 1', [], { db: 1 }),
    Q('SELECT 1', [], { db: 7 }),
    P('SELECT 1', [], { db: 1 }),
    F(0, 1),
  ),
  bare('open twice', ask.open('twice'), ask.open('twice'), ask.open('other'), Q('SELECT 1')),
  bare('a name with slashes', ask.open('a/b/../c'), E('CREATE TABLE t (a)'), ask.dump('a/b/../c')),
  bare(
    'names are told apart by case',
    ask.open('CASE'),
    E('CREATE TABLE t (a)'),
    on(1, ask.open('case')),
    on(1, Q('SELECT * FROM t')),
  ),
  bare('a name that is not ASCII', ask.open('é'), E('CREATE TABLE t (a)'), Q('SELECT count(*) FROM t')),
  bare('a long name', ask.open('n'.repeat(400)), E('CREATE TABLE t (a)')),
  bare('a name that ends in -wal', ask.open('x-wal')),
  bare('a name that ends in -journal', ask.open('x-journal')),
  sql('interrupt at rest', ask.interrupt, ask.interrupt, Q('SELECT 1')),
  sql(
    'interrupt behind rows',
    ask.interrupted(Q(`${series(3000)} n FROM n`)),
    Q('SELECT 1'),
    ask.interrupted(Q('SELECT 1')),
    ask.interrupt,
  ),
  sql(
    'interrupt behind a write',
    E('CREATE TABLE t (a)'),
    ask.interrupted(E(`INSERT INTO t ${series(100)} n FROM n`)),
    ask.interrupt,
  ),
]

const statements: Sequence[] = [
  sql(
    'ids of statements',
    P('SELECT 1'),
    P('SELECT 2'),
    P('SELECT ?, ?'),
    Y(0),
    Y(1),
    Y(2, [1, 2]),
    F(2),
    P('SELECT 3'),
    Y(2),
    F(1),
    P('SELECT 4'),
    Y(1),
  ),
  sql('ids that do not exist', X(0), Y(5), F(9), P('SELECT 1'), Y(1), X(1), F(1), F(0)),
  sql(
    'prepare and execute',
    P(table),
    X(0),
    P('INSERT INTO t (i, s) VALUES (?, ?)'),
    X(1, [1, 'one']),
    X(1, [2, 'two']),
    X(1, [2, 'again']),
    P('SELECT i, s FROM t WHERE i >= ?'),
    Y(2, [1]),
    Y(2, [2]),
    Y(2, [3]),
    F(1),
    F(2),
  ),
  sql(
    'a statement outlives a change of the schema',
    E('CREATE TABLE t (a); INSERT INTO t VALUES (1)'),
    P('SELECT * FROM t'),
    Y(0),
    E('ALTER TABLE t ADD COLUMN b DEFAULT 5'),
    Y(0),
    E('DROP TABLE t'),
    Y(0),
    E('CREATE TABLE t (z)'),
    Y(0),
  ),
  sql(
    'statements that cannot be prepared',
    P('SELEC 1'),
    P('SELECT * FROM missing'),
    P('SELECT missing FROM sqlite_master'),
    P('INSERT INTO nowhere VALUES (1)'),
    P("SELECT 'open"),
    P('SELECT 1 +'),
    P('SELECT (1'),
  ),
  sql('no statement', P(''), P('   '), P('-- nothing'), P(';'), P('/* nothing */')),
  sql('no statement to query', Q(''), Q('  '), Q('-- nothing')),
  sql(
    'no statement to execute',
    E(''),
    E('  '),
    E(' ; ; '),
    E('-- nothing'),
    E('CREATE TABLE t (a)'),
    E('INSERT INTO t VALUES (7)'),
    E(''),
    E('-- nothing'),
  ),
  sql(
    'what follows a statement',
    P('SELECT 1;'),
    P('SELECT 1; '),
    P('SELECT 1; -- more'),
    P('SELECT 1;;'),
    Y(0),
    Q('SELECT 1;'),
    Q('SELECT 1; -- more'),
  ),
  sql('a second statement to prepare', P('SELECT 1; SELECT 2'), Y(0)),
  sql('a second statement to query', Q('SELECT 1; SELECT 2')),
  sql(
    'parameters by kind',
    P('SELECT ?, ?, ?'),
    P('SELECT :a, @b, $c, :a'),
    P('SELECT ?5'),
    Y(0, [1, 2, 3]),
    Y(1, [1, 2, 3]),
    Y(2, [1, 2, 3, 4, 5]),
  ),
]

const parameters: Sequence[] = [
  sql(
    'each type of parameter',
    E(table),
    E('INSERT INTO t VALUES (?, ?, ?, ?, ?, ?, ?)', [
      -2,
      1.5,
      'héllo',
      Buffer.from([1, 2, 3]),
      isoValue('2024-01-02 03:04:05+00:00'),
      true,
      null,
    ]),
    Q('SELECT * FROM t'),
  ),
  sql(
    'types that parameters come in',
    Q('SELECT typeof(?1), ?1', [true]),
    Q('SELECT typeof(?1), ?1', [false]),
    Q('SELECT typeof(?1), ?1', [rawValue(11, 5)]),
    Q('SELECT typeof(?1), ?1', [isoValue('x')]),
    Q('SELECT typeof(?1), ?1', [null]),
    Q('SELECT typeof(?1), ?1', ['']),
  ),
  sql(
    'extreme numbers',
    Q('SELECT ?', [2n ** 63n - 1n]),
    Q('SELECT ?', [-(2n ** 63n)]),
    Q('SELECT ?', [1e308]),
    Q('SELECT ?', [5e-324]),
    Q('SELECT ?', [-0]),
    Q('SELECT ?', [Infinity]),
    Q('SELECT ?', [-Infinity]),
    Q('SELECT typeof(?)', [NaN]),
  ),
  sql(
    'texts and blobs by length',
    ...[0, 1, 6, 7, 8, 9, 15, 16, 17, 4000, 9000].flatMap((length) => [
      Q('SELECT length(?1), ?1', ['x'.repeat(length)]),
      Q('SELECT length(?1), ?1', [Buffer.alloc(length, 7)]),
    ]),
  ),
  sql(
    'counts of parameters',
    ...[1, 6, 7, 8, 9, 15, 16, 254, 255].map((count) => Q(`SELECT ${marks(count)}`, numbers(count))),
  ),
  sql('schema 1 without parameters', E('CREATE TABLE t (a)', [], { schema: 1 }), Q('SELECT 1', [], { schema: 1 })),
  sql('schema 1 with parameters', Q(`SELECT ${marks(3)}`, [1, 2, 3], { schema: 1 })),
  sql('a statement prepared with schema 1', P('SELECT 1; SELECT 2', [], { schema: 1 }), Y(0)),
  sql('the type that servers only send', Q('SELECT ?', [rawValue(9, 1)]), Q('SELECT 1')),
  sql('a type that does not exist', Q('SELECT ?', [rawValue(6, 1)]), Q('SELECT 1')),
  sql(
    'a type that does not exist, executed',
    E('CREATE TABLE t (a)'),
    E('INSERT INTO t VALUES (?)', [rawValue(7, 1)]),
    Q('SELECT * FROM t'),
  ),
  sql(
    'fewer parameters than asked for',
    E('CREATE TABLE t (a, b)'),
    E('INSERT INTO t VALUES (?, ?)', [1]),
    Q('SELECT * FROM t'),
    Q('SELECT ?, ?', [1]),
    Q('SELECT ?'),
  ),
  sql('fewer parameters the second time', P('SELECT ?, ?'), Y(0, [1, 2]), Y(0, [3]), Y(0)),
  sql(
    'more parameters than asked for, executed',
    E('CREATE TABLE t (a)'),
    E('INSERT INTO t VALUES (?)', [1, 2]),
    Q('SELECT * FROM t'),
  ),
  sql('more parameters than asked for, queried', Q('SELECT ?', [1, 2]), Q('SELECT 1', [1]), Q('SELECT 1')),
  sql(
    'parameters of several statements',
    E('CREATE TABLE t (a)'),
    E('INSERT INTO t VALUES (?); INSERT INTO t VALUES (?)', [1, 2]),
    Q('SELECT a FROM t'),
  ),
]

const results: Sequence[] = [
  sql(
    'results that stay',
    E('CREATE TABLE t (a)'),
    E('INSERT INTO t VALUES (1), (2), (3)'),
    E('BEGIN'),
    E('COMMIT'),
    E('UPDATE t SET a = 9'),
    E('CREATE TABLE u (b)'),
    E('SELECT 1 FROM t WHERE 0'),
    E('DELETE FROM t WHERE a = 1'),
    E('DELETE FROM t'),
    E('DROP TABLE u'),
  ),
  sql(
    'rowids',
    E('CREATE TABLE t (i INTEGER PRIMARY KEY)'),
    E('INSERT INTO t VALUES (-5)'),
    E('INSERT INTO t VALUES (9223372036854775807)'),
    E('INSERT INTO t VALUES (0)'),
    E('INSERT INTO t VALUES (12), (11), (10)'),
  ),
  sql(
    'no rowid',
    E('CREATE TABLE t (a PRIMARY KEY) WITHOUT ROWID'),
    E('INSERT INTO t VALUES (5)'),
    E("INSERT INTO t VALUES ('x'), ('y')"),
  ),
  sql(
    'several statements',
    E('CREATE TABLE t (a); INSERT INTO t VALUES (1); INSERT INTO t VALUES (2), (3)'),
    E('INSERT INTO t VALUES (4); bogus; INSERT INTO t VALUES (5)'),
    Q('SELECT a FROM t'),
    E('INSERT INTO t VALUES (6); SELECT 1 FROM t WHERE 0'),
    Q('SELECT count(*) FROM t'),
  ),
  sql('rows where none are expected', E('SELECT 1')),
  sql('rows where none are expected, prepared', P('SELECT 1'), X(0)),
  sql(
    'rows in the middle of several',
    E('CREATE TABLE t (a)'),
    E('INSERT INTO t VALUES (1); SELECT 1; INSERT INTO t VALUES (2)'),
    Q('SELECT a FROM t'),
  ),
  sql(
    'columns',
    Q('SELECT 1 AS a, 2 AS "B c", 3'),
    Q('SELECT 1 WHERE 0'),
    Q('VALUES (1, 2), (3, 4)'),
    Q('SELECT \'é\' AS "ü"'),
    Q('SELECT max(1, 2), 1+1, -1, NULL'),
  ),
  sql('many columns', ...[15, 16, 17, 31, 32, 33, 100].map((count) => Q(`SELECT ${numbers(count).join(', ')}`))),
  sql('batches', ...[254, 255, 256, 510, 511, 3000].map((count) => Q(`${series(count)} n FROM n`))),
  sql(
    'long rows',
    Q('SELECT zeroblob(10000)'),
    Q(`${series(10)} hex(zeroblob(n * 1000)) AS z FROM n`),
    Q(`${series(100)} n, printf('%0200d', n) AS p FROM n`),
  ),
  sql('text with NUL', Q("SELECT 'ab' || char(0) || 'cd'"), Q("SELECT length('ab' || char(0) || 'cd')")),
  sql(
    'failures behind rows',
    Q('SELECT 1, 2, 3, 4, abs(-9223372036854775807 - 1)'),
    Q(`${series(10)} n, CASE n WHEN 5 THEN abs(-9223372036854775807 - 1) END AS c FROM n`),
    Q(`${series(3000)} n, CASE n WHEN 2500 THEN abs(-9223372036854775807 - 1) END AS c FROM n`),
    Q('SELECT 1'),
  ),
]

const types: Sequence[] = [
  ...['DATETIME', 'DATE', 'TIMESTAMP', 'datetime', 'Date'].map((type) =>
    queries(
      `column ${type}`,
      `CREATE TABLE t (c ${type}); INSERT INTO t VALUES (1700000000), ('2024-01-02'), ('no date'), (NULL), ('2024'), (-1), ('')`,
      'SELECT c FROM t',
      'SELECT c AS other FROM t',
      'SELECT max(c) FROM t',
      'SELECT c || 1 FROM t',
      'SELECT CAST(c AS TEXT) FROM t',
      'SELECT x.c FROM (SELECT c FROM t) AS x',
      'WITH w AS (SELECT c FROM t) SELECT * FROM w',
    ),
  ),
  ...['BOOLEAN', 'boolean'].map((type) =>
    queries(
      `column ${type}`,
      `CREATE TABLE t (c ${type}); INSERT INTO t VALUES (0), (1), (4), (NULL), (-1), (TRUE), ('1')`,
      'SELECT c FROM t',
      'SELECT NOT c FROM t',
      'SELECT c = 1 FROM t',
      'SELECT sum(c) FROM t',
    ),
  ),
  ...['BOOL', 'TIME', 'DATETIME(6)', 'INT', 'VARCHAR(10)', 'NUMERIC', 'DECIMAL(10,2)', 'FLOAT', 'JSON', ''].map(
    (type) =>
      queries(
        `column ${type || 'without type'}`,
        `CREATE TABLE t (c ${type}); INSERT INTO t VALUES (1), (1.5), ('text'), (x'0102'), (NULL), ('12'), ('1e3'), (1e20), ('')`,
        'SELECT c, typeof(c) FROM t',
        'SELECT c FROM t ORDER BY c',
        'SELECT DISTINCT typeof(c) FROM t ORDER BY 1',
      ),
  ),
  queries(
    'typed columns through views and joins',
    `${table}; INSERT INTO t (i, d, o) VALUES (1, 1, 1), (2, 'x', NULL), (3, NULL, 0); CREATE VIEW v AS SELECT i, d, o FROM t; CREATE VIEW e AS SELECT i, d + 0 AS d FROM t`,
    'SELECT * FROM v',
    'SELECT * FROM e',
    'SELECT a.d, b.o FROM t a JOIN t b USING (i)',
    'SELECT d FROM t UNION ALL SELECT o FROM t',
    'SELECT d FROM t GROUP BY d',
    'SELECT coalesce(d, 1), d FROM t',
  ),
]

const transactions: Sequence[] = [
  sql(
    'commit and roll back',
    E('CREATE TABLE t (a)'),
    E('BEGIN'),
    E('INSERT INTO t VALUES (1)'),
    Q('SELECT * FROM t'),
    E('ROLLBACK'),
    Q('SELECT * FROM t'),
    E('BEGIN'),
    E('INSERT INTO t VALUES (2)'),
    E('COMMIT'),
    Q('SELECT * FROM t'),
    E('BEGIN; INSERT INTO t VALUES (3); END'),
    Q('SELECT count(*) FROM t'),
  ),
  sql(
    'transactions in the wrong place',
    E('COMMIT'),
    E('ROLLBACK'),
    E('BEGIN'),
    E('BEGIN'),
    E('COMMIT'),
    E('END'),
    E('SAVEPOINT a'),
    E('BEGIN'),
    E('RELEASE b'),
    E('RELEASE a'),
    E('ROLLBACK TO a'),
  ),
  sql(
    'savepoints',
    E('CREATE TABLE t (a)'),
    E('BEGIN'),
    E('INSERT INTO t VALUES (1)'),
    E('SAVEPOINT one'),
    E('INSERT INTO t VALUES (2)'),
    E('ROLLBACK TO one'),
    E('INSERT INTO t VALUES (3)'),
    E('RELEASE one'),
    E('COMMIT'),
    Q('SELECT a FROM t'),
    E('SAVEPOINT two'),
    E('INSERT INTO t VALUES (4)'),
    E('RELEASE two'),
    Q('SELECT a FROM t'),
  ),
  sql(
    'a failure leaves the transaction open',
    E('CREATE TABLE t (a UNIQUE)'),
    E('BEGIN; INSERT INTO t VALUES (1); bogus'),
    Q('SELECT * FROM t'),
    E('INSERT INTO t VALUES (1)'),
    E('INSERT OR ROLLBACK INTO t VALUES (1)'),
    Q('SELECT * FROM t'),
    E('COMMIT'),
  ),
  sql(
    'kinds of BEGIN',
    ...['BEGIN DEFERRED', 'BEGIN IMMEDIATE', 'BEGIN EXCLUSIVE', 'BEGIN TRANSACTION'].flatMap((begin) => [
      E(begin),
      E('COMMIT'),
    ]),
  ),
  sql(
    'a second writer',
    E('CREATE TABLE t (a)'),
    E('BEGIN IMMEDIATE'),
    on(1, E('INSERT INTO t VALUES (1)')),
    on(1, E('BEGIN IMMEDIATE')),
    on(1, Q('SELECT * FROM t')),
    E('INSERT INTO t VALUES (2)'),
    on(1, Q('SELECT * FROM t')),
    E('COMMIT'),
    on(1, Q('SELECT * FROM t')),
    on(1, E('INSERT INTO t VALUES (3)')),
  ),
  sql(
    'a reader that writes too late',
    E('CREATE TABLE t (a)'),
    on(1, E('BEGIN')),
    on(1, Q('SELECT * FROM t')),
    E('INSERT INTO t VALUES (1)'),
    on(1, E('INSERT INTO t VALUES (2)')),
    on(1, E('ROLLBACK')),
    on(1, E('INSERT INTO t VALUES (2)')),
  ),
  sql(
    'a reader keeps what it saw',
    E('CREATE TABLE t (a); INSERT INTO t VALUES (1)'),
    on(1, E('BEGIN')),
    on(1, Q('SELECT a FROM t')),
    E('INSERT INTO t VALUES (2)'),
    on(1, Q('SELECT a FROM t')),
    on(1, E('COMMIT')),
    on(1, Q('SELECT a FROM t')),
  ),
  sql(
    'a transaction with DDL',
    E('BEGIN'),
    E('CREATE TABLE t (a)'),
    E('CREATE INDEX ti ON t (a)'),
    Q('SELECT name FROM sqlite_master'),
    E('ROLLBACK'),
    Q('SELECT name FROM sqlite_master'),
  ),
]

const errors: Sequence[] = [
  execs(
    'constraints',
    'CREATE TABLE p (i INTEGER PRIMARY KEY, u UNIQUE, n NOT NULL, c CHECK (c > 0), CONSTRAINT named CHECK (c < 100)); CREATE TABLE f (r REFERENCES p (i)); INSERT INTO p VALUES (1, 1, 1, 1)',
    'INSERT INTO p VALUES (1, 2, 2, 2)',
    'INSERT INTO p VALUES (2, 1, 2, 2)',
    'INSERT INTO p VALUES (2, 2, NULL, 2)',
    'INSERT INTO p VALUES (2, 2, 2, 0)',
    'INSERT INTO p VALUES (2, 2, 2, 100)',
    'INSERT INTO f VALUES (9)',
    'INSERT INTO f VALUES (1)',
    'DELETE FROM p',
    'INSERT INTO p (i) VALUES (1)',
    "INSERT INTO p VALUES ('x', 1, 1, 1)",
  ),
  execs(
    'rowid constraints',
    'CREATE TABLE w (a PRIMARY KEY) WITHOUT ROWID; INSERT INTO w VALUES (1); CREATE TABLE s (a INTEGER, b TEXT) STRICT',
    'INSERT INTO w VALUES (1)',
    'INSERT INTO w VALUES (NULL)',
    "INSERT INTO s VALUES ('x', 'y')",
    "INSERT INTO s VALUES (1, 'y')",
  ),
  execs(
    'deferred foreign keys',
    'CREATE TABLE p (i INTEGER PRIMARY KEY); CREATE TABLE f (r REFERENCES p DEFERRABLE INITIALLY DEFERRED)',
    'INSERT INTO f VALUES (1)',
    'BEGIN; INSERT INTO f VALUES (1); INSERT INTO p VALUES (1); COMMIT',
    'BEGIN; INSERT INTO f VALUES (2)',
    'COMMIT',
    'ROLLBACK',
  ),
  execs(
    'triggers that raise',
    "CREATE TABLE t (a); CREATE TRIGGER ta BEFORE INSERT ON t BEGIN SELECT CASE NEW.a WHEN 1 THEN RAISE(ABORT, 'no one') WHEN 2 THEN RAISE(FAIL, 'no two') WHEN 3 THEN RAISE(IGNORE) WHEN 4 THEN RAISE(ROLLBACK, 'no four') END; END",
    'INSERT INTO t VALUES (1)',
    'INSERT INTO t VALUES (2)',
    'INSERT INTO t VALUES (3)',
    'INSERT INTO t VALUES (4)',
    'INSERT INTO t VALUES (5)',
    'BEGIN',
    'INSERT INTO t VALUES (4)',
    'COMMIT',
  ),
  execs(
    'errors of syntax and names',
    'CREATE TABLE t (a)',
    'SELECT',
    'INSERT',
    'INSERT INTO t (b) VALUES (1)',
    'INSERT INTO t VALUES (1, 2)',
    'CREATE TABLE t (a)',
    'CREATE TABLE IF NOT EXISTS t (a)',
    'DROP TABLE u',
    'DROP INDEX u',
    'ALTER TABLE t RENAME TO sqlite_t',
    'UPDATE t SET b = 1',
    'DELETE FROM u',
    'CREATE INDEX i ON t (b)',
    'DROP TABLE sqlite_master',
    'FOO',
    '1',
    "'",
  ),
  queries(
    'errors of functions',
    'SELECT 1 WHERE 0',
    'SELECT missing()',
    'SELECT abs()',
    'SELECT abs(1, 2)',
    "SELECT json('{')",
    "SELECT json_extract('{}', 'x')",
    'SELECT load_extension(1)',
    "SELECT 'a' LIKE 'b' ESCAPE 'cd'",
    'SELECT sum(9223372036854775807) FROM (SELECT 1 UNION ALL SELECT 2)',
    'SELECT zeroblob(2000000000)',
    "SELECT 'a' REGEXP 'b'",
    'SELECT count(*), 1 FROM sqlite_master ORDER BY 9',
  ),
]

const surface: Sequence[] = [
  ...[
    'journal_mode',
    'page_size',
    'synchronous',
    'wal_autocheckpoint',
    'busy_timeout',
    'read_uncommitted',
    'locking_mode',
    'foreign_keys',
    'user_version',
    'application_id',
    'auto_vacuum',
    'cache_size',
    'encoding',
    'temp_store',
    'query_only',
    'secure_delete',
    'integrity_check',
    'quick_check',
    'database_list',
    'page_count',
    'freelist_count',
    'table_info(t)',
    'foreign_key_list(t)',
    'index_list(t)',
    'collation_list',
    'schema_version',
    'journal_size_limit',
    'max_page_count',
    'defer_foreign_keys',
    'recursive_triggers',
    'nonexistent',
  ].map((pragma) =>
    sql(
      `PRAGMA ${pragma}`,
      E('CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT NOT NULL DEFAULT 5)'),
      Q(`PRAGMA ${pragma}`),
    ),
  ),
  ...[
    'synchronous = 1',
    'wal_autocheckpoint = 10',
    'busy_timeout = 100',
    'read_uncommitted = 1',
    'locking_mode = EXCLUSIVE',
    'journal_mode = WAL',
    'page_size = 4096',
    'wal_checkpoint',
    'wal_checkpoint(TRUNCATE)',
    'wal_checkpoint(PASSIVE)',
  ].map((pragma) =>
    sql(`PRAGMA ${pragma}, executed`, E('CREATE TABLE t (a)'), E(`PRAGMA ${pragma}`), Q('SELECT count(*) FROM t')),
  ),
  ...[
    'foreign_keys = 0',
    'user_version = 7',
    'application_id = 9',
    'cache_size = 100',
    'temp_store = 2',
    'query_only = 1',
    'recursive_triggers = 1',
    'optimize',
  ].map((pragma) =>
    sql(
      `PRAGMA ${pragma}, executed`,
      E('CREATE TABLE t (a)'),
      E(`PRAGMA ${pragma}`),
      Q(`PRAGMA ${pragma.replace(/ =.*/, '')}`),
      E('INSERT INTO t VALUES (1)'),
      Q('SELECT a FROM t'),
    ),
  ),
  sql(
    'VACUUM',
    E('CREATE TABLE t (a); INSERT INTO t VALUES (zeroblob(20000)); DELETE FROM t'),
    E('VACUUM'),
    Q('SELECT count(*) FROM t'),
  ),
  sql('ATTACH of a file', E("ATTACH 'other' AS o")),
  sql('ATTACH of memory', E("ATTACH ':memory:' AS o")),
  sql(
    'ATTACH of a temporary database',
    E("ATTACH '' AS o"),
    E('CREATE TABLE o.t (a)'),
    E('INSERT INTO o.t VALUES (1)'),
    Q('SELECT * FROM o.t'),
    E('DETACH o'),
  ),
  sql(
    'temporary tables',
    E('CREATE TEMP TABLE t (a)'),
    E('INSERT INTO t VALUES (1)'),
    Q('SELECT * FROM t'),
    on(1, Q('SELECT * FROM t')),
  ),
  sql(
    'full text',
    E('CREATE VIRTUAL TABLE f USING fts5(a)'),
    E("INSERT INTO f VALUES ('one two'), ('two three')"),
    Q("SELECT a FROM f WHERE f MATCH 'two' ORDER BY rowid"),
    Q("SELECT a FROM f WHERE f MATCH '\"'"),
  ),
  sql(
    'R-tree and JSON',
    E('CREATE VIRTUAL TABLE r USING rtree(id, a, b)'),
    E('INSERT INTO r VALUES (1, 2, 3)'),
    Q('SELECT * FROM r'),
    Q("SELECT json_extract('{\"a\": [1, 2]}', '$.a[1]')"),
    Q('SELECT key, value FROM json_each(\'[1, 2.5, "x", null]\')'),
  ),
  queries(
    'functions',
    'CREATE TABLE t (a, b); INSERT INTO t VALUES (1, 2), (3, 4), (5, 6)',
    'SELECT sum(a), avg(b), group_concat(a), count(*), total(a) FROM t',
    'SELECT row_number() OVER (ORDER BY a DESC), a FROM t',
    "SELECT upper('é'), lower('ABC'), hex('abc'), quote(x'00'), typeof(1.0), instr('abc', 'c')",
    "SELECT substr('héllo', 2, 3), replace('aaa', 'a', 'bb'), trim('  x '), round(2.5), abs(-3)",
    "SELECT date(0, 'unixepoch'), datetime(1700000000, 'unixepoch'), julianday('2000-01-01'), strftime('%s', '2000-01-01')",
    "SELECT 7 / 2, 7 % 3, 7.0 / 2, 1 << 4, ~5, 5 & 3, 1 || 2, NULL IS NULL, 1 = '1'",
    "SELECT CASE WHEN a > 2 THEN 'big' ELSE 'small' END FROM t",
    'SELECT sqrt(2), ln(1), pow(2, 10)',
  ),
  execs(
    'generated columns, upserts',
    'CREATE TABLE t (a INTEGER PRIMARY KEY, b INT, c AS (b * 2) STORED)',
    'INSERT INTO t (a, b) VALUES (1, 2) ON CONFLICT DO NOTHING',
    'INSERT INTO t (a, b) VALUES (1, 3) ON CONFLICT (a) DO UPDATE SET b = excluded.b',
    'INSERT OR IGNORE INTO t (a, b) VALUES (1, 4)',
    'INSERT OR REPLACE INTO t (a, b) VALUES (1, 5)',
    'REPLACE INTO t (a, b) VALUES (2, 6)',
    'UPDATE t SET c = 1',
  ),
  sql(
    'EXPLAIN and ANALYZE',
    E('CREATE TABLE t (a); CREATE INDEX ti ON t (a); INSERT INTO t VALUES (1)'),
    E('ANALYZE'),
    Q('SELECT tbl, idx, stat FROM sqlite_stat1'),
    E('REINDEX'),
  ),
]

const malformedText = Buffer.from('no end..')
const shape: Sequence[] = [
  bare('a header with no body after it', raw(0, words(0, 0, 0), 0, 'one', 'leader with more words'), ask.leader),
  bare('a text without end', raw(3, Buffer.concat([malformedText, malformedText]), 0, 'one', 'open without NUL')),
  bare('a body that is too short', raw(3, text('x'), 0, 'one', 'open without flags')),
  bare(
    'SQL without end',
    ask.open('m1'),
    raw(8, Buffer.concat([words(0), malformedText]), 0, 'one', 'execSql without NUL'),
  ),
  bare('SQL that is missing', ask.open('m2'), raw(9, words(0), 0, 'one', 'querySql without SQL')),
  bare(
    'words behind the last field',
    ask.open('m3'),
    raw(14, words(77, 1, 2, 3), 0, 'one', 'remove with more words'),
    raw(19, words(5, 6), 0, 'one', 'weight with more words'),
    ask.describe(0),
  ),
  bare(
    'no parameters said twice',
    ask.open('m4'),
    raw(9, Buffer.concat([words(0), text('SELECT 1'), words(0)]), 0, 'rows', 'querySql with a count of 0'),
    Q('SELECT 1'),
  ),
  bare(
    'more parameters than bytes',
    ask.open('m5'),
    raw(
      9,
      Buffer.concat([words(0), text('SELECT ?'), Buffer.from([1, 1, 0, 0, 0, 0, 0, 0])]),
      0,
      'rows',
      'querySql with a parameter that is missing',
    ),
  ),
  bare(
    'a blob longer than its message',
    ask.open('m6'),
    raw(
      9,
      Buffer.concat([words(0), text('SELECT ?'), Buffer.from([1, 4, 0, 0, 0, 0, 0, 0]), words(1000)]),
      0,
      'rows',
      'querySql with a blob cut short',
    ),
  ),
  bare(
    'a text parameter without end',
    ask.open('m7'),
    raw(
      9,
      Buffer.concat([words(0), text('SELECT ?'), Buffer.from([1, 3, 0, 0, 0, 0, 0, 0]), malformedText]),
      0,
      'rows',
      'querySql with a text without NUL',
    ),
  ),
  bare(
    'a wrong schema',
    raw(0, words(0), 3, 'one', 'leader schema 3'),
    raw(16, words(1), 1, 'one', 'cluster schema 1'),
  ),
  bare('a type that does not exist', raw(77, words(0), 0, 'one', 'type 77')),
  bare('heartbeat', raw(2, words(0), 0, 'one', 'heartbeat')),
  {
    name: 'a header in pieces and a field for nobody',
    steps: [
      {
        connection: 0,
        text: 'leader, extra set',
        bytes: new ByteWriter(16).u32(1).u8(0).u8(0).u16(0xffff).u64(0).finish(),
        shape: 'one',
      },
    ],
  },
]

const dumps: Sequence[] = [
  bare(
    'dump',
    ask.open('dumped'),
    ask.dump('dumped'),
    E('CREATE TABLE t (a INTEGER PRIMARY KEY, b)'),
    E(`INSERT INTO t ${series(500)} n, printf('%0100d', n) FROM n`),
    ask.dump('dumped'),
    E('DELETE FROM t WHERE a % 2'),
    E('CREATE INDEX tb ON t (b)'),
    on(1, ask.dump('dumped')),
  ),
  bare('dump of nothing', ask.dump('never heard of')),
]

/** They change what the cluster is, so they come last and in order. */
const administration: Sequence[] = [
  bare('the cluster', ask.cluster(0), ask.cluster(1)),
  bare('a format of the cluster that does not exist', ask.cluster(2)),
  bare('describe and weigh', ask.describe(0), ask.weight(42), ask.describe(0), ask.weight(0), ask.describe(0)),
  bare('members that are not there', ask.remove(9), ask.transfer(9), ask.transfer(1), ask.assign(9, 2)),
  bare('nobody to assign', ask.assign(9, 0), ask.assign(9)),
  bare('nobody to hand over to', ask.transfer(0)),
  bare(
    'add',
    ask.add(9, '127.0.0.1:1'),
    ask.cluster(1),
    ask.cluster(0),
    ask.add(9, '127.0.0.1:2'),
    ask.add(10, '127.0.0.1:1'),
    ask.transfer(9),
  ),
  bare(
    'assign',
    ask.assign(9, 2),
    ask.assign(9, 1),
    ask.cluster(1),
    ask.assign(9, 1),
    ask.assign(9, 2),
    ask.assign(1, 0),
    ask.cluster(1),
  ),
  bare('remove', ask.remove(9), ask.cluster(1), ask.remove(9), ask.leader),
  bare('an id of 64 bits', ask.add(0xffff_ffff, 'anything at all'), ask.cluster(1), ask.remove(0xffff_ffff)),
]

export const fixed: readonly Sequence[] = [
  ...life,
  ...statements,
  ...parameters,
  ...results,
  ...types,
  ...transactions,
  ...errors,
  ...surface,
  ...shape,
  ...dumps,
  ...administration,
]

// ------------------------------------------------------------------------------------- what 1.11 does not survive

/** Sent to ours alone. `answer` is that to the last step. */
export const deadly: readonly (Sequence & { readonly reason: string; readonly answer: string | RegExp })[] = [
  {
    ...bare('a message of no words', { connection: 0, text: 'no words', bytes: Buffer.alloc(8), shape: 'one' }),
    reason: 'aborts (§1.5)',
    answer: 'closed',
  },
  {
    ...bare('a message that announces 2 GiB', {
      connection: 0,
      text: '2 GiB',
      bytes: Buffer.from([1, 0, 0, 0x10, 8, 0, 0, 0]),
      shape: 'one',
    }),
    reason: 'its loop spins for ever (§1.5)',
    answer: 'closed',
  },
  {
    ...sql('PRAGMA journal_mode = DELETE', E('PRAGMA journal_mode = DELETE')),
    reason: 'aborts (§10)',
    answer: 'failure 23 "not authorized"',
  },
  {
    ...sql('PRAGMA page_size = 512', E('PRAGMA page_size = 512')),
    reason: 'aborts (§10)',
    answer: 'failure 23 "not authorized"',
  },
  {
    ...sql(
      'text in a BOOLEAN column',
      E("CREATE TABLE t (c BOOLEAN); INSERT INTO t VALUES ('abc'), (1.5), (x'00')"),
      Q('SELECT c FROM t'),
    ),
    reason: 'aborts (§4.4)',
    answer: 'rows ["c"] text:"abc" | float:1.5 | blob:00 done',
  },
  {
    ...sql(
      'numbers in a DATETIME column',
      E("CREATE TABLE t (c DATETIME); INSERT INTO t VALUES (1.5), (x'00')"),
      Q('SELECT c FROM t'),
    ),
    reason: 'aborts (§4.4)',
    answer: 'rows ["c"] float:1.5 | blob:00 done',
  },
  {
    ...bare('a format of DESCRIBE', ask.describe(1)),
    reason: 'crashes (§7.15)',
    answer: 'failure 15 "bad format version"',
  },
  {
    ...sql('a statement that was finalized', P('SELECT 1'), P('SELECT 2'), F(0), Y(0)),
    reason: 'crashes (§7.5)',
    answer: 'failure 12 "no statement with the given id"',
  },
  {
    ...sql(
      'RETURNING, executed',
      E('CREATE TABLE t (a)'),
      E('INSERT INTO t VALUES (1) RETURNING a'),
      E('INSERT INTO t VALUES (2)'),
      Q('SELECT a FROM t'),
    ),
    reason: 'aborts at the next request (§7.5)',
    answer: 'rows ["a"] 1:2 done',
  },
  {
    ...sql(
      'RETURNING, queried',
      E('CREATE TABLE t (a)'),
      Q('INSERT INTO t VALUES (1) RETURNING a'),
      Q('SELECT a FROM t'),
    ),
    reason: 'returns the rows and does not replicate the write (§7.6)',
    answer: 'rows ["a"] 1:1 done',
  },
  {
    ...sql('a write, queried', E('CREATE TABLE t (a)'), Q('INSERT INTO t VALUES (1)'), Q('SELECT a FROM t')),
    reason: 'not replicated (§7.6, §18)',
    answer: 'rows ["a"] 1:1 done',
  },
  {
    ...sql('VACUUM INTO', E("VACUUM INTO 'file'")),
    reason: 'writes a database that is not replicated (§10)',
    answer: 'failure 23 "authorization denied"',
  },
  {
    ...bare('a name that is too long', ask.open('n'.repeat(511))),
    reason: 'closes the connection, and aborts at its next snapshot',
    answer: /^failure 14 /,
  },
  { ...bare('a database without a name', ask.open('')), reason: 'crashes (§7.3)', answer: /^failure 14 / },
  { ...bare('a database in memory', ask.open(':memory:')), reason: 'crashes (§7.3)', answer: /^failure 14 / },
  {
    ...sql('600 columns', Q(`SELECT ${numbers(600).join(', ')}`)),
    reason: 'an endless answer (§9.8)',
    answer: /^rows .*1:599 1:600 done$|^rows .*1 rows .* done$/,
  },
]

// ------------------------------------------------------------------------------------------------------ generator

const columnTypes = [
  'INTEGER',
  'TEXT',
  'REAL',
  'BLOB',
  'NUMERIC',
  'VARCHAR(20)',
  'DATETIME',
  'DATE',
  'TIMESTAMP',
  'BOOLEAN',
  'BOOL',
  '',
] as const
type ColumnType = (typeof columnTypes)[number]

const isTime = (type: ColumnType): boolean => type === 'DATETIME' || type === 'DATE' || type === 'TIMESTAMP'

/** Statements that both must answer alike. Values of typed columns stay such that 1.11 survives selecting them. */
export function generated(seed: number): Sequence {
  const random = new Random(seed)
  const columns = Array.from({ length: random.between(1, 6) }, (_, i) => ({
    name: `c${i}`,
    type: random.pick(columnTypes),
  }))
  const column = (): string => random.pick(columns).name
  const free = columns.filter(({ type }) => !isTime(type) && type !== 'BOOLEAN')

  const anyValue = (): Value =>
    random.pick<() => Value>([
      () => null,
      () => random.between(-5, 5),
      () => random.pick([2n ** 62n, -(2n ** 63n), 2n ** 31n]),
      () => random.pick([0.5, -1.25, 1e100, 3.75]),
      () => random.pick(['', 'a', 'abc', 'x'.repeat(random.below(40)), 'é', '12', "it's"]),
      () => Buffer.alloc(random.below(20), random.below(256)),
      () => random.chance(0.5),
    ])()
  const valueFor = (type: ColumnType): Value => {
    if (type === 'BOOLEAN') return random.pick<Value>([null, true, false, 0, 1, 7])
    if (isTime(type))
      return random.pick<Value>([null, 0, 1_700_000_000, '2024-02-03 04:05:06', 'never', isoValue('2000-01-01')])
    return anyValue()
  }
  /** Versions of SQLite write different numbers of digits. */
  const plain = (value: string): string => `CASE typeof(${value}) WHEN 'real' THEN 0 ELSE ${value} END`
  const expression = (depth = 2): string => {
    if (depth === 0 || random.chance(0.3))
      return random.pick([column(), String(random.between(-9, 9)), "'t'", 'NULL', '0.5', "x'0a'"])
    const [a, b] = [expression(depth - 1), expression(depth - 1)]
    return random.pick([
      `(${a} + ${b})`,
      `(${a} - ${b})`,
      `(${a} * ${b})`,
      `(${a} / ${b})`,
      `(${a} = ${b})`,
      `(${a} < ${b})`,
      `(${a} AND ${b})`,
      `(${a} IS NOT ${b})`,
      `coalesce(${a}, ${b})`,
      `typeof(${a})`,
      `length(${plain(a)})`,
      `hex(${plain(a)})`,
      `quote(${column()} IS NULL)`,
      `CASE WHEN ${a} THEN ${b} END`,
      `(${a} IN (${b}, 1))`,
      `CAST(${a} AS INTEGER)`,
      `substr(${plain(a)}, 1, 2)`,
      `(${a} BETWEEN 0 AND ${b})`,
      `nullif(${a}, ${b})`,
      `min(${a}, ${b})`,
      `abs(${a})`,
      `(SELECT count(*) FROM t)`,
      `instr(${plain(a)}, 'a')`,
      `unicode(${plain(a)})`,
    ])
  }
  const where = (): string => (random.chance(0.6) ? ` WHERE ${expression()}` : '')
  const select = (): string =>
    random.pick([
      () => `SELECT * FROM t${where()} ORDER BY rowid`,
      () => `SELECT rowid, ${column()}, ${expression()} AS e FROM t${where()} ORDER BY rowid LIMIT ${random.below(20)}`,
      () => `SELECT count(*), min(${column()}), max(${expression()}) FROM t${where()}`,
      () => `SELECT typeof(${column()}) AS k, count(*) FROM t GROUP BY k ORDER BY k`,
      () =>
        `SELECT a.${column()}, b.rowid FROM t a LEFT JOIN t b ON a.rowid = b.rowid + ${random.below(3)} ORDER BY a.rowid, b.rowid`,
      () => `SELECT DISTINCT ${expression()} AS e FROM t ORDER BY typeof(e), e`,
      () => `WITH w AS (SELECT * FROM t LIMIT 5) SELECT * FROM w`,
      () => `SELECT ${column()} FROM t WHERE nonsense = 1`,
      () => `SELECT ${expression()} FROM missing`,
    ])()
  const insert = (): { sql: string; values: Value[] } => {
    const some = columns.filter(() => random.chance(0.8))
    if (some.length === 0) return { sql: 'INSERT INTO t DEFAULT VALUES', values: [] }
    const verb = random.pick(['INSERT', 'INSERT', 'INSERT OR IGNORE', 'REPLACE'])
    return {
      sql: `${verb} INTO t (${some.map(({ name }) => name).join(', ')}) VALUES (${marks(some.length)})`,
      values: some.map(({ type }) => valueFor(type)),
    }
  }
  const write = (): Step => {
    const what = random.next()
    if (what < 0.6 || free.length === 0) {
      const { sql, values } = insert()
      return E(sql, values)
    }
    if (what < 0.8) return E(`UPDATE t SET ${random.pick(free).name} = ?${where()}`, [anyValue()])
    if (what < 0.9) return E(`DELETE FROM t WHERE rowid % ${random.between(2, 7)} = 0`)
    return E(
      random.pick([
        'CREATE INDEX IF NOT EXISTS ti ON t (c0)',
        'DROP INDEX ti',
        'CREATE TABLE t (again)',
        'BEGIN',
        'COMMIT',
        'ROLLBACK',
        'SAVEPOINT s',
        'ROLLBACK TO s',
        'RELEASE s',
      ]),
    )
  }

  const unique = random.chance(0.3) ? ', UNIQUE (c0)' : ''
  const steps: Step[] = [
    E(
      `CREATE TABLE t (${columns.map(({ name, type }) => `${name} ${type}${random.chance(0.1) ? ' NOT NULL' : ''}`).join(', ')}${unique})`,
    ),
  ]
  for (let i = random.between(1, 8); i > 0; i--) steps.push(write())
  // Ids are given out from 0; none is used after it was finalized.
  let prepared = 0
  for (let i = random.between(10, 25); i > 0; i--) {
    const what = random.next()
    if (what < 0.4) steps.push(write())
    else if (what < 0.8) steps.push(Q(select()))
    else {
      const { sql, values } = insert()
      steps.push(P(sql), X(prepared, values))
      if (random.chance(0.5)) steps.push(X(prepared, values))
      if (random.chance(0.5)) steps.push(F(prepared))
      else prepared++
    }
  }
  steps.push(Q('SELECT count(*) FROM t'), Q('PRAGMA integrity_check'))
  return sql(`seed ${seed}`, ...steps)
}
