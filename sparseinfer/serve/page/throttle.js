/**
 * Does something at once when asked, but not more often than the eye or a screen reader can follow;
 * the last time is never left out.
 *
 * @param {number} milliseconds between two times
 * @param {() => void} act
 * @returns {() => void}
 */
export function throttle(milliseconds, act) {
  let waiting = false;
  let again = false;
  const ask = () => {
    if (waiting) {
      again = true;
      return;
    }
    waiting = true;
    act();
    setTimeout(() => {
      waiting = false;
      if (!again) return;
      again = false;
      ask();
    }, milliseconds);
  };
  return ask;
}
