"""Chat templates of their own files travel with the model: exported, widened, and part of what a checkpoint is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ortserve.export.first_use import source_identity
from ortserve.export.publish import export_checkpoint
from ortserve.export.sources.checkpoint import HUB_PATTERNS, open_checkpoint
from ortserve.export.toys.shapes import SHAPES
from ortserve.export.toys.toy import write_toy_checkpoint
from ortserve.export.toys.widen import widen_checkpoint
from ortserve.gateway.prompts.template_files import load_chat_template

FOLDER = "additional_chat_templates"
DEFAULT = "{% for message in messages %}{{ message.content }}{% endfor %}"
TOOL_USE = "{{ tools|length }} tools"
MESSAGES = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_toy_checkpoint(SHAPES["tiny"], tmp_path / "toy")
    (tmp_path / "toy" / "chat_template.jinja").write_text(DEFAULT)
    (tmp_path / "toy" / FOLDER).mkdir()
    (tmp_path / "toy" / FOLDER / "tool_use.jinja").write_text(TOOL_USE)
    (tmp_path / "toy" / FOLDER / "rag.jinja").write_text("rag")
    (tmp_path / "toy" / FOLDER / "notes.txt").write_text("not a template")
    return tmp_path / "toy"


def copied(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in (folder / FOLDER).iterdir()}


def test_an_exported_model_has_them(source: Path, tmp_path: Path) -> None:
    export_checkpoint(source, tmp_path / "out", precision="fp32", verify=False)
    assert copied(tmp_path / "out") == {"tool_use.jinja": TOOL_USE, "rag.jinja": "rag"}
    template = load_chat_template(tmp_path / "out")
    assert template is not None
    assert template.render(MESSAGES, add_generation_prompt=True, options={}) == "hi"
    assert template.render(MESSAGES, add_generation_prompt=True, options={}, tools=[TOOL]) == "1 tools"


def test_a_widened_checkpoint_has_them(source: Path, tmp_path: Path) -> None:
    widen_checkpoint(source, tmp_path / "wide", SHAPES["tiny"])
    assert copied(tmp_path / "wide") == {"tool_use.jinja": TOOL_USE, "rag.jinja": "rag"}
    assert (tmp_path / "wide" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_changed_one_makes_another_checkpoint(source: Path) -> None:
    def identity() -> str:
        return source_identity(open_checkpoint(source))

    first = identity()
    (source / FOLDER / "notes.txt").write_text("changed")
    assert identity() == first
    (source / FOLDER / "tool_use.jinja").write_text(f"{TOOL_USE}!")
    second = identity()
    (source / FOLDER / "tool_use.jinja").rename(source / FOLDER / "tools.jinja")
    assert len({first, second, identity()}) == 3


def test_they_are_downloaded() -> None:
    assert any(Path(f"{FOLDER}/tool_use.jinja").match(pattern) for pattern in HUB_PATTERNS)
