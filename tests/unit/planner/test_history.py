"""Attempts beyond `historyLimit` are counted by cause, and keep no pod."""

import sys
from types import FrameType

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from builders import SETTINGS, ATaskRun, a_pod, a_state, a_taskrun, actions_of, at, plan_of, progress_of, status_of
from reattach.api.objects import Pod
from reattach.api.reasons import OWN_FAILURES, Cause
from reattach.api.taskrun import Attempt, FoldedAttempts, TaskRunStatus
from reattach.planner.conditions import last_attempt, with_attempt
from reattach.planner.decide import decide
from reattach.planner.history import with_folded
from reattach.planner.plan import AbsentState, CreatePod, DeletePod, Observed, Plan, ReleasePod

NOT_READY = '{"reattach":"v1","kind":"RetryLater","retryAfterSeconds":5,"notReady":true}'
FOLDED_BYTES_MAX = 1024
NUMBER_MAX = 99_999_999
"""The number of an attempt that follows three years with one attempt per second."""


def an_entry(number: int, cause: str | None) -> Attempt:
    finish_time = None if cause is None else at(number)
    return Attempt(number=number, pod_uid=f"pod-{number}", cause=cause, finish_time=finish_time, end="Reported")


def waited(limit: int, *causes: str, budgets: int = 100) -> ATaskRun:
    """Return a TaskRun with one ended attempt for each cause, none of which is folded yet."""
    taskrun = a_taskrun(historyLimit=limit).with_budgets(application=budgets, notReady=9999)
    for number, cause in enumerate(causes, start=1):
        charged_to = {"NotReady": "notReady", "Disruption": "disruption"}.get(cause, "application")
        taskrun = taskrun.with_failed_attempt(number, cause, charged_to)
    return taskrun


def folded_of(status: TaskRunStatus) -> list[tuple[str, int, int, int]]:
    return [(one.cause, one.first_number, one.last_number, one.count) for one in status.folded_attempts]


def test_oldest_ended_attempts_are_folded_by_cause_in_the_write_that_lists_the_next() -> None:
    taskrun = waited(2, "NotReady", "Disruption")
    plan = plan_of(taskrun, a_pod(3).exited(1, message=NOT_READY))
    status = status_of(plan)
    assert [attempt.number for attempt in status.attempts] == [2, 3]
    assert folded_of(status) == [("NotReady", 1, 1, 1)]
    again = plan_of(taskrun.with_status(status), a_pod(4).exited(1, message=NOT_READY), now=90)
    assert folded_of(status_of(again)) == [("NotReady", 1, 1, 1), ("Disruption", 2, 2, 1)]
    third = plan_of(taskrun.with_status(status_of(again)), a_pod(5).exited(1, message=NOT_READY), now=190)
    assert folded_of(status_of(third)) == [("NotReady", 1, 3, 2), ("Disruption", 2, 2, 1)]
    assert (status_of(third).counts.attempts, status_of(third).counts.charged.not_ready) == (5, 4)


def test_pod_of_a_folded_attempt_is_deleted_whatever_the_retention() -> None:
    taskrun = waited(1, "NotReady")
    first, second = a_pod(1).exited(1).released(), a_pod(2).exited(1, message=NOT_READY)
    plan = plan_of(taskrun, first, second)
    assert actions_of(plan, DeletePod) == [DeletePod("load-01234-1", "pod-1")]
    assert [action.pod.metadata.uid for action in actions_of(plan, ReleasePod)] == ["pod-2"]


def test_pod_of_a_folded_attempt_is_deleted_after_a_crash_that_followed_the_status() -> None:
    taskrun = waited(1, "NotReady")
    first, second = a_pod(1).exited(1).released(), a_pod(2).exited(1, message=NOT_READY)
    taskrun = taskrun.with_status(status_of(plan_of(taskrun, first, second)))
    plan = plan_of(taskrun, first, second.released(), now=11)
    assert (plan.status, actions_of(plan, DeletePod)) == (None, [DeletePod("load-01234-1", "pod-1")])
    assert actions_of(plan_of(taskrun, first.deleted(), second.released(), now=11), DeletePod) == []


def test_pod_of_a_listed_attempt_is_kept() -> None:
    plan = plan_of(waited(2, "NotReady"), a_pod(1).exited(1).released(), a_pod(2).exited(1, message=NOT_READY))
    assert (actions_of(plan, DeletePod), status_of(plan).folded_attempts) == ([], ())


def test_last_write_of_a_run_folds_nothing_because_no_pod_is_deleted_after_it() -> None:
    plan = plan_of(waited(1, "NotReady"), a_pod(1).exited(1).released(), a_pod(2).exited(0))
    status = status_of(plan)
    assert (status.outcome, [one.number for one in status.attempts]) == ("Succeeded", [1, 2])
    assert (status.folded_attempts, actions_of(plan, DeletePod)) == ((), [])


def test_folded_attempt_is_never_recorded_again() -> None:
    taskrun = waited(1, "NotReady", "NotReady", "NotReady")
    plan = plan_of(taskrun, now=900)
    taskrun = taskrun.with_status(status_of(plan))
    assert folded_of(taskrun.status) == [("NotReady", 1, 2, 2)]
    plan = plan_of(taskrun, a_pod(1).exited(1), state=a_state(1), now=900)
    assert (plan.status, [one.attempt for one in actions_of(plan, CreatePod)]) == (None, [4])


def test_newest_own_failure_stays_listed_so_that_only_it_pays_for_a_failed_job() -> None:
    taskrun = waited(1, "Application", "Resource", "NotReady", "NotReady")
    status = with_folded(taskrun.status, 1)
    assert [(one.number, one.cause) for one in status.attempts] == [(2, "Resource"), (4, "NotReady")]
    assert folded_of(status) == [("Application", 1, 1, 1), ("NotReady", 3, 3, 1)]


def test_budget_that_folded_attempts_used_up_ends_the_run() -> None:
    taskrun = waited(1, "Application", "Disruption", budgets=0)
    assert progress_of(plan_of(taskrun.with_status(with_folded(taskrun.status, 1))))[0] == "ApplicationFailed"


CAUSES = st.sampled_from([None, *(cause.value for cause in Cause)])


@given(st.integers(1, 100), st.lists(CAUSES, max_size=300))
def test_counts_are_exact_and_the_list_is_bounded(limit: int, causes: list[str | None]) -> None:
    status = TaskRunStatus()
    for number, cause in enumerate(causes, start=1):
        status = with_folded(with_attempt(status, an_entry(number, cause)), limit)
        is_open = sum(one.cause is None for one in status.attempts)
        assert len(status.attempts) <= max(limit, 3 + is_open)
    listed = {one.number for one in status.attempts}
    for cause in Cause:
        left = [number for number, one in enumerate(causes, start=1) if one == cause and number not in listed]
        found = next((one for one in status.folded_attempts if one.cause == cause), None)
        expected = FoldedAttempts(cause.value, left[0], left[-1], len(left)) if left else None
        assert found == expected
    assert all(causes[one.number - 1] == one.cause for one in status.attempts)
    newest = [number for number, cause in enumerate(causes, start=1) if cause in OWN_FAILURES]
    assert not newest or newest[-1] in listed
    assert not causes or last_attempt(status.attempts) == an_entry(len(causes), causes[-1])


def test_folded_attempts_of_all_causes_have_at_most_one_kibibyte() -> None:
    folded = [FoldedAttempts(cause.value, NUMBER_MAX, NUMBER_MAX, NUMBER_MAX) for cause in Cause]
    assert len(msgspec.json.encode(folded)) <= FOLDED_BYTES_MAX


def test_5000_attempts_leave_a_small_status_few_pods_and_decisions_that_take_no_longer() -> None:
    taskrun, pods = a_taskrun(historyLimit=3).with_budgets(notReady=9999).build(), dict[str, Pod]()
    sizes, calls = dict[int, int](), list[int]()
    for number in range(1, 5001):
        pod = a_pod(number).exited(1, number * 10, message=NOT_READY).build()
        pods[pod.metadata.name] = pod
        observed = Observed(taskrun, tuple(pods.values()), state=AbsentState())
        plan, count = counted(observed, number * 10, is_counted=number % 1000 == 5)
        calls += [count] if count else []
        taskrun = msgspec.structs.replace(taskrun, status=status_of(plan))
        for action in plan.actions:
            if isinstance(action, ReleasePod):
                metadata = msgspec.structs.replace(action.pod.metadata, finalizers=())
                pods[metadata.name] = msgspec.structs.replace(action.pod, metadata=metadata)
            elif isinstance(action, DeletePod):
                del pods[action.name]
        assert len(pods) <= 3
        sizes[number] = len(msgspec.json.encode(taskrun.status))
    status = taskrun.status
    assert (len(pods), len(status.attempts)) == (3, 3)
    assert folded_of(status) == [("NotReady", 1, 4997, 4997)]
    assert (status.counts.attempts, status.counts.charged.not_ready) == (5000, 5000)
    assert len(msgspec.json.encode(status.folded_attempts)) <= FOLDED_BYTES_MAX
    assert max(sizes.values()) <= sizes[4] + 100, "only the digits of numbers and times may grow"
    assert max(calls) <= min(calls) + 20, "decisions depend on the number of attempts"


def counted(observed: Observed, now: int, *, is_counted: bool) -> tuple[Plan, int]:
    """Return the plan, and the number of functions that were called for it."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count if is_counted else before)
    try:
        plan = decide(observed, SETTINGS, at(now))
    finally:
        sys.setprofile(before)
    assert isinstance(plan, Plan)
    return plan, calls
