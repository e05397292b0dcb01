"""The built-in drafters are found through the same door as everyone else's."""

from __future__ import annotations

import pytest

from ortserve.plugins.registry import DRAFTERS, installed, load
from tests.plugins.drafters.play import NEVER, new_context

NAMES = ("none", "ngram", "suffix", "prediction", "combined")


@pytest.mark.parametrize("name", NAMES)
def test_a_built_in_is_found_and_made(name: str) -> None:
    assert name in {one.name for one in installed(DRAFTERS)}
    drafter = load(DRAFTERS, name)(new_context())
    assert not drafter.propose([], NEVER)
    drafter.close()
