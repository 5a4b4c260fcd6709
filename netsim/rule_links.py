"""Links from pages that are written by a program to the rules of the design."""

import re
from typing import Final

_RULE: Final = re.compile(r"\bR[1-9][0-9]?\b")


def link_rules(text: str, design: str) -> str:
    """Markdown in which every rule (R1, R2, ...) is a link; `design`: the way from its page to docs/design.md."""
    return _RULE.sub(lambda rule: f"[{rule[0]}]({design}#the-rules)", text)
