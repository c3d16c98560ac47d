import { fork, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { Worker } from 'node:worker_threads'
import test, { type ExecutionContext } from 'ava'
import { storageAddon } from '../../lib/storage/addon-storage.js'
import { NodeDisk, blockBytes, logWriterMethods } from '../../lib/storage/disk.js'
import { openDataDirectory } from '../../lib/storage/open.js'
import { configurationEntry, described, entriesBetween } from '../support/entries.js'

function scratch(t: ExecutionContext): string {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'dqlite-storage-'))
  t.teardown(() => fs.rmSync(dir, { recursive: true, force: true }))
  return dir
}
const options = { autoRecovery: true, logCacheBytesMax: 1 << 20 }
const openModule = path.resolve(fileURLToPath(import.meta.url), '../../../lib/storage/open.js')

for (const logWriter of logWriterMethods) {
  test(`a log written by ${logWriter} is read back`, async (t) => {
    const dir = scratch(t)
    let disk: NodeDisk
    try {
      disk = new NodeDisk({ logWriter })
      await (await disk.appendWriter(dir)).close()
    } catch (error) {
      // Containers may forbid it; the thread is always there.
      t.not(logWriter, 'thread')
      t.log(`${logWriter} is not offered here: ${String(error)}`)
      t.pass()
      return
    }
    const traces: string[] = []
    const opened = await openDataDirectory({ ...options, dir, disk, trace: (text) => traces.push(text) })
    t.regex(traces.join(), new RegExp(`log written by ${logWriter}`))
    await opened.metadata.save({ term: 1, votedFor: 2n })
    const entries = [
      ...entriesBetween(1, 100, 12_000),
      ...entriesBetween(101, 101, 9_000_000),
      ...entriesBetween(102, 103),
    ]
    await Promise.all(entries.slice(0, 50).map((entry) => opened.log.append([entry])))
    await opened.log.append(entries.slice(50))
    t.deepEqual((await opened.log.read(95, 103, 1e9)).map(described), entries.slice(94).map(described))
    await opened.log.truncateAfter(102)
    await opened.close()
    t.true(fs.readdirSync(dir).every((name) => !name.startsWith('open-') && !name.startsWith('tmp-')))
    t.is(fs.statSync(path.join(dir, 'metadata1')).mode & 0o777, 0o600)
    const again = await openDataDirectory({ ...options, dir, logCacheBytesMax: 1e9 })
    t.deepEqual(again.restored.entries.map(described), entries.slice(0, 102).map(described))
    t.is(again.restored.votedFor, 2n)
    await again.close()
    await again.close() // twice is fine
  })
}

test('spare segments are preallocated at full size and zero', async (t) => {
  const dir = scratch(t)
  const opened = await openDataDirectory({ ...options, dir })
  await opened.metadata.save({ term: 1, votedFor: undefined })
  await opened.log.append([configurationEntry(1)])
  await opened.log.append(entriesBetween(2, 3))
  const fullSize = 8 * 1024 * 1024
  const sizeOf = (name: string): number => fs.statSync(path.join(dir, name), { throwIfNoEntry: false })?.size ?? 0
  for (let i = 0; i < 500 && sizeOf('open-3') < fullSize; i++) await new Promise((resolve) => setTimeout(resolve, 10))
  for (const name of ['open-1', 'open-2', 'open-3']) t.is(sizeOf(name), fullSize)
  await opened.close()
})

test('an unknown log writer is refused', (t) => {
  t.throws(() => new NodeDisk({ logWriter: 'tape' as 'aio' }), { code: 'BAD_OPTION', message: /tape/ })
})

test('a directory is opened once at a time, in this process and others', async (t) => {
  const dir = scratch(t)
  const first = await openDataDirectory({ ...options, dir })
  await t.throwsAsync(openDataDirectory({ ...options, dir }), { code: 'DIRECTORY_LOCKED' })
  const script = `import(${JSON.stringify(openModule)}).then((m) => m.openDataDirectory({ dir: ${JSON.stringify(dir)}, autoRecovery: true, logCacheBytesMax: 0 }))
    .then(() => console.log('opened'), (error) => console.log(error.code))`
  const tryElsewhere = () => spawnSync(process.execPath, ['-e', script], { encoding: 'utf8' }).stdout.trim()
  t.is(tryElsewhere(), 'DIRECTORY_LOCKED')
  await first.close()
  // The other process opens it and exits without closing: the lock goes with it, and the exit does not hang.
  t.is(tryElsewhere(), 'opened')
  const again = await openDataDirectory({ ...options, dir })
  await again.close()
})

test('of many processes that want the directory one gets it', async (t) => {
  const dir = scratch(t)
  const file = path.join(dir, 'child.mjs')
  fs.writeFileSync(
    file,
    `import { openDataDirectory } from ${JSON.stringify(openModule)}
     const dir = ${JSON.stringify(path.join(dir, 'data'))}
     process.on('message', () => process.exit(0))
     await openDataDirectory({ dir, autoRecovery: true, logCacheBytesMax: 0 }).then(() => process.send('opened'), (e) => process.send(e.code))`,
  )
  const children = Array.from({ length: 3 }, () => fork(file))
  const answers = await Promise.all(
    children.map((child) => new Promise<unknown>((resolve) => child.once('message', resolve))),
  )
  t.is(answers.filter((answer) => answer === 'opened').length, 1)
  t.is(answers.filter((answer) => answer === 'DIRECTORY_LOCKED').length, 2)
  await Promise.all(children.map((child) => new Promise((resolve) => child.once('exit', resolve).send('end'))))
})

test('a path that is not a directory is refused', async (t) => {
  const dir = scratch(t)
  const file = path.join(dir, 'file')
  fs.writeFileSync(file, '')
  await t.throwsAsync(openDataDirectory({ ...options, dir: file }), { code: 'DISK_FAILED' })
})

test('file systems without direct writes work too', async (t) => {
  const shm = '/dev/shm'
  if (!fs.existsSync(shm)) {
    t.log('no /dev/shm here')
    t.pass()
    return
  }
  const dir = fs.mkdtempSync(path.join(shm, 'dqlite-storage-'))
  t.teardown(() => fs.rmSync(dir, { recursive: true, force: true }))
  const opened = await openDataDirectory({ ...options, dir })
  await opened.metadata.save({ term: 1, votedFor: undefined })
  const entries = entriesBetween(1, 50, 4000)
  await opened.log.append(entries)
  await opened.close()
  const again = await openDataDirectory({ ...options, dir })
  t.deepEqual(again.restored.entries.map(described), entries.map(described))
  await again.close()
})

test('a write in flight does not outlive its worker thread', async (t) => {
  const dir = scratch(t)
  const script = `
    const { workerData } = require('node:worker_threads')
    Promise.all([import(workerData.openModule), import(workerData.entriesModule)]).then(async ([m, e]) => {
      const opened = await m.openDataDirectory({ dir: workerData.dir, autoRecovery: true, logCacheBytesMax: 0 })
      await opened.metadata.save({ term: 1, votedFor: undefined })
      await opened.log.append([e.configurationEntry(1)])
      void opened.log.append(e.entriesBetween(2, 100, 10000))
      process.exit(0)
    })`
  const entriesModule = path.resolve(fileURLToPath(import.meta.url), '../../support/entries.js')
  for (let i = 0; i < 5; i++) {
    const data = { dir: path.join(dir, String(i)), openModule, entriesModule }
    const worker = new Worker(script, { eval: true, workerData: data })
    const code = await new Promise((resolve, reject) => worker.once('exit', resolve).once('error', reject))
    t.is(code, 0)
    // Node closes the descriptors of a worker that ended, the lock's among them; the files are sound.
    const opened = await openDataDirectory({ ...options, dir: data.dir })
    t.true(opened.log.lastIndex >= 1)
    t.deepEqual(opened.warnings, [])
    await opened.close()
  }
})

test('a process may exit with a write in flight', (t) => {
  const dir = scratch(t)
  const entriesModule = path.resolve(fileURLToPath(import.meta.url), '../../support/entries.js')
  for (const logWriter of ['', 'thread']) {
    const script = `
      Promise.all([import(${JSON.stringify(openModule)}), import(${JSON.stringify(entriesModule)})]).then(async ([m, e]) => {
        const opened = await m.openDataDirectory({ dir: ${JSON.stringify(path.join(dir, `x${logWriter}`))}, autoRecovery: true, logCacheBytesMax: 0 })
        await opened.metadata.save({ term: 1, votedFor: undefined })
        await opened.log.append([e.configurationEntry(1)])
        void opened.log.append(e.entriesBetween(2, 100, 10000))
        process.exit(7)
      })`
    const env = { ...process.env, DQLITE_LOG_WRITER: logWriter }
    const result = spawnSync(process.execPath, ['-e', script], { encoding: 'utf8', env, timeout: 20_000 })
    t.is(result.status, 7, result.stderr)
  }
})

test('the collector may run while a write is in flight', async (t) => {
  const dir = scratch(t)
  const disk = new NodeDisk()
  const device = await disk.appendWriter(dir)
  const file = await device.create(path.join(dir, 'file'))
  for (let i = 0; i < 50; i++) {
    const result = await new Promise<number>((resolve) => {
      device.write(file, disk.alignedBuffer(blockBytes * 16).fill(i), blockBytes * 16, 0, resolve)
      globalThis.gc?.()
      Buffer.alloc(1_000_000)
    })
    t.is(result, blockBytes * 16)
    t.is(fs.readFileSync(path.join(dir, 'file'))[70], i)
  }
  await file.close()
  await device.close()
})

test('checksums of the addon are those of the format', (t) => {
  const bytes = Buffer.from('123456789')
  t.is(storageAddon.crc32(bytes, 0, 9, 0), 0x89a1897f)
  t.is(storageAddon.crc32(bytes, 4, 9, storageAddon.crc32(bytes, 0, 4, 0)), 0x89a1897f)
  t.is(storageAddon.crc32(bytes, 3, 3, 77), 77)
})
