// Vercel's AI SDK with its provider for servers with OpenAI's API.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { answer, run, streamed, task } from "./cells.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
let body; // of the last request: for completions it writes the prompt as a conversation of its own form
const provider = createOpenAICompatible({
  name: "stoker",
  baseURL: task.base_url,
  apiKey: "unused",
  includeUsage: true,
  fetch: (url, request) => {
    body = JSON.parse(request.body);
    return fetch(url, request);
  },
});
const sampling = { temperature: 0, seed: task.seed, maxOutputTokens: task.max_tokens, maxRetries: 0 };
const asked = () => ({ prompt: body.prompt, stop: body.stop });
const counts = (usage) => [usage.inputTokens, usage.outputTokens];

async function whole(model, prompt) {
  const done = await generateText({ model, prompt, ...sampling });
  return { ...answer(done.text, done.finishReason, counts(done.usage)), ...asked() };
}

async function piecewise(model, prompt) {
  let failure;
  const result = streamText({ model, prompt, ...sampling, onError: ({ error }) => (failure = error) });
  const pieces = await Array.fromAsync(result.textStream);
  if (failure) throw failure;
  const ended = streamed(pieces, await result.finishReason, counts(await result.usage));
  return { ...ended, ...asked() };
}

await run({
  chat: () => whole(provider.chatModel(task.model), task.question),
  stream: () => piecewise(provider.chatModel(task.model), task.question),
  completion: () => whole(provider.completionModel(task.model), task.prompt),
  completion_stream: () => piecewise(provider.completionModel(task.model), task.prompt),
});
