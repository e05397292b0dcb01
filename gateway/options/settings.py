"""The whole configuration of a server: all sections, read from a file, the environment and flags. Opens nothing."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from ortserve.gateway.configuration.file import ConfigurationFile, Table, read_file
from ortserve.gateway.configuration.layers import Layers, Origin, check_keys, nearest
from ortserve.gateway.configuration.option import Section, add_options, options_of
from ortserve.gateway.options.access import AccessSettings
from ortserve.gateway.options.cache import CacheSettings
from ortserve.gateway.options.drafter import DrafterSettings
from ortserve.gateway.options.edge import EdgeSettings, InputSettings, TlsSettings
from ortserve.gateway.options.environment import default_of
from ortserve.gateway.options.model import (
    MODEL_HELP,
    EncoderSettings,
    EngineSettings,
    FleetSettings,
    ModelEntry,
    ModelSettings,
)
from ortserve.gateway.options.server import LoggingSettings, ServerSettings
from ortserve.gateway.options.state import StateSettings
from ortserve.gateway.options.tracing import TracingSettings
from ortserve.gateway.options.usage import UsageSettings
from ortserve.gateway.options.variables import unknown_variables, without_links
from ortserve.runtime.errors import ConfigurationError

MODELS = ModelEntry.SECTION
OF_MODELS: tuple[type[Section], ...] = (EngineSettings, CacheSettings, DrafterSettings)  # each model may have its own


@dataclass(frozen=True, slots=True)
class Settings:
    """Every field but the last two is a section: a new one needs a line here and no other."""

    server: ServerSettings = field(default_factory=ServerSettings)
    edge: EdgeSettings = field(default_factory=EdgeSettings)
    tls: TlsSettings = field(default_factory=TlsSettings)
    limits: InputSettings = field(default_factory=InputSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    access: AccessSettings = field(default_factory=AccessSettings)
    usage: UsageSettings = field(default_factory=UsageSettings)
    state: StateSettings = field(default_factory=StateSettings)
    fleet: FleetSettings = field(default_factory=FleetSettings)
    encoders: EncoderSettings = field(default_factory=EncoderSettings)
    defaults: ModelSettings = field(default_factory=ModelSettings)  # of a model that no table is about
    models: tuple[ModelSettings, ...] = field(default_factory=lambda: (ModelSettings(),))


@dataclass(frozen=True, slots=True)
class Resolved:
    """Settings, and where each value came from: by section, or by [[models]] and place.

    `unknown` are variables of the environment that are called as options are and set none, with the nearest that does.
    """

    settings: Settings
    origins: Mapping[str, Sequence[Origin]]
    unknown: Mapping[str, str | None] = field(default_factory=dict)


def sections() -> dict[str, type[Section]]:
    """Of a server as a whole, by the fields of `Settings`."""
    hints = get_type_hints(Settings)
    return {one.name: hints[one.name] for one in dataclasses.fields(Settings) if one.name not in ("defaults", "models")}


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Everything that `resolve` reads."""
    parser.add_argument("model", nargs="*", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a TOML file; the environment and flags go before it"
    )
    add_options(parser, *OF_MODELS, *sections().values())


def resolve(arguments: argparse.Namespace, environment: Mapping[str, str] | None = None) -> Resolved:
    """Of the file, the environment and flags the last that has a value.

    Models that are named by flags or the environment are served in place of those of the file. Raises
    `ConfigurationError`, which names the line and the key, the variable, or the flag.
    """
    environment = without_links(os.environ if environment is None else environment)
    path = arguments.config or default_of("--config", environment=environment)
    file = ConfigurationFile(Path(), {}, {}) if path is None else read_file(Path(path))
    _check_tables(file)
    layers = Layers(vars(arguments), environment)
    origins: dict[str, Sequence[Origin]] = {}
    values: dict[str, Any] = {}
    for name, section in sections().items():
        values[name], found = layers.read(section, _tables(file, section))
        origins[section.SECTION] = [*origins.get(section.SECTION, ()), *found]  # several may share a table
    values["defaults"], found = _read_model(layers, file, None)
    for section in OF_MODELS:
        origins[section.SECTION] = [origin for origin in found if origin.option.section == section.SECTION]
    models = []
    for number, named in enumerate(_named_models(arguments, environment, file), 1):
        settings, found = _read_model(layers, file, named)
        models.append(settings)
        origins[f"{MODELS} {number}"] = [one for one in found if one.source not in ("default", _shared(origins, one))]
    all_options = [one for section in (*sections().values(), *OF_MODELS) for one in options_of(section)]
    known = [name for one in all_options for name in one.environment]
    return Resolved(Settings(**values, models=tuple(models)), origins, unknown_variables(environment, known))


def model_settings(arguments: argparse.Namespace) -> ModelSettings:
    """Of a verb that opens one model, of flags and the environment. Raises `ConfigurationError`."""
    layers = Layers(vars(arguments), os.environ)
    return _read_model(layers, ConfigurationFile(Path(), {}, {}), _Named(word=arguments.model))[0]


@dataclass(frozen=True, slots=True)
class _Named:
    """One model, as a table of the file or as a word from elsewhere."""

    table: Table | None = None
    word: str | None = None
    source: str = "default"


def _named_models(
    arguments: argparse.Namespace, environment: Mapping[str, str], file: ConfigurationFile
) -> list[_Named]:
    words, source = arguments.model, "MODEL"
    if not words:
        name = next((name for name in ("ORTSERVE_MODEL", "MODEL") if environment.get(name)), "")
        words, source = shlex.split(environment.get(name, "")), name
    if words:
        return [_Named(word=word, source=source) for word in words]
    return [_Named(table) for table in file.arrays.get(MODELS, ())] or [_Named()]


def _read_model(layers: Layers, file: ConfigurationFile, named: _Named | None) -> tuple[ModelSettings, list[Origin]]:
    """Each value of its own table, or else of the section for all."""
    own = [named.table] if named is not None and named.table is not None else []
    entry, origins = layers.read(ModelEntry, own)
    if named is not None and named.table is None:
        entry = ModelEntry(named.word)
        origins[0] = dataclasses.replace(origins[0], value=named.word, source=named.source)
    values: list[Any] = [entry]
    for section in OF_MODELS:
        value, found = layers.read(section, [*own, *_tables(file, section)])
        values.append(value)
        origins += found
    return ModelSettings(*values), origins


def _tables(file: ConfigurationFile, section: type[Section]) -> list[Table]:
    table = file.tables.get(section.SECTION)
    return [] if table is None else [table]


def _check_tables(file: ConfigurationFile) -> None:
    """Every table and key is one that some option has. Raises `ConfigurationError`."""
    known = [*sections().values(), *OF_MODELS]
    names = [section.SECTION for section in known]
    for name, table in file.tables.items():
        if name == MODELS:
            raise ConfigurationError(f"{table.place('')}: models are several: write [[{MODELS}]]")
        if name not in names:
            raise ConfigurationError(f"{table.place('')}: no such table: [{name}]{nearest(name, [*names, MODELS])}")
        own = [section for section in known if name == section.SECTION]
        check_keys(table, own, [section for section in known if section not in own])
    for name, tables in file.arrays.items():
        if name != MODELS:
            raise ConfigurationError(f"{tables[0].place('')}: only [[{MODELS}]] may be repeated: write [{name}]")
        for table in tables:
            check_keys(table, [ModelEntry, *OF_MODELS], known)


def _shared(origins: Mapping[str, Sequence[Origin]], one: Origin) -> str | None:
    """Where the value for all models of the same option came from."""
    shared = origins.get(one.option.section, ())
    return next((origin.source for origin in shared if origin.option == one.option), None)
