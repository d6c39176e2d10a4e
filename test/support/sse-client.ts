/**
 * A strict reader of text/event-stream (HTML Living Standard, section 9.2): anything that the service should not write is
 * an error here, so that tests see frames exactly as they went over the wire.
 */
import { type ClientRequest, type IncomingMessage, request } from 'node:http'

export interface Frame {
  id?: string
  event?: string
  data?: string
  retry?: number
}

export interface EventStream {
  readonly status: number
  readonly headers: IncomingMessage['headers']
  /** Every frame so far. */
  readonly frames: Frame[]
  /** Resolves with the first frame, past or future, that fits; rejects when the stream ends or the time is over before. */
  until(fits: (frame: Frame) => boolean, timeoutMs?: number): Promise<Frame>
  /** Resolves when the server has closed the stream (true: in an orderly way). */
  closed(timeoutMs?: number): Promise<boolean>
  /** Stops reading from the socket. */
  pause(): void
  resume(): void
  /** The reader leaves. */
  close(): void
  /** The body, where the answer is no stream. */
  text(): string
}

/** One block of lines, without the empty line that ends it. Throws for what is not a frame. */
export function parseFrame(block: string): Frame {
  const frame: Frame = {}
  for (const line of block.split('\n')) {
    const match = /^(id|event|data|retry): (.*)$/s.exec(line)
    if (!match) throw new Error(`not a field of a frame: ${JSON.stringify(line.slice(0, 200))}`)
    const [, field, value = ''] = match
    if (value.includes('\r') || value.includes('\0')) throw new Error(`a CR or NUL in ${JSON.stringify(line.slice(0, 200))}`)
    if (field === 'data') frame.data = frame.data === undefined ? value : `${frame.data}\n${value}`
    else if (field === 'retry') {
      if (!/^\d+$/.test(value)) throw new Error(`retry is not a number: ${value}`)
      frame.retry = Number(value)
    } else if (field === 'id' || field === 'event') {
      if (frame[field] !== undefined) throw new Error(`${field} twice in one frame`)
      frame[field] = value
    }
  }
  return frame
}

/** Opens a stream on a connection of its own. Resolves when the headers are there. */
export function openStream(url: string, options: { headers?: Record<string, string>; timeoutMs?: number } = {}): Promise<EventStream> {
  return new Promise((resolve, reject) => {
    const outgoing: ClientRequest = request(url, { agent: false, headers: { accept: 'text/event-stream', ...options.headers } })
    const timer = setTimeout(() => outgoing.destroy(new Error(`no headers from ${url} in time`)), options.timeoutMs ?? 10_000)
    outgoing.on('error', (error) => {
      clearTimeout(timer)
      reject(error)
    })
    outgoing.on('response', (response) => {
      clearTimeout(timer)
      resolve(readStream(outgoing, response))
    })
    outgoing.end()
  })
}

function readStream(outgoing: ClientRequest, response: IncomingMessage): EventStream {
  const isStream = (response.headers['content-type'] ?? '').startsWith('text/event-stream')
  const frames: Frame[] = []
  const waiting = new Set<() => void>()
  let rest = ''
  let failure: Error | undefined
  let ended: boolean | undefined
  const changed = () => {
    for (const wake of [...waiting]) wake()
  }
  response.setEncoding('utf8')
  response.on('data', (chunk: string) => {
    rest += chunk
    if (!isStream) return
    try {
      for (let end = rest.indexOf('\n\n'); end >= 0; end = rest.indexOf('\n\n')) {
        frames.push(parseFrame(rest.slice(0, end)))
        rest = rest.slice(end + 2)
      }
    } catch (error) {
      failure = error instanceof Error ? error : new Error(String(error))
      outgoing.destroy()
    }
    changed()
  })
  response.on('error', () => {})
  response.on('close', () => {
    ended = response.complete
    if (isStream && response.complete && rest !== '') failure ??= new Error(`half a frame at the end: ${JSON.stringify(rest.slice(0, 200))}`)
    changed()
  })

  const wait = <T>(timeoutMs: number, what: () => string, look: () => T | undefined): Promise<T> =>
    new Promise((resolve, reject) => {
      const check = () => {
        let found: T | undefined
        try {
          found = look()
        } catch (error) {
          settle()
          reject(error)
          return
        }
        if (found === undefined) return
        settle()
        resolve(found)
      }
      const timer = setTimeout(() => {
        settle()
        reject(new Error(`${what()} within ${timeoutMs} ms; the last frames were ${JSON.stringify(frames.slice(-3)).slice(0, 600)}`))
      }, timeoutMs)
      const settle = () => {
        clearTimeout(timer)
        waiting.delete(check)
      }
      waiting.add(check)
      check()
    })

  return {
    status: response.statusCode ?? 0,
    headers: response.headers,
    frames,
    until: (fits, timeoutMs = 10_000) => {
      let next = 0
      return wait(
        timeoutMs,
        () => 'no such frame',
        () => {
          for (; next < frames.length; next++) {
            const frame = frames[next]
            if (frame && fits(frame)) return frame
          }
          if (failure) throw failure
          if (ended !== undefined) throw new Error(`the stream ended before the frame; the last ones were ${JSON.stringify(frames.slice(-3)).slice(0, 600)}`)
          return undefined
        },
      )
    },
    closed: (timeoutMs = 10_000) =>
      wait(
        timeoutMs,
        () => 'the stream was not closed',
        () => {
          if (ended === undefined) return undefined
          if (failure) throw failure
          return ended
        },
      ),
    pause: () => {
      response.pause()
    },
    resume: () => {
      response.resume()
    },
    close: () => {
      outgoing.destroy()
    },
    text: () => rest,
  }
}
