"""Who is at fault: three kinds of error, used by every package.

* `RemoteFault`: bytes from elsewhere break the protocol. Count it, close the connection, keep running.
* `LocalMisuse`: our own caller asked for something that makes no sense. The text says what to do.
* `Corruption`: this replica disagrees with itself or with what was decided. Nothing is written after it; the
  node stops and says why (design R11).

Errors carry their numbers: a message without them cannot be acted upon.
"""

from typing import Final

MAX_TEXT_CHARS: Final = 1000  # several times the longest of our own; it fits every frame, and a line of a log


def cut(text: str) -> str:
    """`text`, which may quote what others sent, with at most MAX_TEXT_CHARS of it and how long it was. A frame of some
    MiB may be one name, and a decoder says which name it does not know."""
    return text if len(text) <= MAX_TEXT_CHARS else f"{text[:MAX_TEXT_CHARS]}... ({len(text)} characters)"


class HopchainError(Exception):
    """Base of all errors raised on purpose by this project."""


class RemoteFault(HopchainError):
    """Untrusted bytes break the protocol. `code` is stable and short, the text is for people, and cut."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = cut(text)
        super().__init__(f"{self.text} [{code}]")


class LocalMisuse(HopchainError):
    """The caller in this process, or the person at the command line, asked for the impossible."""


class Corruption(HopchainError):
    """Stored data contradicts decided data. The node must stop, not guess."""


class Quarantined(HopchainError):
    """Others saw more of this node than its own disk remembers (design R12): it must not vote again."""


class Removed(HopchainError):
    """This node was removed from the network, and nobody needs it as a source any more: its id does not come back."""


class NotReady(HopchainError):
    """The machine lacks what it has a while after its start: the right time, or a name service. The same may be tried
    again."""


class StorageFailure(HopchainError):
    """The disk or the database engine failed. The node must stop: what was being written may or may not be durable,
    and an fsync is never retried (design section 2)."""
