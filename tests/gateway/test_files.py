"""/v1/files: uploads that stream to disk, lists, contents, bounds, and what is left of broken ones."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI

from ortserve.gateway.store.files import FileBounds
from ortserve.gateway.store.state import State, StateOptions
from tests.gateway.running import Running, running
from tests.gateway.scripted import make_driver, saying
from tests.gateway.test_responses import refused
from tests.waiting import wait_for

PATH = "/v1/files"


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[OpenAI]:
    """Every reply is validated against the SDK's types."""
    url = f"{server.url}/v1"
    with OpenAI(base_url=url, api_key="any", max_retries=0, _strict_response_validation=True) as client:
        yield client


def form(data: bytes = b"x", fields: dict[str, str] | None = None) -> dict[str, Any]:
    return {"files": {"file": ("a.jsonl", data)}, "data": {"purpose": "batch", **(fields or {})}}


def test_by_the_sdk(client: OpenAI) -> None:
    data = bytes(range(256)) * 4000
    file = client.files.create(file=('n\u00e9w "file".bin', data), purpose="user_data")
    assert (file.bytes, file.filename, file.purpose) == (len(data), 'n\u00e9w "file".bin', "user_data")
    assert file.expires_at is None
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == data
    other = client.files.create(
        file=("b.jsonl", b""), purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert other.expires_at == other.created_at + 3600
    assert [one.id for one in client.files.list(limit=1)][:2] == [other.id, file.id]
    assert [one.id for one in client.files.list(purpose="user_data", order="asc")] == [file.id]
    assert client.files.delete(file.id).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="not found"):
            call(file.id)


@settings(max_examples=20)
@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(1, 40), max_size=30))
def test_bytes_arrive_however_they_are_cut(http: httpx.Client, data: bytes, cuts: list[int]) -> None:
    body = httpx.Request("POST", "http://x", **form(b"\r\n--" + data + b"--\r\n")).read()
    type_ = httpx.Request("POST", "http://x", **form())
    boundary = body.split(b"\r\n", 1)[0][2:]

    def pieces() -> Iterator[bytes]:
        rest = body
        for cut in cuts:
            yield rest[:cut]
            rest = rest[cut:]
        yield rest

    assert type_.headers["content-type"].startswith("multipart/form-data")
    headers = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    reply = http.post(PATH, content=pieces(), headers=headers).json()
    assert http.get(f"{PATH}/{reply['id']}/content").content == b"\r\n--" + data + b"--\r\n"
    assert http.delete(f"{PATH}/{reply['id']}").status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "fun"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"purpose": "x" * 5000}, "purpose"),
        ({"expires_after[seconds]": "9"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "9"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "soon"}, "expires_after[seconds]"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({f"field{number}": "x" for number in range(20)}, None),
    ],
)
def test_wrong_forms_name_the_field(http: httpx.Client, fields: dict[str, str], param: str | None) -> None:
    assert refused(http.post(PATH, **form(fields=fields)))["param"] == param


def test_broken_bodies_leave_nothing(tmp_path: Path) -> None:
    state = State(StateOptions(tmp_path))
    with running(make_driver(saying("x")), state=state) as server, httpx.Client(base_url=server.url) as http:
        headers = {"content-type": "multipart/form-data; boundary=b"}
        part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ndata'
        for content in (b"", b"nonsense", part, part + b"\r\n--b\r\nX: y\r\n\r\n", b"--b--\r\n"):
            assert refused(http.post(PATH, content=content, headers=headers))
        no_file = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--b--\r\n'
        assert refused(http.post(PATH, content=no_file, headers=headers))["param"] == "file"
        assert refused(http.post(PATH, json={"file": "x"}))["code"] == "unsupported_content_type"
        with socket.create_connection(("127.0.0.1", server.port)) as broken:
            head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n"
            broken.sendall(head + b"content-type: multipart/form-data; boundary=b\r\n\r\n" + part)
            wait_for(lambda: bool(list((tmp_path / "files").iterdir())))
        wait_for(lambda: not list((tmp_path / "files").iterdir()))
        assert http.get(PATH).json()["data"] == []


def test_sizes_are_bounded(tmp_path: Path) -> None:
    bounds = FileBounds(max_file_bytes=100_000, max_bytes=250_000)
    state = State(StateOptions(tmp_path, files=bounds))
    with (
        running(make_driver(saying("x")), state=state) as server,
        httpx.Client(base_url=server.url) as http,
    ):
        # More than a body may have elsewhere, and dropped to its end: the connection goes on.
        assert refused(http.post(PATH, **form(b"x" * 3_000_000)), 413)["code"] == "file_too_large"
        ids = [http.post(PATH, **form(b"x" * 100_000)).json()["id"] for _ in range(2)]
        assert refused(http.post(PATH, **form(b"x" * 100_000)), 413)["code"] == "file_storage_full"
        assert len(list((tmp_path / "files").iterdir())) == 2
        http.delete(f"{PATH}/{ids[0]}")
        assert http.post(PATH, **form(b"x" * 100_000)).status_code == 200


def test_no_key_sees_another_s(server: Running) -> None:
    alice, bob = ({"authorization": f"Bearer {key}"} for key in ("file-alice", "file-bob"))
    id = httpx.post(server.url + PATH, headers=alice, **form()).json()["id"]
    for method, path in (("GET", id), ("GET", f"{id}/content"), ("DELETE", id)):
        assert refused(httpx.request(method, f"{server.url}{PATH}/{path}", headers=bob), 404)
    assert httpx.get(server.url + PATH, headers=bob).json()["data"] == []
    assert httpx.get(f"{server.url}{PATH}/{id}/content", headers=alice).content == b"x"


def test_a_key_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    state = State(StateOptions(tmp_path))
    with running(make_driver(saying("x")), api_key="k", state=state) as server:
        assert refused(httpx.post(server.url + PATH, **form(b"x" * 3_000_000)), 401)
        assert list((tmp_path / "files").iterdir()) == []


def test_files_outlive_a_restart_and_strays_do_not(tmp_path: Path) -> None:
    with running(make_driver(saying("x")), state=State(StateOptions(tmp_path))) as server:
        id = httpx.post(server.url + PATH, **form(b"kept")).json()["id"]
    (tmp_path / "files" / "file_stray.part").write_bytes(b"x")
    (tmp_path / "files" / "file_stray").write_bytes(b"x")
    with running(make_driver(saying("x")), state=State(StateOptions(tmp_path))) as server:
        assert httpx.get(f"{server.url}{PATH}/{id}/content").content == b"kept"
        assert [path.name for path in (tmp_path / "files").iterdir()] == [id]
