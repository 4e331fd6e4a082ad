"""Log of refused requests, limited for each peer and in total.

Anyone who reaches the port can cause these lines. They must not displace other lines, because a
kubelet keeps only so many bytes of a container's log.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable

from aiohttp.http_exceptions import HttpProcessingError
from typing_extensions import override

from reattach.api.text import printable
from reattach.server.config import Rate
from reattach.server.rate_limit import RateLimit

log = logging.getLogger(__name__)

REQUEST_CHARACTERS_MAX = 80
REASON_CHARACTERS_MAX = 120
"""With the path of the request, a line has at most 200 characters that a peer chose."""
TOTAL_RATE = Rate(20, 200)
"""Lines about all peers together."""
SUMMARY_SECONDS = 10.0
PEERS_MAX = 1000
"""Peers whose omitted lines are counted separately."""


class PeerLog:
    """Writes lines about peers. A summary has the number of those that were omitted.

    A peer is an address, or the pod of an authenticated caller.
    """

    def __init__(self, rate: Rate, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Limit the lines about each peer to `rate`."""
        self._of_peer = RateLimit(rate, clock=clock)
        self._of_all = RateLimit(TOTAL_RATE, clock=clock)
        self._omitted: Counter[str] = Counter()

    def refused(self, peer: str, request: str, reason: str) -> None:
        """Write one line about a refused request, with the start of both texts."""
        if self._admits(peer):
            what = shortened(request, REQUEST_CHARACTERS_MAX)
            log.warning("refused %s from %s: %s", what, peer, shortened(reason, REASON_CHARACTERS_MAX))

    def failed(self, peer: str, request: str, error: Exception) -> None:
        """Write the end of the traceback of a bug."""
        if self._admits(peer):
            log.error("failed: %s from %s", shortened(request, REQUEST_CHARACTERS_MAX), peer, exc_info=error)

    async def write_summaries(self, seconds: float = SUMMARY_SECONDS) -> None:
        """Call `write_summary` at this interval, forever."""
        while True:
            await asyncio.sleep(seconds)
            self.write_summary()

    def write_summary(self) -> None:
        """Write how many lines were omitted since the last call, in one line if there were any."""
        if self._omitted:
            peer, count = self._omitted.most_common(1)[0]
            log.warning("omitted %d lines about refused requests, %d from %s", self._omitted.total(), count, peer)
            self._omitted.clear()

    def _admits(self, peer: str) -> bool:
        if not self._of_peer.take(peer) and not self._of_all.take(""):
            return True
        self._omitted[peer if peer in self._omitted or len(self._omitted) < PEERS_MAX else "others"] += 1
        return False


class MalformedRequests(logging.Filter):
    """Moves what aiohttp logs about malformed requests, with a traceback, to the `PeerLog`."""

    def __init__(self, peers: PeerLog) -> None:
        super().__init__()
        self._peers = peers

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        address = record.args[0] if isinstance(record.args, tuple) and record.args else ""
        self._peers.refused(str(address), "a malformed request", error.message)
        return False


def shortened(text: str, length: int) -> str:
    """Return the start of the text as one printable line of at most `length` characters."""
    return printable(text[:length])[:length]
