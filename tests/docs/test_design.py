"""docs/design.md: every section, step and rule that is cited exists there, and what it says of the packages is so. All
pages: links lead somewhere."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DESIGN = (DOCS / "design.md").read_text()
PACKAGES = ("chain", "routing", "node", "hopchain", "cli", "netsim")
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]

_CITED = re.compile(r"\b[Dd]esign(?:'s|\.md)?[,:]?\s+(sections?\s+\d|R\d)")
_PART = re.compile(r"(?:sections?\s+)?(?P<what>R?\d+)\b|,\s*|\s+and\s+|\s+to\s+")
_STEP = re.compile(r"\bdesign(?: section)? (\d+), step (\d+)")


def sections() -> dict[int, str]:
    """Number and text of each section of the page."""
    parts = re.split(r"(?m)^## (\d+)\. .*$", DESIGN)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def rules() -> set[str]:
    """The rules that the page states."""
    return set(re.findall(r"(?m)^- \*\*(R\d+) ", sections()[3]))


def cited_in(text: str) -> set[str]:
    """The sections ("7") and rules ("R7") that a text cites: "design sections 2, 3, R13" cites three."""
    text = re.sub(r"\s*\n\s*(?:#\s*)?", " ", text)  # citations go over the end of a line
    found = set()
    for match in _CITED.finditer(text):
        at = match.start(1)
        while (part := _PART.match(text, at)) is not None:
            if part["what"]:
                found.add(part["what"])
            at = part.end()
    return found


def citing() -> Iterator[tuple[Path, str]]:
    """All files that may cite the design."""
    for folder in (*PACKAGES, "tests", "bench", "docs"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".toml"):
                yield path, path.read_text()
    yield ROOT / "pyproject.toml", (ROOT / "pyproject.toml").read_text()


def test_what_a_citation_is() -> None:
    assert cited_in("(design section 2, step 2)") == {"2"}
    assert cited_in("# as it is (design sections 2,\n    # 3 and R13).") == {"2", "3", "R13"}
    assert cited_in("design R1 to R8; Design section 4 asks") == {"R1", "R8", "4"}
    assert cited_in("the least that this design leaves to pay") == set()


def test_every_section_and_rule_that_is_cited_exists() -> None:
    there = {str(number) for number in sections()} | rules()
    found = {what for _, text in citing() for what in cited_in(text)}
    assert len(found) > 15
    for path, text in citing():
        missing = cited_in(text) - there
        assert not missing, f"{path.relative_to(ROOT)} cites {sorted(missing)}, which docs/design.md does not have"


def test_every_rule_that_the_code_names_exists() -> None:
    for folder in PACKAGES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            missing = set(re.findall(r"\bR\d+\b", path.read_text())) - rules()
            assert not missing, f"{path.relative_to(ROOT)} names {sorted(missing)}"


def test_every_step_that_is_cited_exists() -> None:
    cited = {found for _, text in citing() for found in _STEP.findall(text)}
    assert cited
    for section, step in cited:
        steps = re.findall(r"(?m)^(\d+)\. ", sections()[int(section)])
        assert step in steps, f"design section {section} has no step {step}"


def test_every_rule_says_why_and_what_breaks() -> None:
    texts = re.split(r"(?m)^- \*\*R\d+ ", sections()[3])[1:]
    assert len(texts) == 14
    for text in texts:
        rule = text.split("\n###")[0]
        assert "*Why:*" in rule and "*Without it:*" in rule, rule


def test_the_packages_are_those_of_the_layers() -> None:
    rows = dict(re.findall(r"(?m)^\| `(\w+)/` \|.*\| ([^|]+) \|$", sections()[8]))
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = (c["layers"] for c in contract["contracts"] if c["type"] == "layers")
    assert set(contract["root_packages"]) == set(PACKAGES) and set(PACKAGES) <= rows.keys()
    for place, layer in enumerate(layers):
        below = {name.strip() for lower in layers[place + 1 :] for name in lower.split("|")}
        for package in layer.split("|"):
            said = rows[package.strip()]
            named = set(re.findall(r"`(\w+)`", said))
            everything = {"none of the others": set(), "those above": below, "all": below}
            assert everything.get(said, named) == below, f"{package} may import {below}; the page says {said}"


def test_files_that_the_design_and_the_glossary_name_exist() -> None:
    for page in (DESIGN, (DOCS / "glossary.md").read_text()):
        for named in re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", page):
            assert (ROOT / named).exists(), named


def anchors(text: str) -> set[str]:
    """What a `#...` in a link may name: the headings, as they are shown on the web."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"(?ms)^```.*?^```", "", page.read_text())):
        if target.startswith(("http:", "https:")):
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there.read_text()), f"{page.name}: {target}"


PRINTED = {"exhaustive-search.md", "simulator-mutants.md"}  # by tests.node.epoch_rules and netsim.mutants
WRITTEN = [
    page for page in PAGES if page.name not in PRINTED and page.parent.name != "scenarios"
]  # those by netsim.pages


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_who_cites_the_design_links_to_it_first(page: Path) -> None:
    """A page's first "design section 7", "design R7" or "R7" is a link, or comes after one."""
    text = page.read_text()
    first = re.search(_CITED.pattern + r"|\bR\d+\b", text)
    if first is None or page == DOCS / "design.md":
        return
    link = re.search(r"[\w ]*\](?: section \d+)?\((?:\.\./|docs/)?design\.md(?:#[^)]*)?\)", text)
    assert link is not None and link.start() <= first.end(), f"{page.name} cites {first.group()!r} before it has a link"


def test_a_word_has_one_line_in_the_glossary() -> None:
    column = re.findall(r"(?m)^\| ([^|]+) \|", (DOCS / "glossary.md").read_text())
    words = [word.strip("` ") for entry in column for word in entry.split(",") if entry not in ("word ", "word", "---")]
    assert len(words) > 60
    assert len(set(words)) == len(words), sorted({word for word in words if words.count(word) > 1})


def test_the_readme_names_every_page() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in ("design", "protocol", "wire", "schema", "glossary", "operations", "client", "simulator"):
        assert f"](docs/{page}.md" in readme, page
