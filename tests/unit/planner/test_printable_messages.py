"""Hostile text in each string that a decision reads: conditions, attempts and events are printable lines."""

import dataclasses
from typing import Any, cast

import msgspec
import pytest

from builders import (
    SEALED,
    SETTINGS,
    APod,
    ATaskRun,
    a_job,
    a_pod,
    a_state,
    a_taskrun,
    at,
    observed,
)
from hostile_text import HOSTILE, copies
from reattach.api.reasons import EventReason
from reattach.api.state import JobOrigin, JobState
from reattach.api.taskrun import Ending
from reattach.planner.decide import decide
from reattach.planner.external_jobs import describe_job
from reattach.planner.plan import (
    AbsentState,
    EmitEvent,
    Observed,
    Plan,
    PodRejection,
    PodRejectionKind,
    UnreadableState,
)
from reattach.runtime.event_recorder import EventRecorder
from reattach.runtime.metrics import OperatorMetrics
from reattach.taskrun.taskrun_events import taskrun_event_recorder

HELD = '{"reattach": "v1", "kind": "Held", "message": "no response"}'
PERMANENT = '{"reattach": "v1", "kind": "Permanent", "message": "no such table"}'
UNRESOLVED = a_job(None, held=True, holds=1, message="no response")


NOW = {"disrupted": at(400)}
"""Times at which the situation writes text, if that is not after 10 s."""


def retried(**spec: Any) -> ATaskRun:
    return a_taskrun(retry={"budgets": {"application": 2}}, **spec).with_attempt(1)


def rejected(kind: PodRejectionKind) -> Observed:
    return observed(a_taskrun(), rejection=PodRejection(kind=kind, message="why", attempt=1, retry_at=at(60)))


CAN_CANCEL = a_state(1, jobs=(a_job(),), seal=SEALED, can_cleanup=True)
ENDING = Ending(outcome="Cancelled", reason="Cancelled", message="why", time=at(1), cleanup_deadline=at(900))


def ended(**spec: Any) -> ATaskRun:
    """Return a TaskRun that is ending, after its first attempt."""
    taskrun = a_taskrun(cancel=True, **spec).with_failed_attempt(1).with_state().with_finalizer()
    return taskrun.with_status(ending=ENDING)


def cleanup_pod() -> APod:
    return a_pod(2).with_metadata(labels={"reattach.dev/purpose": "Cleanup"})


SITUATIONS: dict[str, Observed] = {
    "failed": observed(retried(), a_pod().exited(1, message="Traceback\n  line\nValueError: no rows")),
    "failed for good": observed(retried(), a_pod().exited(1, message=PERMANENT)),
    "failed without a retry": observed(a_taskrun().with_attempt(1), a_pod().exited(1, message="no rows")),
    "evicted": observed(retried(), a_pod().failed("Evicted", "The node was low on resource: memory.")),
    "disrupted": observed(retried(), a_pod().running().deleted().disrupted()),
    "not scheduled": observed(retried(), a_pod().unschedulable()),
    "image": observed(retried(), a_pod().scheduled().waiting("ImagePullBackOff", "Back-off pulling image")),
    "held": observed(retried(), a_pod().exited(83, message=HELD), state=a_state(1, jobs=(UNRESOLVED,))),
    "submitted": observed(retried(), a_pod().running(), state=a_state(1, jobs=(a_job(url="http://ray/1"),))),
    "adopted": observed(
        retried(), a_pod().running(), state=a_state(1, jobs=(a_job(origin=JobOrigin.ADOPTED, strays=("job-2",)),))
    ),
    "ending": observed(
        retried(cancel=True).with_state(), a_pod().running(), state=a_state(1, jobs=(a_job(),), seal=SEALED)
    ),
    "cleanup image": observed(ended(), cleanup_pod().waiting("ImagePullBackOff", "Back-off"), state=CAN_CANCEL),
    "cleanup failed": observed(ended(), cleanup_pod().exited(1, message="no route"), state=CAN_CANCEL),
    "cleanup without budget": observed(
        ended(cleanup={"budget": 1}), cleanup_pod().exited(1, message="no route"), state=CAN_CANCEL
    ),
    "cleanup rejected": observed(
        ended(), state=CAN_CANCEL, rejection=PodRejection(PodRejectionKind.FORBIDDEN, 2, "no", at(60))
    ),
    "cleanup invalid": observed(
        ended(), state=CAN_CANCEL, rejection=PodRejection(PodRejectionKind.INVALID, 2, "no", at(60))
    ),
    "predecessors": observed(a_taskrun(), predecessors=("load-aaaaa-orphans",)),
    "orphaned": observed(
        ended(),
        state=a_state(1, jobs=(a_job(strays=("job-2",)), a_job(key="b", state=JobState.FAILED, given_up=True)), seal=SEALED),
    ),
    "unreadable": observed(a_taskrun().with_failed_attempt(1).with_state(), state=UnreadableState(message="damaged")),
    **{f"rejected {kind.name}": rejected(kind) for kind in PodRejectionKind},
}  # fmt: skip


def decision_of(name: str, seen: Observed) -> Plan | None:
    """Return the plan, with an absent state if none is given."""
    state = AbsentState() if seen.state is None else seen.state
    seen = dataclasses.replace(seen, state=state, nodes=dict.fromkeys(("", "node-1")))
    decision = decide(seen, SETTINGS, NOW.get(name, at(10)))
    return decision if isinstance(decision, Plan) else None


def recorder() -> EventRecorder:
    return taskrun_event_recorder(cast("Any", None), "operator-0", OperatorMetrics(), lambda _: "")


def written_texts(seen: Observed, plan: Plan) -> list[str]:
    """Return the text that this plan writes to status, and in Events."""
    before = seen.taskrun.status
    after = plan.status or before
    shown = {(one.reason, one.message) for one in before.conditions}
    written = [(one.reason, one.message) for one in after.conditions]
    texts = [text for one in written if one not in shown for text in one]
    texts += [text or "" for one in after.attempts if one not in before.attempts for text in (one.reason, one.message)]
    for event in plan.actions:
        if isinstance(event, EmitEvent):
            body = recorder().body_of(seen.taskrun.metadata, event, at(10))
            texts += [event.note, body["note"], body["reason"]]
    return texts


@pytest.mark.parametrize("name", SITUATIONS)
def test_written_text_is_printable_whichever_string_is_hostile(name: str) -> None:
    seen = SITUATIONS[name]
    plain = decision_of(name, seen)
    assert plain is not None
    assert written_texts(seen, plain), "the situation writes no text"
    escaped = 0
    for path, hostile in copies(seen, Observed, HOSTILE):
        plan = decision_of(name, hostile)
        texts = [] if plan is None else written_texts(hostile, plan)
        assert all(text.isprintable() for text in texts), (path, texts)
        escaped += any(r"\x1b[2J" in text for text in texts)
    assert escaped, "no hostile text is written"


@pytest.mark.parametrize("name", SITUATIONS)
def test_message_of_hostile_text_is_the_same_at_the_next_decision(name: str) -> None:
    """An escaped message must equal the stored one, or it would be written at each decision."""
    for path, hostile in copies(SITUATIONS[name], Observed, HOSTILE):
        first = decision_of(name, hostile)
        if first is None or first.status is None:
            continue
        taskrun = msgspec.structs.replace(hostile.taskrun, status=first.status)
        again = decision_of(name, dataclasses.replace(hostile, taskrun=taskrun))
        if again is not None and again.status is not None:
            before = {(one.type, one.reason): one.message for one in first.status.conditions}
            for one in again.status.conditions:
                assert before.get((one.type, one.reason), one.message) == one.message, path


def test_job_is_described_with_its_exact_handle() -> None:
    job = a_job("job\x1b[2J\n7", key="lo\u202ead", generation=2, url="http://ray/\x9b")
    assert describe_job(job) == r"lo\u202ead (generation 2, handle job\x1b[2J\n7, http://ray/\x9b)"


def test_event_note_is_one_printable_line_within_its_limit() -> None:
    event = EmitEvent(EventReason.ORPHANED, f"job {HOSTILE * 200}", warning=True)
    note = recorder().body_of(a_taskrun().build().metadata, event, at(10))["note"]
    assert note.isprintable()
    assert len(note.encode()) <= 1024
