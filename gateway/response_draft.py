"""One response while it is made: what the model has said, and its object at any time. Knows no event and no store."""

from __future__ import annotations

import time

import msgspec

from ortserve.gateway.errors import Problem
from ortserve.gateway.generation import ChoicePiece, FinishWord, TokenUsage
from ortserve.gateway.ids import new_id
from ortserve.gateway.pieces import ShownToken
from ortserve.gateway.schema.response_replies import (
    IncompleteDetails,
    ItemStatus,
    OutputMessage,
    OutputText,
    RequestEcho,
    ResponseReply,
    ResponseStatus,
    response_error,
    response_usage,
    text_logprobs,
)


class ResponseDraft:
    """The one mutable record of a response. Ids never change, so that events, reply and store agree."""

    def __init__(self, echo: RequestEcho, *, model: str, created_at: int) -> None:
        self._texts: list[str] = []
        self._tokens: list[ShownToken] = []
        self._finish: FinishWord | None = None
        self.message_id: str | None = None  # of the message, once it has begun
        self.reply = ResponseReply(
            id=new_id("resp"),
            created_at=created_at,
            model=model,
            status="queued" if echo.background else "in_progress",
            **msgspec.structs.asdict(echo),
        )

    @property
    def text(self) -> str:
        """What has been said so far."""
        return "".join(self._texts)

    @property
    def item_status(self) -> ItemStatus:
        """Of the message."""
        if self._finish is None:
            return "in_progress"
        return "completed" if self._finish == "stop" else "incomplete"

    def run(self) -> ResponseReply:
        """It is being worked on."""
        self.reply = msgspec.structs.replace(self.reply, status="in_progress")
        return self.reply

    def begin_message(self) -> str:
        """The id of the message."""
        if self.message_id is None:
            self.message_id = new_id("msg")
        return self.message_id

    def add(self, piece: ChoicePiece) -> None:
        """Take over what one engine step said."""
        self.begin_message()
        if piece.text:
            self._texts.append(piece.text)
        self._tokens.extend(piece.tokens)
        if piece.finish is not None:
            self._finish = piece.finish

    def part(self) -> OutputText:
        """The text with its log-probabilities."""
        return OutputText(self.text, text_logprobs(tuple(self._tokens)))

    def message(self, status: ItemStatus) -> OutputMessage:
        """The message as far as it goes."""
        return OutputMessage(self.begin_message(), status, [self.part()])

    def complete(self, usage: TokenUsage) -> ResponseReply:
        """It has ended as the model or the limit wanted."""
        is_whole = self._finish == "stop"
        return self._end(
            "completed" if is_whole else "incomplete",
            output=[self.message(self.item_status)],
            usage=response_usage(usage),
            completed_at=int(time.time()) if is_whole else None,
            incomplete_details=None if is_whole else IncompleteDetails("max_output_tokens"),
        )

    def fail(self, problem: Problem) -> ResponseReply:
        """It has ended for a reason of ours."""
        return self._end("failed", output=self._partial(), error=response_error(problem))

    def cancel(self, usage: TokenUsage) -> ResponseReply:
        """Its owner wants no more of it."""
        return self._end("cancelled", output=self._partial(), usage=response_usage(usage))

    def _partial(self) -> list[OutputMessage]:
        return [] if self.message_id is None else [self.message("incomplete")]

    def _end(self, status: ResponseStatus, **changes: object) -> ResponseReply:
        self.reply = msgspec.structs.replace(self.reply, status=status, **changes)
        return self.reply
