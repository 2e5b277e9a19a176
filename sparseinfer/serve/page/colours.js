/** Colours of fractions, and the range of fractions that they stand for. */

const STOPS = 5;
const LEVELS = 64;
const STEP = 0.05;
const LEAST_SPAN = 0.1;
/** At least this share of neurons active: a dense step, which would hide all that differs below. */
const DENSE = 0.999;

/** The ramp of the style sheet, which knows light and dark, in 64 steps from low to high. */
export function ramp() {
  const style = getComputedStyle(document.documentElement);
  const stops = Array.from({ length: STOPS }, (_, i) =>
    rgb(style.getPropertyValue(`--ramp-${i}`).trim()),
  );
  return Array.from({ length: LEVELS }, (_, level) => {
    const place = (level / (LEVELS - 1)) * (STOPS - 1);
    const below = Math.min(Math.floor(place), STOPS - 2);
    const mixed = stops[below].map((c, i) => c + (stops[below + 1][i] - c) * (place - below));
    return `rgb(${mixed.map(Math.round).join(" ")})`;
  });
}

/** Which step of the ramp a fraction has. */
export function level(fraction, { low, high }) {
  const place = (fraction - low) / (high - low);
  return Math.round(Math.min(Math.max(place, 0), 1) * (LEVELS - 1));
}

/**
 * The range that shows differences best, in steps of 5%.
 *
 * @param {Iterable<ArrayLike<number>>} columns
 */
export function fitted(columns) {
  let [low, high] = [1, 0];
  for (const column of columns) {
    for (const fraction of column) {
      if (fraction >= DENSE) continue;
      low = Math.min(low, fraction);
      high = Math.max(high, fraction);
    }
  }
  if (low > high) return FULL;
  low = Math.floor(low / STEP) * STEP;
  high = Math.max(Math.ceil(high / STEP) * STEP, low + LEAST_SPAN);
  return high > 1 ? { low: 1 - LEAST_SPAN, high: 1 } : { low, high };
}

export const FULL = { low: 0, high: 1 };

function rgb(hex) {
  return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
}
