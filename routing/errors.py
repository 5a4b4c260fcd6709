"""Who is at fault, in routing's words: routing does not know `chain`, so it has its own three kinds.

* `RoutingFault`: bytes from elsewhere break the protocol. Count it by `code`, keep running.
* `RoutingMisuse`: our own caller asked for something that makes no sense. The text says what to do.
* `RoutingNotReady`: this machine cannot do it now, as while it starts; later it may.
"""

from typing import Final

MAX_TEXT_CHARS: Final = 1000  # of a fault: it may quote what others sent, which is up to a frame of some MiB


class RoutingError(Exception):
    """Base of all errors raised on purpose by this package."""


class RoutingFault(RoutingError):
    """Untrusted bytes break the protocol. `code` is stable and short, the text is for people, and cut."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = text[:MAX_TEXT_CHARS]
        super().__init__(f"{self.text} [{code}]")


class RoutingMisuse(RoutingError):
    """The caller in this process asked for the impossible."""


class RoutingNotReady(RoutingError):
    """No name can be looked up on this machine now, as while it starts. The same may be tried again."""
