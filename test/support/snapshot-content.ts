/** Snapshot content (disk-format §8) for tests: one database whose pages say their number. */
import { encodeContentHeader, encodeDatabaseHeader } from '../../lib/codec/data-directory.js'

const pageBytes = 4096

export function snapshotContent(pages: number, fill = 0): Buffer {
  const main = Buffer.alloc(pages * pageBytes, fill)
  for (let page = 0; page < pages; page++) main.writeUInt32BE(page + 1, page * pageBytes)
  return Buffer.concat([encodeContentHeader(1), encodeDatabaseHeader('test.db', main.byteLength, 0), main])
}

export async function* inChunks(content: Uint8Array, chunkBytes: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < content.byteLength; at += chunkBytes) yield content.subarray(at, at + chunkBytes)
}

export async function collected(content: AsyncIterable<Uint8Array>): Promise<Buffer> {
  const pieces: Uint8Array[] = []
  for await (const piece of content) pieces.push(piece)
  return Buffer.concat(pieces)
}
