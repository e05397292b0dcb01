// Vercel's ai-sdk over chat completions and over responses: text, streams, objects, tools.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { generateText, isStepCount, jsonSchema, Output, stepCountIs, streamText, tool } from "ai";

const provider = createOpenAI({ baseURL: `${process.env.ORTSERVE_URL}/v1`, apiKey: "any" });
const name = process.env.ORTSERVE_MODEL;
const models = { chat: provider.chat(name), responses: provider.responses(name) };
const atMost = isStepCount ?? stepCountIs;

for (const [kind, model] of Object.entries(models)) {
  test(`${kind}: text`, async () => {
    const { text, usage } = await generateText({ model, prompt: "What is 2 + 2?", temperature: 0, maxRetries: 0 });
    assert.match(text, /4/);
    assert.ok(usage.totalTokens > 0);
  });

  test(`${kind}: a stream`, async () => {
    const { textStream } = streamText({ model, prompt: "What is 2 + 2?", temperature: 0, maxRetries: 0 });
    let text = "";
    for await (const piece of textStream) text += piece;
    assert.match(text, /4/);
  });

  test(`${kind}: an object`, async () => {
    const schema = jsonSchema({
      type: "object",
      properties: { sum: { type: "integer", minimum: 0, maximum: 99 } },
      required: ["sum"],
      additionalProperties: false,
    });
    const { output } = await generateText({
      model, prompt: "What is 2 + 2?", output: Output.object({ schema }), temperature: 0, maxRetries: 0,
    });
    assert.deepEqual(Object.keys(output), ["sum"]);
  });

  test(`${kind}: a tool`, async () => {
    const asked = [];
    await generateText({
      model,
      prompt: "What is the weather in Paris?",
      temperature: 0,
      maxRetries: 0,
      stopWhen: atMost(3),
      tools: {
        get_weather: tool({
          description: "The weather of a city.",
          inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } }, required: ["city"] }),
          execute: async ({ city }) => {
            asked.push(city);
            return "sunny";
          },
        }),
      },
    });
    assert.equal(asked[0], "Paris");
  });
}
