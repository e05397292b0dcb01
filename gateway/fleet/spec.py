"""One model as the operator wants it, before anything of it has been read. Frozen values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ortserve.gateway.directory import ServedModel, Task
from ortserve.gateway.options.drafter import BUNDLED
from ortserve.gateway.options.model import EngineSettings
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.encoders.driver import EncoderLimits
from ortserve.runtime.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """`source` is an exported folder, a checkpoint folder or a hub id; None: the bundled model."""

    source: str | None
    name: str | None = None  # shown instead of the model's own, which is answered to as well while no other has it
    aliases: tuple[str, ...] = ()  # further names
    preload: bool = True  # False: loaded when it is first asked for
    pinned: bool = False  # never gives way to another model
    options: EngineSettings = field(default_factory=EngineSettings)  # as given: how it is exported and what it says
    engine: EngineConfig = field(default_factory=EngineConfig)  # of a model that generates
    draft_source: str | None = None  # of its drafter's small model
    warm: Path | None = None  # prefixes computed whenever it has been loaded
    encoder: EncoderLimits = field(default_factory=EncoderLimits)  # of an encoder
    accepts_token_ids: bool = False  # of an encoder

    @property
    def provisional_name(self) -> str:
        """What its own name will be most likely, while its manifest has not been read."""
        if self.source is None:
            return BUNDLED
        path = Path(self.source)
        return path.stem if path.suffix == ".gguf" else path.name

    def entry(self, own: str, task: Task, *, verified: bool = True) -> ServedModel:
        """Its names, the one that is shown first, and what it does, by its own name."""
        names = tuple(dict.fromkeys((self.name or own, own, *self.aliases)))
        is_given = own in (self.name or own, *self.aliases)
        return ServedModel(names, task, verified, own_name=None if is_given else own)


def check_engines(models: Iterable[tuple[ModelSpec, bool]], *, leave_cores: bool) -> None:
    """Raise `ConfigurationError` for engine processes on the CPU beside models that they cannot run beside.

    They take no turns with others: with a second model that generates they would want the same cores, and with encoders
    unless they leave some to these. `models`: each with whether it generates; `leave_cores`: whether they do.
    """
    served = list(models)
    generating = [spec for spec, generates in served if generates]
    num_engines = max((spec.options.engines or 0 for spec in generating), default=0)
    if num_engines == 0 or len(served) == 1:
        return
    what = "gives the cores to a process" if num_engines == 1 else "divides the cores among processes"
    divides = f"--engines {num_engines} {what} of one model"
    if len(generating) > 1:
        raise ConfigurationError(
            f"{divides}, and here are {len(generating)} models that generate: leave it out, or serve one"
        )
    if not leave_cores:
        raise ConfigurationError(
            f"{divides}, and encoders were left none when the server started: name one then, or leave it out"
        )
