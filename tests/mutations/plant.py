"""Breaks one module as it is imported, or one page as it is read. Touches no file, knows no test.

Only this process sees the break: tests that start another one do not.
"""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any


def plant(file: Path, find: str, replacement: str) -> None:
    """Raise `ValueError` unless the file has the text exactly once: else the break says nothing any more."""
    text = file.read_text(encoding="utf-8")
    if text.count(find) != 1:
        raise ValueError(f"{file} has the text to be broken {text.count(find)} times: {find!r}")
    (_break_module if file.suffix == ".py" else _break_page)(file.resolve(), text.replace(find, replacement))


def _break_module(file: Path, broken: str) -> None:
    get_code = SourceFileLoader.get_code

    def get_broken(self: SourceFileLoader, name: str) -> CodeType | None:
        path = self.get_filename(name)
        if Path(path).resolve() != file:
            return get_code(self, name)  # a bytecode file of the whole source may be there: not for the broken one
        code: Any = compile(broken, path, "exec", dont_inherit=True)
        found: CodeType = code
        return found

    SourceFileLoader.get_code = get_broken  # type: ignore[method-assign, assignment]


def _break_page(file: Path, broken: str) -> None:
    """For who reads it by `Path.read_text`."""
    read_text = Path.read_text

    def read_broken(self: Path, *arguments: Any, **options: Any) -> str:
        return broken if self.resolve() == file else read_text(self, *arguments, **options)

    Path.read_text = read_broken  # type: ignore[method-assign]
