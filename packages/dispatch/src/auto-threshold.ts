/**
 * `llm_int8_threshold: auto`: the threshold a model is loaded with, chosen by `chooseThreshold` on a text of the
 * user's. What goes with it is checked before anything is measured.
 */
import { ConfigError } from '@metashard/core';
import type { LoadModelOptions } from './options.js';
import type { ThresholdChoice } from './quant-compare/choose-threshold.js';

/** Throws ConfigError: auto without a text, for a model that stays in float, or where activations have no outliers. */
export function checkAutoThreshold(
  { llmInt8Threshold, llmInt8ThresholdText: text }: LoadModelOptions,
  { isInt8, activations }: { isInt8: boolean; activations: string },
): void {
  if (llmInt8Threshold !== 'auto') {
    if (text === undefined) return;
    throw new ConfigError(
      `llm_int8_threshold_text: expected llm_int8_threshold: auto beside it, got ${llmInt8Threshold ?? 'none'}`,
    );
  }
  const expect = (what: string, got: string, hint: string): never => {
    throw new ConfigError(`llm_int8_threshold: auto: expected ${what} beside it, got ${got}`, { hint });
  };
  if (text === undefined)
    expect('llm_int8_threshold_text', 'none', 'name a text file of the kind the model will see, to measure on');
  if (!isInt8) expect('load_in_8bit: true', 'a float model', 'set load_in_8bit');
  if (activations !== 'int8')
    expect('int8_activations: int8', activations, 'leave the threshold out: these activations have no outliers');
}

/**
 * Measures. Throws ConfigError (the text), what `chooseThreshold` throws, and ConfigError where no threshold is good
 * enough.
 */
export async function chooseLoadThreshold(
  nameOrFolder: string,
  { revision, dtype, llmInt8SkipModules, threads, outliers, llmInt8ThresholdText = '', signal }: LoadModelOptions,
): Promise<ThresholdChoice & { threshold: number }> {
  const { readTextFile } = await import('./quant-compare/text-windows.js');
  const { chooseThreshold } = await import('./quant-compare/choose-threshold.js');
  const { text } = await readTextFile(llmInt8ThresholdText, 'llm_int8_threshold_text');
  const choice = await chooseThreshold(nameOrFolder, text, {
    ...(revision !== undefined && { revision }),
    ...(dtype !== undefined && { dtype }),
    ...(llmInt8SkipModules !== undefined && { llmInt8SkipModules }),
    ...(threads !== undefined && { threads }),
    outliers,
    signal,
  });
  const { threshold } = choice;
  if (threshold !== null) return { ...choice, threshold };
  throw new ConfigError(`llm_int8_threshold: auto: ${choice.summary}`, {
    hint: 'set int8_activations: float, or a threshold',
    details: { choice },
  });
}
