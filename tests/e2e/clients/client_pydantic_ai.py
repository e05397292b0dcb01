"""pydantic-ai: an agent with a tool, over chat completions and over responses."""

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from served import BASE_URL, KEY, MODEL, SUM, WEATHER

PROVIDER = OpenAIProvider(base_url=BASE_URL, api_key=KEY)
SETTINGS = ModelSettings(temperature=0.0, max_tokens=200)


@pytest.fixture(params=[OpenAIChatModel, OpenAIResponsesModel], ids=["chat", "responses"])
def model(request):
    return request.param(MODEL, provider=PROVIDER)


def test_an_answer(model):
    assert "4" in Agent(model, model_settings=SETTINGS).run_sync(SUM).output


def test_a_tool_is_run(model):
    asked = []
    agent = Agent(model, model_settings=SETTINGS)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        asked.append(city)
        return "sunny"

    agent.run_sync(WEATHER)
    assert asked[0] == "Paris"
