"""A hub on this machine: as much of its API as downloading a repository needs, with ranges, and a way to break off."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LFS = (".safetensors",)


@dataclass(slots=True)
class Hub:
    """One repository, and what was asked of it."""

    hub_id: str
    folder: Path
    cut_after: dict[str, int] = field(default_factory=dict)  # bytes of a file's body
    broken: set[str] = field(default_factory=set)  # files that were cut: 503 from then on
    sent: list[tuple[str, str | None, int]] = field(default_factory=list)  # file, range asked for, bytes of its body
    url: str = ""

    def break_off(self, name: str, *, after: int) -> None:
        """Once so many bytes of the file were sent, the connection ends, and nothing more of it is to be had."""
        self.cut_after[name] = after

    def mend(self) -> None:
        """All of it is to be had again."""
        self.cut_after.clear()
        self.broken.clear()

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_file())

    def describe(self, path: Path) -> dict[str, Any]:
        """As both kinds of listing have it."""
        data = path.read_bytes()
        oid, sha256 = hashlib.sha1(data).hexdigest(), hashlib.sha256(data).hexdigest()
        facts: dict[str, Any] = {"type": "file", "path": path.name, "rfilename": path.name, "size": len(data)}
        facts |= {"oid": oid, "blobId": oid}
        if path.suffix in LFS:
            facts["lfs"] = {"oid": sha256, "sha256": sha256, "size": len(data), "pointerSize": 130}
        return facts


class _Handler(BaseHTTPRequestHandler):
    hub: ClassVar[Hub]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.split("?", 1)[0]
        described = [self.hub.describe(file) for file in self.hub.files()]
        if path.startswith(f"/api/models/{self.hub.hub_id}/tree/"):
            self._json(described)
        elif path.startswith(f"/api/models/{self.hub.hub_id}"):
            self._json({"id": self.hub.hub_id, "sha": COMMIT, "siblings": described})
        elif path.startswith(f"/{self.hub.hub_id}/resolve/"):
            self._file(self.hub.folder / path.rsplit("/", 1)[-1], body=body)
        else:
            self.send_error(404)

    def _json(self, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, path: Path, *, body: bool) -> None:
        if path.name in self.hub.broken:
            self.send_error(503)
            return
        facts, data = self.hub.describe(path), path.read_bytes()
        asked = self.headers.get("range")
        first = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("content-range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("content-length", str(len(data) - first))
        self.send_header("etag", f'"{facts.get("lfs", facts)["oid"]}"')
        self.send_header("x-repo-commit", COMMIT)
        self.end_headers()
        if not body:
            return
        limit = self.hub.cut_after.get(path.name)
        part = data[first:] if limit is None else data[first:][:limit]
        self.wfile.write(part)
        self.hub.sent.append((path.name, asked, len(part)))
        if limit is not None:
            self.hub.broken.add(path.name)
            self.close_connection = True


@contextmanager
def serve_hub(hub_id: str, folder: Path) -> Iterator[Hub]:
    """Serves the files of a folder as the repository of that id."""
    hub = Hub(hub_id, folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
