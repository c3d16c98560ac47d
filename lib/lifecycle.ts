/**
 * A named state with checked moves: a long operation says where it is, and a move that its table does not allow is a
 * programmer's error that stops the process. Does not know what the states mean.
 */
import assert from 'node:assert/strict'

export type Moves<State extends string> = { readonly [From in State]: readonly State[] }

export class Lifecycle<State extends string> {
  readonly #moves: Moves<State>
  #state: State

  constructor(moves: Moves<State>, initial: State) {
    this.#moves = moves
    this.#state = initial
  }

  get state(): State {
    return this.#state
  }

  is(state: State): boolean {
    return this.#state === state
  }

  move(to: State): void {
    if (!this.#moves[this.#state].includes(to)) assert.fail(`no move from ${this.#state} to ${to}`)
    this.#state = to
  }
}
