"""Encoders with the synthetic graph and a small tokenizer of words, and what they must answer. Knows no test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from ortserve.gateway.encoders.service import EncoderService
from ortserve.gateway.encoders.tokenizer import load_encoder_tokenizer
from ortserve.gateway.fleet.instance import Service
from ortserve.gateway.pool import WorkPool
from ortserve.runtime.encoders.driver import EncoderDriver
from ortserve.runtime.encoders.queue import EncoderInput
from ortserve.runtime.opening import open_encoder
from tests.gateway.scripted import ScriptedDriver, make_service
from tests.runtime.synthetic_encoder import expected, make_manifest, write_synthetic_encoder
from tests.verified import write_test_report

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "query", "document", ":")
CLS, SEP, UNKNOWN, FIRST_WORD = 0, 1, 2, 10


def write_encoder(folder: Path, **changes: object) -> Path:
    """An exported folder: graph, manifest and a tokenizer whose file also asks for cutting and filling up."""
    write_synthetic_encoder(folder, make_manifest(**changes))
    vocabulary = {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNKNOWN} | {
        word: FIRST_WORD + place for place, word in enumerate(WORDS)
    }
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_test_report(folder)
    return folder


def ids_of(text: str) -> tuple[int, ...]:
    """Without special tokens."""
    parts = text.replace(":", " : ").split()
    return tuple(FIRST_WORD + WORDS.index(word) if word in WORDS else UNKNOWN for word in parts)


def input_of(text: str) -> EncoderInput:
    return EncoderInput((CLS, *ids_of(text), SEP))


def vector_of(text: str) -> npt.NDArray[np.float32]:
    return expected(input_of(text))


def cosine(one: str, other: str) -> float:
    left, right = vector_of(one), vector_of(other)
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


def pair_score(first: str, second: str) -> float:
    """What the synthetic cross-encoder gives."""
    start = len(ids_of(first)) + 2
    return float(expected(EncoderInput((CLS, *ids_of(first), SEP, *ids_of(second), SEP), start))[0])


@dataclass(frozen=True)
class Encoders:
    """Opened encoders, and perhaps a scripted model that generates."""

    folders: Sequence[Path]
    drivers: Sequence[EncoderDriver]
    scripted: ScriptedDriver | None = None
    accepts_token_ids: bool = False

    def services(self) -> list[Service]:
        """Call it in the loop that serves."""
        services: list[Service] = [] if self.scripted is None else [make_service(self.scripted)]
        for folder, driver in zip(self.folders, self.drivers, strict=True):
            services.append(encoder_service(folder, driver, accepts_token_ids=self.accepts_token_ids))
        return services

    def close(self, *, drain_s: float = 0.0) -> None:
        for driver in self.drivers:
            driver.close(drain_s=drain_s)
        if self.scripted is not None:
            self.scripted.close()


def encoder_service(folder: Path, driver: EncoderDriver, *, accepts_token_ids: bool = False) -> EncoderService:
    return EncoderService(
        driver,
        load_encoder_tokenizer(folder),
        WorkPool(),
        name=driver.manifest.name,
        created=17,
        accepts_token_ids=accepts_token_ids,
    )


def open_encoders(
    folders: Sequence[Path], *, scripted: ScriptedDriver | None = None, accepts_token_ids: bool = False
) -> Encoders:
    drivers = [open_encoder(folder, num_threads=1) for folder in folders]
    return Encoders(folders, drivers, scripted, accepts_token_ids)
