/**
 * The end of a call: its time limit and its signals, whichever comes first. Everything the client awaits is awaited
 * under one of these, so nothing can hang. Knows nothing of requests; its errors say "nothing happened", and whoever
 * had already sent something says so instead.
 */
import assert from 'node:assert/strict'
import { getMaxListeners, setMaxListeners } from 'node:events'
import { DqliteError } from '../errors.js'

export interface DeadlineOptions {
  readonly timeoutMs: number
  readonly signals?: readonly (AbortSignal | undefined)[]
  /** What took too long, for the error's text. */
  readonly what: string
}

const signalListenersMax = 10_000
const timeoutMsMax = 2 ** 31 - 1 // setTimeout fires at once beyond

export class Deadline {
  readonly what: string
  readonly timeoutMs: number
  readonly #signals: readonly AbortSignal[]
  #expiresAtMs: number
  #timer: NodeJS.Timeout | undefined
  #error: DqliteError | undefined
  #listener: ((error: DqliteError) => void) | undefined

  constructor({ timeoutMs, signals, what }: DeadlineOptions) {
    this.what = what
    this.timeoutMs = Math.min(timeoutMs, timeoutMsMax)
    this.#signals = (signals ?? []).filter((signal) => signal !== undefined)
    this.#expiresAtMs = performance.now() + this.timeoutMs
    this.#timer = setTimeout(this.#onTimer, this.timeoutMs)
    for (const signal of this.#signals) {
      if (signal.aborted) {
        this.#onAbort()
        break
      }
      // One signal for many calls is no leak: Node's warning about ten listeners would be a false alarm.
      if (getMaxListeners(signal) < signalListenersMax) setMaxListeners(signalListenersMax, signal)
      signal.addEventListener('abort', this.#onAbort)
    }
  }

  /** Set once the deadline is over. */
  get error(): DqliteError | undefined {
    return this.#error
  }

  get remainingMs(): number {
    return this.#error ? 0 : Math.max(0, this.#expiresAtMs - performance.now())
  }

  check(): void {
    if (this.#error) throw this.#error
  }

  /** One listener at a time: a call does one thing at a time. */
  listen(listener: (error: DqliteError) => void): void {
    assert(!this.#listener)
    this.#listener = listener
  }

  unlisten(): void {
    this.#listener = undefined
  }

  /** The promise's result, unless the deadline comes first; then the promise is left to itself. */
  race<T>(promise: Promise<T>): Promise<T> {
    if (this.#error) {
      promise.catch(() => undefined) // its result has no taker any more
      return Promise.reject(this.#error)
    }
    return new Promise((resolve, reject) => {
      this.listen(reject)
      const settled = (): void => {
        if (this.#listener === reject) this.#listener = undefined // else the deadline came first
      }
      promise.then(
        (value) => {
          settled()
          resolve(value)
        },
        (error: unknown) => {
          settled()
          // eslint-disable-next-line @typescript-eslint/prefer-promise-reject-errors -- whatever it was, it passes on
          reject(error)
        },
      )
    })
  }

  sleep(ms: number): Promise<void> {
    if (this.#error) return Promise.reject(this.#error)
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.unlisten()
        resolve()
      }, ms)
      this.listen((error) => {
        clearTimeout(timer)
        reject(error)
      })
    })
  }

  /** The clock starts anew: a stream's limit is for each batch, not for the consumer's work between them. */
  restart(timeoutMs = this.timeoutMs): void {
    if (this.#error) return
    clearTimeout(this.#timer)
    this.#expiresAtMs = performance.now() + timeoutMs
    this.#timer = setTimeout(this.#onTimer, timeoutMs)
  }

  /** The clock stands still until `restart`; signals still count. */
  pause(): void {
    clearTimeout(this.#timer)
  }

  /** The call has ended. Further use is as if the deadline never came. */
  dispose(): void {
    clearTimeout(this.#timer)
    for (const signal of this.#signals) signal.removeEventListener('abort', this.#onAbort)
  }

  readonly #onTimer = (): void => {
    this.#end(new DqliteError('TIMEOUT', `${this.what} took longer than ${this.timeoutMs} ms`, { retry: 'safe' }))
  }

  readonly #onAbort = (): void => {
    const cause: unknown = this.#signals.find((signal) => signal.aborted)?.reason
    // A signal whose reason is an error of ours speaks for itself: a client that closes, a transaction that is over.
    if (cause instanceof DqliteError) this.#end(cause)
    else this.#end(new DqliteError('ABORTED', `${this.what} was aborted`, { cause, retry: 'safe' }))
  }

  #end(error: DqliteError): void {
    if (this.#error) return
    this.#error = error
    this.dispose()
    const listener = this.#listener
    this.#listener = undefined
    listener?.(error)
  }
}

/** The same error for a request that had left already: it may have taken effect. */
export function afterSending(error: DqliteError): DqliteError {
  return new DqliteError(error.code, `${error.message}; the request had been sent`, {
    cause: error.cause ?? error,
    retry: 'unknown',
  })
}

/** Nothing has happened, though in general one cannot know after this code. */
export function nothingHappened(error: DqliteError): DqliteError {
  if (error.outcome !== 'unknown') return error
  return new DqliteError(error.code, error.message, {
    cause: error,
    retry: 'safe',
    ...(error.wire === undefined ? {} : { wire: error.wire }),
  })
}

/** The call itself had not been sent, only what prepares for it. */
export function knownNotSent(error: unknown): unknown {
  return error instanceof DqliteError ? nothingHappened(error) : error
}

/** Doubles up to a limit, with up to half of it taken off, so that clients do not come back in step. */
export function backoffMs(attempt: number, { firstMs, maxMs }: { firstMs: number; maxMs: number }): number {
  const ms = Math.min(maxMs, firstMs * 2 ** Math.min(attempt, 20))
  return ms * (0.5 + Math.random() / 2)
}
