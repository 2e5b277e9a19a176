/** Follows /v1/sparsity: figures at once, then reports a few times a second while the model runs. */

import { events } from "./events.js";

const SHORTEST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 8000;

export class Live {
  #server;
  #onReport;
  #onMissing;
  #wake = () => {};

  /**
   * @param {import("./server.js").Server} server
   * @param {(report: object, live: boolean) => void} onReport
   * @param {() => void} onMissing the server has no such route
   */
  constructor(server, onReport, onMissing) {
    this.#server = server;
    this.#onReport = onReport;
    this.#onMissing = onMissing;
  }

  /** Follows until the page is closed. */
  async run() {
    let pause = SHORTEST_PAUSE_MS;
    for (;;) {
      // A browser opens six connections to a server at most: pages that nobody sees give theirs back.
      await visible();
      try {
        await this.refresh();
        await this.#stream(() => {
          pause = SHORTEST_PAUSE_MS;
        });
      } catch (error) {
        if (error.kind === "refused") return this.#onMissing();
      }
      await this.#pause(pause);
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    }
  }

  /** The figures as they are now. */
  async refresh() {
    this.#onReport(await this.#server.json("v1/sparsity", { background: true }), false);
  }

  /** Something is about to run: no more waiting. */
  nudge() {
    this.#wake();
  }

  async #stream(onEvent) {
    const abort = new AbortController();
    const hide = () => document.hidden && abort.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const options = { signal: abort.signal, background: true };
      const response = await this.#server.fetch("v1/sparsity?stream=true", options);
      for await (const data of events(response.body)) {
        if (data === "[DONE]") return;
        const report = JSON.parse(data);
        if (!Array.isArray(report.active_fraction)) return; // An error: the server is going away.
        onEvent();
        this.#onReport(report, true);
      }
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
  }

  #pause(milliseconds) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, milliseconds);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

function visible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    const shown = () => {
      if (document.hidden) return;
      document.removeEventListener("visibilitychange", shown);
      resolve();
    };
    document.addEventListener("visibilitychange", shown);
  });
}
