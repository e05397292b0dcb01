"""langchain-openai, by LangChain's own standard tests for chat models."""

import pytest
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from served import BASE_URL, KEY, MODEL


class TestChatCompletions(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {"model": MODEL, "base_url": BASE_URL, "api_key": KEY, "temperature": 0, "stream_usage": True}

    @property
    def supports_json_mode(self):
        return False  # the bundled model cannot be told a shape in words; a schema it is held to

    @pytest.mark.xfail(reason="the bundled model, of 5 million parameters, cannot copy Chinese")
    def test_unicode_tool_call_integration(self, model):
        super().test_unicode_tool_call_integration(model)
