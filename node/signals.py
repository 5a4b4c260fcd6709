"""The signals that end a node and the commands that run nodes, in order."""

import signal


def ending_signals() -> tuple[signal.Signals, ...]:
    """SIGINT, SIGTERM, and SIGHUP unless it is ignored: `nohup` asked that a terminal may close."""
    heard = (signal.SIGINT, signal.SIGTERM)
    return heard if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (*heard, signal.SIGHUP)
