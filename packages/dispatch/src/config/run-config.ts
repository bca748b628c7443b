/**
 * The keys of metashard.yaml: one zod schema from which come the types, the checks, the messages, the JSON Schema for
 * editors and the help of flags and environment variables. A custom message is always the "expected …" half of a
 * sentence (`config-problem.ts` adds the rest). Values stay as written (snake_case, sizes in words); `run-options.ts`
 * turns them into options of loadModel and generate.
 */
import { z } from 'zod';
import { ATTENTION_DTYPES, KV_CACHE_DTYPES } from '../options.js';
import { OBJECTIVES } from '../placement.js';
import { STRATEGIES } from '../plan.js';

const SIZE = 'a size such as 70GiB';
const THRESHOLD = 'a number of at least 0, or auto';
const DEVICE = 'a device such as cuda:0, cpu or disk';
const DEVICE_PATTERN = /^(?:(?:cpu|cuda)(?::\d{1,4})?|disk|\d{1,4})$/;
const SIZE_PATTERN = /^\s*\d+(?:\.\d+)?\s*[kKmMgGtT]?[iI]?[bB]\s*$/;

// No path has a NUL.
const text = (error: string) => z.string({ error }).refine((value) => !value.includes('\0'), { error });
const flag = () => z.boolean({ error: 'true or false' });
const whole = (least: number, error = `a whole number of at least ${least}`) => z.int({ error }).min(least, { error });
const word = <const Words extends readonly string[]>(words: Words) =>
  z.enum(words, { error: `one of ${words.join(', ')}` });
/** A key whose other values come later: the message says which value works now. */
const only = <const Value extends string | boolean>(value: Value, later: string) =>
  z.literal(value, { error: `${value} (${later} is not in this version)` });

const size = z.union([z.number().min(0, { error: SIZE }), z.string().regex(SIZE_PATTERN, { error: SIZE })], {
  error: SIZE,
});
const deviceIndex = z.int().min(0, { error: DEVICE }).max(9999, { error: DEVICE });
const device = z.union([deviceIndex, z.string().regex(DEVICE_PATTERN, { error: DEVICE })], { error: DEVICE });
const placement = z.union([device, z.strictObject({ device, execute_on: device.exactOptional() }, { error: DEVICE })], {
  error: `${DEVICE}, or a map with device and execute_on`,
});
const prefixMap = z.record(z.string(), placement).refine((map) => Object.keys(map).length > 0, {
  error: 'at least one module prefix',
});
const deviceMap = z.union([z.enum(STRATEGIES), prefixMap], {
  error: `one of ${STRATEGIES.join(', ')}, or a map from module prefixes to devices`,
});
const someText = z.string({ error: 'a text' }).min(1, { error: 'a text that is not empty' });
const stop = z.union([someText, z.array(someText)], { error: 'a text or a list of texts' });

const generation = z.strictObject(
  {
    max_new_tokens: whole(1).exactOptional().describe('most tokens to generate; default: what the context leaves'),
    do_sample: flag().exactOptional().describe('sample instead of taking the most likely token; default false'),
    temperature: z
      .number({ error: 'a number of at least 0' })
      .min(0, { error: 'a number of at least 0' })
      .exactOptional()
      .describe('divides the logits before sampling; default 1; 0 is greedy'),
    top_k: whole(0).exactOptional().describe('sample among the k most likely tokens; default 0: all'),
    top_p: z
      .number({ error: 'a number above 0 and at most 1' })
      .positive({ error: 'a number above 0 and at most 1' })
      .max(1, { error: 'a number above 0 and at most 1' })
      .exactOptional()
      .describe('sample among the most likely tokens that together have this probability; default 1: all'),
    repetition_penalty: z
      .number({ error: 'a number above 0' })
      .positive({ error: 'a number above 0' })
      .exactOptional()
      .describe('above 1 makes tokens that occurred less likely; default 1'),
    seed: whole(0)
      .exactOptional()
      .describe('of the sampler; the same seed gives the same text; default: from the clock'),
    stop: stop.exactOptional().describe('end before this text; default none'),
    ignore_eos: flag().exactOptional().describe('go on after end-of-text tokens; default false'),
  },
  { error: 'a map of generation settings' },
);

export const runConfigSchema = z.strictObject(
  {
    model: text('a model folder or a cached model id')
      .min(1, { error: 'a model folder or a cached model id' })
      .describe('model folder, relative to this file, or the id of a model in the Hugging Face cache'),
    revision: text('a branch, tag or commit')
      .min(1, { error: 'a branch, tag or commit' })
      .exactOptional()
      .describe('of a cached model; default main'),
    devices: z
      .array(device, { error: 'a list of devices' })
      .min(1, { error: 'at least one device' })
      .exactOptional()
      .describe('devices to use, in order; default: every CUDA device, then cpu, then disk'),
    device_map: deviceMap
      .exactOptional()
      .describe(`where modules go: ${STRATEGIES.join(', ')}, or module prefix → device; default auto`),
    objective: word(OBJECTIVES)
      .exactOptional()
      .describe(
        "what device_map auto minimizes: latency (a request's time) or throughput (its slowest stage); default latency",
      ),
    expected_prompt_tokens: whole(0).exactOptional().describe('of a request, for expected times; default 512'),
    expected_new_tokens: whole(0).exactOptional().describe('of a request, for expected times; default 128'),
    expected_sequences: whole(1).exactOptional().describe('at once, for expected times; default max_batch_size'),
    max_memory: z
      .record(z.string().regex(DEVICE_PATTERN, { error: DEVICE }), size, { error: 'a map from devices to sizes' })
      .exactOptional()
      .describe('most memory to use on a device; default 0.9 of what is available'),
    dtype: word(['auto', 'float32', 'float16', 'bfloat16'])
      .exactOptional()
      .describe('how float weights are stored; default auto: as in the checkpoint'),
    compute_dtype: only('float32', 'another one')
      .exactOptional()
      .describe('dtype of float computation; default float32'),
    load_in_8bit: flag()
      .exactOptional()
      .describe(
        'quantize linear layers to 8 bits while loading (LLM.int8()); default: only where the checkpoint already is',
      ),
    llm_int8_threshold: z
      .union([z.number().min(0, { error: THRESHOLD }), z.literal('auto')], { error: THRESHOLD })
      .exactOptional()
      .describe(
        'activations from this magnitude on are outliers, computed in float; default 6.0; 0: none; auto: measured before loading',
      ),
    llm_int8_threshold_text: text('a text file')
      .min(1, { error: 'a text file' })
      .exactOptional()
      .describe(
        'text file (or .json, .jsonl), relative to this file, that llm_int8_threshold: auto measures on; default none',
      ),
    llm_int8_skip_modules: z
      .array(z.string().min(1, { error: 'a module name' }), { error: 'a list of module names' })
      .exactOptional()
      .describe('modules to leave in float, besides the output head; default none'),
    int8_activations: word(['int8', 'float', 'bfloat16'])
      .exactOptional()
      .describe(
        'what 8-bit weights are multiplied with: int8 (LLM.int8()), float, or bfloat16 in prompts, else float; default int8',
      ),
    outliers: word(['per-batch', 'per-row'])
      .exactOptional()
      .describe('outlier columns over all rows of a step, or row by row; default per-batch'),
    llm_int8_head: flag()
      .exactOptional()
      .describe(
        'quantize the output head, too, and embeddings tied to it; default false, or as an 8-bit checkpoint was saved',
      ),
    attention: word(ATTENTION_DTYPES)
      .exactOptional()
      .describe('bfloat16: attention over prompts rounds to it on processors made for it; default float32'),
    kv_cache_dtype: word(KV_CACHE_DTYPES)
      .exactOptional()
      .describe('dtype of the key-value cache, int8 on CPU devices only; default float32'),
    max_seq_len: whole(1)
      .exactOptional()
      .describe("prompt and new tokens of a sequence; default min(the model's, 2048)"),
    max_batch_size: whole(1).exactOptional().describe('sequences at once; default 1'),
    threads: whole(1).exactOptional().describe('threads of the CPU backend; default: all processors'),
    reserve: size.exactOptional().describe('memory to leave free on every device; default 0'),
    offload_folder: text('a folder')
      .min(1, { error: 'a folder' })
      .exactOptional()
      .describe('folder of packed stores, which weights on disk are streamed from; default METASHARD_CACHE'),
    prompt: text('a text')
      .exactOptional()
      .describe('what metashard run continues when no prompt is given; default: standard input'),
    generation: generation
      .exactOptional()
      .describe("how text is generated; default: the model's generation_config.json"),
  },
  { error: 'a map of keys, model among them' },
);

/** A validated configuration: the keys of metashard.yaml. */
export type RunConfig = z.output<typeof runConfigSchema>;
export type GenerationConfig = z.output<typeof generation>;

/** Every key path in the order of the schema: `['max_seq_len']`, `['generation', 'seed']`. */
export function configKeys(path: readonly PropertyKey[] = []): string[] {
  if (path.length === 0) return Object.keys(runConfigSchema.shape);
  return path.length === 1 && path[0] === 'generation' ? Object.keys(generation.shape) : [];
}

/** The describe() text of a key, or undefined. */
export function describeKey(path: readonly string[]): string | undefined {
  const [first, second] = path as [keyof typeof runConfigSchema.shape, keyof typeof generation.shape | undefined];
  if (first === 'generation' && second !== undefined) return generation.shape[second]?.description;
  return runConfigSchema.shape[first]?.description;
}
