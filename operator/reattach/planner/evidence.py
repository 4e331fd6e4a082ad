"""Evidence that an attempt has ended: the kubelet's report, or facts about its node.

An end without evidence is *presumed*: its process may be frozen on an unreachable node, and submit
an external job when it wakes up. Evidence that comes later turns the presumed end into a reported
one, once.
"""

import msgspec

from reattach.api.reasons import End
from reattach.api.taskrun import Attempt, TaskRunStatus
from reattach.planner import podstatus, textformat
from reattach.planner.context import AttemptView, DecisionContext

_REPORTED_LATE = "The kubelet reported its end later."


def nodes_to_read(context: DecisionContext) -> tuple[str, ...]:
    """Return the names of the unread Nodes that may be evidence of an attempt's end.

    They are the nodes of presumed ends, and of pods that should have ended and did not report it.
    """
    names = {_node_of(view) for view in context.attempts if _lacks_evidence(context, view)}
    return tuple(sorted(names - {"", *context.observed.nodes}))


def with_evidence(context: DecisionContext) -> DecisionContext:
    """Return the context in which each presumed end with evidence is a reported one."""
    found = {
        view.number: sentence
        for view in context.attempts
        if view.is_presumed and (sentence := _late_evidence(context, view)) is not None
    }
    if not found:
        return context
    entries = tuple(
        _with_report(entry, found[entry.number], context.last_number) if entry.number in found else entry
        for entry in context.status.attempts
    )
    status = msgspec.structs.replace(context.status, attempts=entries)
    return context.with_status(_with_last_presumed(status))


def end_of(context: DecisionContext, view: AttemptView) -> tuple[End, str]:
    """Return whether the end of an attempt is reported or presumed, and a sentence of evidence.

    Only after a reported end is it certain that no process of the attempt runs. The sentence is
    empty unless the node is the evidence.
    """
    if view.pod is not None and podstatus.is_end_reported(view.pod, context.container):
        return End.REPORTED, ""
    sentence = _node_evidence(context, view)
    return (End.PRESUMED, "") if sentence is None else (End.REPORTED, sentence)


def with_sentence(message: str, sentence: str) -> str:
    """Return the message of an attempt with this sentence at its end."""
    if not sentence:
        return textformat.head(message)
    start = textformat.head(message, textformat.BYTES_MAX - len(sentence.encode()) - 1)
    return f"{start} {sentence}".lstrip()


def _lacks_evidence(context: DecisionContext, view: AttemptView) -> bool:
    if view.pod is not None and context.is_overdue(view.pod):
        return True
    if view.pod is not None and not context.is_pod_over(view.pod):
        return False
    return view.is_presumed if view.recorded else end_of(context, view)[0] is End.PRESUMED


def _late_evidence(context: DecisionContext, view: AttemptView) -> str | None:
    assert view.entry is not None
    is_same = view.pod is not None and view.pod.metadata.uid == view.entry.pod_uid
    if is_same and view.pod is not None and podstatus.is_end_reported(view.pod, context.container):
        return _REPORTED_LATE
    return _node_evidence(context, view)


def _node_evidence(context: DecisionContext, view: AttemptView) -> str | None:
    ended = view.pod.metadata.deletion_timestamp if view.pod is not None else None
    if view.entry is not None and view.entry.finish_time is not None:
        ended = view.entry.finish_time
    is_over = view.pod is None or context.is_pod_over(view.pod)
    return context.node_evidence(_node_of(view), ended or context.now) if is_over else None


def _node_of(view: AttemptView) -> str:
    if view.pod is not None:
        return view.pod.spec.node_name
    return view.entry.node if view.entry is not None else ""


def _with_report(entry: Attempt, sentence: str, newest: int) -> Attempt:
    message = with_sentence(entry.message or "", sentence)
    return msgspec.structs.replace(entry, end=End.REPORTED.value, message=message, reported_at_attempt=newest)


def _with_last_presumed(status: TaskRunStatus) -> TaskRunStatus:
    """Return the status with the highest number of an attempt whose end may be presumed.

    Folded attempts count as presumed up to the number before, because their ends are forgotten.
    """
    listed = {entry.number for entry in status.attempts}
    before = status.counts.last_presumed
    presumed = [entry.number for entry in status.attempts if entry.end == End.PRESUMED]
    folded = next((number for number in range(before, 0, -1) if number not in listed), 0)
    last = max([*presumed, folded])
    return msgspec.structs.replace(status, counts=msgspec.structs.replace(status.counts, last_presumed=last))
