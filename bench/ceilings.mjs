/**
 * The machine's ceilings (native/ceilings.cc) as the benchmarks ask for them: compiled once with the system's compiler,
 * then a child that answers.
 */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const SOURCE = fileURLToPath(new URL('native/ceilings.cc', import.meta.url));
/** gcc 12 warns falsely of uninitialized values inside its own AVX512 headers. */
const FLAGS = ['-std=c++20', '-O3', '-Wall', '-Wextra', '-Wno-uninitialized', '-pthread'];

/** Compiles the probe into `folder` unless a newer one lies there. Throws with the compiler's words. */
function build(folder) {
  const program = join(folder, 'ceilings');
  if (existsSync(program) && statSync(program).mtimeMs > statSync(SOURCE).mtimeMs) return program;
  mkdirSync(folder, { recursive: true });
  const compiler = process.env.CXX ?? 'c++';
  const { status, stderr, error } = spawnSync(compiler, [...FLAGS, SOURCE, '-o', program], { encoding: 'utf8' });
  if (status !== 0)
    throw new Error(`ceilings: expected ${compiler} to compile ${SOURCE}, got ${error?.message ?? stderr}`);
  return program;
}

export class Ceilings {
  #child;
  #answers;

  /** `folder`: where the compiled probe is kept. `threads`: how many it uses, as many as the benchmark. */
  constructor(folder, threads) {
    this.threads = threads;
    this.#child = spawn(build(folder), [String(threads)], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#answers = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
  }

  async #ask(what) {
    this.#child.stdin.write(`${what}\n`);
    const { value, done } = await this.#answers.next();
    if (done) throw new Error(`ceilings: expected an answer to "${what}", got the end of the probe`);
    return Number(value);
  }

  /** GB/s of plain reading out of cache. */
  read() {
    return this.#ask('read');
  }
  /** TOPS in int8: AMX where the processor has it and `isa` allows, else VNNI, else AVX2's three instructions. */
  async int8(isa) {
    const amx = isa === 'amx' ? await this.#ask('amx') : 0;
    return amx > 0 ? amx : this.#ask('vnni');
  }
  /** TFLOPS in float32. */
  float() {
    return this.#ask('fma');
  }

  close() {
    this.#child.stdin.end();
  }
}
