"""Options of the models of a server, each with its own or with those of all. Knows no engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from ortserve.gateway.configuration.kinds import (
    MODEL,
    NATURAL,
    PATH,
    POSITIVE,
    SECONDS,
    SIZE,
    SWITCH,
    TEXT,
    WORDS,
    choice,
)
from ortserve.gateway.configuration.option import option
from ortserve.gateway.options.cache import CacheSettings
from ortserve.gateway.options.drafter import DrafterSettings

DefaultsSource: TypeAlias = Literal["model", "openai"]
StoredAs: TypeAlias = Literal["float", "int8", "fp8"]
MODEL_HELP = "exported folder, checkpoint folder or hub id, exported on first use (the bundled model)"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """What a model of a file's [[models]] is called. Has no flags: models on the command line are words."""

    SECTION: ClassVar[str] = "models"

    model: str | None = option(None, MODEL, MODEL_HELP, flag=False)
    name: str | None = option(None, TEXT, "how it is called, instead of its own name", flag=False)
    aliases: tuple[str, ...] = option((), WORDS, "further names it answers to", flag=False)
    preload: bool = option(True, SWITCH, "loaded at start, not when first asked for", flag=False)
    pinned: bool = option(False, SWITCH, "never unloaded to make room for another", flag=False)


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """Several models."""

    SECTION: ClassVar[str] = "fleet"

    model_memory: int | None = option(
        None, SIZE, "host memory for all models and their caches, as 24GiB (what is free at the start)", metavar="SIZE"
    )
    load_on_demand: bool = option(False, SWITCH, "load every model but the first when it is first asked for")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Model. How one that generates is opened."""

    SECTION: ClassVar[str] = "engine"

    device: str = option(
        "auto",
        TEXT,
        "auto, cpu, cuda or cuda:1, or several GPUs with an engine process for each: cuda:0,cuda:1 or cuda:all (auto:"
        " what the model is for)",
    )
    engines: int | None = option(
        None,
        NATURAL,
        "engine processes: one beside the server's own, several that divide the CPU's cores and memory, or 0: the"
        " engine is a thread of the server (GPU: 1; CPU: 0)",
        metavar="N",
    )
    max_rows: int | None = option(None, POSITIVE, "sequences at once (16; CUDA: 64)", metavar="N")
    max_context: int | None = option(None, POSITIVE, "tokens per sequence", metavar="N")
    max_step_ms: float | None = option(None, SECONDS, "bound on one engine step", metavar="MS")
    step_limit: float = option(
        120.0,
        SECONDS,
        "an engine whose step takes longer has failed, and so has an encoder's batch (120, or ten times the longest)",
        metavar="SECONDS",
    )
    max_waiting: int = option(1024, NATURAL, "requests beyond the rows before more are refused (1024)", metavar="N")
    max_waiting_tokens: int = option(2**20, NATURAL, "tokens of their prompts (1048576)", metavar="N")
    deterministic: bool = option(False, SWITCH, "same bits in any batch")
    threads: int | None = option(None, POSITIVE, "threads of the model", metavar="N")
    kv_memory: int | None = option(None, SIZE, "for running sequences, as 2GiB", metavar="SIZE")
    allow_unverified: bool = option(
        False, SWITCH, "also run what no report proves, or what changed since; /v1/models says so"
    )
    precision: str | None = option(None, TEXT, "when the model must be exported first: int8, int4, fp32")
    kv: StoredAs = option(
        "float",
        choice("float", "int8", "fp8"),
        "when the model must be exported first: what keys and values are stored as; fp8 on CUDA alone (float)",
    )
    cache_dir: Path | None = option(None, PATH, "where exported models are kept", metavar="DIR")
    generation_defaults: DefaultsSource = option(
        "model",
        choice("model", "openai"),
        "sampling values when a request omits them: the model author's, or OpenAI's (model)",
    )
    chat_template: Path | None = option(
        None,
        PATH,
        "a Jinja file in place of the model's own template; it also says how tools are called (the model's)",
        metavar="FILE",
    )


@dataclass(frozen=True, slots=True)
class EncoderSettings:
    """Embeddings and scores."""

    SECTION: ClassVar[str] = "encoders"

    encoder_threads: int | None = option(
        None, POSITIVE, "threads of encoders (beside a model that generates: a quarter of the cores)", metavar="N"
    )
    encoder_batch_tokens: int = option(
        2048, POSITIVE, "tokens, with padding, that an encoder computes at once (2048)", metavar="N"
    )
    accept_token_ids: bool = option(
        False, SWITCH, "take token ids as input for embeddings: most clients send another tokenizer's (refused)"
    )


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """All options of one model. A key of its table in [[models]] goes before the same key of the sections."""

    entry: ModelEntry = field(default_factory=ModelEntry)
    engine: EngineSettings = field(default_factory=EngineSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    drafter: DrafterSettings = field(default_factory=DrafterSettings)
