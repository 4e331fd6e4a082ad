"""Which answers are taken, and which are refused with which sentence."""

from typing import Any

import pytest

from builders import ATaskRun, a_taskrun, at
from reattach.api.objects import Condition
from reattach.api.reasons import Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import Charged, Counts, Resolution
from reattach.cli.errors import CommandError
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


def answer(taskrun: ATaskRun, wish: ResolveRequest, *jobs: JobSummary) -> Resolution:
    return build_resolution(taskrun.build(), jobs, wish)[1]


def refusal(taskrun: ATaskRun, wish: ResolveRequest, *jobs: JobSummary) -> str:
    with pytest.raises(CommandError) as raised:
        answer(taskrun, wish, *jobs)
    return str(raised.value)


@pytest.mark.parametrize("wish", [ADOPT, RESUBMIT, FAIL], ids=lambda wish: wish.action)
def test_an_unknown_submission_takes_each_of_its_three_answers(wish: ResolveRequest) -> None:
    assert answer(held(), wish, a_job()) == Resolution(
        held="SubmissionUnknown", key="load", generation=1, action=wish.action, handle=wish.handle
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
def test_what_concerns_no_job_is_answered_without_a_key(reason: Reason, action: str) -> None:
    taskrun = held(reason).with_status(
        counts=Counts(charged=Charged(disruption=21)), conditions=held(reason).status.conditions
    )
    assert answer(taskrun, ResolveRequest(action=action)) == Resolution(held=reason.value, action=action)


def test_a_task_that_asked_for_a_person_is_answered_before_the_operator_has_said_so() -> None:
    assert answer(a_taskrun(), RESUBMIT, a_job()).key == "load"


def test_an_intent_that_the_end_of_the_run_came_upon_is_answered_though_no_task_asked() -> None:
    assert answer(held(cancel=True), ADOPT, a_job(held=False, holds=0)).handle == "job-7"
    assert "answered already" in refusal(
        held(cancel=True, resolutions=[given("Resubmit")]), ADOPT, a_job(held=False, holds=0)
    )


def test_nothing_is_answered_where_nothing_is_held() -> None:
    assert (
        refusal(a_taskrun(), RESUBMIT, a_job(held=False, holds=0)) == "load is not held; nothing waits for an answer."
    )


def test_nothing_is_answered_once_the_run_is_over() -> None:
    taskrun = held().with_status(outcome="Failed", conditions=held().status.conditions)
    assert refusal(taskrun, RESUBMIT, a_job()) == "load is over (Failed); nothing is held."


def test_an_answer_is_not_given_twice() -> None:
    taskrun = held(resolutions=[given("Adopt", handle="job-7")])
    assert (
        refusal(taskrun, RESUBMIT, a_job())
        == "load was answered already (Adopt job-7); the operator goes on from that."
    )


def test_what_is_held_again_is_answered_again() -> None:
    assert answer(held(resolutions=[given("Resubmit")]), ADOPT, a_job(holds=2)).action == "Adopt"


def test_a_lost_state_is_answered_again_when_it_is_lost_again() -> None:
    start_empty = {"held": "StateLost", "action": "StartEmpty"}
    taskrun = held(Reason.STATE_LOST, resolutions=[start_empty])
    assert "answered already (StartEmpty)" in refusal(taskrun, ResolveRequest(action="StartEmpty"))
    lost_again = taskrun.with_status(counts=Counts(state_losses=1), conditions=taskrun.status.conditions)
    assert answer(lost_again, ResolveRequest(action="StartEmpty")).held == "StateLost"


def test_a_budget_is_granted_again_once_the_last_grant_is_used_up() -> None:
    taskrun = held(Reason.BUDGET_EXHAUSTED, resolutions=[{"held": "BudgetExhausted", "action": "Continue"}])
    for charged, is_taken in ((21, False), (41, False), (42, True)):
        counts = Counts(charged=Charged(disruption=charged))
        now = taskrun.with_status(counts=counts, conditions=taskrun.status.conditions)
        if is_taken:
            assert answer(now, ResolveRequest(action="Continue")).action == "Continue"
        else:
            assert "answered already" in refusal(now, ResolveRequest(action="Continue"))


def test_an_answer_that_does_not_fit_is_refused_with_those_that_do() -> None:
    assert refusal(held(), ResolveRequest(action="Continue"), a_job()) == (
        "load is held for SubmissionUnknown of external job load, generation 1, which takes --adopt, --resubmit or --fail."
    )
    assert "takes --start-empty or --fail" in refusal(held(Reason.STATE_LOST), ADOPT)


def test_of_several_held_jobs_the_key_says_which() -> None:
    jobs = (a_job(), a_job("load us"))
    assert refusal(held(), RESUBMIT, *jobs).splitlines() == [
        "load is held for 2 things; say which by --key and --generation:",
        "  kubectl reattach resolve load -n data --key load --generation 1 --resubmit",
        "  kubectl reattach resolve load -n data --key 'load us' --generation 1 --resubmit",
    ]
    assert answer(held(), ResolveRequest(action="Resubmit", key="load us"), *jobs).key == "load us"


def test_a_key_that_is_not_held_is_refused_with_what_is() -> None:
    wish = ResolveRequest(action="Resubmit", key="laod")
    assert refusal(held(), wish, a_job()) == (
        "load is not held for that, but for SubmissionUnknown of external job load, generation 1."
    )


@pytest.mark.parametrize("handle", ["", "  ", "x" * 1025])
def test_a_handle_that_can_be_none_is_refused(handle: str) -> None:
    assert "A handle must have 1 to 1024 bytes" in refusal(
        held(), ResolveRequest(action="Adopt", handle=handle), a_job()
    )


def test_a_job_can_not_be_adopted_twice() -> None:
    other = a_job("prepare", state=JobState.ACTIVE, handle="job-7", held=False, holds=0)
    assert (
        refusal(held(), ADOPT, a_job(), other)
        == "job-7 is the handle of prepare, generation 1, already; a job can't be two."
    )


@pytest.mark.parametrize("reason", [Reason.STATE_UNREADABLE, Reason.RESTORED])
def test_holds_that_no_answer_resolves_point_to_the_way_out(reason: Reason) -> None:
    assert f"held for {reason}, which no answer resolves; kubectl reattach explain load" in refusal(held(reason), FAIL)


def test_answers_are_not_taken_without_end() -> None:
    taskrun = held(resolutions=[given("Resubmit")] * 64).with_metadata(deletionTimestamp=at(5).isoformat())
    assert "has 64 answers already, and takes no more" in refusal(taskrun, RESUBMIT, a_job(holds=65))
