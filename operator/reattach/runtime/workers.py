"""Workers take keys from the queue, reconcile them, and retry after errors."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from time import monotonic, time

from reattach.cluster import ClusterError
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.supervision import is_cancelled, shortened
from reattach.runtime.unreadable import describe
from reattach.runtime.workqueue import Key, WorkQueue
from reattach.runtime.writer import NotLeadingError

_BACKOFF_SECONDS = 0.2
_BACKOFF_SECONDS_MAX = 60.0

_log = logging.getLogger(__name__)


class LoggedError(Exception):
    """Error that `reconcile` has logged itself. It is retried like any other."""


class Workers:
    """Runs `reconcile` for each key.

    After an error, the key is retried with exponential backoff.

    `reconcile` returns when to reconcile the key again, if nothing changes before. `kind` names
    the objects in the log.
    """

    def __init__(
        self,
        kind: str,
        queue: WorkQueue,
        reconcile: Callable[[Key], Awaitable[datetime | None]],
        metrics: OperatorMetrics,
    ) -> None:
        self._kind = kind
        self._queue = queue
        self._reconcile = reconcile
        self._metrics = metrics
        self._failures: dict[Key, tuple[int, str]] = {}

    async def run(self) -> None:
        """Work as one worker, forever."""
        while True:
            key = await self._queue.get()
            began = monotonic()
            try:
                self._queue.add_at(key, await self._reconcile_once(key))
            finally:
                self._queue.done(key)
                self._metrics.reconcile_seconds.observe(monotonic() - began)
            # A reconciliation without I/O does not suspend, but the Lease must be renewed.
            await asyncio.sleep(0)

    async def _reconcile_once(self, key: Key) -> float | None:
        """Reconcile once. Return when to reconcile again, in seconds since the epoch."""
        self._metrics.reconciles.inc()
        try:
            again = await self._reconcile(key)
        except (ClusterError, NotLeadingError) as error:
            return self._failed(key, error, at_least=getattr(error, "retry_after", None) or 0.0)
        except LoggedError as error:
            return self._failed(key, error, level=logging.DEBUG)
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            return self._failed(key, error, level=logging.ERROR)
        except Exception as error:  # noqa: BLE001 -- a bug that one object triggers must not stop the others
            return self._failed(key, error, level=logging.ERROR)
        self._failures.pop(key, None)
        return again.timestamp() if again else None

    def _failed(self, key: Key, error: BaseException, *, at_least: float = 0.0, level: int = logging.WARNING) -> float:
        """Log the error, once for the same error in a row, and return when to retry.

        ERROR is for bugs, with their traceback.
        """
        self._metrics.reconcile_errors.inc()
        times, logged = self._failures.get(key, (0, ""))
        text = describe(error)
        wait: float = max(min(_BACKOFF_SECONDS * 2 ** min(times, 20), _BACKOFF_SECONDS_MAX), at_least)
        self._failures[key] = (times + 1, text)
        _log.log(
            logging.DEBUG if text == logged else level,
            "%s %s/%s: %s; retrying in %.1f s.",
            self._kind,
            *key,
            text,
            wait,
            exc_info=shortened(error) if level == logging.ERROR else None,
        )
        return time() + wait
