"""HTTP/2 by Hypercorn, where what one request does ends no other of its connection. Knows no application.

Hypercorn fails on the body of a request that it has reset (any that comes while the server ends) or that was answered
before its body was whole, and a connection that fails takes all of its streams along.
"""

from __future__ import annotations

import h2.events
from hypercorn.events import Updated
from hypercorn.protocol.h2 import H2Protocol


class PatientHttp2(H2Protocol):
    """Requests on a connection that is busy while the server ends are answered, with a 503 once it drains."""

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.RequestReceived) and self.context.terminated.is_set():
                await self._create_stream(event)
                await self.send(Updated(idle=False))
            elif isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            else:
                await super()._handle_events([event])
        await self._flush()


def patient(given: H2Protocol) -> PatientHttp2:
    """Hypercorn's protocol of a connection on which nothing has been said yet, as one of ours."""
    return PatientHttp2(
        given.app, given.config, given.context, given.task_group, given.connection_state,
        given.ssl, given.client, given.server, given.send,
    )  # fmt: skip
