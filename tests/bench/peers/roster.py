"""Who takes part in a comparison: each side's model, command and settings, as its documentation recommends them.

Knows how sides are started, not what they are asked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from tests.bench.measurement import HOST, command
from tests.bench.peers.models import NotMadeError, Tools
from tests.bench.peers.sides import Server, Side, SideError, Worker

ROWS, CONTEXT, THREADS = 16, 2048, 2
MODEL = "model"
LLAMA = (
    "-m {form} -np 16 -c 32768 -t 2 -tb 2 -b 2048 -ub 512 -fa on --cont-batching --jinja --no-webui --offline"
    " --host 127.0.0.1 --port {port} --alias model"
)  # 16 slots of 2,048 tokens each; the prompt cache of slots and host memory are on by default
OURS = (
    f"serve {{form}} --max-rows {ROWS} --max-context {CONTEXT} --threads {THREADS} --allow-unverified --quiet"
    f" --log-level warning --served-name {MODEL} --host {HOST} --port {{port}}"
)


@dataclass(frozen=True, slots=True)
class Entrant:
    """One side: a library, the form of the model it runs, and its options."""

    name: str
    library: str  # ours, llama.cpp, openvino, genai
    form: str
    bits: int
    options: str = ""
    drafts: str = ""  # options that turn on guesses from the text alone; empty: it has none
    small: str = ""  # options that turn on guesses of a small model, whose form is `{small}`
    small_form: str = ""

    def guessing(self, guesses: str, tools: Tools) -> str:
        """Options for `drafts`, `small` or, empty, none. Raises `NotMadeError` and `SideError`."""
        if not guesses:
            return ""
        words = {"drafts": self.drafts, "small": self.small}[guesses]
        if not words:
            raise SideError("it has no such guesses on the CPU")
        return words.replace("{small}", str(tools.make(self.small_form)) if self.small_form else "")

    @property
    def over_http(self) -> bool:
        return self.library in ("ours", "llama.cpp")


LOOKUP = "--spec-type ngram-simple --spec-ngram-simple-size-n 4 --spec-ngram-simple-size-m 8"
_OURS = {
    "drafts": "--drafter combined",
    "small": "--drafter combined --drafter-option sources=prediction,form,suffix,model --draft-model pocket-draft",
}
_LLAMA = {"drafts": LOOKUP, "small": "--spec-type draft-simple -md {small} -ngld 0", "small_form": "gguf-small.gguf"}
_OPENVINO = {"drafts": "--guesses", "small": "--small {small}", "small_form": "openvino-small"}
ROSTER: Mapping[str, Entrant] = {
    entrant.name: entrant
    for entrant in (
        Entrant("ours-int8", "ours", "ours-int8", 8, **_OURS),
        Entrant("llama-q8_0", "llama.cpp", "gguf-q8_0.gguf", 8, **_LLAMA),
        Entrant("openvino-int8", "openvino", "openvino-int8", 8, **_OPENVINO),
        Entrant("genai-int8", "genai", "genai-int8", 8),
        Entrant("ours-int4", "ours", "ours-int4-128", 4, **_OURS),
        Entrant("ours-int4-32", "ours", "ours-int4-32", 4, **_OURS),
        Entrant("llama-q4_0", "llama.cpp", "gguf-q4_0.gguf", 4, **_LLAMA),
        Entrant("llama-q4_k_m", "llama.cpp", "gguf-q4_k_m.gguf", 4, **_LLAMA),
        Entrant("openvino-int4", "openvino", "openvino-int4", 4, **_OPENVINO),
        Entrant("genai-int4", "genai", "genai-int4", 4),
    )
}


def start(entrant: Entrant, tools: Tools, python: Path | None, extra: str, *, guesses: str) -> Side:
    """The running side, with guesses (`drafts`, `small`) or without. Raises `NotMadeError` and `SideError`."""
    form = tools.make(entrant.form)
    words = f"{entrant.options} {entrant.guessing(guesses, tools)} {extra}".split()
    if entrant.library == "ours":
        return Server([*command(*OURS.replace("{form}", str(form)).split()), *words], dict(os.environ), MODEL)
    if entrant.library == "llama.cpp":
        if tools.llama is None or not (tools.llama / "llama-server").exists():
            raise NotMadeError("llama-server was not named, or is not there")
        line = [str(tools.llama / "llama-server"), *LLAMA.replace("{form}", str(form)).split()]
        return Server([*line, *words], tools.environment, MODEL)
    if python is None or not python.exists():
        raise NotMadeError(f"no interpreter with {entrant.library} was named")
    line = [str(python), entrant.library, str(form), "--rows", str(ROWS), "--threads", str(THREADS)]
    tokenizer = Tokenizer.from_file(str(tools.checkpoint / "tokenizer.json"))
    return Worker([*line, *words], tools.environment, tokenizer)
