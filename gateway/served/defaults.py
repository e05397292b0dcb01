"""Sampling values of requests that name none: those of a model's author, or OpenAI's. Knows no request."""

from __future__ import annotations

from ortserve.gateway.options.model import DefaultsSource
from ortserve.gateway.schema.sampling import SamplingDefaults
from ortserve.runtime.manifest import Manifest


def sampling_defaults(manifest: Manifest, source: DefaultsSource) -> SamplingDefaults:
    """The model author's values where stated and wanted, OpenAI's otherwise."""
    if source == "openai":
        return SamplingDefaults()
    stated = manifest.generation
    return SamplingDefaults(
        temperature=1.0 if stated.temperature is None else min(max(stated.temperature, 0.0), 2.0),
        top_p=1.0 if stated.top_p is None else stated.top_p,
        top_k=0 if stated.top_k is None else max(stated.top_k, 0),
        repetition_penalty=1.0 if stated.repetition_penalty is None else stated.repetition_penalty,
    )
