"""The messages of a kept chat completion, as they are written and as they are listed. Knows no store."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ortserve.gateway.schema.fields import Fields


def messages_to_keep(fields: Fields) -> bytes:
    """The messages of a checked body as one JSON array. Contents in parts are listed as `content_parts`."""
    return msgspec.json.encode([_to_keep(message) for message in fields.objects("messages") or ()])


def listed_messages(completion_id: str, kept: bytes) -> Sequence[tuple[str, bytes]]:
    """(id, JSON) of each; the id is made of the completion's and the place."""
    messages = msgspec.json.decode(kept, type=list[dict[str, msgspec.Raw]])
    listed = []
    for place, message in enumerate(messages):
        id = f"{completion_id}-{place}"
        listed.append((id, msgspec.json.encode({"id": id, **{key: message[key] for key in message if key != "id"}})))
    return listed


def _to_keep(message: Fields) -> dict[str, object]:
    content = message.get("content")
    in_parts = isinstance(content, list)
    return {
        **message.data,
        "content": None if in_parts else content,
        "content_parts": content if in_parts else None,
    }
