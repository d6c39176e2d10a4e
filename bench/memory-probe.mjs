/**
 * Loaded into a measured process with `node --expose-gc --import`: on a message it collects garbage and answers with its memory.
 * It works the same for the service and for the bare server that it is compared with, and knows nothing of either.
 */
process.on('message', async () => {
  for (let round = 0; round < 4; round++) {
    globalThis.gc()
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
  process.send?.(process.memoryUsage())
})
// A listener for messages must not keep the process alive.
process.channel?.unref()
