"""Rejected pods: what the condition shows, and how a quota gets room for the next one."""

import re

from reattach.api.reasons import SENTENCES, EventReason, Reason
from reattach.planner import conditions, podstatus, textformat
from reattach.planner.context import DecisionContext
from reattach.planner.plan import DeletePod, EmitEvent, PodRejection, PodRejectionKind

_REASONS = {
    PodRejectionKind.INVALID: Reason.INVALID_TEMPLATE,
    PodRejectionKind.QUOTA: Reason.QUOTA_EXCEEDED,
    PodRejectionKind.FORBIDDEN: Reason.POD_REFUSED,
    PodRejectionKind.NAME_TAKEN: Reason.POD_NAME_TAKEN,
    PodRejectionKind.ERROR: Reason.POD_REFUSED,
}


def rejection_of_next(context: DecisionContext) -> PodRejection | None:
    """Return the rejection of the pod that would be created next."""
    rejection = context.observed.rejection
    return rejection if rejection is not None and rejection.attempt == context.next_number else None


def reason_of(rejection: PodRejection) -> Reason:
    """Return the reason of the rejection."""
    return _REASONS[rejection.kind]


def describe(rejection: PodRejection) -> str:
    """Return the sentence of the reason, and the API server's message."""
    return f"{SENTENCES[reason_of(rejection)]} {rejection.message}"


def actions_for_room(context: DecisionContext, rejection: PodRejection) -> tuple[EmitEvent | DeletePod, ...]:
    """Return the deletion of kept pods that the next pod needs, the oldest first, with its event.

    Only pods of this TaskRun are deleted, and only those that have ended with a recorded end.
    """
    ended = (view.pod for view in context.attempts if view.recorded and view.pod is not None)
    kept = [pod for pod in ended if podstatus.is_terminal(pod) and pod.metadata.deletion_timestamp is None]
    kept = kept[: rejection.excess_pods]
    if not kept:
        return ()
    names = ", ".join(pod.metadata.name for pod in kept)
    note = f"Deleting the kept pods of ended attempts ({names}), because the quota has no room for the next pod."
    event = EmitEvent(EventReason.KEPT_POD_DELETED, textformat.head(f"{note} {rejection.message}"), warning=True)
    return event, *(DeletePod(pod.metadata.name, pod.metadata.uid, makes_room=True) for pod in kept)


def is_shown(context: DecisionContext, reason: Reason, before: str, rejection: PodRejection) -> bool:
    """Return whether status shows this rejection already, with this reason and the text `before`.

    Messages about quotas and failures differ each time and are not worth a write. The message of a
    policy names what it forbids and has no field of its own, so it is compared without its numbers.
    """
    shown = conditions.progress_condition(context.status)
    if shown is None or shown.reason != reason:
        return False
    if rejection.kind is not PodRejectionKind.FORBIDDEN:
        return shown.message.startswith(before + SENTENCES[reason_of(rejection)])
    message = textformat.head(before + describe(rejection))
    return re.sub(r"\d+", "", shown.message) == re.sub(r"\d+", "", message)
