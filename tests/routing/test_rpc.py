"""Messages inside datagrams: read without trust."""

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import rpc
from routing.errors import RoutingFault
from routing.sealing import MAX_PAYLOAD_BYTES

MESSAGE_ID = bytes(range(20))
READERS = [rpc.decode_call_untrusted, rpc.decode_node_id_untrusted, rpc.decode_contacts_untrusted]
A_CONTACT = (bytes(20), "10.0.0.1", 4000)


def _pack(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def test_what_is_written_can_be_read():
    message = rpc.decode_message_untrusted(rpc.encode_call(MESSAGE_ID, "ping", (bytes(20),)))
    assert (message.kind, message.message_id) == (rpc.CALL, MESSAGE_ID)
    assert rpc.decode_call_untrusted(message.body) == ("ping", [bytes(20)])
    message = rpc.decode_message_untrusted(rpc.encode_reply(MESSAGE_ID, [A_CONTACT]))
    assert (message.kind, rpc.decode_contacts_untrusted(message.body)) == (rpc.REPLY, [A_CONTACT])
    message = rpc.decode_message_untrusted(rpc.encode_error(MESSAGE_ID, "refused"))
    assert (message.kind, message.message_id) == (rpc.ERROR, MESSAGE_ID)


def test_the_largest_reply_fits_a_datagram():
    longest = (b"\xff" * 20, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65535)
    assert len(rpc.encode_reply(MESSAGE_ID, [longest] * rpc.MAX_KSIZE)) <= MAX_PAYLOAD_BYTES


@pytest.mark.parametrize("raw", [b"", b"\0" * 21, b"\3" + bytes(30)])
def test_a_cut_message_or_an_unknown_kind_is_malformed(raw):
    with pytest.raises(RoutingFault, match="malformed"):
        rpc.decode_message_untrusted(raw)


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        (rpc.decode_call_untrusted, ["ping"]),
        (rpc.decode_call_untrusted, ["ping", ["text"]]),
        (rpc.decode_call_untrusted, {"ping": 1}),
        (rpc.decode_node_id_untrusted, bytes(19)),
        (rpc.decode_contacts_untrusted, {"value": 1}),
        (rpc.decode_contacts_untrusted, [A_CONTACT] * (rpc.MAX_KSIZE + 1)),
        (rpc.decode_contacts_untrusted, [(bytes(21), "10.0.0.1", 4000)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "localhost", 4000)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "::0001", 4000)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "0.0.0.0", 4000)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "fe80::1%eth0", 4000)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "fe80::1%\0", 4000)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "224.0.0.1", 4000)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "10.0.0.1", 0)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "10.0.0.1", 65536)]),
        (rpc.decode_contacts_untrusted, [(bytes(20), "10.0.0.1", 2**70 % 2**63)]),
    ],
)
def test_a_body_of_another_shape_is_refused(reader, value):
    with pytest.raises(RoutingFault):
        reader(_pack(value))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    "body", [b"", b"\x91" * 4000, b"\xa2\xff\xfe", b"\x92\xa1\xff\x90", b"\xc1", b"\xdd\xff\xff\xff\xff"]
)
def test_deep_endless_or_undecodable_bodies_are_malformed(reader, body):
    with pytest.raises(RoutingFault, match="malformed"):
        reader(body)


_json_like = st.recursive(
    st.one_of(st.none(), st.integers(-(2**63), 2**64 - 1), st.text(max_size=8), st.binary(max_size=24), st.booleans()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=80), _json_like.map(_pack)))
def test_untrusted_bytes_raise_only_a_routing_fault(raw):
    for reader in (*READERS, rpc.decode_message_untrusted):
        with contextlib.suppress(RoutingFault):
            reader(raw)
