/**
 * A dial proxy as a daemon would have one: `node dial-proxy.js SOCKET NAME=UNIX-SOCKET …` answers the question of
 * lib/network/dial-proxy.ts for these names, prints `ready`, and ends with its standard input.
 */
import net from 'node:net'

const [path, ...pairs] = process.argv.slice(2)
const targets = new Map(pairs.map((pair) => pair.split('=') as [string, string]))

const server = net.createServer((socket) => {
  socket.on('error', () => socket.destroy())
  let question = ''
  const onData = (chunk: Buffer): void => {
    question += chunk.toString('latin1')
    const end = question.indexOf('\n')
    if (end < 0) return
    socket.off('data', onData)
    socket.pause()
    const target = targets.get(question.slice(0, end))
    if (target === undefined) return void socket.end(`ERR no route to ${question.slice(0, end)}\n`)
    const onward = net.connect(target)
    let isConnected = false
    onward.once('connect', () => {
      isConnected = true
      socket.write('OK\n')
      onward.write(Buffer.from(question.slice(end + 1), 'latin1'))
      socket.pipe(onward).pipe(socket)
    })
    onward.once('error', (error) => (isConnected ? socket.destroy() : socket.end(`ERR ${error.message}\n`)))
    onward.once('close', () => socket.destroy())
    socket.once('close', () => onward.destroy())
  }
  socket.on('data', onData)
})
server.listen(path, () => process.stdout.write('ready\n'))
process.stdin.once('close', () => process.exit()).resume()
