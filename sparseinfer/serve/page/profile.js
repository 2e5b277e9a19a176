/** Beside the picture: how active each layer is now, and where it was when it was calibrated. */

import { edges, fitToScreen } from "./heatmap.js";

export class Profile {
  #canvas;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
  }

  /**
   * @param {ArrayLike<number>} values active fraction of each layer; empty: not known
   * @param {ArrayLike<number> | null} calibrated
   * @param {number} layers
   * @param {{bar: string, empty: string, mark: string}} colours
   */
  draw(values, calibrated, layers, { bar, empty, mark }) {
    const { context, width, height, scale } = fitToScreen(this.#canvas);
    const thick = Math.max(1, Math.round(1.5 * scale));
    context.clearRect(0, 0, width, height);
    edges(layers || 24, height, scale).each((top, tall, layer) => {
      context.fillStyle = empty;
      context.fillRect(0, top, width, tall);
      context.fillStyle = bar;
      context.fillRect(0, top, Math.round((values[layer] ?? 0) * width), tall);
      if (calibrated === null) return;
      context.fillStyle = mark;
      context.fillRect(Math.round(calibrated[layer] * width - thick / 2), top, thick, tall);
    });
  }
}
