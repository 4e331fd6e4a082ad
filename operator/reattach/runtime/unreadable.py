"""Objects that can't be read: each is counted, named in the log once, and left out. The others go on."""

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

import msgspec

from reattach.api.names import PLURAL
from reattach.api.objects import ObjectMeta
from reattach.cluster import Reference
from reattach.runtime.metrics import OperatorMetrics

DECODE_ERRORS = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What msgspec raises for JSON that is damaged, nested too deeply, or of another shape."""
_REMEMBERED_MAX = 10_000
"""Objects of which it is known that the log names them. With more, one may be named again, which harms nothing."""
_LINES_EVERY_SECONDS = 60.0
_SHOWN_MAX = 300

_log = logging.getLogger(__name__)


class UnreadableObjects:
    """Counts and logs. `resource` is the plural name of the kind, such as `pods`."""

    def __init__(self, metrics: OperatorMetrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._logged: OrderedDict[str, str] = OrderedDict()
        self._lines: Counter[str] = Counter()
        self._lines_logged: dict[str, float] = {}

    def report(self, resource: str, reference: Reference, error: Exception) -> None:
        """Count the object and name it in the log, once for the same error in a row."""
        said = describe(error)
        if self._logged.get(reference.uid) == said:
            return
        self._logged[reference.uid] = said
        self._logged.move_to_end(reference.uid)
        if len(self._logged) > _REMEMBERED_MAX:
            self._logged.popitem(last=False)
        self._metrics.unreadable_objects.labels(resource).inc()
        if resource == PLURAL:
            self._metrics.unreadable.inc()
        _log.error(
            "%s %s/%s is passed over, because it can't be read: %s",
            resource,
            reference.namespace,
            reference.name,
            said,
        )

    def report_event(self, resource: str, error: Exception) -> None:
        """Count an event of a watch whose object can't be named, and log at most one a minute for each resource."""
        self._metrics.unreadable_objects.labels(resource).inc()
        self._lines[resource] += 1
        if self._clock() - self._lines_logged.get(resource, -_LINES_EVERY_SECONDS) < _LINES_EVERY_SECONDS:
            return
        self._lines_logged[resource] = self._clock()
        _log.error(
            "%s event(s) of the watch of %s are passed over, because they can't be read: %s",
            self._lines.pop(resource),
            resource,
            describe(error),
        )

    def forget(self, uid: str) -> None:
        """The object is gone, or can be read now."""
        self._logged.pop(uid, None)


def reference_of(about: ObjectMeta) -> Reference:
    """Return the reference to an object."""
    return Reference(about.namespace, about.name, about.uid, about.resource_version, about.finalizers)


def describe(error: BaseException) -> str:
    """Return what is wrong, in one short line of ASCII."""
    if isinstance(error, RecursionError):
        return "a value in it is nested too deeply"
    return ascii(f"{type(error).__name__}: {error}"[:_SHOWN_MAX])[1:-1]
