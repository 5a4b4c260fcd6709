"""Who is at fault, in routing's words: routing does not know `chain`, so it has its own two kinds.

* `RoutingFault`: bytes from elsewhere break the protocol. Count it by `code`, keep running.
* `RoutingMisuse`: our own caller asked for something that makes no sense. The text says what to do.
"""


class RoutingError(Exception):
    """Base of all errors raised on purpose by this package."""


class RoutingFault(RoutingError):
    """Untrusted bytes break the protocol. `code` is stable and short, the text is for people."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{text} [{code}]")
        self.code = code
        self.text = text


class RoutingMisuse(RoutingError):
    """The caller in this process asked for the impossible."""
