/** Answers from memory that is used again: with a stream nobody would know when the socket has taken a piece. */
import type { FastifyReply } from 'fastify'

export interface SendOptions {
  giveBack(piece: Buffer): void
  /** A client that takes nothing for so long is let go. */
  stallMs: number
}

/** Sends one piece after another, as fast as they are taken, until they or the client end. */
export async function sendPieces(reply: FastifyReply, pieces: AsyncIterable<Buffer>, { giveBack, stallMs }: SendOptions): Promise<void> {
  reply.hijack()
  const { raw } = reply
  raw.writeHead(reply.statusCode, reply.getHeaders() as Record<string, string>)
  let goOn = () => {}
  for (const event of ['drain', 'close']) raw.on(event, () => goOn())
  try {
    for await (const piece of pieces) {
      if (raw.destroyed) return
      // With an error the socket may still have a part of it.
      if (raw.write(piece, (error) => error || giveBack(piece))) continue
      const timer = setTimeout(() => raw.destroy(), stallMs).unref()
      await new Promise<void>((resolve) => {
        goOn = resolve
      })
      clearTimeout(timer)
    }
    raw.end()
  } finally {
    if (!raw.writableEnded) raw.destroy()
  }
}
