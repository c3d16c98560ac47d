/**
 * Every way in which our answers differ from those of C 1.11, with the reason. docs/compatibility.md says the same to
 * people. Ours follow 1.18.3 and later where the versions differ (client-protocol §18), and never copy a defect (§19).
 */

export interface Answered {
  readonly sequence: string
  readonly request: string
  readonly theirs: string
  readonly ours: string
}

export interface Difference {
  readonly name: string
  is(answered: Answered): boolean
}

type Pattern = string | RegExp
const fits = (text: string, pattern: Pattern | undefined): boolean =>
  pattern === undefined || (typeof pattern === 'string' ? text === pattern : pattern.test(text))

/** Where the answers are like that, in these sequences (all by default). */
function when(
  name: string,
  wanted: { sequence?: Pattern; request?: Pattern; theirs?: Pattern; ours?: Pattern },
): Difference {
  return {
    name,
    is: ({ sequence, request, theirs, ours }) =>
      fits(sequence, wanted.sequence) &&
      fits(request, wanted.request) &&
      fits(theirs, wanted.theirs) &&
      fits(ours, wanted.ours),
  }
}

const notAuthorized = 'failure 23 "not authorized"'

export const differences: readonly Difference[] = [
  // ------------------------------------------------------------------------------------ defects of 1.11 (§7, §19)
  {
    name: 'a failing query is answered without the rows before it (§7.6)',
    is: ({ theirs, ours }) => theirs === `${ours} behind rows`,
  },
  when('a type that does not exist is refused instead of falling silent (§1.5)', {
    theirs: 'silence',
    ours: 'failure 1005 "unrecognized request type"',
  }),
  when('columns follow a change of the schema (§7.4)', {
    sequence: 'a statement outlives a change of the schema',
    request: 'query 0',
    theirs: /^rows/,
    ours: /^rows/,
  }),
  when('names that belong to SQLite are refused with a reason (§7.3)', {
    request: /^open x-(wal|journal)$/,
    ours: /^failure 14 "not a name a database can have/,
  }),

  // --------------------------------------------------------------------------------- other versions (§4.2, §18)
  when('EXEC_SQL of nothing repeats the last result (since 1.18.2)', {
    request: /^execSql ( *|-- nothing)$/,
    theirs: 'result 0/0',
    ours: /^result/,
  }),
  when('a second statement is refused (since 1.15)', {
    request: /SELECT 1; SELECT 2/,
    theirs: /^(stmt|rows)/,
    ours: 'failure 1 "nonempty statement tail"',
  }),
  when('and so it has no id', {
    sequence: 'a second statement to prepare',
    request: 'query 0',
    ours: 'failure 12 "no statement with the given id"',
  }),
  when('schema 1 of parameters is understood (since 1.12)', {
    request: /schema 1/,
    theirs: 'failure 1005 "not an error"',
    ours: /^rows .* done$/,
  }),
  when('schema 1 of PREPARE is understood (since 1.15)', {
    request: /^prepare schema 1/,
    ours: /^stmt schema 1 .* tail/,
  }),
  when('a schema that does not exist is refused (since 1.12)', {
    sequence: 'a wrong schema',
    ours: 'failure 1005 "unrecognized schema version"',
  }),
  when('parameters that cannot be bound (since 1.18.2)', {
    theirs: 'failure 1005 "not an error"',
    ours: 'failure 1 "bind parameters"',
  }),
  when('parameters do not outlive an execution (since 1.18.2)', { sequence: 'fewer parameters the second time' }),
  when('too many parameters of EXEC are ignored, and passed on to the next statement (since 1.18.2)', {
    sequence: /^(more parameters than asked for, executed|parameters of several statements)$/,
  }),
  when('too many parameters of QUERY (1 since 1.18.2)', {
    theirs: 'failure 25 "column index out of range"',
    ours: 'failure 1 "bind parameters"',
  }),
  when('rows where none are expected (1 since 1.18.2)', {
    theirs: 'failure 100 "another row available"',
    ours: 'failure 1 "rows yielded when none expected for EXEC request"',
  }),
  when('settings of the journal and of locks are refused (since 1.18.3, §10)', {
    request:
      /PRAGMA (journal_mode|page_size|wal_autocheckpoint|synchronous|wal_checkpoint|busy_timeout|read_uncommitted|locking_mode)/,
    theirs: /^(result|rows|failure 100)/,
    ours: notAuthorized,
  }),
  when('ATTACH is refused (since 1.13, §10)', {
    request: /^execSql ATTACH/,
    theirs: 'result 0/0',
    ours: notAuthorized,
  }),
  when('a PRAGMA without an answer has no columns (since 1.18.2, §10)', {
    request: /PRAGMA/,
    theirs: 'failure 1 "not an error"',
    ours: 'rows []  done',
  }),
  {
    name: 'DUMP is one merged file (since 1.18.3, §7.14)',
    // Of the same size: what lies in free space is a matter of secure_delete.
    is: ({ theirs, ours }) =>
      /^files/.test(theirs) &&
      / with a WAL$/.test(theirs) &&
      / merged$/.test(ours) &&
      theirs.split(' ').slice(0, 3).join(' ') === ours.split(' ').slice(0, 3).join(' '),
  },
  when('DUMP of a database that is not there (since 1.18.3)', {
    sequence: 'dump of nothing',
    ours: 'failure 1002 "database does not exists"',
  }),
  when('a format of CLUSTER that does not exist (since 1.12)', {
    request: 'cluster 2',
    ours: 'failure 1005 "unrecognized cluster format"',
  }),
  when('a text for a member that is not there (§7.10, §7.12)', {
    theirs: 'failure 1 "unknown error"',
    ours: 'failure 1 "Resource not found"',
  }),

  // ------------------------------------------------------------------------------------------- another SQLite
  when('texts of a newer SQLite', { theirs: /JSON path error near/, ours: 'failure 1 "bad JSON path: \'x\'"' }),
  when('load_extension is not compiled in', { ours: 'failure 1 "no such function: load_extension"' }),
  when('limits and settings that SQLite was compiled with', {
    request: /^querySql PRAGMA (secure_delete|max_page_count)$/,
  }),
]
