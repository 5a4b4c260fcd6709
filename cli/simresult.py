"""What a run of the simulator came to, told: its verdicts, its files, and why its sides fared as they did."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cli.output import CommandFailed, Exit, JsonValue, Output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netsim.follow import Line
    from netsim.measure import SideStory
    from netsim.scenario import Scenario
    from netsim.stage import Performance
    from netsim.verdict import Verdict


@dataclass(frozen=True, slots=True)
class _Told:
    """All that is told of a run. `note`: what was not judged, and why; `lines`: of the account that was followed;
    `again`: the command line that does the same again."""

    performance: "Performance"
    verdicts: "Sequence[Verdict]"
    stories: "Sequence[SideStory]"
    note: str
    lines: "Sequence[Line] | None"
    again: str
    report_path: Path | None
    plot_path: Path | None

    @property
    def ok(self) -> bool:
        return all(verdict.ok for verdict in self.verdicts)


def show(
    out: Output,
    performance: "Performance",
    scenario: "Scenario | None",
    command: str,
    report_path: Path | None,
    plot_path: Path | None,
    *,
    follow: str | None = None,
) -> Exit:
    """Judge a run, write its files, tell all of it; the exit code."""
    from netsim.follow import follow_account
    from netsim.measure import side_stories
    from netsim.verdict import judge, not_judged

    told = _Told(
        performance,
        judge(performance, scenario),
        side_stories(performance.record, performance.sides),
        not_judged(scenario) if scenario is not None else "",
        follow_account(performance.record, follow) if follow is not None else None,
        command,
        report_path,
        plot_path,
    )
    _write_files(told, scenario.about.replace("\n", " ") if scenario is not None else "")
    out.data(_document(told))
    _say(out, told)
    return Exit.DONE if told.ok else Exit.REJECTED


def write(path: Path, content: bytes) -> None:
    """A file that was asked for; `CommandFailed` when it cannot be written."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise CommandFailed(Exit.USAGE, "usage", f"{path} cannot be written: {error}") from None


def _write_files(told: _Told, about: str) -> None:
    """The report and the picture, as far as they were asked for."""
    if told.report_path is None and told.plot_path is None:
        return
    from netsim.report import document, render

    came = (f"{text}." for text in told.performance.nothing_came)
    note = " ".join((told.note, *came)).strip()
    doc = document(told.performance, told.verdicts, about=about, command=told.again, note=note)
    if told.report_path is not None:
        write(told.report_path, render(doc).encode())
    if told.plot_path is not None:
        from netsim.plot import plot

        plot(doc, told.plot_path)


def _document(told: _Told) -> dict[str, JsonValue]:
    """What `--json` prints (docs/cli-json.md)."""
    performance, record = told.performance, told.performance.record
    return {
        "name": performance.name,
        "seed": performance.plan.seed,
        "nodes": performance.plan.nodes,
        "k": performance.plan.k,
        "ok": told.ok,
        "complete": performance.complete,
        "trace": performance.trace,
        "simulated_s": round(performance.ended_at, 6),
        "links": len(record.watch.links),
        "calls": len(record.watch.calls),
        "crashes": record.crashes,
        "last_words": [
            {"at_s": round(at - record.start, 6), "node": node, "what": text}
            for at, node, text in record.world.last_words
        ],
        "verdicts": [{"name": v.name, "what": v.text, "ok": v.ok, "found": v.found} for v in told.verdicts],
        "sides": [
            {"name": s.name, "nodes": list(s.nodes), "asked": s.asked, "answered": s.answered, "why": s.why}
            for s in told.stories
        ],
        "note": told.note or None,
        "nothing_came": list(performance.nothing_came),
        "follow": None
        if told.lines is None
        else [{"at_s": at, "node": node, "what": text} for at, node, text in told.lines],
        "command": told.again,
        "report": str(told.report_path) if told.report_path else None,
        "plot": str(told.plot_path) if told.plot_path else None,
    }


def _say(out: Output, told: _Told) -> None:
    """For people."""
    performance, record = told.performance, told.performance.record
    for at, node, text in told.lines or ():
        out.say(f"{at:9.4f} s  {'node-' + str(node) if node >= 0 else '':8} {text}")
    _say_verdicts(out, performance, told.verdicts)
    for at, node, text in record.world.last_words:
        out.say(f"node-{node} ended {at - record.start:.2f} s after faults began: {text}")
    for story in told.stories:
        if story.asked:
            out.say(
                f"{story.name}: {story.answered} of {story.asked} requests were answered while the network was cut",
                bold=True,
            )
            out.say(f"  {story.why}")
    if told.note:
        out.say(told.note)
    for text in performance.nothing_came:
        out.say(text, colour="yellow")
    for what, path in (("report", told.report_path), ("picture", told.plot_path)):
        if path is not None:
            out.say(f"{what}: {path}")
    if performance.raised:
        out.say(performance.raised.rstrip())
    out.say(f"trace {performance.trace}")
    if not told.ok:
        out.say(f"again: {told.again}", colour="red", bold=True)


def _say_verdicts(out: Output, performance: "Performance", verdicts: "Sequence[Verdict]") -> None:
    title = performance.title or performance.name
    plan = performance.plan
    out.say(f"{title}: {plan.nodes} nodes, k {plan.k}, seed {plan.seed}", bold=True)
    out.table(
        ["verdict", "", "what", "found"],
        [[v.name, "holds" if v.ok else "BROKEN", v.text, v.found] for v in verdicts],
    )
