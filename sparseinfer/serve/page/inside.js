/** The panel that shows the model at work: active neurons, bytes, tokens per second. */

import { Bars } from "./bars.js";
import { FULL, fitted, outside, ramp } from "./colours.js";
import { byId } from "./elements.js";
import { Heatmap } from "./heatmap.js";
import { LayerTable } from "./layer_table.js";
import * as numbers from "./numbers.js";
import { Profile } from "./profile.js";
import { throttle } from "./throttle.js";

const WORDS_EVERY_MS = 1000;

export class Inside {
  #info = {};
  #now = [];
  #heatmap = new Heatmap(byId("heatmap"));
  #profile = new Profile(byId("profile"));
  #table = new LayerTable(byId("layer-table"));
  #bytes = new Bars(byId("bytes-bars"), numbers.bytes);
  #speed = new Bars(byId("speed-bars"), numbers.rate);
  #full = byId("scale-full");
  #putInWords = throttle(WORDS_EVERY_MS, () => this.#words());
  #due = false;

  constructor() {
    const canvas = byId("heatmap");
    canvas.addEventListener("pointermove", (event) => this.#point(event));
    canvas.addEventListener("pointerdown", (event) => this.#point(event));
    canvas.addEventListener("pointerleave", () => this.#explain());
    this.#full.addEventListener("change", () => this.#draw());
    this.#table.whenOpened(() => this.#writeTable());
    new ResizeObserver(() => this.#draw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw());
  }

  /** Whether the model computes all neurons in any case; null: not known. */
  get isDenseModel() {
    return "method" in this.#info ? this.#info.method === null : null;
  }

  /** The model in a few words. */
  get shape() {
    const { method, layers, neurons } = this.#info;
    const parts = [];
    if (method !== undefined) parts.push(method ?? "dense");
    if (layers) parts.push(`${layers} layers × ${numbers.whole(neurons)} neurons`);
    return parts.join(" · ");
  }

  /**
   * @param {object} report of /v1/sparsity, or the fields of it that change
   * @param {boolean} live whether it is of this moment: a column of the picture
   */
  report(report, live) {
    const { bytes_per_token: known } = this.#info;
    Object.assign(this.#info, report);
    // Of a quarter of a second they jump about; the server has the figure of a few hundred tokens.
    if (live && known) this.#info.bytes_per_token = known;
    const fractions = this.#info.active_fraction;
    const layers = this.#info.layers ?? fractions?.length ?? 0;
    this.#heatmap.layers = layers;
    byId("layer-first").textContent = layers > 0 ? "0" : "";
    byId("layer-last").textContent = layers > 1 ? String(layers - 1) : "";
    byId("calibrated-key").hidden = !this.#info.calibrated;
    // Of the past only where there is nothing newer.
    const counted = this.#info.window_tokens > 0 && this.#heatmap.reports.length === 0;
    if (Array.isArray(fractions) && (live || counted)) {
      this.#now = fractions;
      if (live) this.#heatmap.push(fractions);
      byId("active-now").textContent = numbers.percent(mean(fractions));
      this.#explain();
    }
    this.#showBytes();
    this.#draw();
    this.#putInWords();
  }

  missing() {
    byId("readout").textContent = "This server does not report sparsity.";
  }

  /** @param {"answer" | "sparse" | "dense"} side */
  setRate(side, rate) {
    if (rate === null) return;
    // What a dense run gives is beside the point, except where there is nothing else.
    if (side !== "dense") byId("speed-now").textContent = numbers.rate(rate);
    const dense = side === "dense" || this.isDenseModel === true;
    this.#speed.set(dense ? "dense" : "sparse", rate);
  }

  /** @param {number | null} times how many times as fast sparse was as dense */
  setComparison(times) {
    byId("speed-note").textContent =
      times === null
        ? "The answers were too short to compare speed."
        : `Sparse is ${numbers.ratio(times)} times dense. One run each, one after the other: a ` +
          "hint; “sparseinfer bench” measures.";
  }

  #showBytes() {
    const { bytes_per_token: read, dense_bytes_per_token: dense } = this.#info;
    if (dense) this.#bytes.set("dense", dense);
    if (this.isDenseModel) {
      if (dense) byId("bytes-now").textContent = numbers.bytes(dense);
      byId("bytes-note").textContent = "A dense model reads all of its weights for every token.";
      byId("speed-note").textContent = "A dense model: there is no sparsity to compare with.";
      return;
    }
    if (!read) return;
    this.#bytes.set("sparse", read);
    byId("bytes-now").textContent = numbers.bytes(read);
    if (!dense) return;
    const saved = 1 - read / dense;
    byId("bytes-note").textContent =
      saved >= 0
        ? `${numbers.percent(saved)} of the weight bytes of a dense step stay unread.`
        : `${numbers.percent(-saved)} more than a dense step reads.`;
  }

  #draw() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      const style = getComputedStyle(document.documentElement);
      const colour = (name) => style.getPropertyValue(name).trim();
      const reports = this.#heatmap.reports.map((column) => column.values);
      const range = this.#full.checked ? FULL : fitted(reports.length > 0 ? reports : [this.#now]);
      const { below, above } = outside(reports, range);
      byId("scale-low").textContent = `${below ? "≤" : ""}${numbers.percent(range.low)}`;
      byId("scale-high").textContent = `${above ? "≥" : ""}${numbers.percent(range.high)}`;
      this.#heatmap.draw(ramp(), colour("--cell"), range);
      const colours = { bar: colour("--sparse"), empty: colour("--cell"), mark: colour("--ink") };
      const { calibrated = null, layers = 0 } = this.#info;
      this.#profile.draw(this.#now, calibrated, layers, colours);
    });
  }

  /** What the picture shows, for those who do not see it. */
  #words() {
    this.#writeTable();
    const reports = this.#heatmap.reports;
    const now = this.#now;
    if (reports.length === 0) return;
    const most = now.indexOf(Math.max(...now));
    const least = now.indexOf(Math.min(...now));
    byId("heatmap").setAttribute(
      "aria-label",
      `Active fraction of ${now.length} layers over ${reports.length} reports. ` +
        `Now ${numbers.percent(mean(now))} on average; ` +
        `most in layer ${most}, ${numbers.percent(now[most])}; ` +
        `least in layer ${least}, ${numbers.percent(now[least])}. ` +
        "The table below has every layer.",
    );
  }

  #explain() {
    const seconds = usualStep(this.#heatmap.reports.map((column) => column.at)) / 1000;
    byId("readout").textContent = Number.isNaN(seconds)
      ? "Point at a cell to read it"
      : `${seconds.toFixed(2)} s a column; point to read a cell`;
  }

  #point(event) {
    const found = this.#heatmap.at(event.offsetX, event.offsetY);
    if (found === null) return this.#explain();
    const age = `${numbers.seconds(found.age)} ago`;
    byId("readout").textContent =
      `Layer ${found.layer}, ${age}: ${numbers.percent(found.fraction)} active`;
  }

  #writeTable() {
    if (!this.#table.shown) return;
    const reports = this.#heatmap.reports.map((column) => column.values);
    const means = reports.length > 0 ? this.#now.map((_, i) => mean(reports.map((r) => r[i]))) : [];
    this.#table.write(this.#now, means, this.#info.calibrated ?? null, this.#info.drift ?? null);
  }
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** The median of the steps between moments, which pauses do not change; NaN where there is none. */
function usualStep(moments) {
  const steps = moments.slice(1).map((moment, i) => moment - moments[i]);
  return steps.sort((one, other) => one - other)[steps.length >> 1] ?? NaN;
}
