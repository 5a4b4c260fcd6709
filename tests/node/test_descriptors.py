"""Open files are shared out so that strangers cannot use them up."""

import resource

import pytest

from node.accepting import MAX_HANDSHAKES
from node.descriptors import OWN, Shares, raise_limit, shares


@pytest.mark.parametrize(
    ("limit", "wanted", "share"),
    [
        (2**31, 512, Shares(512, MAX_HANDSHAKES)),
        (2048, 10_000, Shares(2048 - OWN - 2 * MAX_HANDSHAKES, MAX_HANDSHAKES)),
        (1024, 512, Shares(512, 128)),
        (256, 512, Shares(128, 32)),
        (64, 512, Shares(1, 8)),
        (1, 512, Shares(1, 1)),
    ],
)
def test_what_clients_and_handshakes_may_have_of_them(limit: int, wanted: int, share: Shares) -> None:
    assert shares(limit, wanted, MAX_HANDSHAKES) == share
    if limit >= 256:
        assert share.clients + 2 * share.handshakes + OWN <= limit


def test_a_process_asks_for_as_many_as_it_may_have() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 300), hard))
        assert raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
