"""What happened to one account in a run, event by event, for people."""

from netsim.measure import answer_name
from netsim.record import Recorder
from netsim.report import describe_request

STEPS = {"prepare": "asks for promises", "propose": "proposes", "vote": "votes"}
Line = tuple[float, int, str]  # simulated seconds from the start of the run, node (-1: none), what


def follow_account(record: Recorder, account: str) -> list[Line]:
    """All that is known about an account's requests and links, in order of time."""
    watch = record.watch
    lines: list[Line] = []
    heights = {link.prev_hash: link.height for link in watch.links.values() if link.account == account}
    for number, call in watch.calls.items():
        if call.account != account:
            continue
        what = describe_request(call.request) if call.request is not None else "a read"
        lines.append((call.at, call.node, f"call {number}: {what}"))
        if call.answered_at is not None:
            lines.append((call.answered_at, call.node, f"call {number} is answered: {answer_name(call)}"))
    own = {c.request_id: c.request for c in watch.calls.values() if c.account == account and c.request is not None}
    for request_id, hops in record.hops.items():
        if request_id in own:
            lines += [
                (h.at, h.source, f"hands {request_id.hex()[:8]} to node-{h.target}" + (", lost in a cut" * h.lost))
                for h in hops
            ]
    for slot, height in heights.items():
        lines += [
            (s.at, s.node, f"{STEPS[s.what]}, link {height}, round {s.round}") for s in record.steps.get(slot, ())
        ]
    for link_hash, at in watch.chosen_at.items():
        link = watch.links[link_hash]
        if link.account != account:
            continue
        entries = ", ".join(f"{e.request_id.hex()[:8]} {e.outcome.name.lower()}" for e in link.entries)
        lines.append((at, -1, f"link {link.height} is chosen, balance {link.balance}: {entries or 'no requests'}"))
        lines += [(t, n, f"applies link {link.height}") for n, t in watch.applied_at.get(link_hash, {}).items()]
    lines += [(fault.at, -1, f"-- {fault.text}") for fault in record.faults if fault.at <= record.world.now]
    return sorted(lines, key=lambda line: (round(line[0], 9), line[2]))
