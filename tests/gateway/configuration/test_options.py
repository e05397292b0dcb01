"""Every option has one name in the file, the environment and on the command line, and the same value by all three."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ortserve.gateway.configuration.kinds import (
    MODEL,
    NATURAL,
    NETWORKS,
    PAIRS,
    PATH,
    PORT,
    POSITIVE,
    SECONDS,
    SIZE,
    SWITCH,
    TEXT,
    WORDS,
    Kind,
)
from ortserve.gateway.configuration.option import Option, options_of
from ortserve.gateway.options.edge import BASE_PATH, MODE
from ortserve.gateway.options.model import ModelEntry
from ortserve.gateway.options.settings import OF_MODELS, Resolved, add_server_options, resolve, sections
from ortserve.runtime.errors import ConfigurationError

EXAMPLE = Path(__file__).parents[3] / "examples" / "ortserve.toml"
# Of each kind a value no option has by default: as text, and as TOML.
SAMPLES: list[tuple[Kind[Any], str, str]] = [
    (TEXT, "some text", '"some text"'),
    (PATH, "/some/path", '"/some/path"'),
    (MODEL, "some/model", '"some/model"'),
    (PORT, "81", "81"),
    (POSITIVE, "7", "7"),
    (NATURAL, "0", "0"),
    (SECONDS, "2.5", "2.5"),
    (SIZE, "3MiB", '"3MiB"'),
    (PAIRS, "a=1", "{a = 1}"),
    (WORDS, "a,b", '["a", "b"]'),
    (MODE, "600", '"600"'),
    (BASE_PATH, "/some/path", '"/some/path/"'),
    (NETWORKS, "10.0.0.0/8,::1", '["10.0.0.0/8", "::1"]'),
]


def every_option() -> Iterator[Option]:
    for section in (*sections().values(), *OF_MODELS, ModelEntry):
        yield from options_of(section)


OPTIONS = list(every_option())
FLAGGED = [one for one in OPTIONS if one.flag is not None]


def sample(option: Option) -> tuple[str, str]:
    kind = option.declared.kind
    if kind.choices:
        word = next(word for word in kind.choices if word != option.default)
        return word, f'"{word}"'
    if kind is SWITCH:
        word = "false" if option.default else "true"
        return word, word
    return next((text, toml) for one, text, toml in SAMPLES if one is kind)


def resolved(*words: str, **environment: str) -> Resolved:
    parser = argparse.ArgumentParser()
    add_server_options(parser)
    return resolve(parser.parse_args(words), environment)


def found(result: Resolved, option: Option) -> tuple[Any, str]:
    (origin,) = (one for one in result.origins[option.section] if one.option == option)
    return origin.value, origin.source


def test_names_are_said_once() -> None:
    names = [option.name for option in OPTIONS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("option", FLAGGED, ids=lambda option: option.key)
def test_all_sources_mean_the_same_and_the_later_wins(option: Option, tmp_path: Path) -> None:
    text, toml = sample(option)
    assert found(resolved(), option) == (option.default, "default")
    file = tmp_path / "c.toml"
    file.write_text(f"\n[{option.section}]\n{option.name} = {toml}\n")
    value, source = found(resolved("--config", str(file)), option)
    assert value != option.default
    assert source == f"{file}:3"
    (name, *plain) = option.environment
    assert name == f"ORTSERVE_{option.name.upper()}"
    assert found(resolved(**{name: text}), option) == (value, name)
    for bare in plain:
        assert found(resolved(**{bare: text}), option) == (value, bare)
    assert option.flag == f"--{option.name.replace('_', '-')}"
    words = [f"--no-{option.name.replace('_', '-')}" if text == "false" else option.flag]
    words += [] if option.declared.kind is SWITCH else [text]
    assert found(resolved(*words), option) == (value, option.flag)
    # And together: flags before the environment, the environment before the file.
    assert found(resolved("--config", str(file), **{name: text}), option) == (value, name)
    wrong = {name: "wrong, but never read"}
    assert found(resolved("--config", str(file), *words, **wrong), option) == (value, option.flag)


def test_a_model_s_table_goes_before_its_section_and_after_flags(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[engine]\nmax_rows = 5\nthreads = 2\n[[models]]\nmodel = "a"\nmax_rows = 3\n[[models]]\nmodel = "b"\n'
        'aliases = ["c"]\npinned = true\nprompt_cache = "none"\n'
    )
    first, second = resolved("--config", str(file)).settings.models
    assert (first.entry.model, first.engine.max_rows, first.engine.threads) == ("a", 3, 2)
    assert (second.entry.model, second.entry.aliases, second.entry.pinned) == ("b", ("c",), True)
    assert (second.engine.max_rows, second.cache.prompt_cache, first.cache.prompt_cache) == (5, "none", "prefix")
    forced = resolved("--config", str(file), "--max-rows", "9").settings
    assert [one.engine.max_rows for one in forced.models] == [9, 9]
    assert [one.entry.model for one in resolved("d", "--config", str(file)).settings.models] == ["d"]
    assert [one.engine.max_rows for one in resolved("d", ORTSERVE_CONFIG=str(file)).settings.models] == [5]
    assert [one.entry.model for one in resolved(MODEL="e f", ORTSERVE_CONFIG=str(file)).settings.models] == ["e", "f"]


def test_paths_and_models_are_found_from_the_file(tmp_path: Path) -> None:
    for name, content in (("small", "config.json"), ("pocket", "README.md")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text("{}")
    file = tmp_path / "c.toml"
    file.write_text('[access]\napi_keys = "k.jsonl"\n[[models]]\nmodel = "small"\n[[models]]\nmodel = "pocket"\n')
    settings = resolved("--config", str(file)).settings
    assert settings.access.api_keys == tmp_path / "k.jsonl"
    assert [one.entry.model for one in settings.models] == [str(tmp_path / "small"), "pocket"]
    assert resolved("--api-keys", "k.jsonl").settings.access.api_keys == Path("k.jsonl")


def test_the_example_has_every_option_and_is_read() -> None:
    settings = resolved("--config", str(EXAMPLE)).settings
    assert (settings.server.port, settings.models[0].entry.model) == (8000, "pocket")


def test_what_the_example_leaves_out_may_be_put_in(tmp_path: Path) -> None:
    text = re.sub(r"^#(\w+ =)", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE)
    file = tmp_path / "c.toml"
    file.write_text(text)
    result = resolved("--config", str(file))
    named = {(name, one.option.name): one.source for name, origins in result.origins.items() for one in origins}
    for option in OPTIONS:
        place = "models 1" if option.section == ModelEntry.SECTION else option.section
        line = named[place, option.name].removeprefix(f"{file}:")
        assert text.splitlines()[int(line) - 1].startswith(f"{option.name} = "), option.key


def test_variables_that_are_no_options_are_told() -> None:
    assert resolved(ORTSERVE_MAX_ROWS="3", ORTSERVE_CONFIG="", ORTSERVE_URL="x", HOME="/").unknown == {}
    assert resolved(ORTSERVE_MAX_ROW="3", ORTSERVE_ZZ="sk-secret").unknown == {
        "ORTSERVE_MAX_ROW": "ORTSERVE_MAX_ROWS",
        "ORTSERVE_ZZ": None,
    }


def test_what_kubernetes_says_of_a_service_called_ortserve_is_no_option() -> None:
    links = {
        "ORTSERVE_SERVICE_HOST": "10.0.0.1",
        "ORTSERVE_SERVICE_PORT": "80",
        "ORTSERVE_SERVICE_PORT_HTTP": "80",
        "ORTSERVE_PORT": "tcp://10.0.0.1:80",
        "ORTSERVE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "ORTSERVE_PORT_80_TCP_PROTO": "tcp",
        "ORTSERVE_CANARY_PORT": "tcp://10.0.0.2:80",
    }
    found = resolved(**links)
    assert (found.settings.server.port, found.unknown) == (8000, {})
    with pytest.raises(ConfigurationError, match="ORTSERVE_PORT"):
        resolved(ORTSERVE_PORT="http://10.0.0.1:80")
