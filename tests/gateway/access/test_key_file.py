"""The file of keys: what a line may say, and what is said of one that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ortserve.gateway.access.grant import Limits, digest_of
from ortserve.gateway.access.key_file import KeyFileError, read_key_file
from ortserve.gateway.access.ring import KeyRing
from ortserve.gateway.access.tenancy import named_tenant, tenant_of

HASH = "sha256:" + digest_of(b"one").hex()


def file_of(folder: Path, *lines: str) -> Path:
    path = folder / "keys.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def line(key: str = "one", **values: object) -> str:
    return json.dumps({"name": key, "hash": "sha256:" + digest_of(key.encode()).hex(), **values})


def test_a_line_says_all_of_a_key(tmp_path: Path) -> None:
    values = {"requests_per_minute": 1, "tokens_per_minute": 2, "concurrency": 3, "priority": -4, "weight": 5}
    path = file_of(
        tmp_path, "# ours", "", line("one"), line("two", tenant="t", scopes=["admin"], models=["m"], **values)
    )
    one, two = read_key_file(path)
    assert (one.name, one.digest, one.tenant) == ("one", digest_of(b"one"), named_tenant("one"))
    assert (set(one.scopes), one.models, one.limits) == ({"inference"}, None, Limits())
    assert (two.tenant, set(two.scopes), two.models) == (named_tenant("t"), {"admin"}, frozenset({"m"}))
    assert two.limits == Limits(1, 2, 3, -4, 5)


def written(**values: object) -> str:
    return json.dumps({"name": "x", "hash": HASH} | values)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (written(limit=3), "line 2, key 'x': Object contains unknown field `limit`"),
        (written(hash="secret"), r"line 2, key 'x': .*\$\.hash"),
        ('{"name": "x"}', r"line 2, key 'x': .*missing required field `hash`"),
        (written(scopes=["root"]), r"line 2, key 'x': .*'root'.*\$\.scopes"),
        (written(scopes=[]), r"line 2, key 'x': .*\$\.scopes"),
        (written(concurrency=0), r"line 2, key 'x': .*\$\.concurrency"),
        (written(priority="high"), r"line 2, key 'x': .*\$\.priority"),
        (written(name=""), r"line 2, key '': .*\$\.name"),
        ("{", r"line 2: .*truncated"),
        ("[]", "line 2: Expected `object`"),
        ("\x00", r"line 2: .*malformed"),
        (written(), "line 2, key 'x': its hash is also that of line 1"),
        (written(name="one", hash="sha256:" + "0" * 64), "line 2, key 'one': its name is also that of line 1"),
    ],
)
def test_wrong_lines_are_named(tmp_path: Path, wrong: str, said: str) -> None:
    with pytest.raises(KeyFileError, match=said):
        read_key_file(file_of(tmp_path, line("one"), wrong))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"cannot be read .*check --api-keys"):
        read_key_file(tmp_path / "none")
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="line 1"):
        read_key_file(path)


def test_a_ring_knows_its_keys_and_no_others(tmp_path: Path) -> None:
    grants = read_key_file(file_of(tmp_path, line("one"), line("two", scopes=["admin"])))
    ring = KeyRing(grants, is_open=False)
    assert ring.find(b"one") == grants[0]
    for stranger in (b"", b"on", b"one ", grants[0].digest, HASH.encode()):
        assert ring.find(stranger) is None
        assert ring.caller(stranger) is None
    assert ring.has_admin
    assert not KeyRing(grants[:1], is_open=False).has_admin
    assert (
        ring.tenant(b"one") == named_tenant("one") != tenant_of(b"one") == ring.tenant(b"one ")[:0] + tenant_of(b"one")
    )


def test_what_a_tenant_leaves_behind_may_what_all_its_keys_may(tmp_path: Path) -> None:
    lines = (line("a", tenant="t", models=["x", "y"]), line("b", tenant="t", models=["y", "z"]), line("c", tenant="t"))
    ring = KeyRing(read_key_file(file_of(tmp_path, *lines)), is_open=False)
    left = ring.of_tenant(named_tenant("t"))
    assert left is not None
    assert left.models == frozenset({"y"})
    assert ring.of_tenant(named_tenant("a")) is None
    assert KeyRing((), is_open=True).of_tenant(tenant_of(b"x")) is not None
