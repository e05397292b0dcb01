"""WebSockets, which nothing here speaks: who asks for one is told so, in the envelope. Knows no route."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from ortserve.gateway.errors import Problem
from ortserve.gateway.ids import new_id
from ortserve.gateway.logs import log

EXTENSION = "websocket.http.response"


async def refuse_websocket(scope: Scope, receive: Receive, send: Send) -> None:
    """A 404 in place of the handshake; a server that can only close says 403, which would blame the key."""
    request_id = new_id("req")
    await receive()  # the wish to connect
    log().info("websocket_refused", path=scope["path"], request_id=request_id)
    if EXTENSION not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close"})
        return
    body = Problem(404, f"Invalid URL (WebSocket {scope['path']}): this server answers by HTTP.").body()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
    ]
    await send({"type": f"{EXTENSION}.start", "status": 404, "headers": headers})
    await send({"type": f"{EXTENSION}.body", "body": body, "more_body": False})
