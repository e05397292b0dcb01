"""Salts: equal exactly for the same key and the same refinement, and nothing of a key in them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from ortserve.gateway.access.tenancy import given_key, salt_of, tenant_of

KEYS = st.binary(max_size=40)
REFINEMENTS = st.none() | st.text(max_size=40)


@given(KEYS, REFINEMENTS, KEYS, REFINEMENTS)
def test_two_callers_share_exactly_when_key_and_salt_are_the_same(
    first: bytes, first_salt: str | None, second: bytes, second_salt: str | None
) -> None:
    is_same = (first, first_salt) == (second, second_salt)
    assert (salt_of(tenant_of(first), first_salt) == salt_of(tenant_of(second), second_salt)) is is_same


@given(KEYS.filter(lambda key: len(key) >= 4), REFINEMENTS)
def test_a_salt_has_a_fixed_length_and_shows_no_key(key: bytes, refinement: str | None) -> None:
    salt = salt_of(tenant_of(key), refinement)
    assert len(salt) == len(tenant_of(key)) == 32
    assert key not in salt
    assert salt == salt_of(tenant_of(key), refinement)


def test_no_refinement_spells_another_tenant() -> None:
    tenant, other = tenant_of(b"a"), tenant_of(b"b")
    crafted = [other.decode("latin-1"), "", "\0", salt_of(other).hex()]
    assert salt_of(other) not in [salt_of(tenant, text) for text in crafted]
    assert len({salt_of(tenant, text) for text in [None, *crafted]}) == 5
    assert salt_of(tenant, "\ud800") != salt_of(tenant, "\ud801")  # halves of characters, as JSON may bring them


def test_the_key_is_read_where_clients_put_it() -> None:
    def key(**headers: str) -> bytes:
        return given_key(Headers({name.replace("_", "-"): value for name, value in headers.items()}))

    assert key() == key(authorization="Bearer") == key(authorization="Basic eDp5") == b""
    assert key(authorization="Bearer k") == key(authorization="bearer  k ") == key(x_api_key="k") == b"k"
    assert key(authorization="Bearer k", x_api_key="other") == b"k"
