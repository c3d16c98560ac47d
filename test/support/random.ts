/**
 * Chance that can be replayed: a small generator (sfc32) seeded by one number. Not for secrets.
 */

export class Random {
  #a: number
  #b: number
  #c: number
  #counter = 1

  constructor(seed: number) {
    // splitmix32 spreads neighbouring seeds over the whole state.
    let state = seed >>> 0
    const split = () => {
      state = (state + 0x9e3779b9) | 0
      let z = state ^ (state >>> 16)
      z = Math.imul(z, 0x21f0aaad)
      z ^= z >>> 15
      z = Math.imul(z, 0x735a2d97)
      return (z ^ (z >>> 15)) | 0
    }
    this.#a = split()
    this.#b = split()
    this.#c = split() ^ Math.trunc(seed / 2 ** 32)
    for (let warm = 0; warm < 12; warm++) this.next()
  }

  /** Uniform in [0, 1). */
  next(): number {
    const sum = (((this.#a + this.#b) | 0) + this.#counter) | 0
    this.#counter = (this.#counter + 1) | 0
    this.#a = this.#b ^ (this.#b >>> 9)
    this.#b = (this.#c + (this.#c << 3)) | 0
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) | 0
    return (sum >>> 0) / 2 ** 32
  }

  /** An integer in [0, end). */
  below(end: number): number {
    return Math.floor(this.next() * end)
  }

  /** An integer in [first, last]. */
  between(first: number, last: number): number {
    return first + this.below(last - first + 1)
  }

  chance(probability: number): boolean {
    return probability > 0 && this.next() < probability
  }

  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!
  }

  /** Exponential with this mean, at least 1. */
  interval(mean: number): number {
    return Math.max(1, Math.round(-mean * Math.log(1 - this.next())))
  }

  /** A stream of its own: more draws in one place do not move the others. */
  fork(): Random {
    return new Random(this.below(2 ** 32))
  }
}
