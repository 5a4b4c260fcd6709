"""The pages of the scenarios that ship: `python -m netsim.pages docs/scenarios` writes them with their pictures.

A page is made from its scenario file; a test checks that it is current.
"""

import sys
from pathlib import Path

from netsim.plot import plot
from netsim.report import document
from netsim.rule_links import link_rules
from netsim.scenario import Scenario, load_scenario, shipped
from netsim.stage import perform
from netsim.verdict import describe, judge


def page(scenario: Scenario) -> str:
    """The Markdown of one scenario."""
    name, plan = scenario.name, scenario.plan
    about, learn = (link_rules(text, "../design.md") for text in (scenario.about, scenario.learn))
    checks = "\n".join(f"- {describe(expect)}" for expect in scenario.expects)
    return f"""# {scenario.title}

{about}

```
hopchain sim run {name} --report out.html
```

![{plan.nodes} nodes over time]({name}.svg)

Dots are decided links, on the line of the node that was first to know. Lines lead from the node that a client asked to the
node that decided; red ones end without an outcome. Coloured bands are the sides of a cut, amber ones nodes that are slow or
held up, grey ones processes that are down.

## What to learn

{learn}

## What is checked

All invariants (see [the simulator](../simulator.md#invariants)), and, with seed {plan.seed}, {plan.nodes} nodes and k {plan.k}:

{checks}

The file: [{name}.toml](../../netsim/scenarios/{name}.toml).
"""


def index(scenarios: list[Scenario]) -> str:
    """The table of all scenarios."""
    rows = "\n".join(f"| [{s.name}]({s.name}.md) | {s.title} |" for s in scenarios)
    return f"""# Scenarios that ship

Each is a file that you can copy and change; how they are written is told in [the simulator](../simulator.md).

| scenario | what happens |
|---|---|
{rows}
"""


def write_pages(directory: Path) -> None:
    """Write all pages and pictures."""
    scenarios = [load_scenario(name) for name in shipped()]
    for scenario in scenarios:
        performance = perform(scenario)
        plot(document(performance, judge(performance, scenario)), directory / f"{scenario.name}.svg")
        (directory / f"{scenario.name}.md").write_text(page(scenario), encoding="utf-8")
    (directory / "README.md").write_text(index(scenarios), encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
