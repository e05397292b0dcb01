"""The engine generates from every family what the independent reference would, beside another request."""

from __future__ import annotations

from pathlib import Path

from ortserve import runtime
from ortserve.export.families import read_architecture
from ortserve.export.float_reference.forward import reference_logits
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import open_checkpoint
from tests.export.family_checkpoints import FOLDER, MAX_CONTEXT, copy_family, every_family, expected_logits

NUM_TOKENS = 12


@every_family
def test_greedy_replies_are_those_of_the_reference(tmp_path: Path, family: str) -> None:
    source = copy_family(family, tmp_path / "source", eos_token_id=None)  # nothing ends a reply early
    export_checkpoint(source, tmp_path / "out", precision="fp32", max_context=MAX_CONTEXT, verify=False)
    checkpoint = open_checkpoint(FOLDER / family)
    prompts = expected_logits(family).sequences
    sampling = runtime.SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    with runtime.open(str(tmp_path / "out"), runtime.EngineConfig(max_rows=2)) as model:
        streams = [model.stream(prompt, sampling) for prompt in prompts]
        replies = [[token for delta in stream for token in delta.token_ids] for stream in streams]
    told = [[*prompt, *reply] for prompt, reply in zip(prompts, replies, strict=True)]
    logits = reference_logits(checkpoint, read_architecture(checkpoint), told)
    for prompt, reply, rows in zip(prompts, replies, logits, strict=True):
        assert len(reply) == NUM_TOKENS
        assert reply == rows[len(prompt) - 1 : -1].argmax(axis=1).tolist()
