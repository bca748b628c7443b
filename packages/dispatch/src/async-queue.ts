/** Values from callbacks as an async iteration: pushed at any time, taken in order, ended or failed once. */
export class AsyncQueue<T> {
  readonly #values: T[] = [];
  #ended = false;
  #error: unknown;
  #wake: () => void = () => {};

  push(value: T): void {
    this.#values.push(value);
    this.#wake();
  }
  end(): void {
    this.#ended = true;
    this.#wake();
  }
  fail(error: unknown): void {
    this.#error ??= error;
    this.end();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void, undefined> {
    for (;;) {
      while (this.#values.length > 0) yield this.#values.shift() as T;
      if (this.#error !== undefined) throw this.#error;
      if (this.#ended) return;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = () => {};
    }
  }
}
