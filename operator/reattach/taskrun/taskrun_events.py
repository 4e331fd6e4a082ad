"""Events on TaskRuns."""

import logging
import time
from collections.abc import Callable

from reattach.api.names import OPERATOR_NAME
from reattach.api.objects import ObjectMeta
from reattach.api.reasons import HOLDS, EventReason, Reason
from reattach.runtime.event_recorder import EventContent, EventRecorder
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.writer import Writer
from reattach.taskrun.taskrun_store import TASKRUNS

_OF_ATTEMPTS = frozenset(
    {
        EventReason.ATTEMPT_STARTED,
        EventReason.ATTEMPT_FAILED,
        EventReason.KEPT_POD_DELETED,
        EventReason.REATTACHED,
    }
)
_FOR_A_PERSON = frozenset(
    {
        *HOLDS,
        EventReason.ORPHANED,
        EventReason.TOO_LARGE,
        EventReason.UNREADABLE,
        Reason.PREDECESSOR_LEFT_JOBS,
    }
)

_log = logging.getLogger(__name__)


def taskrun_event_recorder(
    writer: Writer,
    instance: str,
    metrics: OperatorMetrics,
    reason_of: Callable[[ObjectMeta], str],
    clock: Callable[[], float] = time.monotonic,
) -> EventRecorder:
    """Return the recorder of Events on TaskRuns. It also counts and logs each new orphaned job.

    `reason_of` returns why a TaskRun ends.
    """

    def report_orphan(metadata: ObjectMeta, event: EventContent) -> None:
        if event.reason == EventReason.ORPHANED:
            metrics.orphaned_jobs.labels(reason=reason_of(metadata)).inc()
            _log.warning("TaskRun %s/%s: %s", metadata.namespace, metadata.name, event.note)

    return EventRecorder(
        writer,
        TASKRUNS,
        metrics,
        controller=OPERATOR_NAME,
        instance=instance,
        frequent=_OF_ATTEMPTS,
        urgent=_FOR_A_PERSON,
        on_new=report_orphan,
        clock=clock,
    )
