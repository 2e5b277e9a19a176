/** Where two answers to one prompt part. */

/**
 * The length of what both begin with, in whole words: a word that goes on differently is not common.
 *
 * @returns {number} in UTF-16 units, so that `slice` takes it
 */
export function commonLength(one, other) {
  if (one === other) return one.length;
  const most = Math.min(one.length, other.length);
  let length = 0;
  while (length < most && one[length] === other[length]) length += 1;
  while (length > 0 && !/\s/.test(one[length - 1])) length -= 1;
  return length;
}

/** What to say of two texts that were asked for in the same way. */
export function describeDifference(one, other) {
  if (one === other) return "Both texts are the same.";
  const words = one.slice(0, commonLength(one, other)).match(/\S+/g)?.length ?? 0;
  if (words === 0) return "The texts differ from the first word on.";
  return `The texts agree for ${words} word${words === 1 ? "" : "s"}, then differ.`;
}
