"""Where the server is and what the tests ask of it. Only the standard library: every suite imports it."""

import os

URL = os.environ["ORTSERVE_URL"]
BASE_URL = f"{URL}/v1"
MODEL = os.environ["ORTSERVE_MODEL"]
KEY = "any"

SUM = "What is 2 + 2?"
WEATHER = "What is the weather in Paris?"
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS}
TOOL = {"type": "function", "function": FUNCTION}
