"""`ortserve cache`, `ortserve plugins`, and the options of `ortserve serve` that choose a cache."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ortserve.gateway import cli
from ortserve.gateway.commands.admin_client import seconds_text, size_text
from ortserve.gateway.http.server import Limits
from ortserve.gateway.options.cache import plugin_options
from ortserve.gateway.served.service import open_service
from ortserve.plugins import registry
from ortserve.runtime.config import EngineConfig
from ortserve.runtime.errors import ConfigurationError
from ortserve.runtime.opening import open_driver
from tests.gateway.running import running, serving
from tests.gateway.scripted import make_driver, saying
from tests.gateway.synthetic import write_synthetic_text_model
from tests.gateway.test_serve import arguments_of, process, read_greeting, settings_of
from tests.waiting import PATIENCE_S


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = write_synthetic_text_model(tmp_path_factory.mktemp("synthetic"))
    driver = open_driver(folder, EngineConfig(max_rows=4, num_threads=1, prompt_cache="prefix"))
    limits = Limits(drain_s=1.0)
    with serving(lambda: open_service(folder, driver), driver.close, limits, admin_key="b\u00f6ss") as (port, _):
        yield f"http://127.0.0.1:{port}"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    status = cli.main(words)
    output = capsys.readouterr()
    return status, output.out, output.err


def test_a_cache_is_warmed_listed_measured_and_cleared(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORTSERVE_ADMIN_KEY", "b\u00f6ss")
    monkeypatch.setenv("ORTSERVE_URL", f"{url}/v1/")
    prefixes = tmp_path / "prefixes.jsonl"
    prefixes.write_text(
        json.dumps({"prompt": "a" * 40}) + "\n\n" + json.dumps({"prompt": "b" * 20, "ttl": "5m"}) + "\n"
    )
    status, out, _ = run(capsys, "cache", "warm", str(prefixes))
    assert (status, out) == (
        0,
        "40 tokens, 0 of them cached before, 40 kept\n20 tokens, 0 of them cached before, 20 kept\n",
    )

    status, out, _ = run(capsys, "cache", "ls")
    lines = out.splitlines()
    assert lines[0].startswith("block ")
    assert any(" min" in line for line in lines)  # a little less than 5
    assert any("3650 days" in line for line in lines)
    assert "more: raise --limit" in run(capsys, "cache", "ls", "--limit", "1")[1]
    listed = json.loads(run(capsys, "cache", "ls", "--json")[1])
    assert sum(entry["num_tokens"] for entry in listed["data"]) == 60

    body = {"model": "synthetic", "prompt": "a" * 40 + "c", "max_tokens": 1}
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 200
    status, out, _ = run(capsys, "cache", "stats")
    assert status == 0
    assert "reused tokens  40 of " in out
    assert json.loads(run(capsys, "cache", "stats", "--json")[1])["stats"]["num_hit_tokens"] == 40

    assert run(capsys, "cache", "clear", "--of-key", "nobody")[1] == "0 blocks forgotten\n"
    assert int(run(capsys, "cache", "clear")[1].split()[0]) >= 2
    assert json.loads(run(capsys, "cache", "ls", "--json")[1])["num_entries"] == 0


def test_failures_of_the_client_are_one_line(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(make_driver(saying("x"))) as closed:
        cases = [
            (("stats",), "no admin key"),
            (("stats", "--url", url, "--admin-key", "wrong"), "refused the admin key"),
            (("stats", "--url", closed.url, "--admin-key", "x"), "start it with --admin-key"),
            (("stats", "--url", "http://127.0.0.1:9", "--admin-key", "x"), "check --url"),
            (("stats", "--url", "http://[", "--admin-key", "x"), "check --url"),
            (("warm", str(tmp_path / "missing"), "--url", url, "--admin-key", "b\u00f6ss"), "cannot be read"),
        ]
        for words, reason in cases:
            status, out, err = run(capsys, "cache", *words)
            assert (status, out) == (2, "")
            assert reason in err
            assert err.count("\n") == 1
    bad = tmp_path / "bad.jsonl"
    bad.write_text("{}\n")
    assert "Give one of" in run(capsys, "cache", "warm", str(bad), "--url", url, "--admin-key", "b\u00f6ss")[2]


def test_plugins_are_listed_without_being_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "broken_cache-7.1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-cache\nVersion: 7.1\n")
    (folder / "entry_points.txt").write_text(
        f"[{registry.PROMPT_CACHES}]\nbroken = no_such_module:Cache\nprefix = no_such_module:Other\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    status, out, _ = run(capsys, "plugins")
    assert status == 0
    assert "broken" in out
    assert "from broken-cache 7.1" in out
    assert out.count("claimed twice: uninstall one of them") == 2
    plugins = json.loads(run(capsys, "plugins", "--json")[1])["plugins"]
    assert {plugin["name"] for plugin in plugins} >= {"none", "prefix", "ngram", "broken"}
    assert [plugin["name"] for plugin in plugins if plugin["is_default"]].count(EngineConfig().prompt_cache) >= 1
    assert "no_such_module" not in sys.modules


def options(*words: str) -> dict[str, str]:
    return dict(plugin_options(settings_of(*words).defaults.cache))


def test_options_become_those_of_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--prompt-cache", "prefix", "--prompt-cache-path", "/c", "--prompt-cache-disk", "2GiB")
    assert options(*words) == {"path": "/c", "max_bytes": str(2**31)}
    assert options(*words, "--prompt-cache-option", "pinned_share=0.1", "--prompt-cache-option", "a==") == {
        "path": "/c", "max_bytes": str(2**31), "pinned_share": "0.1", "a": "=",
    }  # fmt: skip
    assert options("--prompt-cache", "none", "--prompt-cache-path", "/c") == {}
    monkeypatch.setenv("ORTSERVE_PROMPT_CACHE", "prefix")
    monkeypatch.setenv("ORTSERVE_PROMPT_CACHE_MEMORY", "1MiB")
    monkeypatch.setenv("ORTSERVE_PROMPT_CACHE_OPTION", "a=1, b=2")
    cache = settings_of().models[0].cache
    assert (cache.prompt_cache, cache.prompt_cache_memory) == ("prefix", 2**20)
    assert dict(plugin_options(cache)) == {"a": "1", "b": "2"}
    assert options("--prompt-cache-option", "c=3") == {"c": "3"}
    monkeypatch.setenv("ORTSERVE_PROMPT_CACHE_OPTION", "a")
    with pytest.raises(ConfigurationError, match="ORTSERVE_PROMPT_CACHE_OPTION"):
        options()


def test_a_bound_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="name that folder too"):
        options("--prompt-cache", "prefix", "--prompt-cache-disk", "1GiB")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--prompt-cache", "nothing-such"), "installed are none, prefix"),
        (("--prompt-cache", "prefix", "--prompt-cache-option", "speed=9"), "no option speed"),
        (("--warm", "/no/such/file"), "cannot be read"),
    ],
)
def test_what_prevents_serving_is_one_line(
    words: tuple[str, ...], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_synthetic_text_model(tmp_path)
    status, out, err = run(capsys, "serve", str(folder), "--port", "0", "--log-level", "error", *words)
    assert (status, out) == (2, "")
    assert reason in err
    assert err.count("\n") == 1


def test_a_server_with_every_option(tmp_path: Path) -> None:
    folder = write_synthetic_text_model(tmp_path / "model")
    warm = tmp_path / "warm.jsonl"
    warm.write_text(json.dumps({"messages": [{"role": "system", "content": "RULES RULES RULES"}]}))
    words = ("--port", "0", "--threads", "1", "--prompt-cache", "prefix", "--prompt-cache-memory", "8MiB")
    secrets = ("--api-key", "user-secret", "--admin-key", "boss-secret", "--warm", str(warm))
    with process("serve", str(folder), *words, *secrets) as child:
        match = re.search(r"http://127\.0\.0\.1:\d+", read_greeting(child))
        assert match is not None
        body = {
            "model": "synthetic",
            "messages": [{"role": "system", "content": "RULES RULES RULES"}, {"role": "user", "content": "abc"}],
            "max_tokens": 2,
            "prompt_cache_key": "affinity-secret",
            "cache_salt": None,
        }
        headers = {"authorization": "Bearer user-secret"}
        replies = [
            httpx.post(f"{match[0]}/v1/chat/completions", json={**body, "cache_salt": salt}, headers=headers).json()
            for salt in (None, "salt-secret")
        ]
        counts = [reply["usage"]["prompt_tokens_details"]["cached_tokens"] for reply in replies]
        assert counts == [len("RULES RULES RULES"), 0]
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    lines = [json.loads(line) for line in stderr.splitlines()]
    (warmed,) = (line for line in lines if line["event"] == "warmed")
    assert warmed["pinned_tokens"] == warmed["tokens"] == len("RULES RULES RULES")
    assert [line["cached_tokens"] for line in lines if line["event"] == "request"] == counts
    assert "secret" not in stderr
    assert "RULES" not in stderr


@pytest.mark.parametrize("text", ["x", "=x", ""])
def test_an_option_is_a_key_and_a_value(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments_of("serve", "--prompt-cache-option", text)
    assert "KEY=VALUE" in capsys.readouterr().err


def test_amounts_are_short() -> None:
    assert [size_text(num) for num in (0, 1000, 1536, 5 * 2**20, 3 * 2**30)] == [
        "0 B",
        "1000 B",
        "1.5 KiB",
        "5 MiB",
        "3.0 GiB",
    ]
    assert [seconds_text(num) for num in (0.5, 90, 300, 7200, 864_000)] == ["0.5 s", "90 s", "5 min", "2 h", "10 days"]
