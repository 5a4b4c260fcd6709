"""Whatever arrives, the decoders return a value or raise `RemoteFault`, and nothing else (style, habit 7)."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chain.errors import RemoteFault
from chain.link import HEADER_BYTES, body_hash, build_link, decode_link_untrusted
from chain.names import check_amount_untrusted, check_name_untrusted, unpad_untrusted
from chain.request import decode_request_untrusted, encode_request
from tests.chain.test_link import LINK
from tests.chain.test_request import CANCEL, OPEN, TRANSFER

REQUESTS = [encode_request(request) for request in (TRANSFER, OPEN, CANCEL)]

_flips = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=4)
_cut = st.one_of(st.none(), st.integers(0, 2000))


def _mutated(raw: bytes, flips: list[tuple[int, int]], cut: int | None, tail: bytes) -> bytes:
    changed = bytearray(raw)
    for at, by in flips:
        changed[at % len(raw)] ^= by
    return bytes(changed[:cut]) + tail


@settings(derandomize=True, deadline=None, max_examples=600)
@given(raw=st.sampled_from(REQUESTS), flips=_flips, cut=_cut, tail=st.binary(max_size=3))
def test_changed_requests(raw: bytes, flips: list[tuple[int, int]], cut: int | None, tail: bytes) -> None:
    changed = _mutated(raw, flips, cut, tail)
    try:
        request = decode_request_untrusted(changed)
    except RemoteFault:
        return
    assert encode_request(request) == changed  # one byte form, also of what an attacker made


@settings(derandomize=True, deadline=None, max_examples=600)
@given(flips=_flips, cut=_cut, tail=st.binary(max_size=3), rehash=st.booleans())
def test_changed_links(flips: list[tuple[int, int]], cut: int | None, tail: bytes, rehash: bool) -> None:
    changed = _mutated(LINK.raw, flips, cut, tail)
    if rehash and len(changed) > HEADER_BYTES:  # so that the fuzz reaches what is behind the hash of the body
        changed = changed[: HEADER_BYTES - 32] + body_hash(changed[HEADER_BYTES:]) + changed[HEADER_BYTES:]
    try:
        link = decode_link_untrusted(changed)
    except RemoteFault:
        return
    again = build_link(
        link.network, link.account, link.height, link.prev_hash, link.balance, link.epoch, link.time_ms, link.entries,
        link.confirmed,
    )  # fmt: skip
    assert again == link
    assert link.raw == changed


@settings(derandomize=True, max_examples=300)
@given(st.binary(max_size=400))
def test_noise(raw: bytes) -> None:
    for decode in (decode_request_untrusted, decode_link_untrusted):
        with pytest.raises(RemoteFault):
            decode(raw)


@settings(derandomize=True, max_examples=300)
@given(st.binary(max_size=80), st.text(max_size=80), st.integers())
def test_fields(raw: bytes, text: str, amount: int) -> None:
    for call in (
        lambda: unpad_untrusted(raw),
        lambda: check_name_untrusted(text),
        lambda: check_amount_untrusted(amount),
    ):
        with suppress(RemoteFault):
            call()
