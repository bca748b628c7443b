/** Medians and how benchmarks print numbers. */

/** The middle value; of an even number of values the upper one of the two. */
export function median(values) {
  return values.toSorted((a, b) => a - b)[values.length >> 1];
}

/** Median with smallest and largest: "52.1 (49.8–53.0)". */
export function withRange(values, digits) {
  const format = (value) => value.toFixed(digits);
  return `${format(median(values))} (${format(Math.min(...values))}–${format(Math.max(...values))})`;
}
