"""Messages of `suspend` and `resume`, and the runs that they refuse."""

from datetime import UTC, datetime

import pytest

from builders import ATaskRun, a_state, a_taskrun, at
from reattach.api.objects import Condition
from reattach.api.state import JobOrigin, JobState, JobSummary
from reattach.api.taskrun import Ending
from reattach.cli.errors import CommandError
from reattach.cli.snapshot import Snapshot
from reattach.cli.suspend import check_continues, describe_resumption, describe_suspension

JOB = JobSummary(
    key="load", generation=1, state=JobState.ACTIVE, adapter="ray", handle="job-7", origin=JobOrigin.SUBMITTED
)
RESUME = "No pod starts until you run: kubectl reattach resume load -n data"


def snapshot_of(taskrun: ATaskRun, *jobs: JobSummary, note: str = "") -> Snapshot:
    state = a_state(1, jobs=jobs) if jobs else None
    return Snapshot(taskrun=taskrun.build(), now=datetime.now(UTC), state=state, state_note=note)


def test_suspension_of_a_running_attempt_names_its_pod_and_the_job_that_continues() -> None:
    running = snapshot_of(a_taskrun().with_attempt(1), JOB)
    pod = running.taskrun.status.attempts[0].pod_name
    assert describe_suspension(running) == (
        f"The operator deletes its pod {pod}. No budget is charged.",
        "job-7 (load) continues in the external system.",
        RESUME,
    )


@pytest.mark.parametrize(
    "note, says",
    [
        ("", "No external job runs."),
        (
            "The state: forbidden",
            "The state can't be read. External jobs that it lists continue in the external system.",
        ),
    ],
)
def test_suspension_without_a_known_job_says_whether_one_may_run(note: str, says: str) -> None:
    assert describe_suspension(snapshot_of(a_taskrun(), note=note)) == (says, RESUME)


def test_resumption_names_the_job_that_the_next_attempt_reattaches_to() -> None:
    before = "The next attempt starts once no pod of an earlier attempt runs"
    assert describe_resumption(snapshot_of(a_taskrun(), JOB)) == (f"{before}, and reattaches to job-7 (load).",)
    assert describe_resumption(snapshot_of(a_taskrun())) == (f"{before}.",)


def test_resumption_of_a_held_run_says_that_it_stays_held() -> None:
    held = Condition(type="Held", status="True", reason="StateLost", message="")
    taskrun = a_taskrun().with_status(conditions=(held,))
    assert describe_resumption(snapshot_of(taskrun)) == (
        "It is held for StateLost; kubectl reattach explain load shows how to resolve it.",
    )


ENDING = Ending(outcome="Failed", reason="RunDeadlineExceeded", message="", time=at(0), cleanup_deadline=at(900))


@pytest.mark.parametrize(
    "taskrun, says",
    [
        (a_taskrun().with_status(outcome="Failed"), "load has ended (Failed), so it can't be suspended."),
        (a_taskrun().being_deleted(), "load is being deleted, so it can't be suspended."),
        (a_taskrun(cancel=True), "load is ending as Cancelled, so it can't be suspended."),
        (a_taskrun().with_status(ending=ENDING), "load is ending as Failed, so it can't be suspended."),
    ],
    ids=["ended", "deleted", "cancelled", "ending"],
)
def test_run_that_is_over_or_ending_is_refused(taskrun: ATaskRun, says: str) -> None:
    with pytest.raises(CommandError) as refused:
        check_continues(taskrun.build(), "suspended")
    assert str(refused.value) == says
