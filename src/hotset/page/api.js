// The server, as it is asked.
import { key } from "./store.js";

export class Problem extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server does not answer. Is hotset serve still running?", 0);
  }
  if (!answer.ok) throw await problemOf(answer);
  return answer;
}

async function problemOf(answer) {
  let message = `${answer.status} ${answer.statusText}`;
  try { message = (await answer.json()).error.message ?? message; } catch { /* no JSON */ }
  return new Problem(message, answer.status);
}

export async function models() { return (await (await ask("/v1/models")).json()).data; }

export async function heat(model, signal) {
  return (await ask(`/heat?model=${encodeURIComponent(model)}`, { signal })).json();
}

// The chunks of an answer; throws `Problem`, or an AbortError where it was stopped.
export async function* complete(body, signal) {
  const answer = await ask("/v1/chat/completions", {
    method: "POST",
    signal,
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let ended = false;
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The connection broke off in the middle of the answer.", 0);
    }
    if (part.done) break;
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a comment: the server is alive
      const data = event.slice(6);
      if (data === "[DONE]") { ended = true; continue; }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(chunk.error.message ?? "The answer failed.", 500);
      yield chunk;
    }
  }
  if (!ended) throw new Problem("The answer ended too early: the server may have stopped.", 0);
}
