"""The slot after an account's tip: its name, the epoch in which it was born, who may skip phase 1 in it, and what may
be its value.

Pure functions of the account's head here (`AccountHead`; None: it has no link, and the slot is that of its opening).
"""

from chain.errors import RemoteFault
from chain.link import Link, opening_slot
from chain.request import NetworkId
from chain.rows import AccountHead
from node.messages import SlotName
from routing.keyspace import NodeId


def next_slot(network: NetworkId, account: str, head: AccountHead | None) -> SlotName:
    """The slot of an account's next link."""
    if head is None:
        return SlotName(opening_slot(network, account), account, 0)
    return SlotName(head.tip, account, head.height + 1)


def height_of(head: AccountHead | None) -> int:
    """The height of an account here, -1 when it has no link."""
    return head.height if head is not None else -1


def birth_epoch(head: AccountHead | None) -> int:
    """The epoch inside the link whose hash is the slot; an opening slot is born with the network."""
    return head.epoch if head is not None else 1


def is_fast(at: SlotName, node: NodeId, head: AccountHead | None, group: tuple[NodeId, ...], epoch: int) -> bool:
    """R3: `node` may skip phase 1 in this slot: it owns it, in the slot's birth epoch, and it is no opening."""
    return at.height > 0 and head is not None and head.epoch == epoch and group[0] == node


def check_vote_untrusted(at: SlotName, link: Link, network: NetworkId) -> None:
    """`RemoteFault` unless `link` may be a value of this slot."""
    if (link.network, link.prev_hash, link.account, link.height) != (network, at.slot, at.account, at.height):
        raise RemoteFault("malformed", f"link {link.height} of {link.account} is proposed for the slot of another one")
    if link.height == 0 and link.prev_hash != opening_slot(network, link.account):
        raise RemoteFault("malformed", f"account {link.account} is not opened in slot {at.slot.hex()[:16]}")
