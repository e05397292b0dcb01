"""Grammars by llguidance: the one file that knows it, and the one of the runtime that sees text. Knows no logits.

Every bound is on work, not on time, so that a grammar is refused or taken whatever else the machine does.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence as Values
from pathlib import Path

import llguidance
import numpy as np
import numpy.typing as npt

from ortserve.runtime.errors import RequestError
from ortserve.runtime.grammar.constraint import Constraint, Grammars, Mask, NoGrammars
from ortserve.runtime.grammar.lark_work import excessive_lark
from ortserve.runtime.grammar.schema_references import endless_reference
from ortserve.runtime.grammar.schema_work import excessive_work
from ortserve.runtime.manifest import Manifest
from ortserve.runtime.request import Grammar, GrammarKind

TOKENIZER_NAME = "tokenizer.json"
MAX_TEXT_BYTES = 64 * 1024
MAX_FORCED = 8192  # tokens without a choice at the beginning of a reply: more is an endless recursion or repetition
MAX_KEPT = 64  # compiled grammars
# Between two values of JSON: nothing, a space, or a line break with indentation. Unbounded, a model that is unsure
# writes spaces until max_tokens.
JSON_SPACE = r" |\n[ ]{0,16}"
_GAP = r"[ \t\r\n]{0,4}"  # between the text a grammar comes after and what it says


class GuidanceGrammars:
    """The grammars of one model. The tokenizer is read when the first one is compiled."""

    def __init__(self, tokenizer_json: bytes, manifest: Manifest, *, num_threads: int | None = None) -> None:
        """`tokenizer_json` is the model's tokenizer.json."""
        self._definition = tokenizer_json
        self._eos_ids = list(manifest.eos_token_ids)
        self._num_tokens = manifest.num_tokens
        self._num_words = -(-manifest.num_tokens // 32)
        self._num_threads = num_threads
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._executor: llguidance.LLExecutor | None = None
        self._compiled: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()
        self._making = threading.Lock()  # the tokenizer and `_compiled`
        self._stepping = threading.Lock()  # a matcher must not be used by two threads at once

    def compile(self, grammar: Grammar) -> Constraint:
        """Part of `Grammars`. What has been compiled lately costs microseconds."""
        tokenizer = self._ready_tokenizer()
        with self._making:
            kept = self._compiled.get(grammar)
            if kept is not None:
                self._compiled.move_to_end(grammar)
                return GuidanceConstraint(kept.deep_copy(), self._stepping)
        matcher = _checked_matcher(tokenizer, grammar)
        with self._making:
            self._compiled[grammar] = matcher
            if len(self._compiled) > MAX_KEPT:
                self._compiled.popitem(last=False)
            return GuidanceConstraint(matcher.deep_copy(), self._stepping)

    def masks(self, wanted: Values[tuple[Constraint, Values[int]]]) -> list[tuple[Mask, ...]]:
        """Part of `Grammars`. All masks are computed in parallel, without the interpreter's lock."""
        places: list[int] = []
        count = 0
        for _, guesses in wanted:
            places.append(count)
            count += len(guesses) + 1
        words = np.empty((count, self._num_words), np.int32)
        plain, guessed = [], []
        for place, (constraint, guesses) in zip(places, wanted, strict=True):
            assert isinstance(constraint, GuidanceConstraint)
            if guesses:
                guessed.append((constraint.matcher, place, list(guesses)))
            else:
                plain.append((constraint.matcher, place))
        with self._stepping:
            executor = self._ready_executor()
            width = self._num_words * 4
            if plain:
                executor.unsafe_compute_mask_ptr(plain, words.ctypes.data, width, count)
            if guessed:
                executor.unsafe_compute_mask_ptr_with_draft_token(guessed, words.ctypes.data, width, count)
            for place, (constraint, guesses) in zip(places, wanted, strict=True):
                assert isinstance(constraint, GuidanceConstraint)
                if constraint.matcher.is_error():  # it would allow the end of an unfinished reply
                    words[place : place + len(guesses) + 1] = 0
        masks = self._split(words)
        return [
            tuple(masks[place : place + len(guesses) + 1]) for place, (_, guesses) in zip(places, wanted, strict=True)
        ]

    def _split(self, words: npt.NDArray[np.int32]) -> list[Mask]:
        """llguidance allows the end-of-sequence ids where the grammar is satisfied: taken out and said apart."""
        bits = words.view(np.uint8)
        marker = self._eos_ids[0]
        can_end = (bits[:, marker // 8] >> (marker % 8) & 1).astype(bool)
        for token in self._eos_ids:
            bits[:, token // 8] &= 255 - (1 << token % 8)
        return [Mask(row, bool(ends)) for row, ends in zip(bits, can_end, strict=True)]

    def _ready_tokenizer(self) -> llguidance.LLTokenizer:
        with self._making:
            if self._tokenizer is None:
                try:
                    self._tokenizer = llguidance.LLTokenizer(
                        self._definition.decode(), n_vocab=self._num_tokens, eos_token=self._eos_ids
                    )
                except ValueError as error:
                    raise RequestError(
                        f"replies of this model cannot be constrained: its {TOKENIZER_NAME} is of a kind that"
                        f" llguidance does not read ({_one_line(str(error))})",
                        parameter="grammar",
                    ) from None
                self._definition = b""
            return self._tokenizer

    def _ready_executor(self) -> llguidance.LLExecutor:
        if self._executor is None:
            self._executor = llguidance.LLExecutor(num_threads=self._num_threads)
        return self._executor


class GuidanceConstraint:
    """One reply's matcher."""

    def __init__(self, matcher: llguidance.LLMatcher, lock: threading.Lock) -> None:
        self.matcher = matcher
        self._lock = lock

    def accept(self, token: int) -> bool:
        """Part of `Constraint`."""
        with self._lock:
            return self.matcher.consume_token(token)

    def forced(self) -> tuple[int, ...]:
        """Part of `Constraint`. In the tokens the tokenizer itself would write, as the masks have them."""
        with self._lock:
            return tuple(self.matcher.compute_ff_tokens())

    def allowed_prefix(self, tokens: Values[int]) -> int:
        """Part of `Constraint`."""
        with self._lock:
            return self.matcher.validate_tokens(list(tokens))

    @property
    def is_complete(self) -> bool:
        """Part of `Constraint`."""
        with self._lock:
            return self.matcher.is_stopped() and not self.matcher.is_error() and self.matcher.is_accepting()

    @property
    def failure(self) -> str | None:
        """Part of `Constraint`."""
        with self._lock:
            return _one_line(self.matcher.get_error()) if self.matcher.is_error() else None


def open_grammars(folder: Path, manifest: Manifest, *, num_threads: int | None) -> Grammars:
    """The grammars of an exported folder; those of a folder without a tokenizer refuse everything."""
    try:
        definition = (folder / TOKENIZER_NAME).read_bytes()
    except OSError:
        return NoGrammars(f"its folder has no {TOKENIZER_NAME}")
    if not manifest.eos_token_ids:
        return NoGrammars("it has no end-of-sequence token to end them with")
    return GuidanceGrammars(definition, manifest, num_threads=num_threads)


def _checked_matcher(tokenizer: llguidance.LLTokenizer, grammar: Grammar) -> llguidance.LLMatcher:
    """Compile and take the first mask, which is where the costly defects of a grammar show."""
    size = len(grammar.text.encode("utf-8", "surrogatepass"))
    if size > MAX_TEXT_BYTES:
        raise _refusal(f"it has {size} bytes, and at most {MAX_TEXT_BYTES} are read")
    try:
        source = _source(tokenizer, grammar)
        matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=_limits())
    except (ValueError, RecursionError) as error:
        raise _refusal(_one_line(str(error))) from None
    if not matcher.is_error():
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        bits[tokenizer.eos_tokens] = 0
        if not matcher.is_error() and not bits.any():
            raise _refusal(_endless(grammar) or "it allows no text at all")
        if len(matcher.compute_ff_tokens()) > MAX_FORCED:
            raise _refusal(f"it demands one text of more than {MAX_FORCED} tokens: there is no end to it")
    if matcher.is_error():
        raise _refusal(_endless(grammar) or _one_line(matcher.get_error()))
    return matcher


def _endless(grammar: Grammar) -> str | None:
    """A better reason than the library's, which names no keyword."""
    return endless_reference(json.loads(grammar.text)) if grammar.kind is GrammarKind.JSON_SCHEMA else None


def _source(tokenizer: llguidance.LLTokenizer, grammar: Grammar) -> str:
    """The grammar in llguidance's own JSON."""
    name = "reply"
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            schema = json.loads(grammar.text)
            if not isinstance(schema, dict):
                raise _refusal("a schema must be an object")
            _refuse_if(excessive_work(schema))
            guidance = schema.get("x-guidance")
            options = {"whitespace_pattern": JSON_SPACE, **(guidance if isinstance(guidance, dict) else {})}
            # Keywords that cannot be enforced must be refused, whatever the schema itself asks for.
            schema["x-guidance"] = {**options, "lenient": False, "coerce_one_of": False}
            body = {"name": name, "json_schema": schema}
        case GrammarKind.REGEX:
            text = json.loads(llguidance.LLMatcher.grammar_from_regex(grammar.text))["grammars"][0]["lark_grammar"]
            body = {"name": name, "lark_grammar": text}
        case GrammarKind.LARK:
            _refuse_if(excessive_lark(grammar.text))
            rules = _marker_rules(tokenizer, grammar)
            body = {"name": name, "lark_grammar": "\n".join([grammar.text, *rules])}
    if not grammar.after:
        return json.dumps({"grammars": [body]})
    rules = [f"GAP: /{_GAP}/", *_rules_of(tokenizer, grammar.after, 0)]
    start = "until_marker_0 GAP?"
    if grammar.opener:
        rules += _rules_of(tokenizer, grammar.opener, 1)
        start = f"(marker_1 {start})?"
    opening = "\n".join([f"start: {start} @{name}", *rules])
    return json.dumps({"grammars": [{"name": "opening", "lark_grammar": opening}, body]})


def _marker_rules(tokenizer: llguidance.LLTokenizer, grammar: Grammar) -> list[str]:
    return [rule for place, marker in enumerate(grammar.markers) for rule in _rules_of(tokenizer, marker, place)]


def _rules_of(tokenizer: llguidance.LLTokenizer, marker: str, place: int) -> list[str]:
    """The three rules of a marker. A special token is no part of any text, so it is named by its id."""
    spelled = "".join(character if character.isalnum() else f"\\x{{{ord(character):x}}}" for character in marker)
    ids = tokenizer.tokenize_str(marker, parse_special=True)
    rules = [
        f"without_marker_{place}: WITHOUT_{place}?",
        f"WITHOUT_{place}: /(?s:.+)/ & ~/(?s:.*){spelled}(?s:.*)/",
    ]
    if len(ids) == 1 and tokenizer.is_special_token(ids[0]):
        return [
            *rules,
            f"marker_{place}: <[{ids[0]}]>",
            f"until_marker_{place}: TEXT_{place}? marker_{place}",
            f"TEXT_{place}: /(?s:.+)/",
        ]
    text = json.dumps(marker, ensure_ascii=False)
    return [*rules, f"marker_{place}: {text}", f"until_marker_{place}[suffix={text}]: /(?s:.*)/"]


def _limits() -> llguidance.LLParserLimits:
    """Per mask a few milliseconds at the most: about 14,000 units of lexer fuel and 20,000 items each."""
    return llguidance.LLParserLimits(
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=50_000,
        verbose_errors=False,
    )


def _refuse_if(reason: str | None) -> None:
    if reason is not None:
        raise _refusal(reason)


def _refusal(reason: str) -> RequestError:
    return RequestError(f"the grammar cannot be used: {reason}", parameter="grammar")


def _one_line(text: str) -> str:
    """llguidance puts its whole state behind an explanation, and draws arrows below expressions."""
    return " ".join(text.partition("<state>")[0].split())[:500]
