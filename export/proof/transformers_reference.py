"""Logits by transformers and torch, both imported here alone. Knows no graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ortserve.export.architecture import Architecture
from ortserve.export.errors import UnreadableError
from ortserve.export.float_reference.forward import Compute, Floats, Watch
from ortserve.export.sources.checkpoint import Checkpoint


def open_transformers(checkpoint: Checkpoint, architecture: Architecture | None, *, vocab_size: int) -> Compute:
    """A float32 forward pass, sequence by sequence, with eager attention and no cache.

    Without an architecture the model is one that only transformers knows. Raises `UnreadableError` when the installed
    versions cannot read the checkpoint; code that comes with a checkpoint is never run.
    """
    import torch

    try:
        model = _load(checkpoint)
        if architecture is not None:
            _round_embedding_scale(model, checkpoint, architecture)
        with torch.inference_mode():
            num_logits = model(input_ids=torch.tensor([[0]]), use_cache=False).logits.shape[-1]
    except Exception as error:  # these libraries raise anything for a file they do not know
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UnreadableError(f"transformers cannot read {checkpoint.name}: {reason}") from None

    if num_logits != vocab_size:
        raise UnreadableError(f"transformers gives {num_logits} logits of {checkpoint.name}, {vocab_size} are expected")

    def compute(sequences: Sequence[Sequence[int]], watch: Watch | None) -> list[Floats]:
        logits: list[Floats] = []
        streams: list[list[Floats]] = []
        with torch.inference_mode():
            for sequence in sequences:
                ids = torch.tensor([list(sequence)])
                output = model(input_ids=ids, use_cache=False, output_hidden_states=watch is not None)
                logits.append(np.ascontiguousarray(output.logits[0].numpy(), np.float32))
                if watch is not None:
                    streams.append([state[0].numpy() for state in output.hidden_states[1:-1]])
        if watch is not None:
            for index, of_layer in enumerate(zip(*streams, strict=True)):
                watch(index, np.concatenate(of_layer))
        return logits

    return compute


def _load(checkpoint: Checkpoint) -> Any:
    import torch
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    named = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(checkpoint.folder),
            local_files_only=True,
            attn_implementation="eager",
            **{named: torch.float32},
        )
        if checkpoint.adapter_folder is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(checkpoint.adapter_folder))
    return model.eval()


def _round_embedding_scale(model: Any, checkpoint: Checkpoint, architecture: Architecture) -> None:
    """Gemma's scale is rounded to the dtype of the weights, which is the checkpoint's where the model was trained."""
    import torch

    scaled = model.get_input_embeddings()
    if hasattr(scaled, "embed_scale"):
        dtype = checkpoint.stored(architecture.embedding).dtype
        rounded = np.asarray(scaled.embed_scale.numpy()).astype(dtype).astype(np.float32)
        scaled.embed_scale.copy_(torch.from_numpy(rounded))
