"""What a node answers when it is asked for a balance: the same in a process and in the simulator."""

from chain.genesis import Genesis
from chain.reads import Balance as FoundBalance
from hopchain import wire
from node.core import Core
from node.turn import Now


def scale_of(genesis: Genesis, code: str) -> int:
    asset = genesis.asset(code)
    assert asset is not None, code
    return asset.scale


def balance_answer(
    found: FoundBalance | None, ask: wire.AskBalance, core: Core, genesis: Genesis, now: Now
) -> wire.Balance | wire.NotFound:
    """What a node answers when this is the balance it has. Made when the replica was read: others may have gone on
    without the node since, unless a majority was asked just now. A node that was removed always says so."""
    stale = not core.is_current(now) and (not ask.linearizable or core.membership.removed_in > 0)
    if found is None:
        return wire.NotFound(f"account {ask.account}", stale)
    return wire.Balance(
        account=found.name,
        asset=found.asset,
        scale=scale_of(genesis, found.asset),
        issuer=found.issuer,
        settled=found.settled,
        incoming=found.incoming,
        incoming_count=found.incoming_count,
        tip=found.tip,
        height=found.height,
        link_epoch=found.epoch,
        time_ms=found.time_ms,
        epoch=core.view.epoch,
        as_of_ms=now.unix_ms,
        linearizable=ask.linearizable,
        stale=stale,
    )
