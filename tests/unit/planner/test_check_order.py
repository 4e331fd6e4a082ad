"""Order of the checks of `decide` and of the steps of the teardown.

Each test runs one observation in the real order and with two neighbours swapped. It shows the wrong
decision that the swapped order makes. The docstrings of both modules list the pairs.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from builders import (
    SEALED,
    APod,
    ATaskRun,
    a_job,
    a_pod,
    a_state,
    a_summary,
    a_taskrun,
    actions_of,
    at,
    decision_of,
    hold_of,
    last_attempt_of,
    plan_of,
    progress_of,
    status_of,
    teardown_plan_of,
)
from reattach.api.state import Seal, SealPurpose
from reattach.planner import decide, external_jobs, teardown
from reattach.planner.context import DecisionContext
from reattach.planner.plan import (
    AbsentState,
    CopyState,
    CreatePod,
    Decision,
    DeletePod,
    PodRejection,
    PodRejectionKind,
    ProtectTaskRun,
    ReleaseTaskRun,
    SealState,
    StopPod,
    UnreadableState,
)

Swap = Callable[[Any, str, str, str], None]

CANCELLED = a_taskrun(cancel=True).with_state()
STOPPED = a_pod().running().deleted().exited(143, seconds=8)


@pytest.fixture
def swap(monkeypatch: pytest.MonkeyPatch) -> Swap:
    """Swap two neighbours of a tuple of checks."""

    def swap_neighbours(module: Any, order: str, first: str, second: str) -> None:
        checks = list(getattr(module, order))
        position = [check.__name__ for check in checks].index(first)
        assert checks[position + 1].__name__ == second
        checks[position : position + 2] = reversed(checks[position : position + 2])
        monkeypatch.setattr(module, order, tuple(checks))

    return swap_neighbours


def test_decide_unreadable_state_is_awaited_before_ends_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    taskrun, unreadable = a_taskrun().with_state(), UnreadableState("formatVersion 9")
    plan = plan_of(taskrun, a_pod().exited(0), state=unreadable)
    assert (hold_of(plan), status_of(plan).attempts) == (("True", "StateUnreadable"), ())

    check = decide._await_readable_state
    monkeypatch.setattr(decide, "_BEFORE_ENDS", tuple(one for one in decide._BEFORE_ENDS if one is not check))
    monkeypatch.setattr(decide, "_AFTER_ENDS", (check, *decide._AFTER_ENDS))
    plan = plan_of(taskrun.with_spec(completion="Recorded"), a_pod().exited(0), state=unreadable)
    assert last_attempt_of(plan).charged_to == "application", "although it may have recorded its completion"


def test_decide_ends_are_recorded_before_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    state = a_state(1, seal=SEALED)
    plan = plan_of(CANCELLED, STOPPED, state=state)
    assert (status_of(plan).outcome, last_attempt_of(plan).cause) == ("Cancelled", "Stopped")

    monkeypatch.setattr(decide, "_BEFORE_ENDS", (*decide._BEFORE_ENDS, decide._conclude))
    plan = plan_of(CANCELLED, STOPPED, state=state)
    assert (status_of(plan).outcome, status_of(plan).attempts) == ("Cancelled", ())


def test_decide_evictions_are_read_before_ends_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = a_pod().with_spec(volumes=[{"emptyDir": {"sizeLimit": "1Mi"}}]).exited(0)
    assert decision_of(a_taskrun(), pod, evictions={"pod-1": "any"}) != decision_of(a_taskrun(), pod)

    others = tuple(check for check in decide._BEFORE_ENDS if check is not decide._read_evictions)
    monkeypatch.setattr(decide, "_BEFORE_ENDS", others)
    plan = plan_of(a_taskrun(), pod, evictions={"pod-1": "any"})
    assert status_of(plan).outcome == "Succeeded", "although the kubelet evicted the pod"


def test_decide_run_ends_before_suspended_attempts_are_awaited(swap: Swap) -> None:
    taskrun, pods = suspended(), (a_pod(1).running(),)
    cancelled = taskrun.with_spec(cancel=True)
    assert status_of(plan_of(cancelled, *pods, state=a_state(1))).ending is not None

    swap(decide, "_AFTER_ENDS", "_conclude", "_stop_suspended")
    decision = decision_of(cancelled, *pods, state=a_state(1))
    assert decision == SealState(1, SealPurpose.SUSPEND), "the cleanup begins only after the pod has ended"


def test_decide_suspended_attempts_are_stopped_before_leftovers_are_awaited(swap: Swap) -> None:
    taskrun = a_taskrun(suspend=True).with_budgets(application=3).with_failed_attempt(1)
    pods = (a_pod(1).with_sidecar().exited(1), a_pod(2).running())
    taskrun = taskrun.with_status(status_of(plan_of(taskrun, *pods)))
    plan = plan_of(taskrun, *pods)
    assert [stop.name for stop in actions_of(plan, StopPod)] == ["load-01234-1"]
    assert [delete.name for delete in actions_of(plan, DeletePod)] == ["load-01234-2"]

    swap(decide, "_AFTER_ENDS", "_stop_suspended", "_await_leftovers")
    assert actions_of(plan_of(taskrun, *pods), DeletePod) == [], "the attempt of the suspended run continues"


def suspended(**spec: Any) -> ATaskRun:
    """Return a suspended TaskRun whose attempt 1 is being stopped."""
    taskrun = a_taskrun(suspend=True, **spec).with_state()
    taskrun = taskrun.with_status(status_of(plan_of(taskrun, a_pod().running(), summary=a_summary(1))))
    assert taskrun.status.attempts[0].reason == "Suspended"
    return taskrun


def test_decide_hold_is_shown_before_a_resumption_is_awaited(swap: Swap) -> None:
    held = a_state(1, jobs=[a_job(None, held=True, holds=1)], seal=Seal(through_attempt=1, purpose=SealPurpose.SUSPEND))
    taskrun = suspended()
    assert hold_of(plan_of(taskrun, STOPPED, state=held)) == ("True", "SubmissionUnknown")

    taskrun = taskrun.with_status(status_of(plan_of(taskrun, STOPPED, state=held)))
    swap(decide, "_AFTER_ENDS", "_await_resolutions", "_await_resume")
    assert hold_of(plan_of(taskrun, STOPPED.released(), state=held)) == ("False", "NotHeld"), (
        "although it has no resolution"
    )


def test_decide_resumption_is_awaited_before_a_budget(swap: Swap) -> None:
    taskrun = a_taskrun(suspend=True).with_budgets(disruption=0).with_failed_attempt(1, "Disruption", "disruption")
    jobs = external_jobs.with_jobs(taskrun.status, a_state(1, jobs=[a_job()])).external_jobs
    taskrun = taskrun.with_status(external_jobs=jobs)
    taskrun = taskrun.with_status(status_of(plan_of(taskrun)))
    assert plan_of(taskrun).status is None

    swap(decide, "_AFTER_ENDS", "_await_resume", "_await_budget")
    assert hold_of(plan_of(taskrun)) == ("True", "BudgetExhausted"), "it is not needed before the resumption"


def held_for_loss() -> ATaskRun:
    taskrun = a_taskrun().with_budgets(application=3, disruption=3).with_state()
    return taskrun.with_status(status_of(plan_of(taskrun, a_pod().exited(1), state=AbsentState())))


def test_decide_current_attempt_is_watched_before_a_lost_state_is_dropped(swap: Swap) -> None:
    taskrun = held_for_loss().with_resolution("StateLost", "StartEmpty")
    pods = (a_pod(1).exited(1).released(), a_pod(2).running())
    plan = plan_of(taskrun, *pods)
    assert (status_of(plan).counts.state_losses, status_of(plan).state) == (0, taskrun.status.state)

    swap(decide, "_AFTER_ENDS", "_watch_current", "_handle_state_loss")
    plan = plan_of(taskrun, *pods)
    assert (status_of(plan).counts.state_losses, status_of(plan).state) == (1, None)


def test_decide_lost_state_is_resolved_before_it_is_checked_again(swap: Swap) -> None:
    taskrun, pod = held_for_loss().with_resolution("StateLost", "StartEmpty"), a_pod().exited(1).released()
    plan = plan_of(taskrun, pod, state=AbsentState())
    assert (hold_of(plan), status_of(plan).state) == (("False", "NotHeld"), None)

    swap(decide, "_AFTER_ENDS", "_handle_state_loss", "_check_state")
    plan = plan_of(taskrun, pod, state=AbsentState())
    assert (plan.status, plan.actions) == (None, ()), "StartEmpty is never reached"


def test_decide_pod_rejection_is_handled_before_the_next_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    rejection = PodRejection(PodRejectionKind.QUOTA, 1, "exceeded quota", at(20))
    assert actions_of(plan_of(a_taskrun(), rejection=rejection), CreatePod) == []

    others = tuple(check for check in decide._AFTER_ENDS if check is not decide._handle_pod_rejection)
    monkeypatch.setattr(decide, "_AFTER_ENDS", others)
    assert len(actions_of(plan_of(a_taskrun(), rejection=rejection), CreatePod)) == 1


def test_decide_finalizer_is_added_before_the_first_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    taskrun = a_taskrun(cleanup={"command": ["stop"]})
    assert plan_of(taskrun).actions == (ProtectTaskRun(),)

    monkeypatch.setattr(decide, "_AFTER_ENDS", decide._AFTER_ENDS[:-1])
    assert len(actions_of(plan_of(taskrun), CreatePod)) == 1, "a deletion does not wait for the cleanup"


def test_decide_state_is_copied_before_the_first_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decision_of(a_taskrun(stateFrom="earlier")) == CopyState("earlier")

    others = tuple(check for check in decide._AFTER_ENDS if check is not decide._prepare_state)
    monkeypatch.setattr(decide, "_AFTER_ENDS", others)
    assert len(actions_of(plan_of(a_taskrun(stateFrom="earlier")), CreatePod)) == 1, "the task reads an empty state"


def ending(taskrun: ATaskRun, *pods: APod, **seen: Any) -> ATaskRun:
    """Return the TaskRun after its ending is recorded."""
    begun = taskrun.with_status(status_of(plan_of(taskrun, *pods, **seen)))
    assert begun.status.ending is not None
    return begun


def test_teardown_ending_is_recorded_before_the_state_is_sealed(swap: Swap) -> None:
    plan = plan_of(CANCELLED, a_pod().running(), state=a_state(1))
    assert (status_of(plan).ending is not None, plan.actions) == (True, ())

    swap(teardown, "_STEPS", "_record_ending", "_seal_state")
    decision = decision_of(CANCELLED, a_pod().running(), state=a_state(1))
    assert isinstance(decision, SealState), "if the cancellation is withdrawn now, no attempt can open the state"


def test_teardown_state_is_sealed_before_pods_are_stopped(swap: Swap) -> None:
    begun = ending(CANCELLED, a_pod().running(), state=a_state(1))
    assert decision_of(begun, a_pod().running(), state=a_state(1)) == SealState(1, SEALED.purpose)

    swap(teardown, "_STEPS", "_seal_state", "_stop_pods")
    plan = plan_of(begun, a_pod().running(), state=a_state(1))
    assert len(actions_of(plan, DeletePod)) == 1, "the attempt may store an intent until its pod is gone"


CAN_CANCEL = a_state(1, seal=SEALED, jobs=[a_job()], can_cleanup=True)


def test_teardown_pods_are_stopped_before_jobs_are_cancelled(swap: Swap) -> None:
    plan = teardown_plan_of(CANCELLED, a_pod().running(), state=CAN_CANCEL)
    assert (len(actions_of(plan, DeletePod)), actions_of(plan, CreatePod)) == (1, [])

    swap(teardown, "_STEPS", "_stop_pods", "_clean_up")
    plan = teardown_plan_of(CANCELLED, a_pod().running(), state=CAN_CANCEL)
    assert (actions_of(plan, DeletePod), len(actions_of(plan, CreatePod))) == ([], 1)


def test_teardown_jobs_are_cancelled_before_the_end_of_the_pods_is_awaited(swap: Swap) -> None:
    stopping = a_pod().running().deleted()
    plan = teardown_plan_of(CANCELLED, stopping, state=CAN_CANCEL)
    assert [creation.attempt for creation in actions_of(plan, CreatePod)] == [2]

    swap(teardown, "_STEPS", "_clean_up", "_await_pods")
    plan = teardown_plan_of(CANCELLED, stopping, state=CAN_CANCEL)
    assert actions_of(plan, CreatePod) == [], "a lost node keeps the job running"


UNRESOLVED = a_state(1, seal=SEALED, jobs=[a_job(None)])


def with_intent() -> ATaskRun:
    before = CANCELLED.with_spec(cancel=False)
    seen = {"summary": a_summary(1, jobs=(a_job(None),)), "state": a_state(1, jobs=[a_job(None)])}
    return CANCELLED.with_finalizer().with_status(status_of(plan_of(before, a_pod().running(), **seen)))


def test_teardown_end_of_pods_is_awaited_before_the_run_is_held(swap: Swap) -> None:
    stopping = a_pod().running().deleted()
    assert progress_of(teardown_plan_of(with_intent(), stopping, state=UNRESOLVED))[0] == "Ending"

    swap(teardown, "_STEPS", "_await_pods", "_hold_unresolved")
    plan = teardown_plan_of(with_intent(), stopping, state=UNRESOLVED)
    assert hold_of(plan) == ("True", "SubmissionUnknown"), "although the pod may still report the handle"


def test_teardown_run_is_held_before_the_finalizer_is_removed(swap: Swap) -> None:
    plan = teardown_plan_of(with_intent(), STOPPED, state=UNRESOLVED)
    assert (hold_of(plan), actions_of(plan, ReleaseTaskRun)) == (("True", "SubmissionUnknown"), [])

    swap(teardown, "_STEPS", "_hold_unresolved", "_release_finalizer")
    plan = teardown_plan_of(with_intent(), STOPPED, state=UNRESOLVED)
    assert actions_of(plan, ReleaseTaskRun), "the intent is forgotten"


def test_teardown_finalizer_is_removed_before_the_outcome_is_written(swap: Swap) -> None:
    taskrun, state = CANCELLED.with_finalizer(), a_state(1, seal=SEALED)
    plan = teardown_plan_of(taskrun, STOPPED, state=state)
    assert (plan.status, plan.actions) == (None, (ReleaseTaskRun(),))

    swap(teardown, "_STEPS", "_release_finalizer", "_end")
    plan = teardown_plan_of(taskrun, STOPPED, state=state)
    assert (status_of(plan).outcome, actions_of(plan, ReleaseTaskRun)) == ("Cancelled", [])


def names(checks: tuple[Callable[..., Decision | DecisionContext | None], ...]) -> list[str]:
    return [check.__name__ for check in checks]


@pytest.mark.parametrize(
    "text, order",
    [
        (decide.__doc__, [*names(decide._BEFORE_ENDS), "_record", *names(decide._AFTER_ENDS), "_create_pod"]),
        (teardown.__doc__, names(teardown._STEPS)),
    ],
    ids=["decide", "teardown"],
)
def test_module_docstring_lists_the_neighbours_in_their_order(text: str, order: list[str]) -> None:
    pairs = [words for line in text.splitlines() if (words := line.split())[1:2] in (["="], ["!="])]
    assert [(first, second) for first, _, second, *_ in pairs] == list(pairwise(order))
