/** The server's routes, with an API key where it wants one, and what goes wrong in words. */

/** @typedef {"key" | "busy" | "away" | "lost" | "refused" | "failed"} Kind */

export class ServerError extends Error {
  /**
   * @param {Kind} kind
   * @param {string} message for people
   * @param {{param?: string | null, code?: string | null}} details as the server named them
   */
  constructor(kind, message, { param = null, code = null } = {}) {
    super(message);
    this.kind = kind;
    this.param = param;
    this.code = code;
  }
}

export const lost = () => new ServerError("lost", "The connection to the server was lost.");

/** The error in an OpenAI-shaped body, whether it came with a status or in the middle of a stream. */
export function toServerError(status, error, retrySeconds = null) {
  const said = sentence(typeof error?.message === "string" ? error.message : `status ${status}`);
  const details = { param: error?.param, code: error?.code };
  if (status === 429) {
    const wait = retrySeconds ? ` It asks to wait ${plural(retrySeconds, "second")}.` : "";
    return new ServerError("busy", `The server is busy with other requests.${wait}`, details);
  }
  if (status === 503 || error?.code === "shutting_down") {
    return new ServerError("away", `The server takes no requests now: ${said}`, details);
  }
  if (status >= 500) {
    return new ServerError("failed", `The server failed on this request: ${said}`, details);
  }
  if (error?.param === "sparsity") {
    return new ServerError("refused", `Sparsity cannot be switched off here. ${said}`, details);
  }
  return new ServerError("refused", `The server refused this request: ${said}`, details);
}

export class Server {
  /** In memory only: a reload forgets it, and no other page can read it. */
  #key = null;
  #asking = null;
  #askForKey;

  /** @param {(wrong: boolean) => Promise<string | null>} askForKey null: the person gave up */
  constructor(askForKey) {
    this.#askForKey = askForKey;
  }

  /**
   * @param {string} path relative to the page, so that a proxy may serve it under any folder
   * @param {{json?: object, signal?: AbortSignal, background?: boolean}} options `background`: never
   *   asks for a key
   * @returns {Promise<Response>} with a status of 200 to 299
   * @throws {ServerError}
   */
  async fetch(path, { json, signal, background = false } = {}) {
    for (;;) {
      const key = this.#key;
      const response = await this.#send(path, json, signal, key);
      if (response.ok) return response;
      if (response.status !== 401) throw await errorOf(response);
      if (background) throw keyMissing();
      // Another request may have been given a key since this one was sent.
      if (key === this.#key) await this.#newKey(key !== null);
    }
  }

  async json(path, options) {
    const response = await this.fetch(path, options);
    return response.json().catch(() => {
      throw new ServerError("failed", "The server's answer makes no sense: it is not JSON.");
    });
  }

  async #send(path, json, signal, key) {
    const headers = {};
    if (key !== null) headers["Authorization"] = `Bearer ${key}`;
    if (json !== undefined) headers["Content-Type"] = "application/json";
    try {
      return await fetch(path, {
        method: json === undefined ? "GET" : "POST",
        headers,
        body: json === undefined ? undefined : JSON.stringify(json),
        signal,
        cache: "no-store",
      });
    } catch (error) {
      throw error.name === "AbortError" ? error : lost();
    }
  }

  async #newKey(wrong) {
    this.#asking ??= this.#askForKey(wrong).finally(() => {
      this.#asking = null;
    });
    const key = await this.#asking;
    if (key === null) throw keyMissing();
    this.#key = key;
  }
}

const keyMissing = () => new ServerError("key", "This server needs an API key.");

async function errorOf(response) {
  const body = await response.json().catch(() => null);
  const retry = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return toServerError(response.status, body?.error, Number.isFinite(retry) ? retry : null);
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}
