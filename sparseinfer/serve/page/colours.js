/** Colours of fractions, and the range of fractions that they stand for. */

const STOPS = 5;
const LEVELS = 64;
const STEP = 0.05;
const LEAST_SPAN = 0.1;
const OUTLIERS = 0.02;
/** 0.35 / 0.05 is a little more or less than 7. */
const ROUNDING = 1e-5;
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
 * The range that shows differences best, in steps of 5%; a few cells may lie outside.
 *
 * @param {ArrayLike<number>[]} columns
 */
export function fitted(columns) {
  const all = Float32Array.from(columns.flatMap((column) => [...column]))
    .filter((fraction) => fraction < DENSE)
    .sort();
  if (all.length === 0) return FULL;
  const at = (share) => all[Math.round(share * (all.length - 1))];
  const low = Math.floor(at(OUTLIERS) / STEP + ROUNDING) * STEP;
  const high = Math.max(Math.ceil(at(1 - OUTLIERS) / STEP - ROUNDING) * STEP, low + LEAST_SPAN);
  return high > 1 ? { low: 1 - LEAST_SPAN, high: 1 } : { low, high };
}

/** Whether any fraction lies below, and whether any lies above. */
export function outside(columns, { low, high }) {
  const any = (test) => columns.some((column) => Array.prototype.some.call(column, test));
  return { below: any((f) => f < low - ROUNDING), above: any((f) => f > high + ROUNDING) };
}

export const FULL = { low: 0, high: 1 };

function rgb(hex) {
  return [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
}
