import test from 'ava'

import { decodeCommand } from '../../lib/codec/log-entry.js'
import { WalImageReader } from '../../lib/node/wal-image.js'

const pageBytes = 4096

function frame(page: number, sizePages: number, fill: number): Buffer {
  const bytes = Buffer.alloc(24 + pageBytes, fill)
  bytes.writeUInt32BE(page, 0)
  bytes.writeUInt32BE(sizePages, 4)
  return bytes
}

const image = Buffer.concat([
  Buffer.alloc(32, 9),
  frame(2, 0, 1),
  frame(1, 2, 2),
  frame(3, 0, 3),
  frame(3, 0, 4),
  frame(1, 3, 5),
])

function commands(chunkBytes: number): Uint8Array[] {
  const reader = new WalImageReader('test.db')
  const found: Uint8Array[] = []
  for (let offset = 0; offset < image.length; offset += chunkBytes)
    found.push(...reader.push(image.subarray(offset, offset + chunkBytes)))
  reader.finish()
  return found
}

test('each transaction of a WAL image becomes one command, however the bytes arrive', (t) => {
  for (const chunkBytes of [1, 31, 4096, 4120, image.length]) {
    const decoded = commands(chunkBytes).map((data) => {
      const command = decodeCommand(data)
      if (command.type !== 'frames') throw new Error('not a FRAMES command')
      const fills = command.pageNumbers.map((_, at) => data[command.pagesOffset + at * pageBytes])
      return { database: command.database, pages: command.pageNumbers, fills }
    })
    t.deepEqual(decoded, [
      { database: 'test.db', pages: [2, 1], fills: [1, 2] },
      // The later image of page 3 counts.
      { database: 'test.db', pages: [3, 1], fills: [4, 5] },
    ])
  }
})

test('a WAL image that ends inside a transaction is refused', (t) => {
  const reader = new WalImageReader('test.db')
  reader.push(image.subarray(0, image.length - 24 - pageBytes))
  t.throws(() => reader.finish(), { code: 'DATA_CORRUPT' })
})
