/**
 * A strict pull reader of JSON text for headers that anybody may have written: it reports what JSON.parse hides (a key
 * given twice), reads integers exactly, has a depth limit, and makes no objects of keys it did not ask for (`__proto__`
 * is a key like any other).
 * Time and memory are linear in the text. Not for config files, which want line numbers and comments.
 */
const MAX_DEPTH = 64;
const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const LITERAL = /true|false|null/y;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/** What a value looks like in a message: its first characters, on one line. */
function excerpt(text: string): string {
  return JSON.stringify(text.length > 40 ? `${text.slice(0, 40)}…` : text);
}

export class JsonReader {
  #at = 0;
  #depth = 0;

  /** `fail` makes the error of `what` (`expected …, got …, at character N`); the reader throws it. */
  constructor(
    readonly text: string,
    readonly fail: (what: string) => Error,
  ) {}

  /** Reads `{…}`; `onMember` is called after each key and must read its value. A key that comes twice is an error. */
  object(onMember: (key: string) => void): void {
    this.#open('{', 'an object');
    const seen = new Set<string>();
    for (let first = true; !this.#accept('}'); first = false) {
      if (!first) this.#expect(',', 'a comma or }');
      const key = this.string();
      if (seen.has(key)) throw this.#error(`expected every key once, got ${excerpt(key)} twice`);
      seen.add(key);
      this.#expect(':', 'a colon');
      onMember(key);
    }
    this.#depth--;
  }

  /** Reads `[…]`; `onItem` is called for each item and must read it. */
  array(onItem: () => void): void {
    this.#open('[', 'a list');
    for (let first = true; !this.#accept(']'); first = false) {
      if (!first) this.#expect(',', 'a comma or ]');
      onItem();
    }
    this.#depth--;
  }

  string(): string {
    this.#space();
    const start = this.#at;
    if (this.text.charCodeAt(start) !== QUOTE) throw this.#unexpected('a string');
    let end = start + 1;
    for (let code = this.text.charCodeAt(end); code !== QUOTE; code = this.text.charCodeAt(end)) {
      if (Number.isNaN(code)) throw this.#error('expected a string that ends, got the end of the text');
      end += code === BACKSLASH ? 2 : 1;
    }
    this.#at = end + 1;
    try {
      // Reads the escapes, and refuses control characters that must not be there.
      return JSON.parse(this.text.slice(start, end + 1)) as string;
    } catch {
      this.#at = start;
      throw this.#error('expected a string with valid escapes and no control characters');
    }
  }

  /** A whole number from 0 to 2^53 - 1, written without sign, point or exponent. */
  integer(): number {
    const digits = this.#token(NUMBER);
    if (digits === undefined) throw this.#unexpected('a whole number');
    const value = Number(digits);
    if (!/^[0-9]{1,16}$/.test(digits) || !Number.isSafeInteger(value)) {
      throw this.#error(`expected a whole number from 0 to 2^53 - 1, got ${excerpt(digits)}`);
    }
    return value;
  }

  /** Reads and drops a value of any kind. */
  skip(): void {
    this.#space();
    const next = this.text[this.#at];
    if (next === '{') this.object(() => this.skip());
    else if (next === '[') this.array(() => this.skip());
    else if (next === '"') this.string();
    else if (this.#token(NUMBER) === undefined && this.#token(LITERAL) === undefined) throw this.#unexpected('a value');
  }

  /** Checks that nothing but white space is left. */
  end(): void {
    this.#space();
    if (this.#at < this.text.length) throw this.#unexpected('the end of the text');
  }

  #space(): void {
    SPACE.lastIndex = this.#at;
    SPACE.test(this.text);
    this.#at = SPACE.lastIndex;
  }

  #token(pattern: RegExp): string | undefined {
    this.#space();
    pattern.lastIndex = this.#at;
    const token = pattern.exec(this.text)?.[0];
    if (token !== undefined) this.#at += token.length;
    return token;
  }

  #accept(character: string): boolean {
    this.#space();
    if (this.text[this.#at] !== character) return false;
    this.#at++;
    return true;
  }

  #expect(character: string, what: string): void {
    if (!this.#accept(character)) throw this.#unexpected(what);
  }

  #open(character: string, what: string): void {
    this.#expect(character, what);
    if (++this.#depth > MAX_DEPTH) throw this.#error(`expected at most ${MAX_DEPTH} levels, got more`);
  }

  #unexpected(what: string): Error {
    const got = this.#at < this.text.length ? excerpt(this.text.slice(this.#at, this.#at + 12)) : 'the end of the text';
    return this.#error(`expected ${what}, got ${got}`);
  }

  #error(what: string): Error {
    return this.fail(`${what}, at character ${this.#at}`);
  }
}
