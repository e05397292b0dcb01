"""The example of the living page is complete and obeys the laws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ortserve.plugins.registry

PAGE = Path(ortserve.plugins.registry.__file__).with_name("README.md")


def test_the_example_passes_its_own_test() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, Any] = {"__name__": "readme"}
    for block in blocks:
        exec(block, names)
    contract = names["TestDictionaryCache"]
    contract.max_examples = 30
    contract().test_the_laws_of_prompt_caches()


def test_every_file_it_names_exists() -> None:
    named = re.findall(r"^\| [^|]+ \| `([^`]+(?:\.py|/[^`]*))`", PAGE.read_text(), re.MULTILINE)
    assert len(named) >= 4
    for name in named:
        places = [PAGE.parent / name, PAGE.parents[1] / name]
        assert any(place.exists() for place in places), name
