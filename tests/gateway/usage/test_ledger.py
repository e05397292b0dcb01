"""The ledger: what each kind of request leaves in it, what it costs, and how it is summed up."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from ortserve.gateway.access.access import Access
from ortserve.gateway.access.grant import digest_of
from ortserve.gateway.cli import main
from ortserve.gateway.usage.ledger import Ledger, LedgerError, read_ledger
from ortserve.gateway.usage.prices import Price, PricesError, read_prices
from tests.gateway.access.test_access import CHAT, MESSAGE, bearer
from tests.gateway.access.test_key_file import file_of, line
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying

PRICE = Price(prompt=2.0, cached=0.5, completion=10.0)


def test_every_kind_of_request_is_accounted_for_once(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    ledger = Ledger(path, {"scripted": PRICE})
    access = Access(file=file_of(tmp_path, line("one", tenant="t"), line("two", requests_per_minute=3)))
    with (
        running(make_driver(saying("hello")), access=access, ledger=ledger) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        usage = http.post("/v1/chat/completions", json=CHAT, headers=bearer("one")).json()["usage"]
        http.post("/v1/chat/completions", json={**CHAT, "stream": True}, headers=bearer("one"))
        http.post("/v1/messages", json=MESSAGE, headers=bearer("two"))
        http.post("/v1/responses", json={"input": "x", "background": True}, headers=bearer("two"))
        http.post("/v1/chat/completions", json={"model": "scripted"}, headers=bearer("two"))  # refused: used nothing
        http.get("/v1/models", headers=bearer("two"))
    ledger.close()
    lines, num_broken = read_ledger(path)
    assert num_broken == 0
    assert [one.key for one in lines] == ["one", "one", "two", "two"]
    assert {one.model for one in lines} == {"scripted"}
    first = lines[0]
    assert (first.prompt, first.completion) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert first.key_digest == digest_of(b"one").hex()[:16]
    assert first.cost == PRICE.cost(num_prompt=first.prompt, num_cached=0, num_completion=first.completion)
    assert (lines[1].prompt, lines[1].completion) == (first.prompt, first.completion)
    assert all(one.completion > 0 and one.seconds > 0 for one in lines)
    assert b"hello" not in path.read_bytes()


def test_cached_tokens_have_their_own_price() -> None:
    assert PRICE.cost(num_prompt=1_000_000, num_cached=400_000, num_completion=100_000) == pytest.approx(2.4)
    assert Price(prompt=2.0).cost(num_prompt=10, num_cached=5, num_completion=9) == pytest.approx(20e-6)


def test_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "usage.jsonl"
    row = {"time": 86400.0, "request_id": "r", "key_digest": "", "tenant": "t", "prompt": 10, "cached": 4,
           "completion": 5, "accepted": 2, "seconds": 0.5, "outcome": "done"}  # fmt: skip
    rows = [row | {"key": "a", "model": "m", "cost": 1.0}] * 2 + [row | {"key": "b", "model": "m"}]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + '{"torn')
    assert main(["usage", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_broken"] == 1
    first, second = report["data"]
    assert first == {"names": ["a", "m"], "requests": 2, "prompt": 20, "cached": 8, "completion": 10, "accepted": 4,
                     "seconds": 1.0, "cost": 2.0, "unpriced": 0}  # fmt: skip
    assert (second["names"], second["unpriced"]) == (["b", "m"], 1)
    assert main(["usage", str(path), "--by", "day"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[1].split()[:3] == ["1970-01-02", "3", "30"]
    assert "1 lines" in shown.err
    assert main(["usage", str(tmp_path / "none")]) == 2


def test_a_torn_last_line_takes_no_other_with_it(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(b'{"time":1.5,"request_id":"req_1","ke')
    for _ in range(2):  # the second time nothing is torn
        ledger = Ledger(path, {})
        with running(make_driver(saying("hello")), ledger=ledger) as server:
            assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200
        ledger.close()
    lines, num_broken = read_ledger(path)
    assert (len(lines), num_broken, path.read_bytes().count(b"\n")) == (2, 1, 3)


def test_a_disk_that_is_full_to_the_end_is_told_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "usage.jsonl"
    path.symlink_to("/dev/full")
    dead: list[object] = []
    monkeypatch.setattr(threading, "excepthook", dead.append)
    ledger = Ledger(path, {})
    with capture_logs() as logged:
        with running(make_driver(saying("hello")), ledger=ledger) as server:
            assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200
        ledger.close()
    assert not dead
    assert [one["event"] for one in logged if "No space left" in one.get("error", "")] == ["usage_not_written"] * 2


def test_what_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be written"):
        Ledger(tmp_path / "none" / "file", {})
    path = tmp_path / "prices.json"
    path.write_text('{"m": {"prompt": -1}}')
    with pytest.raises(PricesError, match="prompt"):
        read_prices(path)
    with pytest.raises(PricesError, match="cannot be read"):
        read_prices(tmp_path / "none")
