/**
 * A member that is no member: speaks the protocol of peers through the codec, keeps no log, and answers as a test says.
 * Left alone it acknowledges whatever it gets.
 */
import { once } from 'node:events'
import net from 'node:net'
import { MessageStream } from '../../lib/codec/message-stream.js'
import { encodeConnect, encodeMessage, PeerMessageStream } from '../../lib/codec/peer-protocol.js'
import type { InstallSnapshot, Message, ServerId } from '../../lib/raft/types.js'

export type PeerMessage = Exclude<Message, InstallSnapshot>

const protocolBytes = 8
const bytesMax = 64 * 1024 * 1024

export class FakeMember {
  readonly id: ServerId
  readonly received: Message[] = []
  receivedBytes = 0
  /** The term and last index that it was told. */
  term = 0
  lastIndex = 0
  /** What to answer; `undefined`: nothing. */
  answer: (message: Message, self: FakeMember) => PeerMessage | undefined = acknowledge
  readonly #server: net.Server
  readonly #inbound = new Set<net.Socket>()
  #outbound: net.Socket | undefined
  /** Where its messages go. */
  #peer: string

  private constructor(id: ServerId, peer: string, server: net.Server) {
    this.id = id
    this.#peer = peer
    this.#server = server
    server.on('connection', (socket: net.Socket) => this.#accept(socket))
  }

  static async start(id: ServerId, peer: string): Promise<FakeMember> {
    const server = net.createServer()
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return new FakeMember(id, peer, server)
  }

  get address(): string {
    return `127.0.0.1:${(this.#server.address() as net.AddressInfo).port}`
  }

  #accept(socket: net.Socket): void {
    this.#inbound.add(socket)
    socket.on('error', () => socket.destroy())
    socket.on('close', () => this.#inbound.delete(socket))
    const stream = new PeerMessageStream({ headerBytesMax: bytesMax, payloadBytesMax: bytesMax })
    let head = Buffer.alloc(0)
    let isPeer = false
    socket.on('data', (chunk: Buffer) => {
      this.receivedBytes += chunk.length
      if (isPeer) stream.push(chunk)
      else {
        head = Buffer.concat([head, chunk])
        if (head.length < protocolBytes) return
        const client = new MessageStream({ bodyBytesMax: 4096 })
        client.push(head.subarray(protocolBytes))
        if (client.next() === undefined) return
        isPeer = true
        stream.push(client.takeRest())
      }
      for (let next = stream.next(); next !== undefined; next = stream.next()) this.#receive(next.message)
    })
  }

  #receive(message: Message): void {
    this.received.push(message)
    this.term = Math.max(this.term, message.term)
    if (message.type === 'appendEntries')
      this.lastIndex = Math.max(
        this.lastIndex,
        message.prev.index < 2 ** 52 ? message.prev.index + message.entries.length : 0,
      )
    const answer = this.answer(message, this)
    if (answer !== undefined) this.send(answer)
  }

  /** On its one connection, made when it is first needed. */
  send(message: PeerMessage): void {
    for (const piece of encodeMessage(message, this.id)) this.sendBytes(piece)
  }

  sendBytes(bytes: Uint8Array): void {
    if (this.#outbound === undefined || this.#outbound.destroyed) this.connect()
    this.#outbound!.write(bytes)
  }

  /** A new connection in place of the old one, announcing itself as this. */
  connect({ id = this.id, address = this.address }: { id?: ServerId; address?: string } = {}): net.Socket {
    this.#outbound?.destroy()
    const [host, port] = this.#peer.split(':') as [string, string]
    const socket = net.connect(Number(port), host)
    socket.setNoDelay(true)
    socket.on('error', () => socket.destroy())
    socket.resume()
    socket.write(encodeConnect(id, address))
    this.#outbound = socket
    return socket
  }

  /** Stops reading what it is sent, and answering. */
  fallSilent(): void {
    this.answer = () => undefined
    for (const socket of this.#inbound) socket.pause()
    this.#server.on('connection', (socket: net.Socket) => socket.pause())
  }

  async stop(): Promise<void> {
    this.#outbound?.destroy()
    for (const socket of this.#inbound) socket.destroy()
    this.#server.close()
    await once(this.#server, 'close')
  }
}

/** As an honest follower that keeps everything would. */
export function acknowledge(message: Message): PeerMessage | undefined {
  if (message.type === 'requestVote')
    return { type: 'requestVoteResult', term: message.term, granted: false, preVote: message.preVote }
  if (message.type !== 'appendEntries') return undefined
  const { prev, entries, term } = message
  // A question about an index that no log reaches (dissertation §6.4).
  if (prev.index > 2 ** 52)
    return { type: 'appendEntriesResult', term, rejected: prev.index, lastLogIndex: 0, features: 0 }
  return { type: 'appendEntriesResult', term, rejected: 0, lastLogIndex: prev.index + entries.length, features: 0 }
}
