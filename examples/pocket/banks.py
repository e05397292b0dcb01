"""Reads the word banks and fact tables that lie beside it; knows nothing of what they are for."""

from __future__ import annotations

from pathlib import Path


def sections(name: str) -> dict[str, str]:
    """The text below each `[title]` line of a file in this folder, by title."""
    found: dict[str, list[str]] = {}
    title = ""
    for line in Path(__file__).with_name(name).read_text(encoding="utf-8").splitlines():
        if line.startswith("[") and line.endswith("]"):
            title = line[1:-1]
        elif line:
            found.setdefault(title, []).append(line)
    return {each: "\n".join(lines) for each, lines in found.items()}
