"""What a node tells of itself: to clients, and to `hopchain doctor`."""

import random

import pytest

from chain.needs import Loaded
from hopchain import wire
from node.core import Core, Start
from node.events import FromPeer, PeerUp, ToldRemoved
from node.messages import Ping, Pong, Views
from node.status import Disk, NodeStatus
from node.turn import Now
from routing.view import encode_view, without_member
from tests.chain.bank import GENESIS
from tests.node.test_serving import ADDRESSES, GONE, ME, NOW, PEER, STRANGER, VIEW, hear


@pytest.fixture
def core() -> Core:
    return Core(ME, GENESIS, VIEW, random.Random(1), Start([], 7, {}, {}), Now(0.0, 0))


@pytest.fixture
def status(core: Core) -> NodeStatus:
    clock = [Now(10.0, 0), NOW]
    return NodeStatus(
        ME,
        core,
        accounts=lambda: 5,
        addresses=ADDRESSES,
        counters=lambda: {"clients.sessions": 3, "mesh.up": 1},
        clock=lambda: clock.pop(0) if len(clock) > 1 else clock[0],
        client_port_of=lambda node: {PEER: 7401, STRANGER: 7501}.get(node, 0),
    )


def test_health_says_what_the_node_is_and_whom_it_reaches(status: NodeStatus, core: Core) -> None:
    alone = status.health()
    assert (alone.node, alone.epoch, alone.view_hash, alone.role) == (ME, 1, VIEW.hash, "member")
    assert (alone.active, alone.syncing_regions, alone.verified, alone.removed_in) == (True, 0, False, 0)
    assert alone.regions_without_majority == 3, "k is 2: each of three pairs"
    assert (alone.links, alone.now_ms) == (7, NOW.unix_ms)
    assert {peer.id: (peer.alive, peer.host) for peer in alone.peers} == {PEER: (False, "10.0.0.2"), GONE: (False, "")}
    hear(core, PeerUp(PEER), FromPeer(PEER, Ping(1.0, 4, 0, 3, True, NOW.unix_ms - 250)))
    hear(core, FromPeer(PEER, Pong(NOW.mono, 5, 0)), PeerUp(STRANGER))
    met = status.health()
    assert not met.verified, "that one knows of later views"
    assert met.regions_without_majority == 2
    peers = {peer.id: peer for peer in met.peers}
    assert set(peers) == {PEER, GONE, STRANGER}
    assert peers[PEER] == wire.PeerHealth(PEER, True, 3, True, -250, "10.0.0.2", 2, 7401)
    assert (peers[STRANGER].host, peers[STRANGER].port, peers[STRANGER].client_port) == ("", 0, 0), "a port of no host"
    hear(core, FromPeer(PEER, Ping(1.0, 4, 0, 1, True, NOW.unix_ms)))
    assert status.health().verified
    hear(core, ToldRemoved(PEER, 5))
    told = status.health()
    assert (told.role, told.removed_in) == ("removed", 5)


def test_health_of_a_guest_and_of_who_was_removed(status: NodeStatus, core: Core) -> None:
    hear(core, FromPeer(PEER, Views((encode_view(without_member(VIEW, ME, 1, PEER)),))))
    health = status.health()
    assert (health.role, health.active, health.removed_in) == ("removed", False, 2)
    start = Start([], 7, {}, {})
    guest = Core(STRANGER, GENESIS, VIEW, random.Random(1), start, Now(0.0, 0))
    told = NodeStatus(
        STRANGER, guest, accounts=lambda: 0, addresses=ADDRESSES, counters=dict, clock=lambda: NOW,
        disk=lambda: Disk(1, 2, 3), disk_reserve=lambda total: 2 * total, certificate_until_ms=lambda: 9,
    )  # fmt: skip
    health = told.health()
    assert (health.role, health.active, health.removed_in) == ("guest", False, 0)
    assert (health.disk_free, health.disk_total, health.database_bytes, health.certificate_until_ms) == (1, 2, 3, 9)
    assert health.disk_reserve == 4


def test_the_status_shows_peers_lag_and_all_counters(status: NodeStatus, core: Core) -> None:
    core.counters["peer_fault_malformed"] += 2
    events = [PeerUp(PEER), FromPeer(PEER, Ping(1.0, 4, 0, 1, True, 0)), FromPeer(PEER, Pong(NOW.mono - 0.25, 5, 0))]
    core.needs(events, NOW)
    core.step(Loaded(), NOW)
    told = status.status()
    assert (told.id, told.epoch, told.k, told.log_height, told.accounts) == (ME, 1, 2, 7, 5)
    assert (told.clients, told.uptime_s) == (3, 40.0)
    assert (told.undecided, told.waiting_links, told.queued_requests, told.client_requests) == (0, 0, 0, 0)
    counted = {"core.peer_fault_malformed": 2, "core.suspended": 1}  # its first turn is seconds after its start
    assert told.counters == {"clients.sessions": 3, "mesh.up": 1, **counted}
    peers = {peer.id: peer for peer in told.peers}
    assert peers == {
        PEER: wire.PeerStatus(PEER, "10.0.0.2", 2, True, 250.0, 5, 2),
        GONE: wire.PeerStatus(GONE, "", 0, False, -1.0, 0, 7),
    }
