"""A server refuses what nothing proves unless it is told otherwise, and says which of its models that is."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import httpx
import pytest

from ortserve.gateway.commands import chat as chat_client
from ortserve.gateway.commands import serve
from ortserve.runtime.errors import UnverifiedError
from ortserve.runtime.report import REPORT_NAME
from tests.gateway.encoders import write_encoder
from tests.gateway.synthetic import write_synthetic_text_model
from tests.gateway.test_serve import arguments_of, no_model, process, read_greeting
from tests.waiting import PATIENCE_S


@pytest.fixture
def unproved(tmp_path: Path) -> Path:
    folder = write_synthetic_text_model(tmp_path / "unproved")
    report = json.loads((folder / REPORT_NAME).read_text())
    changed = {**report, "verified": False, "findings": ["mean KL at decode 0.5 (limit 0.03)"]}
    (folder / REPORT_NAME).write_text(json.dumps(changed))
    return folder


def test_what_a_report_does_not_prove_is_refused(unproved: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    (encoder / REPORT_NAME).unlink()
    for folder, reason in ((unproved, "mean KL at decode 0.5"), (encoder, "has no report.json")):
        with pytest.raises(UnverifiedError, match=rf"is unverified \(.*{reason}.*--allow-unverified") as caught:
            serve.run(arguments_of("serve", "--log-level", "error", "--port", "0", str(folder)), no_model)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnverifiedError, match="--allow-unverified"):
        chat_client.run(arguments_of("chat", str(unproved)), no_model)


def test_a_changed_template_is_refused(tmp_path: Path) -> None:
    folder = write_synthetic_text_model(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(UnverifiedError, match=r"chat_template\.jinja has 14 bytes"):
        serve.run(arguments_of("serve", "--log-level", "error", "--port", "0", str(folder)), no_model)


def test_what_runs_all_the_same_is_named(unproved: Path, tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    words = ("serve", str(unproved), str(encoder), "--port", "0", "--threads", "1", "--encoder-threads", "1")
    with process(*words, ORTSERVE_ALLOW_UNVERIFIED="1") as child:
        greeting = read_greeting(child)
        match = re.search(r"served on (http://\S+)", greeting)
        assert match is not None
        assert re.match(r"synthetic \(fp32, context \d+, UNVERIFIED\) and averages \(fp32, embeddings", greeting)
        models = {one["id"]: one for one in httpx.get(f"{match[1]}/models").json()["data"]}
        assert {name: one["verified"] for name, one in models.items()} == {"synthetic": False, "averages": True}
        child.send_signal(signal.SIGTERM)
        _, stderr = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 0, stderr
    (line,) = [line for line in map(json.loads, stderr.splitlines()) if line["event"] == "unverified"]
    assert line["model"] == "synthetic"
    assert line["reasons"] == ["mean KL at decode 0.5 (limit 0.03)"]
