/**
 * Whether `initEmptyWeights` is running: the one bit of state that parameter and buffer creation look at. Not public.
 */

export interface EmptyMode {
  includeBuffers: boolean;
}

let current: EmptyMode | null = null;

/** The mode in force, or null outside `initEmptyWeights`. */
export function emptyMode(): EmptyMode | null {
  return current;
}

/** Runs `fn` in the given mode and restores the one before, also when `fn` throws. */
export function withEmptyMode<T>(mode: EmptyMode, fn: () => T): T {
  const before = current;
  current = mode;
  try {
    return fn();
  } finally {
    current = before;
  }
}
