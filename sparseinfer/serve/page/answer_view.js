/** One answer on the page. Its text is a text node, so whatever a model writes stays text. */

import { commonLength } from "./difference.js";
import { button, element } from "./elements.js";
import * as numbers from "./numbers.js";

const RATE_EVERY_MS = 250;

export class AnswerView {
  #text = document.createTextNode("");
  #words = element("span", "words", this.#text);
  #body = element("div", "text", this.#words);
  #rate = element("span", "rate");
  #figures = element("span", "faint");
  #notice = element("div", "notice");
  #rated = 0;

  /** @param {string} title */
  constructor(title) {
    // Languages that are written from right to left come out right, beside others.
    this.#body.dir = "auto";
    // Screen readers get what is put into it.
    this.#notice.setAttribute("role", "alert");
    this.root = element(
      "section",
      "answer",
      element("header", "", element("h3", "", title), this.#rate, this.#figures),
      this.#body,
      this.#notice,
    );
    this.root.setAttribute("aria-label", `${title} answer`);
  }

  get text() {
    return this.#body.textContent;
  }

  /** Back to nothing, with a word on why there is nothing yet. */
  clear(waitingFor) {
    this.root.classList.add("later");
    this.#text.data = "";
    this.#body.replaceChildren(this.#words);
    this.#notice.replaceChildren();
    this.#say(waitingFor);
    this.root.classList.remove("streaming");
  }

  begin() {
    this.clear("Waiting");
    this.root.classList.remove("later");
    this.root.classList.add("streaming");
  }

  /** @returns {boolean} whether the rate was shown too, which is not done for every word */
  append(text, pace) {
    this.#text.appendData(text);
    const now = performance.now();
    if (now - this.#rated < RATE_EVERY_MS) return false;
    this.#rated = now;
    const rate = pace.rate();
    this.#say("Answering", rate);
    return true;
  }

  /** @param {{finish: string, tokens: number | null, pace: import("./answer.js").Pace}} end */
  finish({ finish, tokens, pace }) {
    this.root.classList.remove("streaming");
    const parts = [];
    if (tokens !== null) parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
    if (pace.wait !== null) parts.push(`first after ${pace.wait.toFixed(2)} s`);
    if (finish === "length") parts.push("cut at max tokens");
    const said = this.text === "" ? "Empty answer" : parts.join(" · ");
    this.#say(said, pace.rate(tokens ?? undefined));
  }

  stop() {
    this.root.classList.remove("streaming");
    this.#say("Stopped");
  }

  /** @param {(() => void) | null} retry null: trying again would not help */
  fail(message, retry) {
    this.root.classList.remove("streaming");
    this.#say("");
    this.#notice.append(element("p", "", message));
    if (retry !== null) this.#notice.append(button("Try again", "retry", retry));
  }

  /** No more second tries: the conversation has gone on. */
  settle() {
    this.#notice.querySelector(".retry")?.remove();
  }

  /** Marks what is not as in another answer, unless that is all of it. */
  markDifference(other) {
    const text = this.text;
    const common = commonLength(text, other);
    if (common === 0 || common === text.length) return;
    this.#text.data = text.slice(0, common);
    this.#body.append(element("mark", "", text.slice(common)));
  }

  #say(figures, rate = null) {
    this.#rate.textContent = rate === null ? "" : `${numbers.rate(rate)} tokens/s`;
    this.#figures.textContent = figures;
  }
}
