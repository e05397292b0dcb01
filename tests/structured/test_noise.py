"""Every completed reply is valid, whoever speaks: a small trained model, or weights that were never trained."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from ortserve.export.bundled import bundled_model
from ortserve.export.publish import export_checkpoint
from ortserve.export.toys.shapes import SHAPES
from ortserve.export.toys.toy import write_toy_checkpoint
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.engine import Engine
from ortserve.runtime.manifest import read_manifest
from ortserve.runtime.opening import open_engine
from ortserve.runtime.request import FinishReason, Request, SamplingParams
from tests.runtime.synthetic import run_to_end, whole
from tests.structured.schemas import Schema, grammar_of, schemas

LEAST_COMPLETED = 0.95
MAX_TOKENS = 400
MODELS = ("trained", "random")


class Talker:
    """An engine, its tokenizer, and what became of the replies so far."""

    def __init__(self, folder: Path) -> None:
        config = EngineConfig(max_rows=8, num_threads=1, kv_memory=2**26, deterministic=True, max_context=512)
        self.engine: Engine = open_engine(folder, read_manifest(folder), config)[0]
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.finishes: Counter[FinishReason] = Counter()

    def text_of(self, tokens: tuple[int, ...]) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))


@pytest.fixture(scope="module", params=MODELS)
def talker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Talker:
    folder = tmp_path_factory.mktemp("structured")
    source = bundled_model()
    if request.param == "random":
        source = folder / "checkpoint"
        write_toy_checkpoint(replace(SHAPES["tiny"], num_layers=2), source)
    export_checkpoint(source, folder / "int8", precision="int8", verify=False, progress=False)
    return Talker(folder / "int8")


samplings = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 3, 40]),
    top_p=st.sampled_from([1.0, 1.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.2]),
    min_tokens=st.sampled_from([0, 0, 5]),
    ignore_eos=st.sampled_from([False, False, True]),
    seed=st.integers(0, 1000),
    max_tokens=st.just(MAX_TOKENS),
    num_logprobs=st.sampled_from([None, None, 1]),
)


@pytest.mark.timeout(600)
def test_every_completed_reply_is_valid_and_nearly_all_are_completed(talker: Talker) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(schemas(MAX_TOKENS), samplings), min_size=6, max_size=8))
    def ask(asked: list[tuple[Schema, SamplingParams]]) -> None:
        prompt = tuple(talker.tokenizer.encode("Describe it as JSON: ", add_special_tokens=False).ids)
        requests = [
            Request(f"r{number}", prompt, sampling, grammar=grammar_of(schema))
            for number, (schema, sampling) in enumerate(asked)
        ]
        for name, deltas in run_to_end(talker.engine, requests).items():
            reply = whole(deltas)
            talker.finishes[reply.finish] += 1
            schema, sampling = asked[int(name[1:])]
            if reply.finish is FinishReason.STOP:
                jsonschema.validate(json.loads(talker.text_of(reply.token_ids)), schema)
            else:
                assert (reply.finish, len(reply.token_ids)) == (FinishReason.LENGTH, MAX_TOKENS)
            if sampling.num_logprobs is not None:
                assert [entry.token_id for entry in reply.logprobs] == list(reply.token_ids)

    ask()
    num_replies = talker.finishes.total()
    assert num_replies > 100
    assert talker.finishes[FinishReason.STOP] / num_replies >= LEAST_COMPLETED, talker.finishes


def test_neighbours_without_a_grammar_say_what_they_say_alone(talker: Talker) -> None:
    """Deterministic mode: bit for bit."""
    prompt = tuple(talker.tokenizer.encode("Tell me a story. ", add_special_tokens=False).ids)
    sampling = SamplingParams(temperature=1.0, seed=7, max_tokens=60, ignore_eos=True, num_logprobs=2)
    free = [Request(f"free{number}", prompt, replace(sampling, seed=number)) for number in range(3)]
    alone = {request.id: whole(run_to_end(talker.engine, [request])[request.id]) for request in free}
    schema = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 60}}, "required": ["a"]}
    tied = [
        Request(f"tied{number}", prompt, replace(sampling, seed=number), grammar=grammar_of(schema))
        for number in range(4)
    ]
    together = run_to_end(talker.engine, [*tied[:2], *free, *tied[2:]])
    for request in free:
        reply = whole(together[request.id])
        assert (reply.token_ids, reply.logprobs) == (alone[request.id].token_ids, alone[request.id].logprobs)
