/**
 * The command line: help, usage errors and exit codes in this process; a run, Ctrl-C and a closed pipe in one of its
 * own.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import { afterAll, afterEach, beforeAll, describe, expect, it, vi } from 'vitest';
import { runCli } from '../packages/dispatch/dist/cli/index.js';
import { loadConfig } from '../packages/dispatch/dist/config/load-config.js';

const repository = new URL('..', import.meta.url).pathname;
const STORIES = join(repository, 'models/stories260K');
const BLOOM = join(repository, 'models/bloom-stories');

interface Outcome {
  code: number;
  out: string;
  err: string;
}

/** Runs in this process. `stdin`: text of a pipe, or a terminal's stream. */
async function run(
  args: string[],
  { env = {}, stdin = '' }: { env?: NodeJS.ProcessEnv; stdin?: string | Readable } = {},
): Promise<Outcome> {
  const [stdout, stderr] = [new PassThrough({ highWaterMark: 2 ** 24 }), new PassThrough({ highWaterMark: 2 ** 24 })];
  const input = typeof stdin === 'string' ? Readable.from(stdin === '' ? [] : [Buffer.from(stdin)]) : stdin;
  const code = await runCli(args, { stdin: input, stdout, stderr, env });
  return { code, out: String(stdout.read() ?? ''), err: String(stderr.read() ?? '') };
}

const started: ChildProcess[] = [];
/** Runs in a process of its own. */
function start(args: string[], env: NodeJS.ProcessEnv = {}): ChildProcess {
  const entry = join(repository, 'packages/dispatch/dist/cli/index.js');
  const script = `import { runCli } from ${JSON.stringify(entry)}; process.exitCode = await runCli(process.argv.slice(1));`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, '--', ...args], {
    cwd: repository,
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  started.push(child);
  return child;
}
const exitOf = (child: ChildProcess) =>
  new Promise<number | null>((resolve) => child.on('close', (code) => resolve(code)));
const textOf = (stream: Readable | null) => {
  const text = { value: '' };
  stream?.on('data', (chunk) => {
    text.value += chunk;
  });
  return text;
};
afterAll(() => {
  for (const child of started) child.kill('SIGKILL');
});

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'metashard-cli-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

describe('help and usage', () => {
  it('helps', async () => {
    const { code, out, err } = await run(['--help']);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toMatchInlineSnapshot(`
      "Usage: metashard [options] [command]

      Loads transformers too large for any one device in 8 bits and runs them over all devices together.

      Options:
        --version                         print the version
        --help                            print help

      Commands:
        run [options] <target> [prompt]   continue a prompt, or chat
        plan [options] <target>           show where a model would go, without loading it
        estimate [options] <target>       show what a model takes and which machines hold it
        pack [options] <target>           write the weights as kernels use them, for fast starts and streaming
        calibrate [options]               measure this machine's memory, processors, links and disk for plans
        bench [options] <target>          time prefill and decoding of a model, beside what the devices could do
        devices [options]                 list the devices of this machine
        quant-compare [options] <target>  measure what quantization costs a model on a text
        help [command]                    display help for command

      Settings: a flag wins over METASHARD_* in the environment, that over the YAML file, that over the default.
      "
    `);
    const help = await run(['run', '--help']);
    expect(help.code).toBe(0);
    expect(help.out.match(/^ {2}--[\w-]+/gm)?.map((flag) => flag.trim())).toMatchInlineSnapshot(`
      [
        "--json",
        "--quiet",
        "--verbose",
        "--revision",
        "--devices",
        "--device-map",
        "--objective",
        "--expected-prompt-tokens",
        "--expected-new-tokens",
        "--expected-sequences",
        "--max-memory",
        "--reserve",
        "--dtype",
        "--load-in-8bit",
        "--llm-int8-threshold",
        "--llm-int8-threshold-text",
        "--llm-int8-skip-modules",
        "--llm-int8-head",
        "--int8-activations",
        "--outliers",
        "--attention",
        "--kv-cache-dtype",
        "--max-seq-len",
        "--max-batch-size",
        "--threads",
        "--offload-folder",
        "--max-new-tokens",
        "--do-sample",
        "--temperature",
        "--top-k",
        "--top-p",
        "--repetition-penalty",
        "--seed",
        "--stop",
        "--ignore-eos",
        "--help",
      ]
    `);
  });

  it('prints its version', async () => {
    const { version } = JSON.parse(readFileSync(join(repository, 'packages/dispatch/package.json'), 'utf8'));
    expect(await run(['--version'])).toEqual({ code: 0, out: `${version}\n`, err: '' });
  });

  it.each([
    [[], 'Usage: metashard'],
    [['rum'], 'Did you mean run?'],
    [['run'], "missing required argument 'target'"],
    [['run', STORIES, '--temprature', '1'], 'Did you mean --temperature?'],
    [['run', STORIES, 'a', 'b'], 'too many arguments'],
    [['run', STORIES, 'a', '--top-p', '3'], 'error: --top-p: expected a number above 0 and at most 1, got 3'],
    [['run', STORIES, 'a', '--max-memory', 'cpu:0'], 'error: --max-memory: expected a map from devices to sizes'],
    [['run', 'no/such', 'a'], 'error: model "no/such": expected a model folder or a cached id'],
    [['plan', 'none.yaml'], 'error: none.yaml: expected a readable YAML file, got no such file'],
    [['plan', STORIES, '--devices', 'disk'], 'expected a device that computes, got disk alone'],
    [['plan', STORIES, '--device-map', '{"nothing": "cpu"}'], 'error: '],
    [['run', STORIES], 'error: prompt: expected a text as argument, in the YAML or on standard input, got none'],
  ])('exits with 2 on wrong usage: %j', async (args, message) => {
    const { code, out, err } = await run(args, { env: { HF_HOME: folder } });
    expect({ code, out }).toEqual({ code: 2, out: '' });
    expect(err).toContain(message);
    expect(err).not.toMatch(/\n {4}at /);
  });

  it('lists every problem of a YAML, and stacks with --verbose', async () => {
    const file = join(folder, 'bad.yaml');
    writeFileSync(file, 'model: x\nthreads: 0\nfoo: 1\n');
    const { code, err } = await run(['plan', file]);
    expect(code).toBe(2);
    expect(err.split('\n').filter((line) => line.startsWith('error: '))).toEqual([
      `error: ${file}:2:10 threads: expected a whole number of at least 1, got 0`,
      `error: ${file}:3:1 foo: expected a known key, got "foo"`,
    ]);
    expect((await run(['plan', file, '--verbose'])).err).toMatch(/\n {4}at /);
  });

  it('exits with 3 where the model does not fit', async () => {
    const { code, err } = await run(['plan', STORIES, '--devices', 'cpu:0', '--max-memory', 'cpu:0=100KiB']);
    expect(code).toBe(3);
    expect(err).toContain('cpu:0');
  });

  it('reads the environment under the flags', async () => {
    const env = { METASHARD_DEVICES: 'cpu:0,cpu:1', METASHARD_DEVICE_MAP: 'balanced', METASHARD_MAX_SEQ_LEN: '64' };
    const plan = JSON.parse((await run(['plan', STORIES, '--json', '--max-seq-len', '32'], { env })).out);
    expect(plan).toMatchObject({
      strategy: 'balanced',
      maxSeqLen: 32,
      devices: [{ name: 'cpu:0' }, { name: 'cpu:1' }],
    });
    expect((await run(['plan', STORIES], { env: { METASHARD_MAX_SEQ_LEN: 'x' } })).err).toContain(
      'METASHARD_MAX_SEQ_LEN: ',
    );
  });
});

describe('plan and devices', () => {
  it('prints a table, and JSON', async () => {
    const args = ['plan', join(repository, 'examples/story/metashard.yaml')];
    const { code, out, err } = await run(args);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toContain('bloom-stories: device_map balanced, max_seq_len 256, max_batch_size 1');
    expect(out).toMatch(/│ cpu:1 +│ h\.\d–h\.7, ln_f, lm_head +│/);
    const plan = JSON.parse((await run([...args, '--json'])).out);
    expect(plan.version).toBe(1);
    expect(plan.devices).toHaveLength(2);
  });

  it('writes a YAML that loads back', async () => {
    const file = join(folder, 'plan.yaml');
    const args = [
      'plan',
      BLOOM,
      '--devices',
      'cpu:0,cpu:1',
      '--device-map',
      'balanced',
      '--load-in-8bit',
      '--max-seq-len',
      '64',
    ];
    const { code, out } = await run([...args, '--write', file]);
    expect({ code, out }).toEqual({ code: 0, out: '' });
    expect(readFileSync(file, 'utf8')).toMatch(/^# yaml-language-server: \$schema=.*metashard\.schema\.json\n/);
    const config = loadConfig(file);
    expect(config).toMatchObject({
      model: BLOOM.replace(/\/$/, ''),
      devices: ['cpu:0', 'cpu:1'],
      load_in_8bit: true,
      max_seq_len: 64,
    });
    const plans = await Promise.all(
      [
        [...args, '--json'],
        ['plan', file, '--json'],
      ].map(async (line) => JSON.parse((await run(line)).out)),
    );
    expect(plans[1].segments).toEqual(plans[0].segments);
    expect(plans[1].deviceMap).toEqual(plans[0].deviceMap);
  });

  it('lists devices, or why there are none', async () => {
    const listing = JSON.parse((await run(['devices', '--json'])).out);
    expect(listing.devices[0]).toMatchObject({ name: 'cpu:0', emulated: false });
    expect(listing.devices[0].totalBytes).toBeGreaterThan(2 ** 28);
    const cuda = listing.devices.filter(({ name }: { name: string }) => name.startsWith('cuda'));
    expect(cuda.length > 0 || listing.unavailable.cuda.length > 0).toBe(true);
    const { out, code } = await run(['devices']);
    expect(code).toBe(0);
    expect(out).toMatch(/│ cpu:0 +│ .* │ +[\d.]+ GiB │/);
    expect(out).toMatch(/cpu: isa \S+/);
  });
});

describe('bench', () => {
  const bench = ['bench', STORIES, '--devices', 'cpu:0,cpu:1', '--device-map', 'balanced', '--new-tokens', '8'];
  const quick = [...bench, '--prompt-tokens', '32', '--repetitions', '1'];
  afterEach(() => {
    vi.unstubAllEnvs();
  });

  it('measures the machine once, then prints a row per run', async () => {
    vi.stubEnv('METASHARD_CACHE', join(folder, 'cache'));
    const { code, out, err } = await run([...quick, '--batches', '1,3']);
    expect(code).toBe(0);
    expect(err).toMatch(/^measuring this machine once/);
    expect(out).toMatch(/│ prefill, 32 tokens +│ +[\d.]+ │ +[\d.]+ │ +– │ +\d+ % │/);
    expect(out).toMatch(/│ decode, 3 sequences +│ +[\d.]+ │ +[\d.]+ │ +[\d.]+ GB\/s │ +\d+ % │/);
    expect(out).toMatch(/\nloaded in [\d.]+ s; peak memory: cpu:0 .*, process [\d.]+ MiB\n$/);
    const again = await run([...quick, '--batches', '2', '--json']);
    expect({ code: again.code, err: again.err }).toEqual({ code: 0, err: '' });
    const report = JSON.parse(again.out);
    expect(report).toMatchObject({ costs: 'measured', rows: [{ phase: 'prefill' }, { phase: 'decode', tokens: 16 }] });
    for (const row of report.rows) expect(row.floorMs).toBeGreaterThan(0);
  });

  it('refuses numbers that count nothing', async () => {
    const { code, err } = await run([...bench, '--batches', '1,0']);
    expect({ code, err }).toEqual({
      code: 2,
      err: expect.stringContaining('--batches: expected a whole number from 1 up, got "0"'),
    });
  });
});

describe('run', () => {
  const greedy = ['run', STORIES, '--max-new-tokens', '40', '--devices', 'cpu:0,cpu:1', '--device-map', 'balanced'];

  it('writes the text to standard output and all else to standard error', async () => {
    const { code, out, err } = await run([...greedy, 'Once upon a time']);
    expect(code).toBe(0);
    expect(out).toMatch(/^, there was a little girl named Lily\..*\n$/s);
    expect(err).toContain('stories260K: device_map balanced');
    expect(err).toMatch(/\nloaded [\d.]+ \w+ in /);
    expect(err).toMatch(/\n40 tokens, [\d.]+ tokens\/s, first token after [\d.]+ ms\n/);
    expect(err).toMatch(/\npeak memory: cpu:0 [\d.]+ \wiB \(planned [\d.]+ \wiB, thread \d+\), cpu:1 /);
    expect(err).toMatch(/\npeak memory of the process: [\d.]+ MiB\n$/);
  });

  it('takes the prompt from a pipe, and says nothing else when quiet', async () => {
    const { out } = await run([...greedy, 'Once upon a time']);
    expect(await run([...greedy, '--quiet'], { stdin: 'Once upon a time\n' })).toEqual({ code: 0, out, err: '' });
    const stopped = await run([...greedy, '--quiet', '--stop', ' named', 'Once upon a time']);
    expect(stopped.out).toBe(', there was a little girl\n');
  });

  it('prints one JSON object', async () => {
    const { code, out, err } = await run([...greedy, '--json', 'Once upon a time']);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    const report = JSON.parse(out);
    expect(report).toMatchObject({ finishReason: 'length', usage: { promptTokens: 5, completionTokens: 40 } });
    expect(report.tokenIds).toHaveLength(40);
    expect(report.devices.map(({ device }: { device: string }) => device)).toEqual(['cpu:0', 'cpu:1']);
  });

  it('reads the YAML', async () => {
    const { code, out } = await run([
      'run',
      join(repository, 'examples/story/metashard.yaml'),
      '--max-new-tokens',
      '8',
      '--quiet',
    ]);
    expect(code).toBe(0);
    expect(out.length).toBeGreaterThan(8);
  });

  it('exits with 2 when the prompt and new tokens are longer than the context', async () => {
    const { code, err } = await run([
      'run',
      STORIES,
      'Once',
      '--max-seq-len',
      '16',
      '--max-new-tokens',
      '64',
      '--quiet',
    ]);
    expect(code).toBe(2);
    expect(err).toContain('maxSeqLen 16');
  });

  it('chats on a terminal until Ctrl-D', async () => {
    const stdin = Object.assign(new PassThrough(), { isTTY: true });
    const lines = ['Once upon a time\r', 'The dog\r'];
    stdin.write(lines[0]);
    setTimeout(() => stdin.write(lines[1]), 1500);
    setTimeout(() => stdin.end(), 2500);
    const { code, out, err } = await run(['run', STORIES, '--max-new-tokens', '10', '--quiet'], { stdin });
    expect(code).toBe(0);
    expect(err).toContain('no chat template: each line is continued');
    expect(out.split('\n').filter((line) => line !== '')).toHaveLength(2);
  });
});

describe('a run in its own process', () => {
  const long = ['run', BLOOM, 'Once upon a time', '--max-seq-len', '8192', '--ignore-eos'];

  it('ends with 130 on Ctrl-C', async () => {
    const child = start(long, { METASHARD_CPU_ISA: 'portable' });
    const err = textOf(child.stderr);
    child.stdout?.once('data', () => child.kill('SIGINT'));
    expect(await exitOf(child)).toBe(130);
    expect(err.value).not.toContain('error');
    expect(err.value).not.toMatch(/\n {4}at /);
  });

  it('ends with 130 on Ctrl-C before the model is loaded', async () => {
    const child = start(long, {});
    child.stderr?.once('data', () => child.kill('SIGINT'));
    expect(await exitOf(child)).toBe(130);
  });

  it('ends quietly when its reader is gone', async () => {
    const child = start([...long, '--quiet'], { METASHARD_CPU_ISA: 'portable' });
    const err = textOf(child.stderr);
    child.stdout?.once('data', () => child.stdout?.destroy());
    expect(await exitOf(child)).toBe(0);
    expect(err.value).toBe('');
  });
});
