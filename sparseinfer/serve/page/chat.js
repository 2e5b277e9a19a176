/** The conversation: what was said, what is being answered, and what goes to the server. */

import { streamAnswer } from "./answer.js";
import { Turn } from "./turn.js";

/** Kinds of errors after which the same request may well succeed. */
const PASSING = new Set(["busy", "away", "lost", "failed", "key"]);

/**
 * @typedef {object} Listener what the page does besides
 * @property {(running: boolean) => void} onRunning
 * @property {(side: import("./turn.js").Side, rate: number | null) => void} onRate
 * @property {() => void} onSide a side is about to run
 * @property {() => void} onSideEnd
 * @property {(times: number | null) => void} onCompared
 * @property {(error: Error) => void} onError
 */

export class Chat {
  #server;
  #list;
  #announcer;
  #follow;
  #listener;
  #turns = [];
  #abort = null;
  model = null;

  /**
   * @param {import("./server.js").Server} server
   * @param {HTMLOListElement} list
   * @param {import("./announcer.js").Announcer} announcer
   * @param {import("./follow.js").Follow} follow
   * @param {Listener} listener
   */
  constructor(server, list, announcer, follow, listener) {
    this.#server = server;
    this.#list = list;
    this.#announcer = announcer;
    this.#follow = follow;
    this.#listener = listener;
  }

  get running() {
    return this.#abort !== null;
  }

  /**
   * @param {string} question
   * @param {string} system the system prompt; empty: none
   * @param {object} sampling fields of the request
   * @param {import("./turn.js").Side[]} sides
   */
  ask(question, system, sampling, sides) {
    const messages = [...this.#history(system), { role: "user", content: question }];
    this.#turns.at(-1)?.settle();
    const turn = new Turn(question, sampling, sides);
    this.#turns.push(turn);
    this.#list.append(turn.root);
    this.#follow.pin();
    this.#follow.grown(turn.root);
    return this.#run(turn, messages);
  }

  stop() {
    this.#abort?.abort();
  }

  forget() {
    this.stop();
    this.#turns = [];
    this.#list.replaceChildren();
  }

  #history(system) {
    const messages = system === "" ? [] : [{ role: "system", content: system }];
    for (const { question, text } of this.#turns) {
      if (text === "") continue; // Failed, or stopped before its first word.
      messages.push({ role: "user", content: question }, { role: "assistant", content: text });
    }
    return messages;
  }

  async #run(turn, messages) {
    const abort = new AbortController();
    this.#abort = abort;
    turn.clear();
    this.#listener.onRunning(true);
    try {
      for (const side of turn.sides) {
        if (!(await this.#answer(turn, side, messages, abort.signal))) return turn.end();
      }
      if (turn.sides.length > 1) {
        this.#listener.onCompared(turn.compare());
        this.#announcer.say(turn.verdict);
        this.#follow.grown(turn.root);
      }
    } finally {
      // After `forget` another may run already.
      if (this.#abort === abort) {
        this.#abort = null;
        this.#listener.onRunning(false);
      }
    }
  }

  /** @returns {Promise<boolean>} whether it came to its end */
  async #answer(turn, side, messages, signal) {
    const view = turn.view(side);
    const request = { messages, ...turn.sampling };
    if (this.model !== null) request.model = this.model;
    if (side === "dense") request.sparsity = false;
    turn.begin(side);
    if (side !== "answer") this.#announcer.say(`${side}:`);
    try {
      this.#listener.onSide();
      const end = await streamAnswer(this.#server, request, signal, (text, pace) => {
        if (view.append(text, pace)) this.#listener.onRate(side, pace.rate());
        this.#announcer.text(text);
        this.#follow.grown(view.root);
      });
      turn.finish(side, end);
      this.#announcer.end(end.finish === "length" ? "Answer cut at max tokens." : "");
      this.#listener.onRate(side, end.pace.rate(end.tokens ?? undefined));
      return true;
    } catch (error) {
      if (signal.aborted) {
        view.stop();
        this.#announcer.end("Stopped.");
      } else {
        this.#announcer.end("");
        const retry = () => !this.running && this.#run(turn, messages);
        view.fail(error.message, PASSING.has(error.kind) ? retry : null);
        this.#listener.onError(error);
      }
      return false;
    } finally {
      this.#follow.grown(view.root);
      this.#listener.onSideEnd();
    }
  }
}
