/**
 * Prepared statements of one connection by their ids: small integers, the lowest free one is taken next
 * (client-protocol §7.4). Does not know what a statement does.
 */
import type { Statement } from '../engine/connection.js'

export class StatementTable {
  readonly #statements: (Statement | undefined)[] = []
  readonly #statementsMax: number
  #count = 0
  #lowestFreeId = 0

  constructor(statementsMax: number) {
    this.#statementsMax = statementsMax
  }

  get isFull(): boolean {
    return this.#count >= this.#statementsMax
  }

  get(id: number): Statement | undefined {
    return this.#statements[id]
  }

  add(statement: Statement): number {
    const id = this.#lowestFreeId
    this.#statements[id] = statement
    this.#count++
    let free = id + 1
    while (this.#statements[free] !== undefined) free++
    this.#lowestFreeId = free
    return id
  }

  /** `undefined`: there is none with that id. */
  remove(id: number): Statement | undefined {
    const statement = this.#statements[id]
    if (statement === undefined) return undefined
    this.#statements[id] = undefined
    this.#count--
    if (id < this.#lowestFreeId) this.#lowestFreeId = id
    return statement
  }

  clear(): void {
    this.#statements.length = 0
    this.#count = 0
    this.#lowestFreeId = 0
  }
}
