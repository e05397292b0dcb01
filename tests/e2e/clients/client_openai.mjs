// OpenAI's client for JavaScript: chat, streams, tools, responses, errors.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";

const model = process.env.ORTSERVE_MODEL;
const client = new OpenAI({ baseURL: `${process.env.ORTSERVE_URL}/v1`, apiKey: "any", maxRetries: 0 });
const ask = (content) => [{ role: "user", content }];
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tool = { type: "function", function: { name: "get_weather", description: "The weather of a city.", parameters } };

test("models", async () => {
  const ids = [];
  for await (const one of client.models.list()) ids.push(one.id);
  assert.ok(ids.includes(model));
});

test("chat", async () => {
  const reply = await client.chat.completions.create({ model, messages: ask("What is 2 + 2?"), temperature: 0 });
  assert.match(reply.choices[0].message.content, /4/);
});

test("a streamed chat", async () => {
  const stream = client.chat.completions.stream({ model, messages: ask("What is 2 + 2?"), temperature: 0 });
  let text = "";
  stream.on("content", (piece) => (text += piece));
  assert.equal(await stream.finalContent(), text);
  assert.match(text, /4/);
});

test("a stream can be left", async () => {
  const stream = await client.chat.completions.create({ model, messages: ask("Tell me a story."), stream: true });
  for await (const _ of stream) break;
  const reply = await client.chat.completions.create({ model, messages: ask("What is 2 + 2?"), temperature: 0 });
  assert.match(reply.choices[0].message.content, /4/);
});

test("tools are run by the client's own loop", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model,
    messages: ask("What is the weather in Paris?"),
    temperature: 0,
    tools: [
      {
        type: "function",
        function: {
          ...tool.function,
          parse: JSON.parse,
          function: ({ city }) => {
            asked.push(city);
            return "sunny";
          },
        },
      },
    ],
  }, { maxChatCompletions: 3 });
  await runner.done();
  assert.equal(asked[0], "Paris");
});

test("responses, streamed", async () => {
  const stream = client.responses.stream({ model, input: "What is 2 + 2?", temperature: 0 });
  const kinds = [];
  for await (const event of stream) kinds.push(event.type);
  assert.equal(kinds[0], "response.created");
  assert.equal(kinds.at(-1), "response.completed");
  assert.match((await stream.finalResponse()).output_text, /4/);
});

test("errors are the client's own", async () => {
  const wrong = { model: "nothing", messages: ask("x") };
  await assert.rejects(client.chat.completions.create(wrong), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ ...wrong, model, temperature: 9 }), OpenAI.BadRequestError);
});
