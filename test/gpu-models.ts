/**
 * The golden models over CUDA devices, real or emulated: float32 and LLM.int8() logits and greedy tokens against what
 * transformers computed. For gpu-check.ts; needs fixtures/models beside the compiled file.
 */
import { loadModel } from 'metashard';
import { distance, floats, type Golden, readGolden, relativeError, rowsOf } from './golden-models.js';

export interface ModelResult {
  name: string;
  /**
   * Largest difference in standard deviations of the logits (float32), or the norm of the difference relative to
   * theirs (int8).
   */
  error: number;
  limit: number;
  milliseconds: number;
  /** Empty where all is well. */
  problem: string;
}

async function checkModel(name: string, golden: Golden, devices: string[], loadIn8bit: boolean): Promise<ModelResult> {
  const started = performance.now();
  const limit = loadIn8bit ? 4e-3 : 1e-4;
  const sizes = { dtype: 'float32', maxSeqLen: 64, maxBatchSize: 2 } as const;
  const model = await loadModel(golden.folder, { ...sizes, devices, deviceMap: 'balanced', loadIn8bit });
  try {
    const ids = rowsOf(golden, 'input_ids');
    const logits = (await model.forward({ inputIds: ids })).logits.toFloat32Array();
    const wanted = floats(golden, loadIn8bit ? 'int8_logits' : 'logits');
    const error = (loadIn8bit ? relativeError : distance)(logits, wanted);
    let problem = error < limit ? '' : `expected an error below ${limit}, got ${error}`;
    if (!loadIn8bit) {
      const tokens: number[] = [];
      const options = { maxNewTokens: golden.greedy.length, doSample: false, ignoreEos: true };
      for await (const piece of model.generate([ids[0] as number[]], options)) tokens.push(...piece.tokenIds);
      if (tokens.join() !== golden.greedy.join())
        problem ||= `expected tokens ${golden.greedy.join()}, got ${tokens.join()}`;
    }
    return { name, error, limit, milliseconds: performance.now() - started, problem };
  } finally {
    await model.dispose();
  }
}

/** bloom, llama and mistral, in float32 and in 8 bits, spread evenly over the devices. */
export async function checkModels(devices: string[]): Promise<ModelResult[]> {
  const results: ModelResult[] = [];
  for (const name of ['bloom', 'llama', 'mistral']) {
    for (const loadIn8bit of [false, true]) {
      const title = `${name} ${loadIn8bit ? 'int8' : 'float32'}`;
      try {
        results.push(await checkModel(title, readGolden(name), devices, loadIn8bit));
      } catch (error) {
        results.push({ name: title, error: Number.NaN, limit: 0, milliseconds: 0, problem: (error as Error).message });
      }
    }
  }
  return results;
}
