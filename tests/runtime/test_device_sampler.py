"""The sampling head draws what the ordinary sampler draws, on the CPU's kernels; what it cannot decide goes there."""

from __future__ import annotations

import numpy as np
import pytest

from ortserve.runtime.devices.device import HostDevice
from ortserve.runtime.pages.runner import DeviceLogits
from ortserve.runtime.pages.sampler import DeviceSampler
from ortserve.runtime.request import SamplingParams
from ortserve.runtime.sampling.draw import Draw
from ortserve.runtime.sampling.history import TokenHistory
from ortserve.runtime.sampling.sampler import Sampler

ROWS = 6
SAMPLINGS = {
    "greedy": SamplingParams(temperature=0),
    "plain": SamplingParams(temperature=1.0),
    "min-p": SamplingParams(temperature=0.7, min_p=0.05),
    "top-k": SamplingParams(temperature=0.9, top_k=40),
    "top-k beyond the candidates": SamplingParams(temperature=2.0, top_k=1000),
    "top-p": SamplingParams(temperature=0.8, top_p=0.8, num_logprobs=3),
    "top-p beyond the candidates": SamplingParams(temperature=5.0, top_p=0.99),
    "rules": SamplingParams(
        temperature=0.9,
        repetition_penalty=1.3,
        presence_penalty=0.5,
        frequency_penalty=0.3,
        logit_bias=((7, 8.0), (8, -50.0), (11, 1.0)),
        num_logprobs=2,
    ),
}


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=list(SAMPLINGS))
@pytest.mark.parametrize(("vocab_size", "num_tokens"), [(64, 60), (2048, 2048), (3100, 3001)])
def test_it_draws_what_the_sampler_draws(sampling: SamplingParams, vocab_size: int, num_tokens: int) -> None:
    logits = (np.random.default_rng(3).standard_normal((ROWS + 2, vocab_size)) * 3).astype(np.float32)
    head = DeviceSampler(HostDevice(), vocab_size=vocab_size, num_tokens=num_tokens, max_rows=ROWS + 2)
    for position in range(5):
        history = TokenHistory([1, 2, 3, 7, 11])
        for token in (11, 12, 12):
            history.add(token)
        draws = [Draw(sampling, row, 0, position, history, banned=(3, 7)) for row in range(ROWS)]
        if not sampling.logit_bias:
            draws = [Draw(sampling, row, 0, position) for row in range(ROWS)]
        expected = Sampler(num_tokens).draw(logits[:ROWS].copy(), draws)
        found = head.draw(DeviceLogits(logits.ctypes.data, ROWS, ROWS + 2), draws)
        assert [one.token_id for one in found] == [one.token_id for one in expected]
        for one, other in zip(found, expected, strict=True):
            assert (one.logprobs is None) == (other.logprobs is None)
            if one.logprobs is not None and other.logprobs is not None:
                assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-4)
                assert [token for token, _ in one.logprobs.top] == [token for token, _ in other.logprobs.top]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_draw_nothing(value: float) -> None:
    logits = np.zeros((2, 600), np.float32)
    logits[1, 100] = value
    head = DeviceSampler(HostDevice(), vocab_size=600, num_tokens=600, max_rows=2)
    for sampling in SAMPLINGS.values():
        draws = [Draw(sampling, 0, 0, 0)] * 2
        found = head.draw(DeviceLogits(logits.ctypes.data, 2, 2), draws)
        assert found[0].token_id is not None
        assert found[1].token_id is None or sampling.top_k > 256


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=list(SAMPLINGS))
@pytest.mark.parametrize("num_allowed", [1, 3, 700, 2990])
def test_grammars_rule_out_the_same_on_the_device(sampling: SamplingParams, num_allowed: int) -> None:
    num_tokens = 3001
    generator = np.random.default_rng(num_allowed)
    logits = (generator.standard_normal((ROWS, 3100)) * 3).astype(np.float32)
    head = DeviceSampler(HostDevice(), vocab_size=3100, num_tokens=num_tokens, max_rows=ROWS)
    downloads = 0

    def counted(address: int, rows: tuple[int, ...]) -> np.ndarray:
        nonlocal downloads
        downloads += len(rows)
        return on_host(address, rows)

    on_host, head._on_host = head._on_host, counted  # type: ignore[method-assign]
    for position in range(3):
        draws = []
        for row in range(ROWS):
            bits = None
            if row % 3:
                allowed = np.zeros(num_tokens, np.bool_)
                allowed[generator.permutation(num_tokens)[:num_allowed]] = True
                bits = np.packbits(allowed, bitorder="little")
            draws.append(Draw(sampling, row, 0, position, allowed=bits))
        expected = Sampler(num_tokens).draw(logits.copy(), draws)
        found = head.draw(DeviceLogits(logits.ctypes.data, ROWS, ROWS), draws)
        assert [one.token_id for one in found] == [one.token_id for one in expected]
        for one, other in zip(found, expected, strict=True):
            if one.logprobs is not None and other.logprobs is not None:
                assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-4)
    if sampling.top_k <= 256 and sampling.top_p >= 0.99 and sampling.temperature <= 2:
        assert downloads == 0, "rows with a grammar are drawn where their logits are"
