"""Resolutions that `resolve` accepts, and its errors for the others."""

from typing import Any

import pytest

from builders import ATaskRun, a_taskrun, at
from reattach.api.objects import Condition
from reattach.api.reasons import Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import Charged, Counts, Resolution
from reattach.cli.errors import CommandError
from reattach.cli.hold_options import find_holds, options_for
from reattach.cli.resolve import ResolveRequest, build_resolution

ADOPT = ResolveRequest(action="Adopt", handle="job-7")
RESUBMIT = ResolveRequest(action="Resubmit")
FAIL = ResolveRequest(action="Fail")


def held(reason: Reason = Reason.SUBMISSION_UNKNOWN, **spec: Any) -> ATaskRun:
    condition = Condition(type="Held", status="True", reason=reason)
    return a_taskrun(**spec).with_status(conditions=(condition,))


def a_job(key: str = "load", **fields: Any) -> JobSummary:
    defaults: dict[str, Any] = {"generation": 1, "state": JobState.INTENDED, "held": True, "holds": 1}
    return JobSummary(key=key, **{**defaults, **fields})


def given(action: str, **fields: Any) -> dict[str, Any]:
    return {"held": "SubmissionUnknown", "key": "load", "generation": 1, "action": action, **fields}


def resolution_of(taskrun: ATaskRun, requested: ResolveRequest, *jobs: JobSummary) -> Resolution:
    return build_resolution(taskrun.build(), jobs, requested)[1]


def refusal(taskrun: ATaskRun, requested: ResolveRequest, *jobs: JobSummary) -> str:
    with pytest.raises(CommandError) as raised:
        resolution_of(taskrun, requested, *jobs)
    return "\n".join([str(raised.value), *raised.value.lines])


@pytest.mark.parametrize("requested", [ADOPT, RESUBMIT, FAIL], ids=lambda requested: requested.action)
def test_resolution_of_an_unknown_submission_names_job_and_handle(requested: ResolveRequest) -> None:
    assert resolution_of(held(), requested, a_job()) == Resolution(
        held="SubmissionUnknown", key="load", generation=1, action=requested.action, handle=requested.handle
    )


@pytest.mark.parametrize(
    "reason, action",
    [
        (Reason.STATE_LOST, "StartEmpty"),
        (Reason.STATE_LOST, "Fail"),
        (Reason.BUDGET_EXHAUSTED, "Continue"),
        (Reason.BUDGET_EXHAUSTED, "Fail"),
    ],
)
def test_resolution_of_a_lost_state_or_a_budget_has_no_key(reason: Reason, action: str) -> None:
    taskrun = held(reason).with_status(
        counts=Counts(charged=Charged(disruption=21)), conditions=held(reason).status.conditions
    )
    assert resolution_of(taskrun, ResolveRequest(action=action)) == Resolution(held=reason.value, action=action)


def test_job_held_by_its_task_can_be_resolved_before_the_condition_is_written() -> None:
    assert resolution_of(a_taskrun(), RESUBMIT, a_job()).key == "load"


def test_unresolved_intent_at_the_end_of_a_run_can_be_resolved_once() -> None:
    assert resolution_of(held(cancel=True), ADOPT, a_job(held=False, holds=0)).handle == "job-7"
    assert "already has a resolution" in refusal(
        held(cancel=True, resolutions=[given("Resubmit")]), ADOPT, a_job(held=False, holds=0)
    )


def test_options_for_a_running_job_say_what_becomes_of_it() -> None:
    job = a_job(state=JobState.ACTIVE, handle="job-7")
    for taskrun, words in (
        (
            held(),
            ("reattaches", "submits a second job, as generation 2, beside the job job-7", "cancels its external jobs"),
        ),
        (held(cancel=True), ("left running", "policies in spec.cleanup", "policies in spec.cleanup")),
    ):
        options = options_for(taskrun.build(), find_holds(taskrun.build(), [job])[0])
        assert all(word in option.what for word, option in zip(words, options, strict=True)), options


def test_resolve_without_a_hold_is_refused() -> None:
    assert refusal(a_taskrun(), RESUBMIT, a_job(held=False, holds=0)) == "load is not held, so it takes no resolution."


def test_resolve_after_the_end_of_the_run_is_refused() -> None:
    taskrun = held().with_status(outcome="Failed", conditions=held().status.conditions)
    assert refusal(taskrun, RESUBMIT, a_job()) == "load has ended (Failed); nothing is held."


def test_resolve_of_a_hold_that_has_a_resolution_is_refused() -> None:
    taskrun = held(resolutions=[given("Adopt", handle="job-7")])
    assert (
        refusal(taskrun, RESUBMIT, a_job())
        == "load already has a resolution (Adopt job-7), which the operator applies."
    )


def test_second_hold_of_a_job_takes_a_second_resolution() -> None:
    assert resolution_of(held(resolutions=[given("Resubmit")]), ADOPT, a_job(holds=2)).action == "Adopt"


def test_second_loss_of_a_state_takes_a_second_resolution() -> None:
    start_empty = {"held": "StateLost", "action": "StartEmpty"}
    taskrun = held(Reason.STATE_LOST, resolutions=[start_empty])
    assert "already has a resolution (StartEmpty)" in refusal(taskrun, ResolveRequest(action="StartEmpty"))
    lost_again = taskrun.with_status(counts=Counts(state_losses=1), conditions=taskrun.status.conditions)
    assert resolution_of(lost_again, ResolveRequest(action="StartEmpty")).held == "StateLost"


def test_budget_can_be_granted_again_once_the_last_grant_is_used_up() -> None:
    taskrun = held(Reason.BUDGET_EXHAUSTED, resolutions=[{"held": "BudgetExhausted", "action": "Continue"}])
    for charged, is_taken in ((21, False), (41, False), (42, True)):
        counts = Counts(charged=Charged(disruption=charged))
        now = taskrun.with_status(counts=counts, conditions=taskrun.status.conditions)
        if is_taken:
            assert resolution_of(now, ResolveRequest(action="Continue")).action == "Continue"
        else:
            assert "already has a resolution" in refusal(now, ResolveRequest(action="Continue"))


def test_unfitting_action_is_refused_with_the_fitting_flags() -> None:
    assert refusal(held(), ResolveRequest(action="Continue"), a_job()) == (
        "load is held for SubmissionUnknown of external job load, generation 1, which takes --adopt, --resubmit or --fail. "
        "Repeat the command with one of these flags."
    )
    assert "takes --start-empty or --fail" in refusal(held(Reason.STATE_LOST), ADOPT)


def test_resolve_of_one_of_several_held_jobs_needs_its_key() -> None:
    jobs = (a_job(), a_job("load us"))
    assert refusal(held(), RESUBMIT, *jobs).splitlines() == [
        "load is held for 2 reasons; select one with --key and --generation:",
        "  kubectl reattach resolve load -n data --key load --generation 1 --resubmit",
        "  kubectl reattach resolve load -n data --key 'load us' --generation 1 --resubmit",
    ]
    assert resolution_of(held(), ResolveRequest(action="Resubmit", key="load us"), *jobs).key == "load us"


def test_resolve_refuses_a_handle_that_is_not_printable() -> None:
    request = ResolveRequest(action="Adopt", handle="raysubmit_7\x1b[2J")
    assert refusal(held(), request, a_job()) == r"A handle must have printable characters only: raysubmit_7\x1b[2J."


def test_command_for_a_key_with_a_line_break_runs_nothing_else() -> None:
    [adopt, *_] = options_for(held().build(), find_holds(held().build(), [a_job("un\nrm -rf ~ #")])[0])
    assert r"--key $'un\012rm -rf ~ #' --generation 1 --adopt HANDLE" in adopt.command


def test_key_that_is_not_held_is_refused_with_the_held_jobs() -> None:
    requested = ResolveRequest(action="Resubmit", key="laod")
    assert refusal(held(), requested, a_job()) == (
        "load is not held for that, but for SubmissionUnknown of external job load, generation 1."
    )


@pytest.mark.parametrize("handle", ["", "  ", "x" * 1025])
def test_empty_or_too_long_handle_is_refused(handle: str) -> None:
    assert "A handle must have 1 to 1024 bytes" in refusal(
        held(), ResolveRequest(action="Adopt", handle=handle), a_job()
    )


def test_handle_of_another_job_can_not_be_adopted() -> None:
    other = a_job("prepare", state=JobState.ACTIVE, handle="job-7", held=False, holds=0)
    assert (
        refusal(held(), ADOPT, a_job(), other)
        == "job-7 is the handle of prepare, generation 1, already; name another handle."
    )


@pytest.mark.parametrize("reason", [Reason.STATE_UNREADABLE, Reason.STATE_SOURCE_UNAVAILABLE, Reason.RESTORED])
def test_hold_without_resolutions_is_refused_with_a_pointer_to_explain(reason: Reason) -> None:
    assert f"held for {reason}, which resolve can't settle; kubectl reattach explain load" in refusal(
        held(reason), FAIL
    )


def test_resolutions_beyond_the_maximum_are_refused() -> None:
    taskrun = held(resolutions=[given("Resubmit")] * 64).with_metadata(deletionTimestamp=at(5).isoformat())
    assert "has 64 resolutions, the most that spec.resolutions takes" in refusal(taskrun, RESUBMIT, a_job(holds=65))
