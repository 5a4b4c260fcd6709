"""The picture of a benchmark: completed per second over time, and the latencies. Needs matplotlib (the extra
`plot`)."""

from itertools import pairwise
from pathlib import Path
from typing import Final

from chain.errors import LocalMisuse
from cli.bench_report import PERCENTILES, Measured, percentile
from netsim.plot import check_plot

BINS: Final = 80
RATE: Final = "#2563c9"
MARK: Final = "#c2570c"


def check_picture(path: Path) -> None:
    """`LocalMisuse` unless such a picture can be drawn here."""
    check_plot(path)


def steps(run: Measured) -> tuple[list[float], list[float]]:
    """Completed a second, and the seconds since the start between which each rate holds: one more. The last one may be
    of less than a second."""
    counts, settings = run.per_second, run.settings
    edges = [min(float(second), settings.warm_up_s + settings.duration_s) for second in range(len(counts) + 1)]
    return [n / (end - begin) for n, (begin, end) in zip(counts, pairwise(edges), strict=True)], edges


def draw(run: Measured, path: Path) -> None:
    """Draw the run into the file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = run.settings
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hopchain", "font.size": 9, "axes.linewidth": 0.6}):
        figure = Figure(figsize=(9, 5), layout="constrained")
        rates, latencies = figure.subplots(2, 1)
        rates.stairs(*steps(run), color=RATE, baseline=None)
        rates.axvspan(0, settings.warm_up_s, color="#5b6472", alpha=0.12, linewidth=0)
        rates.set_ylim(bottom=0)
        rates.set_xlabel("seconds (warm-up shaded)")
        rates.set_ylabel("completed a second")
        rates.set_title(
            f"{settings.profile}: {run.per_s:,.0f}/s, {settings.nodes} nodes, k = {settings.k}, "
            f"{settings.clients} clients, {settings.accounts:,} accounts",
            loc="left",
            fontsize=11,
        )
        if run.latencies:
            most = max(percentile(run.latencies, 0.999), 0.01)
            latencies.hist([v for v in run.latencies if v <= most], bins=BINS, color=RATE)
            for name, share in PERCENTILES:
                value = percentile(run.latencies, share)
                latencies.axvline(value, color=MARK, linewidth=0.8)
                latencies.annotate(
                    f" {name.removesuffix('_ms')}\n {value:.1f}",
                    (value, 0.98),
                    (0, 0),
                    ("data", "axes fraction"),
                    "offset points",
                    va="top",
                    color=MARK,
                )
        latencies.set_xlabel("ms from handing over a request to its answer, up to p99.9")
        latencies.set_ylabel("requests")
        for axes in (rates, latencies):
            axes.spines[["top", "right"]].set_visible(False)
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {}, dpi=150)
        except OSError as error:
            raise LocalMisuse(f"{path} cannot be written: {error}") from None
