/** One streamed answer of /v1/chat/completions, and how fast it came. */

import { events } from "./events.js";
import { ServerError, lost, toServerError } from "./server.js";

/** Times a stream. Rates are of decoding: from the first piece of text on, without the prompt. */
export class Pace {
  #start = performance.now();
  #first = null;
  #last = null;
  #pieces = 0;

  piece() {
    this.#last = performance.now();
    this.#first ??= this.#last;
    this.#pieces += 1;
  }

  /** Seconds until the first text; null before it. */
  get wait() {
    return this.#first === null ? null : (this.#first - this.#start) / 1000;
  }

  /**
   * Tokens per second; null where there is too little to tell.
   *
   * @param {number} tokens of the answer; while it streams, every piece counts as one
   */
  rate(tokens = this.#pieces) {
    const seconds = (this.#last - this.#first) / 1000;
    return tokens < 2 || seconds <= 0 ? null : (tokens - 1) / seconds;
  }
}

/**
 * @param {import("./server.js").Server} server
 * @param {object} request fields of the route; streaming is added
 * @param {AbortSignal} signal
 * @param {(text: string, pace: Pace) => void} onText
 * @returns {Promise<{finish: string, tokens: number | null, pace: Pace}>}
 * @throws {ServerError} also where the stream ends before the answer does
 */
export async function streamAnswer(server, request, signal, onText) {
  const json = { ...request, stream: true, stream_options: { include_usage: true } };
  const pace = new Pace();
  const response = await server.fetch("v1/chat/completions", { json, signal });
  let finish = null;
  let tokens = null;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return { finish, tokens, pace };
      const chunk = parsed(data);
      if (chunk.error) throw toServerError(500, chunk.error);
      tokens = chunk.usage?.completion_tokens ?? tokens;
      const choice = chunk.choices?.[0];
      const text = choice?.delta?.content;
      finish = choice?.finish_reason ?? finish;
      if (text) {
        pace.piece();
        onText(text, pace);
      }
    }
  } catch (error) {
    throw error instanceof ServerError || signal.aborted ? error : lost();
  }
  throw lost();
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ServerError("failed", "The server's answer makes no sense: it is not JSON.");
  }
}
