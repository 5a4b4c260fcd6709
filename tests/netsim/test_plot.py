"""Pictures of runs."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from chain.errors import LocalMisuse
from netsim.plot import check_plot, plot
from netsim.report import Document, document
from netsim.scenario import load_scenario
from netsim.stage import perform
from netsim.verdict import judge


@pytest.fixture(scope="module")
def doc() -> Document:
    scenario = load_scenario("split-brain")
    performance = perform(scenario)
    return document(performance, judge(performance, scenario))


def test_svg_is_small_and_names_nodes_and_sides(doc: Document, tmp_path: Path) -> None:
    plot(doc, tmp_path / "out.svg")
    text = (tmp_path / "out.svg").read_text()
    ElementTree.fromstring(text)
    assert len(text) < 60_000
    assert all(word in text for word in ("node-0", "node-4", "majority", "minority", doc.title))


def test_the_same_run_gives_the_same_bytes(doc: Document, tmp_path: Path) -> None:
    for name in ("a", "b"):
        plot(doc, tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_png(doc: Document, tmp_path: Path) -> None:
    plot(doc, tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["out.gif", "out", "svg"])
def test_other_formats_are_refused_before_anything_is_drawn(name: str, tmp_path: Path) -> None:
    with pytest.raises(LocalMisuse, match=r"must end in \.png, \.svg, \.pdf"):
        check_plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_an_error_with_the_path(doc: Document, tmp_path: Path) -> None:
    with pytest.raises(LocalMisuse, match="cannot be written"):
        plot(doc, tmp_path / "none" / "out.svg")


@pytest.mark.parametrize("name", ["ring-cut", "power-cut", "lagging-gateway", "clock-jump"])
def test_every_kind_of_fault_is_drawn(name: str, tmp_path: Path) -> None:
    scenario = load_scenario(name)
    performance = perform(scenario)
    whole = document(performance, judge(performance, scenario))
    plot(whole, tmp_path / "with.svg")
    calm = document(performance, judge(performance, scenario))
    plot(_without_faults(calm), tmp_path / "without.svg")
    assert (tmp_path / "with.svg").stat().st_size > (tmp_path / "without.svg").stat().st_size + 200


def _without_faults(doc: Document) -> Document:
    import msgspec

    return msgspec.structs.replace(doc, faults=(), down=())
