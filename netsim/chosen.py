"""What was chosen so far: the views, the links and the money in them.

`netsim.durable` finds the majorities and tells of them. What is chosen must fit what was chosen before: I1, I12, and by
the ledger I2, I4, I5 and a part of I10.
"""

from collections.abc import Callable, Sequence

from chain.genesis import Genesis, issuer_links
from chain.link import HEADER_BYTES, Link, decode_link_untrusted, header_hash
from netsim.ledger import Ledger
from netsim.violation import Violation
from routing.keyspace import NodeId, route_key
from routing.view import View


class Chosen:
    """`choose` and `choose_view` take up what was chosen, and raise `Violation` when it breaks a rule."""

    def __init__(self, genesis: Genesis, view: View, ids: Sequence[NodeId]) -> None:
        """`ids`: of all nodes, in the order of their numbers."""
        self.views = [view]  # oldest first
        self.ids = ids
        self.index = {public_id: i for i, public_id in enumerate(ids)}
        self.links: dict[bytes, Link] = {}  # by hash
        self.successors: dict[bytes, bytes] = {}  # by slot: the hash of its link
        self.chosen_at: dict[bytes, float] = {}  # by hash
        self.ledger = Ledger({issuer.name: b"" for issuer in genesis.issuers})
        self.on_link: Callable[[Link], None] = lambda link: None  # hears of each link, when the ledger has it
        for link in issuer_links(genesis):
            self.choose(link, 0.0)

    def view_of(self, epoch: int) -> View:
        """The chosen view of an epoch."""
        return self.views[epoch - self.views[0].epoch]

    def group_of(self, slot: bytes, epoch: int | None = None) -> tuple[int, ...]:
        """The nodes that decide a slot in an epoch (by default the newest that was chosen), owner first."""
        view = self.views[-1] if epoch is None else self.view_of(epoch)
        return tuple(self.index[node] for node in view.group(route_key(slot)))

    def is_member(self, node: int) -> bool:
        """True when the node is in the newest chosen view."""
        return self.views[-1].is_member(self.ids[node])

    def was_removed(self, node: int) -> bool:
        """True when the node was a member before, and is none now."""
        return not self.is_member(node) and any(view.is_member(self.ids[node]) for view in self.views)

    def choose(self, link: Link, now: float) -> None:
        """A link was chosen; it may have been before."""
        known = self.successors.setdefault(link.prev_hash, link.hash)
        if known != link.hash:
            raise Violation("I1", f"two values chosen for link {link.height} of {link.account}")
        if link.hash in self.chosen_at:
            return
        self.links[link.hash] = link
        self.chosen_at[link.hash] = now
        complaints = self.ledger.add(link)
        if complaints:
            raise Violation(_rule_of(complaints[0]), "; ".join(complaints))
        if self.ledger.total() != 0:
            raise Violation("I2", f"all money adds up to {self.ledger.total()}, not 0")
        self.on_link(link)

    def read(self, raw: bytes) -> Link:
        """The link of these bytes, chosen or not."""
        link = self.links.get(header_hash(raw[:HEADER_BYTES]))
        return link if link is not None else decode_link_untrusted(raw)

    def choose_view(self, view: View) -> None:
        """A view was chosen; it may have been before."""
        if view.epoch <= self.views[-1].epoch:
            if view.hash != self.view_of(view.epoch).hash:
                raise Violation("I12", f"two views chosen for epoch {view.epoch}")
            return
        before = self.views[-1]
        changed = set(before.members) ^ set(view.members)
        follows = (view.epoch, view.prev_hash, view.k) == (before.epoch + 1, before.hash, before.k)
        if not follows or len(changed) != 1:
            raise Violation("I12", f"epoch {view.epoch} changes {len(changed)} members of epoch {before.epoch}")
        added = changed.pop().id
        if view.is_member(added) and any(old.is_member(added) for old in self.views):
            raise Violation("I12", f"epoch {view.epoch} adds node {self.index[added]}, which was removed before")
        self.views.append(view)


def _rule_of(complaint: str) -> str:
    """The invariant that a complaint of the ledger is about."""
    if "confirmed twice" in complaint:
        return "I4"
    if "expected" in complaint or "signed" in complaint or "valid until" in complaint:
        return "I10"
    return "I5" if complaint.startswith("request") else "I2"
