"""Keeping one response: what is written of it, and when. Knows no table and no event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from ortserve.gateway.answers.responses import ResponseError, ResponseReply
from ortserve.gateway.responses.thread import Thread, kept_outputs
from ortserve.gateway.store.items import KeptItem
from ortserve.gateway.store.responses import KeptResponse
from ortserve.gateway.store.state import State

ADDED_STATUSES = ("completed", "incomplete")  # to the conversation


@dataclass(frozen=True, slots=True)
class ResponseRecord:
    """Where one response is kept. Nothing is written when neither it nor its conversation wants to be."""

    state: State
    tenant: bytes
    thread: Thread

    async def begin(self, reply: ResponseReply) -> None:
        """Keep one that runs in the background."""
        await self.state.responses.add(self.tenant, self._kept(reply, (), is_running=True))

    async def end(self, reply: ResponseReply, *, events: bytes | None = None) -> None:
        """Write how one that has been begun has ended."""
        with_turn = reply.status in ADDED_STATUSES
        kept = self._kept(reply, kept_outputs(reply.output))
        await self.state.responses.end(self.tenant, kept, events=events, with_turn=with_turn)

    async def add(self, reply: ResponseReply) -> None:
        """Keep one that has ended."""
        outputs = kept_outputs(reply.output)
        if reply.store:
            await self.state.responses.add(self.tenant, self._kept(reply, outputs))
        elif reply.conversation is not None and reply.status in ADDED_STATUSES:
            turn = (*self.thread.inputs, *outputs)
            await self.state.conversations.append(self.tenant, reply.conversation.id, turn)

    def _kept(self, reply: ResponseReply, outputs: Sequence[KeptItem], *, is_running: bool = False) -> KeptResponse:
        is_turn = reply.status in (*ADDED_STATUSES, "queued", "in_progress")
        return KeptResponse(
            id=reply.id,
            created_at=reply.created_at,
            body=msgspec.json.encode(reply),
            context=self.thread.context,
            inputs=self.thread.inputs,
            outputs=outputs,
            conversation=reply.conversation.id if reply.conversation is not None and is_turn else None,
            is_running=is_running,
        )


def interrupted(body: bytes) -> bytes:
    """The object of a response that its server did not live to end."""
    reply = msgspec.json.decode(body)
    error = ResponseError("server_error", "The server was stopped while this response was running. Send it again.")
    return msgspec.json.encode({**reply, "status": "failed", "error": error})
