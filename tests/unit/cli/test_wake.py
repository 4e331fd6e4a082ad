"""TaskRuns that `wake` refuses."""

import pytest

from builders import ATaskRun, a_taskrun, at
from reattach.api.reasons import Reason
from reattach.cli.errors import CommandError
from reattach.cli.wake import check_waits
from reattach.planner.conditions import with_progress

WAITING = a_taskrun().with_attempt(1, finish_time=at(5), end="Reported", cause="Waiting")


def test_waiting_run_can_be_woken() -> None:
    check_waits(WAITING.build())


@pytest.mark.parametrize(
    "taskrun, says",
    [
        (a_taskrun(), "load does not wait without a pod, so it can't be woken: it has no STATUS yet."),
        (
            a_taskrun().with_status(with_progress(a_taskrun().status, Reason.RUNNING, "Runs.", at(0))),
            "load does not wait without a pod, so it can't be woken: its STATUS is Running.",
        ),
        (WAITING.with_attempt(2), "load does not wait without a pod, so it can't be woken: it has no STATUS yet."),
        (
            WAITING.with_spec(suspend=True),
            "load is suspended, so it can't be woken. Run: kubectl reattach resume load",
        ),
        (WAITING.with_spec(cancel=True), "load is ending as Cancelled, so it can't be woken."),
        (WAITING.with_status(outcome="Failed"), "load has ended (Failed), so it can't be woken."),
        (WAITING.being_deleted(), "load is being deleted, so it can't be woken."),
    ],
)
def test_run_that_would_start_no_attempt_is_refused(taskrun: ATaskRun, says: str) -> None:
    with pytest.raises(CommandError) as refused:
        check_waits(taskrun.build())
    assert str(refused.value) == says
