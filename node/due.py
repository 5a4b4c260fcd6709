"""When something may be due: a lower bound over many timers, so that no turn walks all that waits."""


class Due:
    """The earliest time of a set of timers, or an earlier one: timers may be put off or end without telling.

    `by(when)` for every timer that is set; when `passed(now)` is true, look at all of them, and call `by` for those
    that are left. Times are monotonic seconds.
    """

    def __init__(self) -> None:
        self.at: float | None = None

    def by(self, when: float) -> None:
        """There is a timer for `when`."""
        if self.at is None or when < self.at:
            self.at = when

    def passed(self, now: float) -> bool:
        """True when a timer may be due; the bound is forgotten then."""
        if self.at is None or now < self.at:
            return False
        self.at = None
        return True
