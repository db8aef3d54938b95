// Lets a test call what the page exports: one JSON text a line, in and out.
//
//   in    {"id", "call": a function's name, "with": its arguments, "keep": a name for what it gives, or null}
//   out   {"id", "answer"} or {"id", "error": {"name", "message"}}; and {"heard", "frame"} for each frame of a socket
//
// What JSON can't hold stands in objects of one member: {"$bytes": base64}, {"$kept": a name}, {"$hear": a name, for a
// callback that tells what it hears}, {"$expect": a fingerprint, for one that approves of this one alone}.
import { createInterface } from 'node:readline'

import sodium from 'libsodium-wrappers'

await sodium.ready

// Random bytes that a test has set come first, so that a sealing can be held to one made elsewhere.
const set = []
const { randombytes_buf: random } = sodium
sodium.randombytes_buf = length => set.shift() ?? random(length)

// Answers that a test has put in the place of the server's, by method and path.
const lies = new Map()
const { fetch } = globalThis
globalThis.fetch = async (url, options) => {
  const request = `${options.method} ${new URL(url).pathname}`
  return lies.has(request) ? Response.json(lies.get(request)) : fetch(url, options)
}

const page = await import('./secureblogs.mjs')
const kept = new Map()
const shown = []

const functions = {
  ...page,
  setRandom: (...bytes) => { set.push(...bytes) },
  lie: answers => { lies.clear(); for (const [request, answer] of Object.entries(answers)) lies.set(request, answer) },
  pin: (me, pins) => { Object.assign(me.pins, pins) },
  forget: (me, userId) => { delete me.pins[userId] },
  reset: () => { lies.clear(); set.length = shown.length = 0 },
  takeShown: () => shown.splice(0),
  close: socket => socket.close(),
  publishAll: (me, posts) => each(posts, async post => (await page.publish(me, ...post)).id),
  readAll: (me, ids) => each(ids, async id => {
    const { title, content, seal } = await page.read(me, id)
    return [title, content, seal]
  }),
  openAnswered: (post, sealedKey, keys, verifyKey) => page.openPost(post, page.openKey(sealedKey, keys), verifyKey),
  // The answer of each call, or null where it throws.
  tryAll: (name, calls) => calls.map(one => { try { return functions[name](...one) } catch { return null } }),
}

async function each(all, work) { // several at once, for most of the time is spent waiting for the server
  const results = [], left = all.entries()
  const go = async () => { for (const [number, one] of left) results[number] = await work(one) }
  await Promise.all(Array.from({ length: 8 }, go))
  return results
}

const special = {
  $bytes: text => new Uint8Array(Buffer.from(text, 'base64')),
  $kept: name => kept.get(name),
  $hear: heard => frame => write({ heard, frame }),
  $expect: fingerprint => request => { shown.push(request); return request.fingerprint === fingerprint },
}

function revive(_, value) {
  const names = value && typeof value === 'object' ? Object.keys(value) : []
  return names.length === 1 && names[0] in special ? special[names[0]](value[names[0]]) : value
}

function write(message) {
  const text = JSON.stringify(message, (_, value) =>
    value instanceof Uint8Array ? { $bytes: Buffer.from(value).toString('base64') } : value)
  process.stdout.write(`${text}\n`)
}

async function run(line) {
  const { id, call, with: given, keep } = JSON.parse(line, revive)
  try {
    const answer = await functions[call](...given)
    if (keep) kept.set(keep, answer)
    write({ id, answer: keep ? null : answer ?? null })
  } catch (error) {
    write({ id, error: { name: error.constructor.name, message: error.message } })
  }
}

const lines = createInterface({ input: process.stdin })
lines.on('line', run)
lines.on('close', () => process.exit(0))
