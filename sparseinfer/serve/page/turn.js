/** A question and its answer, or its two answers where sparse and dense are compared. */

import { AnswerView } from "./answer_view.js";
import { describeDifference } from "./difference.js";
import { element } from "./elements.js";
import * as numbers from "./numbers.js";

/** Below this many tokens a rate says little. */
const TOKENS_TO_TIME = 16;

/** @typedef {"answer" | "sparse" | "dense"} Side */

const TITLES = { answer: "Answer", sparse: "Sparse", dense: "Dense" };

export class Turn {
  #views = new Map();
  #begun = new Set();
  #ends = new Map();
  #verdict = element("p", "verdict");

  /**
   * @param {string} question
   * @param {object} sampling fields of the request
   * @param {Side[]} sides in the order in which they run
   */
  constructor(question, sampling, sides) {
    this.question = question;
    this.sampling = sampling;
    this.sides = sides;
    for (const side of sides) this.#views.set(side, new AnswerView(TITLES[side]));
    const answers = element("div", "answers", ...[...this.#views.values()].map((it) => it.root));
    answers.classList.toggle("two", sides.length > 1);
    const asked = element("p", "question", question);
    asked.dir = "auto";
    this.root = element("li", "turn", asked, answers, this.#verdict);
  }

  /** @param {Side} side */
  view(side) {
    return this.#views.get(side);
  }

  /** The text that the conversation goes on with. */
  get text() {
    return this.view(this.sides[0]).text;
  }

  /** Back to before the first token. */
  clear() {
    this.#begun.clear();
    this.#ends.clear();
    this.#verdict.replaceChildren();
    for (const view of this.#views.values()) view.clear("Next");
  }

  /** A side failed or was stopped: those after it will not run. */
  end() {
    for (const [side, view] of this.#views) if (!this.#begun.has(side)) view.clear("Did not run");
  }

  begin(side) {
    this.#begun.add(side);
    this.view(side).begin();
  }

  settle() {
    for (const view of this.#views.values()) view.settle();
  }

  /** @param {{finish: string, tokens: number | null, pace: import("./answer.js").Pace}} end */
  finish(side, end) {
    this.#ends.set(side, end);
    this.view(side).finish(end);
  }

  /**
   * Says how two answers differ, once there are two.
   *
   * @returns {number | null} how many times as fast sparse was; null where that cannot be said
   */
  compare() {
    if (this.#ends.size < 2) return null;
    const [sparse, dense] = [this.view("sparse").text, this.view("dense").text];
    const times = this.#speedUp();
    const pace =
      times === null
        ? element("span", "", "Too short to compare speed.")
        : element("strong", "", `Sparse decoded ${numbers.ratio(times)} times as fast as dense.`);
    const { temperature, seed } = this.sampling;
    const sampled = temperature > 0 ? ` Both with seed ${seed}.` : " Both greedy.";
    this.#verdict.append(pace, ` ${describeDifference(sparse, dense)}${sampled}`);
    this.view("sparse").markDifference(dense);
    this.view("dense").markDifference(sparse);
    return times;
  }

  get verdict() {
    return this.#verdict.textContent;
  }

  #speedUp() {
    const rates = ["sparse", "dense"].map((side) => {
      const { tokens, pace } = this.#ends.get(side);
      return (tokens ?? 0) >= TOKENS_TO_TIME ? pace.rate(tokens) : null;
    });
    return rates.includes(null) ? null : rates[0] / rates[1];
  }
}
