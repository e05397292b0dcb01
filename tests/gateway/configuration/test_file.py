"""What is wrong in a configuration is told with its line and key; where keys are is found in any file TOML allows."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from ortserve.gateway import cli
from ortserve.gateway.configuration.lines import places
from ortserve.runtime.errors import ConfigurationError
from tests.gateway.configuration.test_options import resolved

WRONG = [
    ("[server]\nport = 70000", ":2, [server] port: 70000 is not a port between 0 and 65535"),
    ('[server]\nport = "80"', ":2, [server] port: expected a port between 0 and 65535, not a string"),
    ("[server]\n\nport = true", ":3, [server] port: expected a port between 0 and 65535, not a boolean"),
    ("[server]\nquiet = 1", ":2, [server] quiet: expected true or false, not an integer"),
    ("[server]\nhots = 'x'", ":2, [server] hots: no such key; the nearest is host"),
    ("[server]\nmax_rows = 3", ":2, [server] max_rows: no such key; it belongs in [engine]"),
    ("\n[sever]\nhost = 'x'", ":2: no such table: [sever]; the nearest is server"),
    ("port = 3", ":1: port stands in no table: put it below one, such as [server]"),
    ("[models]\nmodel = 'x'", ":1: models are several: write [[models]]"),
    ("[[server]]\nport = 3", ":1: only [[models]] may be repeated: write [server]"),
    ("[[models]]\nmodel='a'\n[[models]]\nmodle='b'", ":4, [[models]] modle: no such key; the nearest is model"),
    ("[[models]]\naliases = [1]", ":2, [[models]] aliases: expected words"),
    ("[engine]\nkv_memory = 'lots'", ":2, [engine] kv_memory: 'lots' is not a size such as 512MB or 2GiB"),
    ("[engine]\nmax_step_ms = inf", ":2, [engine] max_step_ms: inf is not a number of at least 0"),
    ("[engine]\ngeneration_defaults = 'mine'", ":2, [engine] generation_defaults: 'mine' is not one of model, openai"),
    ("[access]\napi_key = 12345", ":2, [access] api_key: expected a string, not an integer"),
    ("[cache]\nprompt_cache_option = {a = []}", ":2, [cache] prompt_cache_option: expected of the form KEY=VALUE"),
    ("[server]\nport = 1\nport = 2", ":3, port: not TOML: cannot overwrite a value"),
    ("[access]\napi_key = sk-secret", ":2, api_key: not TOML: invalid value"),
    ("[server\nport = 1", ":1, [server: not TOML: expected ']' at the end of a table declaration"),
    ("[server]\nhost = 'x", ":2, host: not TOML: "),
    ("[server]\nhost = '''x", ":2, host: not TOML: "),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_what_is_wrong_is_told_with_line_and_key(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        resolved("--config", str(file))
    assert str(caught.value).startswith(f"{file}{said}")
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"[server]\nhost = '\xff'", ":2: not UTF-8"), (b" " * (2**20 + 1), " is larger than"), (None, " cannot be read")],
)
def test_files_that_are_none(data: bytes | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        resolved("--config", str(file))
    assert str(caught.value).startswith(f"{file}{said}")


def test_a_wrong_variable_is_named_and_a_secret_not_shown() -> None:
    with pytest.raises(ConfigurationError, match=r"^ORTSERVE_MAX_ROWS: 'x' is not a whole number above 0$"):
        resolved(ORTSERVE_MAX_ROWS="x")
    with pytest.raises(ConfigurationError, match=r"^ORTSERVE_QUIET: 'maybe' is not true or false$"):
        resolved(ORTSERVE_QUIET="maybe")
    assert resolved(ORTSERVE_QUIET="off", ORTSERVE_MAX_ROWS="").settings.server.quiet is False


HARD = '''# a comment with = and [brackets]
top = 1
[a] # [not.this]
"quoted # key" = "# no comment"
x.y = """
[not.a.table]
z = "1"
"""
list = [
  # ] comment
  "]", [1, 2],
  {k = "[" },
]
'single "quoted"' = \'\'\'
w = 2\'\'\'
[[m]]
one = 1
[m.inner]
two = 2
[[m]]
one = """a "quoted" end\\""""""
three = {p = 1,
} # TOML 1.0 has no line breaks there
'''


def test_keys_are_found_wherever_toml_lets_them_stand() -> None:
    text = HARD.replace("three = {p = 1,\n}", "three = {p = 1}")
    tomllib.loads(text)
    assert [(place.table, place.keys, place.line) for place in places(text)] == [
        ((), ("top",), 2),
        (("a",), (), 3),
        (("a",), ("quoted # key",), 4),
        (("a",), ("x", "y"), 5),
        (("a",), ("list",), 9),
        (("a",), ('single "quoted"',), 14),
        (("m", 0), (), 16),
        (("m", 0), ("one",), 17),
        (("m", 0, "inner"), (), 18),
        (("m", 0, "inner"), ("two",), 19),
        (("m", 1), (), 20),
        (("m", 1), ("one",), 21),
        (("m", 1), ("three",), 22),
    ]


def test_a_large_file_is_read_in_time(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[[models]]\naliases = [" + '"a",\n' * 150_000 + "]\nname = 3\n")
    with pytest.raises(ConfigurationError, match=r":150003, \[\[models\]\] name: expected a string"):
        resolved("--config", str(file))


def test_the_verb_prints_the_whole_and_its_output_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        '[access]\nadmin_key = "sk-secret"\n[drafter]\ndrafter_option = {a = 1}\n[[models]]\nname = "ö\\n"\n'
    )
    assert cli.main(["config", "--config", str(file), "--port", "9"]) == 0
    out = capsys.readouterr().out
    read = tomllib.loads(out)
    assert read["server"]["port"] == 9
    assert read["access"] == {"admin_key": "********", "admin_metrics": False}
    assert read["models"] == [{"name": "ö\n"}]
    assert [line.split("#")[-1].strip() for line in out.splitlines() if line.startswith("port")] == ["--port"]
    assert f"# {file}:2" in out
    again = tmp_path / "again.toml"
    again.write_text(out)
    assert cli.main(["config", "--config", str(again), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    source = f"{again}:{line_of(out, 'drafter_option')}"
    assert printed["drafter"]["drafter_option"] == {"value": {"a": "1"}, "source": source}
    assert read["server"] == {name: one["value"] for name, one in printed["server"].items() if one["value"] is not None}


def line_of(text: str, key: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith(key))


def test_a_wrong_file_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[server]\nprot = 1\n")
    for verb in ("config", "serve"):
        assert cli.main([verb, "--config", str(file)]) == 2
        assert capsys.readouterr().err == f"ortserve: {file}:2, [server] prot: no such key; the nearest is port\n"
