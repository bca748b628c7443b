/**
 * Ctrl-C: the first aborts what runs, through an AbortSignal; the second, while that is still ending, leaves at once
 * with 130.
 */

/** Thrown where Ctrl-C ends the program rather than one answer. */
export class Stopped extends Error {
  constructor() {
    super('stopped');
  }
}

export class Interrupts {
  #controller: AbortController | null = null;
  readonly #onSignal = (): void => {
    if (this.#controller === null || this.#controller.signal.aborted) process.exit(130);
    this.#controller.abort(new Stopped());
  };

  /** Starts listening. While nothing has begun, Ctrl-C leaves at once. */
  constructor() {
    process.on('SIGINT', this.#onSignal);
  }

  /** A signal for one piece of work; call `end` when it is over. */
  begin(): { signal: AbortSignal; end: () => void } {
    const controller = new AbortController();
    const outer = this.#controller;
    this.#controller = controller;
    return {
      signal: controller.signal,
      end: () => {
        this.#controller = outer;
      },
    };
  }

  dispose(): void {
    process.off('SIGINT', this.#onSignal);
  }
}
