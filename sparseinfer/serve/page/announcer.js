/** Reads answers out, sentence by sentence: screen readers stumble over text that grows word by word. */

const KEPT = 4;

export class Announcer {
  #log;
  #pending = "";

  /** @param {HTMLElement} log a polite live region that nobody sees */
  constructor(log) {
    this.#log = log;
  }

  /** A piece of an answer. */
  text(piece) {
    this.#pending += piece;
    const end = lastSentenceEnd(this.#pending);
    if (end > 0) {
      this.say(this.#pending.slice(0, end));
      this.#pending = this.#pending.slice(end);
    }
  }

  /** The answer is over: what is left of it, and a remark. */
  end(remark) {
    this.say(this.#pending);
    this.#pending = "";
    this.say(remark);
  }

  say(message) {
    if (message.trim() === "") return;
    const line = document.createElement("p");
    line.textContent = message;
    this.#log.append(line);
    // What was read out is also in the conversation.
    while (this.#log.children.length > KEPT) this.#log.firstChild.remove();
  }
}

function lastSentenceEnd(text) {
  let end = 0;
  for (const match of text.matchAll(/[.!?:;。！？](?=\s)|\n/g)) end = match.index + 1;
  return end;
}
