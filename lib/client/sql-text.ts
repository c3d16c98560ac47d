/**
 * What can be said about an SQL text without SQLite: whether it only reads, whether it may be several statements,
 * whether it leaves a transaction open. Errs on the side of "no, it may write". Does not parse.
 */

// Space, semicolons and comments, then the first word.
const leadingWord = /^(?:[\s;]|--[^\n]*(?:\n|$)|\/\*[\s\S]*?\*\/)*([a-z]+)/i
// String literals, quoted names and comments: what is in them is no SQL.
const opaque = /'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|--[^\n]*|\/\*[\s\S]*?(?:\*\/|$)/g
const writingWord = /\b(?:insert|update|delete|replace)\b/i

export function firstWord(sql: string): string {
  return leadingWord.exec(sql)?.[1]?.toLowerCase() ?? ''
}

const outline = (sql: string): string => sql.replace(opaque, (match) => (/^[-/]/.test(match) ? ' ' : "''"))

/** For a single statement, as QUERY takes it. */
export function onlyReads(sql: string): boolean {
  const word = firstWord(sql)
  if (word === 'with') return !writingWord.test(sql)
  return word === 'select' || word === 'values' || word === 'explain'
}

/** The first of several statements may have been committed when a later one fails. */
export function mayBeSeveralStatements(sql: string): boolean {
  return sql.includes(';') && /;[\s;]*[^\s;]/.test(outline(sql))
}

export function mayOpenTransaction(sql: string): boolean {
  return /\b(?:begin|savepoint)\b/i.test(sql)
}

export function opensTransaction(sql: string): boolean {
  const word = firstWord(sql)
  return word === 'begin' || word === 'savepoint'
}

export function mayCommit(sql: string): boolean {
  return /\b(?:commit|end|release)\b/i.test(sql)
}
