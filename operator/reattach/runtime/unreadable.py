"""Objects that can't be decoded. Each is counted, named in the log once, and skipped."""

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

import msgspec

from reattach.api.objects import ObjectMeta
from reattach.api.text import one_line
from reattach.cluster import Reference
from reattach.runtime.metrics import OperatorMetrics

DECODE_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""Errors of msgspec for JSON that is damaged, nested too deeply, or of another shape."""
_REMEMBERED_MAX = 10_000
"""Objects that the log is known to name. With more, an object may be named again, which is
harmless.
"""
_LINES_EVERY_SECONDS = 60.0
_SHOWN_MAX = 300

_log = logging.getLogger(__name__)


class UnreadableObjects:
    """Counts and logs.

    `resource` is a plural, such as `pods`.

    Objects of the controller's own kind, `own_plural`, are counted in
    `reattach_unreadable_taskruns_total` as well.
    """

    def __init__(
        self, metrics: OperatorMetrics, clock: Callable[[], float] = time.monotonic, *, own_plural: str = ""
    ) -> None:
        self._metrics = metrics
        self._clock = clock
        self._own_plural = own_plural
        self._logged: OrderedDict[str, str] = OrderedDict()
        self._lines: Counter[str] = Counter()
        self._lines_logged: dict[str, float] = {}

    def report(self, resource: str, reference: Reference, error: Exception) -> None:
        """Count the object and name it in the log, once for the same error in a row."""
        text = describe(error)
        if self._logged.get(reference.uid) == text:
            return
        self._logged[reference.uid] = text
        self._logged.move_to_end(reference.uid)
        if len(self._logged) > _REMEMBERED_MAX:
            self._logged.popitem(last=False)
        self._metrics.unreadable_objects.labels(resource).inc()
        if resource == self._own_plural:
            self._metrics.unreadable.inc()
        _log.error("Skipping %s %s/%s, which can't be read: %s", resource, reference.namespace, reference.name, text)

    def report_event(self, resource: str, error: Exception) -> None:
        """Count a watch event whose object can't be named.

        Log at most one line per minute and resource.
        """
        self._metrics.unreadable_objects.labels(resource).inc()
        self._lines[resource] += 1
        if self._clock() - self._lines_logged.get(resource, -_LINES_EVERY_SECONDS) < _LINES_EVERY_SECONDS:
            return
        self._lines_logged[resource] = self._clock()
        count = self._lines.pop(resource)
        _log.error("Skipped %s event(s) of the watch of %s, which can't be read: %s", count, resource, describe(error))

    def is_known(self, uid: str) -> bool:
        """Return whether the object was reported and not forgotten since."""
        return uid in self._logged

    def forget(self, uid: str) -> None:
        """Forget an object that is gone, or that can be read now."""
        self._logged.pop(uid, None)


def reference_of(metadata: ObjectMeta) -> Reference:
    """Return the reference to an object."""
    return Reference(metadata.namespace, metadata.name, metadata.uid, metadata.resource_version, metadata.finalizers)


def describe(error: BaseException) -> str:
    """Return the error as one short printable line."""
    if isinstance(error, RecursionError):
        return "a value in it is nested too deeply"
    return one_line(f"{type(error).__name__}: {error}"[: 2 * _SHOWN_MAX], _SHOWN_MAX)
