"""Frames: any cut of the stream gives the same payloads, and nothing above the limit is kept."""

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chain.errors import RemoteFault
from hopchain.framing import HEADER_BYTES, MAX_FRAME_BYTES, FrameReader, frame
from tests.hopchain.frames import feed

PAYLOADS = [b"", b"a", b"two", bytes(300), b"\x00\x00\x00\x05inner"]


def test_a_frame_is_its_length_big_endian_and_its_payload() -> None:
    assert frame(b"abc") == b"\x00\x00\x00\x03abc"


def test_cut_at_every_byte_the_stream_gives_the_same_frames() -> None:
    stream = b"".join(frame(payload) for payload in PAYLOADS)
    for cut in range(len(stream) + 1):
        reader = FrameReader()
        assert feed(reader, stream[:cut]) + feed(reader, stream[cut:]) == PAYLOADS
        assert reader.pending == 0


@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(0, 400)))
def test_cut_anywhere_any_number_of_times(payloads: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(payload) for payload in payloads)
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader()
    received = []
    for start, end in pairwise(edges):
        received += feed(reader, stream[start:end])
    assert received == payloads


@given(st.lists(st.binary(max_size=40)))
def test_random_bytes_raise_nothing_but_remote_fault_and_keep_no_more_than_one_frame(chunks: list[bytes]) -> None:
    reader = FrameReader(limit=16)
    with suppress(RemoteFault):
        for chunk in chunks:
            assert all(len(payload) <= 16 for payload in feed(reader, chunk))
            assert reader.pending < HEADER_BYTES + 16


def test_the_limit_is_the_largest_payload_that_passes() -> None:
    assert feed(FrameReader(limit=5), frame(b"12345")) == [b"12345"]
    with pytest.raises(RemoteFault, match=r"a frame of 6 bytes: at most 5") as caught:
        feed(FrameReader(limit=5), frame(b"123456"))
    assert caught.value.code == "oversize"


def test_an_oversize_frame_is_refused_by_its_header_alone() -> None:
    with pytest.raises(RemoteFault):
        feed(FrameReader(), (MAX_FRAME_BYTES + 1).to_bytes(4))


def test_a_frame_that_is_not_whole_is_pending() -> None:
    reader = FrameReader()
    assert feed(reader, frame(b"abc") + b"\x00\x00\x00\x02x") == [b"abc"]
    assert reader.pending == 5


def test_a_raised_limit_holds_for_bytes_that_are_here_already() -> None:
    reader = FrameReader(limit=4)
    reader.push(frame(b"hey") + frame(b"longer than four"))
    assert reader.pop() == b"hey"
    reader.limit = 100
    assert reader.pop() == b"longer than four"
    assert reader.pop() is None


def test_our_own_frames_are_bounded_too() -> None:
    with pytest.raises(AssertionError):
        frame(bytes(MAX_FRAME_BYTES + 1))
