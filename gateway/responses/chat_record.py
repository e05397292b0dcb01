"""Keeping one chat completion: what is written of it, whole or streamed. Knows no table and no frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from ortserve.gateway.answers.chat import ChatReply
from ortserve.gateway.errors import Problem
from ortserve.gateway.replies.choice import ChoicePiece
from ortserve.gateway.replies.generation import TokenUsage, WholeChoice, joined
from ortserve.gateway.store.completions import Completions
from ortserve.gateway.streams.sse import ChunkWriter

ReplyOf = Callable[[Sequence[WholeChoice], TokenUsage], ChatReply]


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """Where one completion is kept; `messages` is None when its caller does not want it to be."""

    completions: Completions
    tenant: bytes
    messages: bytes | None

    async def add(self, reply: ChatReply) -> None:
        """Keep one that has ended. Raises `ApiError` (503) when there is no room."""
        if self.messages is not None:
            body = msgspec.json.encode(reply)
            await self.completions.add(self.tenant, reply.id, reply.created, body, self.messages)


class RecordedChunks:
    """The frames of another writer, and the reply that they make together."""

    def __init__(
        self,
        writer: ChunkWriter,
        record: ChatRecord,
        reply_of: Callable[[Sequence[WholeChoice], TokenUsage], ChatReply],
    ) -> None:
        self._writer = writer
        self._record = record
        self._reply_of = reply_of
        self._pieces: list[list[ChoicePiece]] = []
        self._usage: TokenUsage | None = None  # once it has ended well

    @property
    def include_usage(self) -> bool:
        """True: what is kept has counts, whether or not the frames show them."""
        return True

    @property
    def ping(self) -> bytes:
        """The writer's."""
        return self._writer.ping

    def begin(self, num_choices: int) -> bytes:
        """The writer's."""
        self._pieces = [[] for _ in range(num_choices)]
        return self._writer.begin(num_choices)

    def piece(self, piece: ChoicePiece) -> bytes:
        """The writer's."""
        self._pieces[piece.index].append(piece)
        return self._writer.piece(piece)

    def end(self, usage: TokenUsage) -> bytes:
        """The writer's."""
        self._usage = usage
        return self._writer.end(usage)

    def failure(self, problem: Problem) -> bytes:
        """The writer's; what has failed is not kept."""
        self._usage = None
        return self._writer.failure(problem)

    async def keep(self) -> None:
        """Write the reply, if there is a whole one."""
        if self._usage is not None:
            choices = [joined(index, pieces) for index, pieces in enumerate(self._pieces)]
            await self._record.add(self._reply_of(choices, self._usage))
