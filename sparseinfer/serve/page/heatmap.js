/** The picture: one row for each layer, one column for each report, the newest at the right. */

import { level } from "./colours.js";

const CELL_PX = 5;
/** Narrower than this cells touch each other. */
const GAP_FROM_PX = 5;
const KEPT = 400;
/** A pause this long leaves an empty column. */
const PAUSE_MS = 3000;

/** @typedef {{at: number, values: Float32Array}} Column `at`: milliseconds, as performance.now() */

export class Heatmap {
  #canvas;
  #columns = [];
  #layers = 0;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
  }

  /** Columns that fit into the picture, oldest first; null is a pause. */
  get shown() {
    return this.#columns.slice(-this.#count());
  }

  /** Reports among them. */
  get reports() {
    return this.shown.filter((column) => column !== null);
  }

  set layers(count) {
    if (count !== this.#layers) this.#columns = [];
    this.#layers = count;
  }

  /** @param {number[]} values active fraction of each layer */
  push(values) {
    const at = performance.now();
    const last = this.#columns.at(-1);
    if (last && at - last.at > PAUSE_MS) this.#columns.push(null);
    this.#columns.push({ at, values: Float32Array.from(values) });
    this.#columns.splice(0, this.#columns.length - KEPT);
  }

  /** What lies under a point of the canvas, in CSS pixels; null where nothing does. */
  at(x, y) {
    const { width, height } = this.#canvas.getBoundingClientRect();
    const column = this.#columns.at(-1 - Math.floor((width - x) / CELL_PX));
    const layer = Math.floor((y / height) * this.#layers);
    if (!column || layer < 0 || layer >= this.#layers) return null;
    return { layer, fraction: column.values[layer], age: (performance.now() - column.at) / 1000 };
  }

  /**
   * @param {string[]} colours from low to high
   * @param {string} empty colour of cells without a report
   * @param {{low: number, high: number}} range
   */
  draw(colours, empty, range) {
    const { context, width, height, scale } = fitToScreen(this.#canvas);
    const rows = edges(this.#layers || 24, height, scale);
    const step = Math.max(1, Math.round(CELL_PX * scale));
    const gap = CELL_PX >= GAP_FROM_PX && rows.gap > 0 ? rows.gap : 0;
    context.clearRect(0, 0, width, height);
    for (let right = width, back = 1; right > 0; right -= step, back += 1) {
      const column = this.#columns.at(-back);
      const left = Math.max(right - step, 0);
      rows.each((top, tall, layer) => {
        context.fillStyle = column ? colours[level(column.values[layer], range)] : empty;
        context.fillRect(left + gap, top, right - left - gap, tall);
      });
    }
  }

  #count() {
    return Math.ceil(this.#canvas.clientWidth / CELL_PX) || 1;
  }
}

/** Makes a canvas as fine as the screen. */
export function fitToScreen(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = Math.round(canvas.clientWidth * scale);
  const height = Math.round(canvas.clientHeight * scale);
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  return { context: canvas.getContext("2d"), width, height, scale };
}

/** Rows of equal height, to whole pixels, with gaps between them where there is room. */
export function edges(count, height, scale) {
  const gap = height / count >= GAP_FROM_PX * scale ? Math.round(scale) : 0;
  const edge = (row) => Math.round((row * height) / count);
  const each = (draw) => {
    for (let row = 0; row < count; row += 1) {
      draw(edge(row), Math.max(edge(row + 1) - edge(row) - gap, 1), row);
    }
  };
  return { gap, each };
}
