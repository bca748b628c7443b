/** The tables of run.mjs's results, and their place in docs/benchmarks.md. */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { readConfig } from '../make-model.mjs';
import { NOISE_LIMIT } from '../noise.mjs';
import { median, withRange } from '../statistics.mjs';
import { markdownTable } from '../table.mjs';
import { CONTESTANTS, modelShape, STARTERS } from './contestants.mjs';
import { LINEARS, ROWS, SIZE } from './linears.mjs';
import { LOADS, STREAMS } from './offload.mjs';
import { PHASES } from './phases.mjs';

const DOCUMENT = fileURLToPath(new URL('../../docs/benchmarks.md', import.meta.url));
const BEGIN = '<!-- beside others: written by bench/peers/run.mjs -->';
const END = '<!-- end of beside others -->';

const gigabytes = (bytes) => `${(bytes / 1e9).toFixed(2)} GB`;
const times = (ratio) => (Number.isFinite(ratio) ? `${ratio.toFixed(2)} ×` : '–');

/** Records of all rounds of a key, failed and missing ones apart. */
function recordsOf(runs, key) {
  const all = Object.entries(runs)
    .filter(([place]) => place.slice(0, place.lastIndexOf('/')) === key)
    .map(([, record]) => record);
  const good = all.filter((record) => record.missing === undefined && record.failed === undefined);
  const why = all.find((record) => record.missing ?? record.failed);
  return { good, obstacle: good.length > 0 ? null : (why?.missing ?? why?.failed ?? null) };
}

/** The undisturbed samples, else all of them with a mark. */
function counted(samples) {
  const clean = samples.filter(({ noise }) => noise <= NOISE_LIMIT);
  return clean.length > 0 ? { samples: clean, mark: '' } : { samples, mark: '†' };
}

/** Bytes that a phase's steps must read. */
function phaseBytes({ prompt, sequences, steps }, { bytes }, shape, facts) {
  const weights = facts?.streamedBytes ?? shape.block * bytes.block + shape.head * bytes.head;
  const perToken = facts?.cacheBytesPerToken ?? shape.cachePerToken * bytes.cache;
  return steps * (weights + sequences * (prompt + (steps + 1) / 2) * perToken);
}

/** What plain reads would have brought in the time of a sample, in GB: a time that memory's speed does not move. */
const readMeanwhile = ({ ms, read }) => (ms * read) / 1e3;

/**
 * A contestant in one phase: { rates, mark, floor, cost }; `floor` is time ÷ floor, for prefill the share of the int8
 * peak; `cost` a token's time, of decoding in GB that plain reads beside it would have brought.
 */
function judge(good, name, contestant, shape) {
  const phase = PHASES[name];
  const taken = good.flatMap(({ phases, int8, facts }) =>
    (phases[name] ?? []).map((sample) => ({ ...sample, int8, facts })),
  );
  if (taken.length === 0) return null;
  const { samples, mark } = counted(taken);
  const tokens = phase.steps === 0 ? phase.prompt : phase.steps * phase.sequences;
  const floors = samples.map((sample) =>
    phase.steps === 0
      ? (2 * shape.block * tokens) / sample.ms / 1e9 / sample.int8
      : readMeanwhile(sample) / (phaseBytes(phase, contestant, shape, sample.facts) / 1e9),
  );
  const rates = samples.map(({ ms }) => (tokens / ms) * 1e3);
  const cost = median(samples.map((sample) => (phase.steps === 0 ? sample.ms : readMeanwhile(sample)))) / tokens;
  return { rates, mark, floor: median(floors), cost };
}

/** A step of eight over the step of one right before it. */
function eightToOne(good) {
  const ratios = good.flatMap(({ phases: { decode1, decode8 } }) =>
    decode8.map((eight, i) => readMeanwhile(eight) / readMeanwhile(decode1[i])),
  );
  return (median(ratios) * PHASES.decode1.steps) / PHASES.decode8.steps;
}

const throughputHeader = [
  'runtime',
  'attention',
  'prefill 512',
  'of int8 peak',
  '÷ best peer',
  'decode, 1',
  'time ÷ floor',
  '÷ best peer',
  'decode, 8',
  'time ÷ floor',
  '÷ best peer',
  'step of 8 ÷ of 1',
];

function throughputTable(runs, model, shape) {
  const names = ['prefill512', 'decode1', 'decode8'];
  const rows = CONTESTANTS.map((contestant) => {
    const { good, obstacle } = recordsOf(runs, `speed/${model}/${contestant.name}`);
    const judged = names.map((name) => judge(good, name, contestant, shape));
    return { contestant, good, obstacle, judged };
  }).filter(({ good, obstacle }) => good.length > 0 || obstacle !== null);
  const best = names.map((_, i) =>
    Math.min(...rows.filter(({ contestant }) => !contestant.ours).map(({ judged }) => judged[i]?.cost ?? Infinity)),
  );
  const cells = rows.map(({ contestant, good, obstacle, judged }) => {
    if (obstacle !== null) return [contestant.name, obstacle, ...Array(10).fill('–')];
    const label = contestant.ours ? contestant.name : `${contestant.name} ${good[0].version}`;
    const measured = judged.flatMap((phase, i) => [
      withRange(phase.rates, i === 1 ? 1 : 0) + phase.mark,
      i === 0 ? `${(100 * phase.floor).toFixed(0)} %` : times(phase.floor),
      times(best[i] / phase.cost),
    ]);
    return [label, good[0].attention, ...measured, times(eightToOne(good))];
  });
  return rows.length === 0 ? null : markdownTable(throughputHeader, cells);
}

/** metashard's batch of 8 behind prompts of 512, where the cache counts. */
function longTable(runs, model, shape) {
  const rows = CONTESTANTS.filter(({ ours }) => ours).flatMap((contestant) => {
    const { good } = recordsOf(runs, `speed/${model}/${contestant.name}`);
    const judged = judge(good, 'decode8after512', contestant, shape);
    if (judged === null) return [];
    return [[contestant.name, withRange(judged.rates, 0) + judged.mark, times(judged.floor)]];
  });
  return rows.length === 0 ? null : markdownTable(['8 sequences behind 512 tokens', 'tokens/s', 'time ÷ floor'], rows);
}

const startHeader = [
  'runtime',
  'from',
  'start to first token',
  '÷ onnxruntime',
  '÷ node-llama-cpp',
  'peak memory then',
  'of which weights and cache',
];

function startTable(runs, model) {
  const rows = STARTERS.map(({ name, from }) => {
    const { good, obstacle } = recordsOf(runs, `start/${model}/${name}/${from}`);
    const startMs = good.length === 0 ? Number.NaN : median(good.map((record) => record.startMs));
    return { name, from, good, obstacle, startMs };
  });
  // Those without a process of their own for this: the first token of their throughput runs.
  for (const { name } of CONTESTANTS.filter((one) => !one.ours && !one.start)) {
    const { good } = recordsOf(runs, `speed/${model}/${name}`);
    if (good.length > 0) {
      rows.push({ name, from: 'float16 safetensors', good, startMs: median(good.map((record) => record.startMs)) });
    }
  }
  const of = (part) => rows.find(({ name }) => name.startsWith(part))?.startMs ?? Number.NaN;
  const cells = rows
    .filter(({ good, obstacle }) => good.length > 0 || obstacle != null)
    .map(({ name, from, good, obstacle, startMs }) => {
      if (good.length === 0) return [name, obstacle, ...Array(5).fill('–')];
      const peak = median(good.map((record) => record.startPeakBytes));
      const planned = good[0].facts?.plannedBytes;
      return [
        name,
        from,
        `${withRange(
          good.map((record) => record.startMs / 1e3),
          2,
        )} s`,
        times(startMs / of('onnxruntime')),
        times(startMs / of('node-llama-cpp')),
        gigabytes(peak),
        planned === undefined ? '–' : gigabytes(planned),
      ];
    });
  return cells.length === 0 ? null : markdownTable(startHeader, cells);
}

function linearTable(runs) {
  const rows = LINEARS.map(({ name }) => ({ name, ...recordsOf(runs, `linear/${name}`) })).filter(
    ({ good, obstacle }) => good.length > 0 || obstacle !== null,
  );
  const medians = rows.map(({ good }) =>
    ROWS.map((T) => {
      const taken = good.flatMap(({ rows, int8 }) => rows[T].map((sample) => ({ ...sample, int8 })));
      if (taken.length === 0) return null;
      const { samples, mark } = counted(taken);
      const floor = ({ us, read, int8 }) =>
        T < 16 ? us / (SIZE ** 2 / read / 1e3) : (2 * T * SIZE ** 2) / us / 1e6 / int8;
      const cost = median(samples.map(({ us, read }) => (T < 16 ? us * read : us)));
      return { us: median(samples.map(({ us }) => us)), mark, floor: median(samples.map(floor)), cost };
    }),
  );
  const cells = rows.map(({ name, good, obstacle }, row) => {
    if (obstacle !== null) return [`${name}: ${obstacle}`, ...Array(9).fill('–')];
    const measured = medians[row].flatMap(({ us, mark, floor, cost }, i) => [
      us.toFixed(0) + mark,
      ROWS[i] < 16 ? times(floor) : `${(100 * floor).toFixed(0)} %`,
      times(cost / (medians[0]?.[i]?.cost ?? Number.NaN)),
    ]);
    return [name === 'metashard' ? name : `${name} ${good[0].version}`, ...measured];
  });
  const header = ROWS.flatMap((T) => [
    `${T} row${T === 1 ? '' : 's'}, µs`,
    T < 16 ? 'time ÷ plain read' : 'of int8 peak',
    '÷ metashard’s',
  ]);
  return rows.length === 0 ? null : markdownTable([`int8 linear ${SIZE}×${SIZE}`, ...header], cells);
}

/** Loading, then streaming: metashard's own table and accelerate's. */
function offloadTables(runs, model) {
  const names = ['metashard, float16 → packed int8', ...LOADS.map(({ name }) => name)];
  const bytes = runs[`load/${model}/${names[0]}/0`]?.inputBytes;
  const loads = names
    .map((name) => ({ name, ...recordsOf(runs, `load/${model}/${name}`) }))
    .filter(({ good, obstacle }) => good.length > 0 || obstacle !== null)
    .map(({ name, good, obstacle }) => {
      if (good.length === 0) return [name, obstacle, '–', '–'];
      const ms = median(good.map((record) => record.loadMs ?? record.facts.loadMs));
      return [name, (ms / 1e3).toFixed(2), (bytes / ms / 1e6).toFixed(2), gigabytes(good[0].peakBytes)];
    });
  const streams = STREAMS.map(({ name }) => ({ name, ...recordsOf(runs, `stream/${model}/accelerate, ${name}`) }))
    .filter(({ good, obstacle }) => good.length > 0 || obstacle !== null)
    .map(({ name, good: [record], obstacle }) => {
      if (record === undefined) return [`accelerate, ${name}`, obstacle, '–'];
      return [`accelerate, ${name}`, record.tokenMs.toFixed(0), gigabytes(record.peakBytes)];
    });
  const ours = recordsOf(runs, `stream/${model}/metashard`);
  const tables = [];
  if (loads.length > 0) tables.push(markdownTable([`loading ${model}`, 's', 'GB/s of input', 'peak memory'], loads));
  if (ours.good.length > 0) tables.push(ours.good[0].text);
  else if (ours.obstacle !== null) tables.push(`metashard: ${ours.obstacle}`);
  if (streams.length > 0) tables.push(markdownTable([`${model}, bfloat16`, 'ms a token', 'peak memory'], streams));
  return tables;
}

const LEGEND = [
  'Tokens a second, medians (smallest–largest) of the repetitions during which other processes used at most 3 % of the',
  "machine; † where there was none such. Floor: the bytes of weights and cache that a step reads, at each row's own",
  'widths, over the speed of plain reads right before and after every 8 steps. "÷ best peer": how many times as fast as',
  'the best runtime other than metashard; of decoding by the GB that reads beside each would have brought meanwhile, for',
  'memory itself changed its speed between the rows. "metashard" has its head in 8 bits, as its peers have.',
].join('\n');

/** The whole section. `results`: { about, runs } of run.mjs. */
export function report({ about, runs }) {
  const { machine, isa, threads, commit, date } = about;
  const records = Object.values(runs).filter(({ read }) => read !== undefined);
  const ceiling = (what) => (records.length === 0 ? Number.NaN : median(records.map((record) => record[what])));
  const models = [
    ...new Set(
      Object.keys(runs)
        .map((key) => key.split('/'))
        .flatMap(([part, model]) => (part === 'linear' ? [] : [model])),
    ),
  ];
  const [read, int8] = [ceiling('read').toFixed(1), ceiling('int8').toFixed(2)];
  const ceilings = `Medians of the ceilings: ${read} GB/s plain read, ${int8} TOPS in int8.`;
  const sections = [`${machine}; kernels ${isa}, ${threads} threads; commit ${commit}, ${date}. ${ceilings}`, LEGEND];
  for (const model of models) {
    const shape = modelShape(readConfig(model));
    const tables = [throughputTable, longTable, startTable].map((table) => table(runs, model, shape));
    const outliers = runs[`outliers/${model}/0`]?.text;
    if (outliers !== undefined) tables.push(`Outlier columns met per linear (threshold 6):\n\n${outliers}`);
    const found = [...tables, ...offloadTables(runs, model)].filter((table) => table !== null);
    if (found.length > 0) sections.push(`### ${model}`, ...found);
  }
  const linear = linearTable(runs);
  if (linear !== null) sections.push('### One linear', linear);
  return sections.join('\n\n');
}

/** Puts the section between its markers. */
export function writeDocument(text) {
  const page = readFileSync(DOCUMENT, 'utf8');
  const [start, end] = [page.indexOf(BEGIN), page.indexOf(END)];
  if (start < 0 || end < start) throw new Error(`report: expected the markers ${BEGIN} and ${END} in ${DOCUMENT}`);
  writeFileSync(DOCUMENT, `${page.slice(0, start + BEGIN.length)}\n\n${text}\n\n${page.slice(end)}`);
}
