"""A picture of a run as PNG or SVG: the nodes over time, and which side answered. Needs matplotlib (the extra `plot`).

It draws the same `Document` as the report. The same run gives the same bytes with one version of matplotlib.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Final

from chain.errors import LocalMisuse
from netsim.report import Document

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS: Final = ("png", "svg", "pdf")
SIDES: Final = ("#2563c9", "#c2570c", "#15803d", "#7c3aed")
GOOD: Final = "#15803d"
BAD: Final = "#c62828"
WARN: Final = "#b45309"
DOWN: Final = "#5b6472"
INK: Final = "#1d2430"
LONG_S: Final = 0.25  # a wait that is worth a line


def check_plot(path: Path) -> None:
    """Raise `LocalMisuse` unless a picture can be drawn and its name ends in a format that is known."""
    if path.suffix.removeprefix(".") not in FORMATS:
        raise LocalMisuse(f"{path} must end in .{', .'.join(FORMATS)}: the picture's format is its name's ending")
    if importlib.util.find_spec("matplotlib") is None:
        raise LocalMisuse("pictures need matplotlib: pip install 'hopchain[plot]'")


def plot(doc: Document, path: Path) -> None:
    """Draw the run into the file."""
    check_plot(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hopchain", "font.size": 9, "axes.linewidth": 0.6}):
        figure = Figure(figsize=(9, 1.9 + 0.32 * doc.nodes), layout="constrained")
        lanes, rates = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [max(3, 0.5 * doc.nodes), 1]})
        _faults(lanes, doc)
        _requests(lanes, doc)
        _rates(rates, doc)
        lanes.set_title(doc.title, loc="left", fontsize=11)
        lanes.set_yticks(range(doc.nodes), [f"node-{n}" for n in range(doc.nodes)])
        lanes.set_ylim(doc.nodes - 0.45, -0.55)
        lanes.set_xlim(-0.2, min(doc.end, doc.healed + 0.5))
        rates.set_xlabel("simulated seconds since the faults may begin")
        for axes in (lanes, rates):
            axes.spines[["top", "right"]].set_visible(False)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        try:
            figure.savefig(path, metadata=metadata, dpi=150)
        except OSError as error:
            raise LocalMisuse(f"{path} cannot be written: {error}") from None


def _faults(axes: "Axes", doc: Document) -> None:
    side_of = {node: i for i, side in enumerate(doc.sides) for node in side.nodes} if len(doc.sides) > 1 else {}
    for fault in doc.faults:
        width = max(fault.until - fault.at, 0.02)
        bar = [(fault.at, width)]
        if fault.kind in ("cut", "ring"):
            for number, part in enumerate(fault.parts):
                for node in part:
                    colour = DOWN if fault.kind == "ring" else SIDES[side_of.get(node, number) % len(SIDES)]
                    axes.broken_barh(bar, (node - 0.45, 0.9), color=colour, alpha=0.16, linewidth=0)
        elif fault.kind == "weather":
            axes.axvspan(fault.at, fault.until, color=WARN, alpha=0.08, linewidth=0)
        elif fault.kind != "kill":
            for node in fault.parts[-1]:
                axes.broken_barh(bar, (node - 0.45, 0.9), color=WARN, alpha=0.2, linewidth=0)
    for node, since, until in doc.down:
        axes.broken_barh([(since, until - since)], (node - 0.45, 0.9), color=DOWN, alpha=0.75, linewidth=0)


def _requests(axes: "Axes", doc: Document) -> None:
    """Arrows from gateway to decider, waits as lines, decided links as dots."""
    colours: dict[str, tuple[list[float], list[float]]] = {GOOD: ([], []), WARN: ([], []), BAD: ([], [])}
    for transfer in doc.transfers:
        if transfer.setup:
            continue
        colour = (
            GOOD
            if transfer.outcome == "completed" or transfer.calls[0].answer == "balance"
            else WARN
            if transfer.outcome or transfer.calls[0].final
            else BAD
        )
        xs, ys = colours[colour]
        link = doc.links[transfer.link] if transfer.link >= 0 else None
        for number, call in enumerate(transfer.calls):
            if call.at >= doc.healed:
                continue
            if not call.final:
                bad_x, bad_y = colours[BAD]
                bad_x += [call.at, call.over, float("nan")]
                bad_y += [call.node, call.node, float("nan")]
                axes.plot([call.over], [call.node], "x", color=BAD, markersize=4)
            elif call.over - call.at > LONG_S:
                xs += [call.at, call.over, float("nan")]
                ys += [call.node, call.node, float("nan")]
            if link is not None and number == 0 and link.node != call.node and link.known >= call.at and call.final:
                xs += [call.at, link.known, float("nan")]
                ys += [call.node, link.node, float("nan")]
    for colour, (xs, ys) in colours.items():
        axes.plot(xs, ys, "-", color=colour, linewidth=2 if colour == BAD else 0.9, alpha=0.65)
    later = [link for link in doc.links if link.at >= 0]
    axes.plot([link.known for link in later], [link.node for link in later], "o", color=INK, markersize=3.2)


def _rates(axes: "Axes", doc: Document) -> None:
    several = len(doc.sides) > 1
    for number, side in enumerate(doc.sides):
        colour = SIDES[number % len(SIDES)]
        edges = [i * doc.bucket_s for i in range(len(side.throughput) + 1)]
        axes.stairs(side.throughput, edges, color=colour, linewidth=1.3, label=side.name)
        for since, until in side.still:
            axes.axvspan(since, until, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylabel("outcomes / s")
    if several:
        axes.legend(loc="upper left", frameon=False, fontsize=8, ncols=len(doc.sides))
