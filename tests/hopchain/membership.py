"""The views of fake nodes: changes are made at once, and each node's health can be set."""

import msgspec

from chain.errors import RemoteFault
from chain.genesis import Genesis
from hopchain import wire
from hopchain.change import ChangeAction, SignedChange, change_id, check_change_untrusted
from routing.keyspace import NodeId
from routing.view import View, first_view, member_of, with_member, without_member

NOW_MS = 1_700_000_100_000
YEARS_MS = 4_000_000_000_000
GIB = 1024**3


class Membership:
    """What all fake nodes of one network agree on. `wait`: how many changes are put off first."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        members = [member_of(bytes.fromhex(m.public_key), m.incarnation) for m in genesis.members]
        self.views: list[View] = [first_view(genesis.network_id, genesis.k, members, genesis.time_ms)]
        self.changes: list[SignedChange] = []
        self.wait = 0
        self.guests: set[bytes] = set()  # that have contact with all members
        self.dead: set[bytes] = set()
        self.special: dict[bytes, dict[str, object]] = {}  # node -> fields of its health
        self.page = wire.MAX_VIEWS_PAGE
        self.stale = False

    @property
    def newest(self) -> View:
        return self.views[-1]

    def change(self, call: wire.SubmitChange, by: bytes) -> wire.Changed | wire.Refused | wire.NotStarted:
        signed = SignedChange(call.raw, call.signature)
        self.changes.append(signed)
        if self.wait > 0:
            self.wait -= 1
            return wire.NotStarted(change_id(call.raw), "busy", "the epoch before is not active yet")
        try:
            wanted = check_change_untrusted(signed, self.genesis, NOW_MS)
        except RemoteFault as fault:
            return wire.Refused(fault.code, fault.text)
        there = self.newest.is_member(wanted.node_id)
        if wanted.action is ChangeAction.ADD and not there:
            self.views.append(with_member(self.newest, member_of(wanted.public_key), NOW_MS, by))
        elif wanted.action is ChangeAction.REMOVE and there:
            self.views.append(without_member(self.newest, wanted.node_id, NOW_MS, by))
        return wire.Changed(self.newest.epoch, self.newest.hash, self.newest.is_member(wanted.node_id))

    def members(self, call: wire.AskMembers) -> wire.Members:
        views = [view for view in self.views if view.epoch >= call.from_epoch][: self.page]
        return wire.Members(self.newest.epoch, tuple(_line(view) for view in views), self.stale)

    def health(self, node: bytes, links: int = 0) -> wire.Health:
        nodes = ({*self.newest.ids} | self.guests) - {node}
        known = any(view.is_member(NodeId(node)) for view in self.views)
        member = self.newest.is_member(NodeId(node))
        removed_in = self.newest.epoch if known and not member else 0
        found = wire.Health(
            node=node,
            epoch=self.newest.epoch,
            view_hash=self.newest.hash,
            role="member" if member else "removed" if known else "guest",
            active=member,
            syncing_regions=0,
            regions_without_majority=0,
            verified=True,
            now_ms=NOW_MS,
            disk_free=50 * GIB,
            disk_total=100 * GIB,
            database_bytes=1_000_000,
            certificate_until_ms=YEARS_MS,
            links=links,
            peers=tuple(
                wire.PeerHealth(peer, peer not in self.dead, self.newest.epoch, True, 0, "127.0.0.1", 1)
                for peer in sorted(nodes)
            ),
            removed_in=removed_in,
        )
        return msgspec.structs.replace(found, **self.special.get(node, {}))


def _line(view: View) -> wire.ViewLine:
    members = tuple(wire.MemberLine(m.id, m.public_key, m.incarnation) for m in view.members)
    return wire.ViewLine(view.epoch, view.hash, view.time_ms, view.by, members)
