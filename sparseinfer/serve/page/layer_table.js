/** The picture in figures, for those who cannot see it or want to know exactly. */

import { element } from "./elements.js";
import * as numbers from "./numbers.js";

export class LayerTable {
  #details;
  #body;

  /** @param {HTMLDetailsElement} details */
  constructor(details) {
    this.#details = details;
    this.#body = details.querySelector("tbody");
  }

  get shown() {
    return this.#details.open;
  }

  /** Calls back when somebody opens it. */
  whenOpened(write) {
    this.#details.addEventListener("toggle", write);
  }

  /**
   * @param {ArrayLike<number>} now
   * @param {number[]} means over the picture
   * @param {number[] | null} calibrated
   * @param {number[] | null} drift
   */
  write(now, means, calibrated, drift) {
    const cell = (value, text) => element("td", "", value === undefined ? "–" : text(value));
    const rows = Array.from(now, (fraction, layer) => {
      const name = element("th", "", String(layer));
      name.scope = "row";
      return element(
        "tr",
        "",
        name,
        cell(fraction, numbers.percent),
        cell(means[layer], numbers.percent),
        cell(calibrated?.[layer], numbers.percent),
        cell(drift?.[layer], numbers.points),
      );
    });
    this.#body.replaceChildren(...rows);
  }
}
