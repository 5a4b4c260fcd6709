"""Who comes to a port, and how it is let in or turned away: the same for the port of the peers and that of the clients.

* A connection is a stranger's until its handshake is over. `Strangers` bounds how many there are at once;
  `accept_forever` takes the next one when there is a place.
* What ends a handshake is one of HANDSHAKE_ERRORS; `handshake_fault` says what it means and what to do.
* `WarnOnce` counts every refusal and logs the first of each kind; of a peer and its address again after it connected.
"""

import ipaddress
import logging
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from chain.errors import RemoteFault

log = logging.getLogger(__name__)

HANDSHAKE_S: Final = 5.0  # TLS and hellos: a few round trips, and a busy machine
# At once on one port (`Strangers`), a descriptor and some 50 KiB each; more wait in the kernel's backlog
MAX_HANDSHAKES: Final = 256
PATIENCE_S: Final = 0.5  # in which a busy node does so many handshakes
ACCEPT_RETRY_S: Final = 0.1  # out of descriptors: give others time to close theirs


class Strangers:
    """Connections whose handshake is not over, at most `most` of them. More wait until one is; but who is not done
    after PATIENCE_S may lose its place to them: the oldest, of the address that has most. So who connects and says
    nothing, or speaks slowly, keeps nobody out for long, and of many who come at once each has its turn.

    Each place lost counts against its address, each good handshake for it. At half of `most` an address gets no more
    patience: otherwise reconnecting fast would keep everybody out."""

    MAX_KNOWN: Final = 1024  # addresses that lost places; with more of them all begin anew, rather than grow

    def __init__(self, most: int) -> None:
        assert most >= 1, most
        self._most = most
        self._inside: dict[trio.CancelScope, tuple[str, float]] = {}  # whose, since when, in order of arrival
        self._lost: Counter[str] = Counter()  # places by address, at most `most`, less handshakes that ended well
        self._left = trio.lowlevel.ParkingLot()

    async def wait_for_place(self) -> None:
        """Return when one more may come."""
        await trio.lowlevel.checkpoint()  # who was accepted just now takes its place first
        while len(self._inside) >= self._most:
            most, _ = Counter(whose for whose, _ in self._inside.values()).most_common(1)[0]
            first, since = next((scope, since) for scope, (whose, since) in self._inside.items() if whose == most)
            if 2 * self._lost[most] < self._most:
                with trio.move_on_at(since + PATIENCE_S) as patience:
                    await self._left.park()
                if not patience.cancelled_caught:
                    continue
            self._inside.pop(first, None)
            first.cancel()
            if len(self._lost) >= self.MAX_KNOWN:
                self._lost.clear()
            self._lost[most] = min(self._lost[most] + 1, self._most)

    @contextmanager
    def handshake(self, remote: str) -> Iterator[None]:
        """The handshake within takes a place. Raises `RemoteFault("crowded")` when it has lost it."""
        whose = origin(remote)
        with trio.CancelScope() as scope:
            self._inside[scope] = (whose, trio.current_time())
            try:
                yield
                self._ended_well(whose)
            finally:
                self._inside.pop(scope, None)
                self._left.unpark_all()
        if scope.cancelled_caught:
            raise RemoteFault(
                "crowded", f"its handshake was not done in time, and {self._most} others wait or are at it"
            )

    def _ended_well(self, whose: str) -> None:
        if self._lost[whose] > 1:
            self._lost[whose] -= 1
        else:
            del self._lost[whose]


def origin(remote: str) -> str:
    """Whose an address is: of IPv6 its network of 64 bits, all of which one machine may use."""
    try:
        address = ipaddress.ip_address(remote.partition("%")[0])
    except ValueError:
        return remote
    if address.version == 4:
        return remote
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


async def accept_forever(
    listener: trio.abc.Listener[trio.abc.Stream],
    strangers: Strangers,
    welcome: Callable[[trio.abc.Stream], Awaitable[None]],
    nursery: trio.Nursery,
    counters: Counter[str],
) -> None:
    """Start `welcome(stream)`, which begins with `strangers.handshake`, for each connection."""
    told = False
    while True:
        await strangers.wait_for_place()
        try:
            stream = await listener.accept()
        except OSError as error:  # out of descriptors or memory: those who are connected go on
            counters["accept_failed"] += 1
            if not told:
                log.warning("connections cannot be accepted (%s): raise the limit of open files", error.strerror)
            told = True
            await trio.sleep(ACCEPT_RETRY_S)
        else:
            told = False
            _keep_alive(stream)
            nursery.start_soon(welcome, stream)


HANDSHAKE_ERRORS: Final = (RemoteFault, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError)


# X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED, and what OpenSSL calls the alerts of RFC 8446 6.2.
_OUT_OF_TIME: Final = frozenset({9, 10})
_REFUSED: Final = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)


def handshake_fault(error: Exception) -> RemoteFault:
    """What one of HANDSHAKE_ERRORS means, with what to do."""
    if isinstance(error, RemoteFault):
        return error
    if isinstance(error, trio.TooSlowError):
        return RemoteFault("timeout", f"no TLS and hello within {HANDSHAKE_S:g} s")
    cause = error.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in _OUT_OF_TIME:
            return RemoteFault(
                "certificate",
                f"its {cause.verify_message} by this machine's clock: renew it with `hopchain certificate renew`, or set "
                "the clocks",
            )
        return RemoteFault(
            "certificate",
            f"its certificate is not of this network's CA ({cause.verify_message}): another network, or a node.crt that "
            "the ca.key of this one has not signed",
        )
    if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLSyscallError):
        if cause.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
            return RemoteFault("no_certificate", "it shows no certificate: clients belong on the client port")
        if cause.reason in _REFUSED:
            return RemoteFault(
                "certificate",
                f"it refuses this node's certificate ({cause.reason}): `hopchain certificate list` says when node.crt ends; "
                "compare genesis.json and the clocks",
            )
        return RemoteFault("tls", f"it does not speak TLS 1.3 as a node does ({cause.reason})")
    return RemoteFault(
        "lost",
        "it closed the connection during the handshake, without a word; if this stays so, its log says why "
        "(a certificate that has expired or is of another network, for one)",
    )


def remote_of(stream: trio.abc.Stream) -> str:
    """Where the other end is, for people."""
    if not isinstance(stream, trio.SocketStream):
        return "memory"
    try:
        return str(stream.socket.getpeername()[0])
    except OSError:
        return "gone"


def _keep_alive(stream: trio.abc.Stream) -> None:
    """So that a vanished client does not hold its place for ever."""
    if isinstance(stream, trio.SocketStream):
        for level, option, value in (
            (trio.socket.SOL_SOCKET, trio.socket.SO_KEEPALIVE, 1),
            (trio.socket.IPPROTO_TCP, trio.socket.TCP_KEEPIDLE, 60),
            (trio.socket.IPPROTO_TCP, trio.socket.TCP_KEEPINTVL, 10),
            (trio.socket.IPPROTO_TCP, trio.socket.TCP_KEEPCNT, 3),
        ):
            stream.setsockopt(level, option, value)


class WarnOnce:
    """Logs the first of each (whose, code) as a warning and counts them all, until `forget`. Peers are forgotten when
    they connect; clients never, for a good one may come as often as a bad one of the same address, and both would
    fill the log. `kind`: a word for those who come to this port. An address is told in full, and stands for its
    `origin`: else one machine would fill the log."""

    MAX_KNOWN: Final = 1024  # more addresses than this is a scan: start over rather than grow

    def __init__(self, counters: Counter[str], kind: str = "") -> None:
        self._counters = counters
        self._kind = kind
        self._known: set[tuple[str, str]] = set()

    def refuse(self, who: str, fault: RemoteFault) -> None:
        """A connection of `who` was refused, or refused us."""
        self._counters[f"refused.{fault.code}"] += 1
        known = (origin(who), fault.code)
        if known not in self._known:
            if len(self._known) >= self.MAX_KNOWN:
                self._known.clear()
            self._known.add(known)
            log.warning("no connection with %s%s: %s", self._kind, who, fault)

    def forget(self, who: str) -> None:
        """`who` is connected: its next refusal is news."""
        whose = origin(who)
        self._known = {entry for entry in self._known if entry[0] != whose}
