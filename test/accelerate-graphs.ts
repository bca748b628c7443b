/**
 * Models as JSON graphs, by shape alone: the large ones that planner_cases.json describes in words, and random ones.
 */
import fc from 'fast-check';
import type { JsonGraph, JsonNode, JsonTensor } from 'metashard/accelerate';

type Named = readonly [string, JsonNode];

const linear = (name: string, inputs: number, outputs: number, dtype: string, bias = true): Named => [
  name,
  {
    cls: 'Linear',
    params: [['weight', [outputs, inputs], dtype], ...(bias ? [['bias', [outputs], dtype] as const] : [])],
  },
];
const norm = (name: string, width: number, dtype: string): Named => [
  name,
  {
    cls: 'LayerNorm',
    params: [
      ['weight', [width], dtype],
      ['bias', [width], dtype],
    ],
  },
];
const embedding = (name: string, rows: number, width: number, dtype: string): Named => [
  name,
  { cls: 'Embedding', params: [['weight', [rows, width], dtype]] },
];
const list = (name: string, length: number, block: JsonNode): Named => [
  name,
  { cls: 'ModuleList', children: Array.from({ length }, (_, i): Named => [`${i}`, block]) },
];

/** GPT-2 small in float32; its classes are those of the cases, not of transformers. */
export function gpt2Graph({ tied }: { tied: boolean }): JsonGraph {
  const [vocab, width, dtype] = [50257, 768, 'f32'];
  const block: JsonNode = {
    cls: 'Blk',
    children: [
      norm('ln_1', width, dtype),
      linear('qkv', width, 3 * width, dtype),
      linear('proj', width, width, dtype),
      norm('ln_2', width, dtype),
      linear('fc', width, 4 * width, dtype),
      linear('out', 4 * width, width, dtype),
    ],
  };
  const children = [
    embedding('wte', vocab, width, dtype),
    embedding('wpe', 1024, width, dtype),
    list('h', 12, block),
    norm('ln_f', width, dtype),
  ];
  const head = linear('lm_head', width, vocab, dtype, false);
  const root: JsonNode = { cls: 'GPT2', children: [['transformer', { cls: 'Transformer', children }], head] };
  return tied ? { root, ties: [['transformer.wte.weight', 'lm_head.weight']] } : { root };
}

/** BLOOM-176B in bfloat16. */
export function bloomGraph(): JsonGraph {
  const [vocab, width, dtype] = [250880, 14336, 'bf16'];
  const attention = [linear('query_key_value', width, 3 * width, dtype), linear('dense', width, width, dtype)];
  const mlp = [linear('dense_h_to_4h', width, 4 * width, dtype), linear('dense_4h_to_h', 4 * width, width, dtype)];
  const block: JsonNode = {
    cls: 'BloomBlock',
    children: [
      norm('input_layernorm', width, dtype),
      ['self_attention', { cls: 'BloomAttention', children: attention }],
      norm('post_attention_layernorm', width, dtype),
      ['mlp', { cls: 'BloomMLP', children: mlp }],
    ],
  };
  const children = [
    embedding('word_embeddings', vocab, width, dtype),
    norm('word_embeddings_layernorm', width, dtype),
    list('h', 70, block),
    norm('ln_f', width, dtype),
  ];
  const head = linear('lm_head', width, vocab, dtype, false);
  return {
    root: { cls: 'Bloom', children: [['transformer', { cls: 'BloomModel', children }], head] },
    ties: [['transformer.word_embeddings.weight', 'lm_head.weight']],
  };
}

const tensors = (names: readonly string[]): fc.Arbitrary<JsonTensor[]> =>
  fc
    .subarray([...names])
    .chain((some) =>
      fc.tuple(
        ...some.map((name) =>
          fc
            .tuple(fc.integer({ min: 1, max: 30 }), fc.constantFrom('f32', 'f16'))
            .map(([n, d]): JsonTensor => [name, [n], d]),
        ),
      ),
    );

const leaf = fc
  .tuple(tensors(['weight', 'bias']), tensors(['buffer']))
  .map(([params, buffers]): JsonNode => ({ cls: 'Linear', params, buffers }));

/** Trees of up to three levels with tensors anywhere; classes A, B, C and Linear. */
const tree = (depth: number): fc.Arbitrary<JsonNode> => {
  if (depth === 0) return leaf;
  const inner = fc
    .record({
      cls: fc.constantFrom('A', 'B', 'C'),
      params: tensors(['direct']),
      buffers: tensors(['scalar']),
      nodes: fc.array(tree(depth - 1), { minLength: 1, maxLength: 4 }),
    })
    .map(({ nodes, ...node }): JsonNode => ({ ...node, children: nodes.map((child, i): Named => [`m${i}`, child]) }));
  return fc.oneof(leaf, inner);
};

/** Paths of all parameters below a node. */
export function parameterPaths(node: JsonNode, prefix = ''): string[] {
  const own = (node.params ?? []).map(([name]) => prefix + name);
  return [...own, ...(node.children ?? []).flatMap(([name, child]) => parameterPaths(child, `${prefix}${name}.`))];
}

/** Random models with random ties. */
export const graphs: fc.Arbitrary<JsonGraph> = fc
  .array(tree(2), { minLength: 1, maxLength: 5 })
  .map((nodes): JsonNode => ({ cls: 'Root', children: nodes.map((child, i): Named => [`l${i}`, child]) }))
  .chain((root) => {
    const paths = parameterPaths(root);
    const groups = fc
      .tuple(fc.shuffledSubarray(paths, { maxLength: Math.min(6, paths.length) }), fc.integer({ min: 2, max: 3 }))
      .map(([some, size]) => chunks(some, size).filter((group) => group.length > 1));
    return groups.map((ties): JsonGraph => ({ root, ties }));
  });

function chunks<T>(items: readonly T[], size: number): T[][] {
  return items.length === 0 ? [] : [items.slice(0, size), ...chunks(items.slice(size), size)];
}
