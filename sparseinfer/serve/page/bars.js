/** Two bars, sparse over dense, on one scale. */

import { element } from "./elements.js";

const SIDES = { sparse: "Sparse", dense: "Dense" };

export class Bars {
  #parts = {};
  #values = { sparse: null, dense: null };
  #write;

  /**
   * @param {HTMLDListElement} list
   * @param {(value: number) => string} write
   */
  constructor(list, write) {
    this.#write = write;
    for (const [side, name] of Object.entries(SIDES)) {
      const fill = element("span", "fill");
      const value = element("span", "value");
      list.append(
        element("dt", "", name),
        element("dd", side, element("span", "gauge", fill), value),
      );
      this.#parts[side] = { fill, value };
    }
    this.set("sparse", null);
  }

  get(side) {
    return this.#values[side];
  }

  /** @param {number | null} value null: not known */
  set(side, value) {
    this.#values[side] = value;
    const most = Math.max(...Object.values(this.#values).map((it) => it ?? 0));
    for (const [name, { fill, value: text }] of Object.entries(this.#parts)) {
      const known = this.#values[name];
      fill.style.setProperty("--share", most > 0 ? String((known ?? 0) / most) : "0");
      text.textContent = known === null ? "–" : this.#write(known);
    }
  }
}
