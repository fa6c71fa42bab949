// OpenAI's own client for Node.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { answer, run, streamed, task } from "./cells.mjs";

const client = new OpenAI({ baseURL: task.base_url, apiKey: "unused", maxRetries: 0 });
const messages = [{ role: "user", content: task.question }];
const sampling = { model: task.model, temperature: 0, seed: task.seed, max_tokens: task.max_tokens };
const counts = (usage) => [usage.prompt_tokens, usage.completion_tokens];

await run({
  async chat() {
    const done = await client.chat.completions.create({ ...sampling, messages });
    const [choice] = done.choices;
    return answer(choice.message.content, choice.finish_reason, counts(done.usage));
  },

  async stream() {
    const chunks = await Array.fromAsync(
      await client.chat.completions.create({
        ...sampling,
        messages,
        stream: true,
        stream_options: { include_usage: true },
      }),
    );
    const told = chunks.pop();
    const pieces = chunks.map((chunk) => chunk.choices[0].delta.content ?? "");
    return streamed(pieces, chunks.at(-1).choices[0].finish_reason, counts(told.usage));
  },

  async stream_helper() {
    const pieces = [];
    const helper = client.chat.completions.stream({ ...sampling, messages });
    helper.on("content", (piece) => pieces.push(piece));
    const final = await helper.finalChatCompletion();
    assert.equal(final.choices[0].message.content, pieces.join(""));
    return streamed(pieces, final.choices[0].finish_reason);
  },

  async completion() {
    const done = await client.completions.create({ ...sampling, prompt: task.prompt });
    const [choice] = done.choices;
    return answer(choice.text, choice.finish_reason, counts(done.usage));
  },

  async completion_stream() {
    const chunks = await Array.fromAsync(
      await client.completions.create({ ...sampling, prompt: task.prompt, stream: true }),
    );
    const pieces = chunks.map((chunk) => chunk.choices[0].text);
    return streamed(pieces, chunks.at(-1).choices[0].finish_reason);
  },

  async models() {
    const models = await Array.fromAsync(client.models.list());
    assert.deepEqual(models.map((model) => model.id), [task.model]);
  },

  async evaluation() {
    const done = await client.completions.create({
      model: task.model,
      prompt: task.prompt,
      echo: true,
      logprobs: 1,
      max_tokens: 1,
      temperature: 0,
    });
    const [{ text, logprobs }] = done.choices;
    assert.equal(logprobs.tokens.join(""), text);
    const [first, ...others] = logprobs.token_logprobs;
    assert.equal(first, null);
    return { numbers: [others.slice(0, -1).reduce((sum, number) => sum + number, 0)] };
  },
});
