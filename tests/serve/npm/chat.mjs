// What users of the openai package do with a server: node chat.mjs BASE_URL MODEL
// Prints one JSON object of all that the client gave; the test judges it.
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "é€" }];
const asked = { model, messages, max_completion_tokens: 40, temperature: 1, seed: 9 };

async function chunksOf(fields) {
  const chunks = [];
  for await (const chunk of await client.chat.completions.create({ ...asked, ...fields, stream: true })) {
    chunks.push(chunk);
  }
  return chunks;
}

/** The package's own reading of a stream, which checks the order of its events. */
async function followed(fields) {
  const stream = client.chat.completions.stream({ ...asked, ...fields });
  const deltas = [];
  stream.on("content", (delta) => deltas.push(delta));
  const final = await stream.finalChatCompletion();
  return { deltas, final };
}

/** Leaves a long answer after its first chunk, as a browser's stop button does. */
async function aborted() {
  const stream = await client.chat.completions.create({ ...asked, stream: true, max_completion_tokens: 400 });
  for await (const chunk of stream) {
    stream.controller.abort();
    return chunk.object;
  }
}

async function refused() {
  try {
    await client.chat.completions.create({ ...asked, stream: true, top_p: 2 });
  } catch (error) {
    return { kind: error.constructor.name, status: error.status, param: error.param };
  }
}

const tools = [
  {
    type: "function",
    function: { name: "now", parameters: { type: "object", properties: {}, additionalProperties: false } },
  },
];

console.log(
  JSON.stringify({
    models: (await client.models.list()).data.map((one) => one.id),
    whole: await client.chat.completions.create(asked),
    chunks: await chunksOf({ stream_options: { include_usage: true } }),
    followed: await followed({ logprobs: true, top_logprobs: 2 }),
    several: await chunksOf({ n: 2 }),
    called: await followed({ max_completion_tokens: 200, tools, tool_choice: "required", parallel_tool_calls: false }),
    aborted: await aborted(),
    refused: await refused(),
  }),
);
