/**
 * What is to happen and when, on the virtual clock: a binary heap by time, then by order of insertion.
 */

interface Task {
  readonly time: number
  readonly order: number
  readonly run: () => void
}

export class Agenda {
  readonly #heap: Task[] = []
  #order = 0

  get size(): number {
    return this.#heap.length
  }

  add(time: number, run: () => void): void {
    const heap = this.#heap
    const task = { time, order: this.#order++, run }
    let at = heap.push(task) - 1
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!isBefore(task, heap[parent]!)) break
      heap[at] = heap[parent]!
      at = parent
    }
    heap[at] = task
  }

  get nextTime(): number | undefined {
    return this.#heap[0]?.time
  }

  take(): Task | undefined {
    const heap = this.#heap
    const top = heap[0]
    const last = heap.pop()
    if (top === undefined || last === undefined || heap.length === 0) return top
    let at = 0
    for (;;) {
      let child = 2 * at + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++
      if (!isBefore(heap[child]!, last)) break
      heap[at] = heap[child]!
      at = child
    }
    heap[at] = last
    return top
  }
}

const isBefore = (a: Task, b: Task) => a.time < b.time || (a.time === b.time && a.order < b.order)
