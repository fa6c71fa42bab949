from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker_runtime.server.keys import ApiKeys

KEYS = ApiKeys(["old-key", "new-key"])


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer old-key")],
        [(b"authorization", b"Bearer new-key")],
        [(b"authorization", b"bearer   new-key ")],
        [(b"x-api-key", b"new-key")],
        [(b"api-key", b"new-key")],
        [(b"authorization", b"Bearer placeholder"), (b"x-api-key", b"old-key")],
    ],
)
def test_any_key_in_any_of_the_usual_headers_will_do(headers: list[tuple[bytes, bytes]]) -> None:
    assert KEYS.refusal(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Bearer wrong")],
        [(b"authorization", b"Bearer old-key new-key")],
        [(b"authorization", b"Bearer OLD-KEY")],
        [(b"authorization", b"old-key")],
        [(b"authorization", b"Basic old-key")],
        [(b"x-api-key", b"Bearer old-key")],
        [(b"x-api-key", b"")],
        [(b"x-key", b"old-key")],
        [(b"cookie", b"api-key=old-key")],
        [(b"x-api-key", b"old-key\xff")],
    ],
)
def test_anything_else_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    refusal = KEYS.refusal(headers)

    assert refusal is not None
    assert (refusal.status, refusal.code, refusal.error_type) == (
        401,
        "invalid_api_key",
        "invalid_request_error",
    )


def test_no_message_holds_a_key() -> None:
    refusal = KEYS.refusal([(b"authorization", b"Bearer almost-new-key")])
    assert "key" in str(refusal)
    assert "almost" not in str(refusal)
    assert "new-key" not in str(refusal)


def test_a_server_without_keys_asks_for_none() -> None:
    assert ApiKeys([]).refusal([]) is None
    assert ApiKeys([]).refusal([(b"authorization", b"Bearer x")]) is None


@given(st.binary(max_size=20))
def test_only_the_keys_themselves_are_keys(value: bytes) -> None:
    is_key = value.strip() in (b"old-key", b"new-key")
    assert (KEYS.refusal([(b"authorization", b"Bearer " + value)]) is None) == is_key
    assert (KEYS.refusal([(b"x-api-key", value)]) is None) == is_key
