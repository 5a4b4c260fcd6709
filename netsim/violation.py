"""What the observer raises."""


class Violation(AssertionError):
    """A rule is broken: its name, and what was seen."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text
