"""The built-in drafters obey the contract that authors inherit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from ortserve.plugins.api import PluginContext
from ortserve.plugins.combined import CombinedDrafter
from ortserve.plugins.draft_contract import DrafterContract
from ortserve.plugins.drafting import Drafter
from ortserve.plugins.form import FormDrafter
from ortserve.plugins.ngram import NgramDrafter
from ortserve.plugins.no_drafter import NoDrafter
from ortserve.plugins.prediction import PredictionDrafter
from ortserve.plugins.suffix import SuffixDrafter


class TestNoDrafter(DrafterContract):
    max_examples = 5

    def make(self, context: PluginContext) -> Drafter:
        return NoDrafter(context)


class TestNgram(DrafterContract):
    def make(self, context: PluginContext) -> Drafter:
        return NgramDrafter(context)


class TestSuffix(DrafterContract):
    options: ClassVar[Mapping[str, str]] = {"min_match": "1", "tenant_tokens": "200", "recent_tokens": "500"}

    def make(self, context: PluginContext) -> Drafter:
        return SuffixDrafter(context)


class TestForm(DrafterContract):
    num_requests = 12
    options: ClassVar[Mapping[str, str]] = {"tenant_tokens": "120", "recent_tokens": "300"}

    def make(self, context: PluginContext) -> Drafter:
        return FormDrafter(replace(context, load_words=lambda: [b" word%d" % token for token in range(32)]))


class TestPrediction(DrafterContract):
    def make(self, context: PluginContext) -> Drafter:
        return PredictionDrafter(context)


class TestCombined(DrafterContract):
    max_examples = 15
    options: ClassVar[Mapping[str, str]] = {
        "sources": "prediction,suffix,ngram",
        "suffix.tenant_tokens": "200",
        "suffix.recent_tokens": "500",
    }

    def make(self, context: PluginContext) -> Drafter:
        return CombinedDrafter(context)
