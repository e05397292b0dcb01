"""examples/grafana.json asks for metrics that a server has."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import httpx

from ortserve.runtime.speculation.stats import DraftStats
from tests.gateway.running import running
from tests.gateway.scripted import make_driver, saying

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana.json"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hi"}]}


def test_every_metric_of_the_dashboard_exists() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for expression in expressions for name in re.findall(r"ortserve_\w+", expression)}
    assert len(asked) > 10
    drafts = DraftStats(proposed=Counter({("suffix", 1): 3}), accepted=Counter({("suffix", 1): 2}))
    driver = make_driver(saying("hi"))
    driver.draft_stats = lambda: drafts  # type: ignore[method-assign]
    with running(driver) as server:
        httpx.post(f"{server.url}/v1/chat/completions", json={})
        httpx.post(f"{server.url}/v1/chat/completions", json=CHAT)
        text = httpx.get(f"{server.url}/metrics").text
    there = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
    assert asked <= there
