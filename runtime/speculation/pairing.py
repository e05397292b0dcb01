"""Whether a small model speaks the tokens of the model it is to guess for. Compares files; knows no tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ortserve.runtime.errors import DraftModelError
from ortserve.runtime.manifest import Manifest

_TOKENIZER = "tokenizer.json"


def check_same_tokens(folder: Path, manifest: Manifest, draft_folder: Path, draft: Manifest) -> None:
    """Raise `DraftModelError` unless both models' tokenizers have the same ids for the same words.

    Widths of the logits may differ: they are padded. Normalizing and merging may differ: only ids pass between the two.
    """
    if manifest.num_tokens != draft.num_tokens:
        raise DraftModelError(
            f"the small model {draft.name} has {draft.num_tokens} tokens and {manifest.name} has {manifest.num_tokens}:"
            " name one with the same tokenizer as --draft-model"
        )
    ours, theirs = _content(folder, manifest), _content(draft_folder, draft)
    if ours == theirs:
        return
    words, draft_words = _words(folder, ours), _words(draft_folder, theirs)
    for token in range(manifest.num_tokens):
        if words.get(token) != draft_words.get(token):
            raise DraftModelError(
                f"token {token} is {words.get(token)!r} to {manifest.name} and {draft_words.get(token)!r} to the small"
                f" model {draft.name}: name one with the same tokenizer as --draft-model"
            )


def _content(folder: Path, manifest: Manifest) -> bytes:
    try:
        return (folder / _TOKENIZER).read_bytes()
    except OSError as error:
        raise DraftModelError(
            f"{folder} has no readable {_TOKENIZER} ({error.strerror}), so nobody can tell which tokens {manifest.name}"
            " speaks: export its checkpoint again, with its tokenizer beside it"
        ) from None


def _words(folder: Path, content: bytes) -> dict[int, str]:
    """The word of each id."""
    try:
        fields = msgspec.json.decode(content, type=_Tokenizer)
    except msgspec.MsgspecError as error:
        raise DraftModelError(f"{folder / _TOKENIZER} cannot be read ({error}): export the checkpoint again") from None
    vocabulary = fields.model.vocab
    found = (
        {token: word for word, token in vocabulary.items() if isinstance(token, int)}
        if isinstance(vocabulary, dict)
        else {place: str(entry[0]) for place, entry in enumerate(vocabulary)}  # Unigram: [word, score]
    )
    return found | {added.id: added.content for added in fields.added_tokens}


class _Vocabulary(msgspec.Struct):
    vocab: dict[str, Any] | list[list[Any]] = {}


class _Added(msgspec.Struct):
    id: int
    content: str


class _Tokenizer(msgspec.Struct):
    model: _Vocabulary
    added_tokens: list[_Added] = []
