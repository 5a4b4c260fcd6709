"""What the observer raises, and what else ends a run."""


class Violation(AssertionError):
    """A rule is broken: its name, and what was seen."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule
        self.text = text


def broken_rule(error: Exception) -> tuple[str, str]:
    """The rule that a run broke, by what ended it, and what was seen. A node that raises, whatever it is, breaks one
    that has the error's name."""
    if isinstance(error, Violation):
        return error.rule, error.text
    return type(error).__name__, str(error) or repr(error)
