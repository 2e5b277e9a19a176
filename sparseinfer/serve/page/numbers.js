/** Numbers as people read them. */

const format = (options) => {
  const formatter = new Intl.NumberFormat("en", options);
  return (value) => formatter.format(value);
};

const percentWhole = format({ style: "percent", maximumFractionDigits: 0 });
const percentFine = format({
  style: "percent",
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
});
const threeDigits = format({ minimumSignificantDigits: 3, maximumSignificantDigits: 3 });
const signed = format({ signDisplay: "exceptZero", maximumFractionDigits: 1 });

export const whole = format({ maximumFractionDigits: 0 });

/** A fraction in [0, 1]; small ones with a digit more. */
export function percent(fraction) {
  return fraction > 0 && fraction < 0.095 ? percentFine(fraction) : percentWhole(fraction);
}

/** A difference of fractions, in percentage points. */
export const points = (difference) => `${signed(difference * 100)} pp`;

/** Tokens per second. */
export const rate = (value) => (value >= 1000 ? whole(value) : threeDigits(value));

/** How many times one thing is another: 1.38. */
export const ratio = format({ minimumFractionDigits: 2, maximumFractionDigits: 2 });

/** Decimal units, as memory bandwidth is given in. */
export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let value = count;
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 || value === 0 ? whole(value) : threeDigits(value)} ${units[unit]}`;
}

export const seconds = (value) => `${value < 10 ? value.toFixed(1) : whole(value)} s`;
