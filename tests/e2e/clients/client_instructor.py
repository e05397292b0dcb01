"""instructor: Pydantic objects from replies, by tools and by JSON schema."""

import instructor
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field
from served import BASE_URL, KEY, MODEL, SUM


class Sum(BaseModel):
    value: int = Field(ge=0, le=99)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_an_object_comes_back(mode):
    client = instructor.from_openai(OpenAI(base_url=BASE_URL, api_key=KEY), mode=mode)
    found = client.chat.completions.create(
        model=MODEL, response_model=Sum, messages=[{"role": "user", "content": SUM}], temperature=0, max_retries=0
    )
    assert isinstance(found, Sum)
