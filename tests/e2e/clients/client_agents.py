"""OpenAI's Agents SDK: a tool run by an agent, over chat completions and over responses."""

import asyncio

import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from served import BASE_URL, KEY, MODEL, SUM, WEATHER

set_tracing_disabled(disabled=True)


@pytest.mark.parametrize("kind", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_tool_is_run(kind, is_streamed):
    asked = []

    @function_tool
    def get_weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny"

    async def run():
        model = kind(model=MODEL, openai_client=AsyncOpenAI(base_url=BASE_URL, api_key=KEY))
        agent = Agent(name="a", model=model, tools=[get_weather], model_settings=ModelSettings(temperature=0))
        if not is_streamed:
            return await Runner.run(agent, WEATHER, max_turns=4)
        result = Runner.run_streamed(agent, WEATHER, max_turns=4)
        async for _ in result.stream_events():
            pass
        return result

    asyncio.run(run())
    assert asked[0] == "Paris"


@pytest.mark.parametrize("kind", [OpenAIChatCompletionsModel, OpenAIResponsesModel])
def test_an_answer(kind):
    async def run():
        model = kind(model=MODEL, openai_client=AsyncOpenAI(base_url=BASE_URL, api_key=KEY))
        agent = Agent(name="a", model=model, model_settings=ModelSettings(temperature=0))
        return (await Runner.run(agent, SUM)).final_output

    assert "4" in asyncio.run(run())
