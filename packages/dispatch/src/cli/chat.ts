/**
 * A chat on a terminal: lines in, answers out, with the model's chat template where it has one and plain continuation
 * otherwise.
 */
import { createInterface } from 'node:readline';
import type { ChatMessage, GeneratedPiece, GenerateOptions, Prompt } from '../options.js';
import { type CliIo, colorsFor, writeText } from './cli-io.js';
import { type Interrupts, Stopped } from './interrupts.js';

/** What the chat needs of a loaded model. */
export interface ChatModel {
  readonly tokenizer: { readonly hasChatTemplate: boolean } | null;
  generate(prompt: Prompt, options: GenerateOptions): AsyncIterable<GeneratedPiece>;
}

/** Runs until the end of input (Ctrl-D). Ctrl-C stops an answer, and ends the chat at the prompt (throws Stopped). */
export async function runChat(
  model: ChatModel,
  options: GenerateOptions,
  io: CliIo,
  interrupts: Interrupts,
  signal: AbortSignal,
): Promise<void> {
  const isChat = model.tokenizer?.hasChatTemplate ?? false;
  const colors = colorsFor(io.stderr, io.env);
  io.stderr.write(
    colors.dim(
      `${isChat ? 'chat' : 'no chat template: each line is continued'}; Ctrl-D ends, Ctrl-C stops an answer\n`,
    ),
  );
  const messages: ChatMessage[] = [];
  let history: string[] = [];
  for (;;) {
    const line = await askLine(io, colors.cyan('> '), history, signal);
    if (line === null) return;
    if (line.text.trim() === '') continue;
    history = line.history;
    if (isChat) messages.push({ role: 'user', content: line.text });
    const answer = await printAnswer(model, isChat ? { messages } : line.text, options, io, interrupts);
    if (isChat) messages.push({ role: 'assistant', content: answer });
  }
}

/** One line of input; null at its end. The terminal is left alone while an answer is written. */
function askLine(
  io: CliIo,
  prompt: string,
  history: string[],
  signal: AbortSignal,
): Promise<{ text: string; history: string[] } | null> {
  return new Promise((resolve, reject) => {
    const lines = createInterface({
      input: io.stdin,
      output: io.stderr,
      terminal: io.stdin.isTTY === true,
      history: [...history],
      signal,
    });
    let kept = history;
    let text: string | null = null;
    lines.on('history', (all) => {
      kept = all;
    });
    lines.on('SIGINT', () => {
      io.stderr.write('\n');
      reject(new Stopped());
      lines.close();
    });
    lines.on('close', () => resolve(text === null ? null : { text, history: kept }));
    lines.question(prompt, (answer) => {
      text = answer;
      lines.close();
    });
  });
}

async function printAnswer(
  model: ChatModel,
  prompt: Prompt,
  options: GenerateOptions,
  io: CliIo,
  interrupts: Interrupts,
): Promise<string> {
  let answer = '';
  const { signal, end } = interrupts.begin();
  try {
    for await (const { text } of model.generate(prompt, { ...options, signal })) {
      answer += text;
      await writeText(io.stdout, text);
    }
  } catch (error) {
    if (!signal.aborted) throw error;
  } finally {
    end();
  }
  await writeText(io.stdout, '\n');
  return answer;
}
