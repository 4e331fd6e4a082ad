"""`resolve --selector`: the holds that get a resolution, and those that don't."""

from datetime import datetime
from typing import Any

import msgspec
import pytest

from builders import ATaskRun, a_taskrun, at
from cli_command import run_command
from reattach.api.objects import Condition
from reattach.api.reasons import Reason
from reattach.api.state import JobState, JobSummary
from reattach.api.taskrun import Charged, Counts
from reattach.cli.bulk_resolve import BulkRequest, HoldPlan, RunPlan, command_of, plan_run, unchanged_holds
from reattach.cli.resolve import ResolveRequest
from reattach.testing.memory_api import InMemoryCluster

HELD_SINCE = at(100)
STARTED = at(200)
RESUBMIT = ResolveRequest(action="Resubmit")


def held(reason: Reason = Reason.SUBMISSION_UNKNOWN, since: datetime | None = HELD_SINCE, **spec: Any) -> ATaskRun:
    condition = Condition(type="Held", status="True", reason=reason, last_transition_time=since)
    return a_taskrun(**spec).with_status(conditions=(condition,))


def a_job(key: str = "load", **fields: Any) -> JobSummary:
    defaults: dict[str, Any] = {"generation": 1, "state": JobState.INTENDED, "held": True, "holds": 1}
    return JobSummary(key=key, **{**defaults, **fields})


def given(action: str, **fields: Any) -> dict[str, Any]:
    return {"held": "SubmissionUnknown", "key": "load", "generation": 1, "action": action, **fields}


def planned(
    taskrun: ATaskRun, *jobs: JobSummary, wanted: ResolveRequest = RESUBMIT, held_before: datetime = STARTED
) -> RunPlan:
    return plan_run(taskrun.build(), jobs, BulkRequest("app=etl", wanted, held_before))


def skipped(plan: RunPlan) -> list[str]:
    assert plan.to_resolve == ()
    return [hold.skipped for hold in plan.holds]


def test_plan_names_each_hold_its_number_and_since_when() -> None:
    plan = planned(held(resolutions=[given("Resubmit")]), a_job(holds=2), a_job("clean"))
    assert plan.to_resolve == (
        HoldPlan(held="SubmissionUnknown", action="Resubmit", key="load", generation=1, number=2),
        HoldPlan(held="SubmissionUnknown", action="Resubmit", key="clean", generation=1, number=1),
    )
    assert plan.since == HELD_SINCE
    assert plan.consequence.startswith("The next attempt submits the job again")


@pytest.mark.parametrize(
    "reason, action",
    [
        (Reason.STATE_LOST, "StartEmpty"),
        (Reason.STATE_LOST, "Fail"),
        (Reason.BUDGET_EXHAUSTED, "Continue"),
        (Reason.BUDGET_EXHAUSTED, "Fail"),
    ],
)
def test_plan_of_a_lost_state_or_a_budget_has_no_key(reason: Reason, action: str) -> None:
    counts = Counts(charged=Charged(disruption=21))
    taskrun = held(reason).with_status(counts=counts, conditions=held(reason).status.conditions)
    [hold] = planned(taskrun, wanted=ResolveRequest(action=action)).to_resolve
    assert hold == HoldPlan(held=reason.value, action=action, number=1)


def test_hold_with_a_resolution_gets_no_second_one() -> None:
    taskrun = held(resolutions=[given("Fail")])
    assert skipped(planned(taskrun, a_job())) == ["it already has a resolution (Fail)"]


def test_hold_that_does_not_take_the_resolution_is_skipped_with_the_fitting_flags() -> None:
    assert skipped(planned(held(Reason.STATE_LOST))) == ["it takes --start-empty or --fail"]


@pytest.mark.parametrize("since", [at(201), None])
def test_hold_that_began_after_the_command_is_skipped(since: datetime | None) -> None:
    assert skipped(planned(held(since=since), a_job())) == ["it began after 2026-03-01T12:03:20Z"]
    assert planned(held(since=STARTED), a_job()).to_resolve


def test_hold_without_resolutions_is_skipped_with_a_pointer_to_explain() -> None:
    [why] = skipped(planned(held(Reason.RESTORED)))
    assert why == "no resolution settles it; kubectl reattach explain shows what to do"


def test_full_list_of_resolutions_takes_no_more() -> None:
    taskrun = held(resolutions=[given("Resubmit", key="other")] * 63)
    plan = planned(taskrun, a_job(), a_job("clean"))
    assert [hold.skipped for hold in plan.holds] == ["", "spec.resolutions has 64 entries, the most that it takes"]


def test_key_and_generation_select_holds() -> None:
    jobs = (a_job(), a_job("clean"), a_job("clean", generation=2))
    assert [
        hold.generation for hold in planned(held(), *jobs, wanted=ResolveRequest(action="Fail", key="clean")).holds
    ] == [1, 2]
    only = ResolveRequest(action="Fail", key="clean", generation=2)
    assert [hold.generation for hold in planned(held(), *jobs, wanted=only).holds] == [2]


def test_finished_or_continuing_run_has_no_plan() -> None:
    over = held().with_status(outcome="Failed", conditions=held().status.conditions)
    assert planned(over, a_job()).holds == ()
    assert planned(a_taskrun(), a_job()).holds == ()


@pytest.mark.parametrize(
    "now",
    [
        planned(held(since=at(150)), a_job()),
        planned(held(resolutions=[given("Resubmit")]), a_job(holds=2)),
        planned(held(resolutions=[given("Adopt", handle="job-7")]), a_job()),
        planned(a_taskrun(), a_job()),
        msgspec.structs.replace(planned(held(), a_job()), uid="another"),
    ],
    ids=["held again", "the next hold", "resolved", "continues", "replaced"],
)
def test_changed_hold_keeps_no_planned_resolution(now: RunPlan) -> None:
    plan = planned(held(), a_job())
    assert len(unchanged_holds(plan, plan)) == 1
    assert unchanged_holds(plan, now) == ()


def test_command_to_repeat_is_quoted_and_has_the_time() -> None:
    request = BulkRequest("app in (a, b)", ResolveRequest(action="Fail", key="lo ad", generation=2), STARTED)
    assert command_of(request, "data") == (
        "kubectl reattach resolve -n data -l 'app in (a, b)' --fail --key 'lo ad' --generation 2 "
        "--held-before 2026-03-01T12:03:20Z --yes"
    )


@pytest.mark.parametrize(
    "words, says",
    [
        (["-l", "app=etl", "--adopt", "job-7"], "--adopt needs NAME instead of --selector"),
        (["load", "-l", "app=etl", "--fail"], "Give either NAME or --selector."),
        (["--fail"], "Give either NAME or --selector."),
        (["-l", " ", "--fail"], "--selector must not be empty"),
        (["load", "--fail", "--yes"], "--yes and --held-before need --selector."),
        (["load", "--fail", "--held-before", "2026-03-01T12:00:00Z"], "--yes and --held-before need --selector."),
        (["-l", "app=etl", "--fail", "--held-before", "12:00"], "must be a time such as 2026-03-01T12:00:00Z"),
        (["-l", "app=etl", "--fail", "--held-before", "2026-03-01T12:00:00"], "must be a time such as"),
        (["-l", "app=etl", "--fail", "--resubmit"], "Give exactly one of"),
        (["-l", "app=etl"], "Give exactly one of"),
    ],
    ids=" ".join,
)
def test_wrong_flags_are_refused_before_a_request(words: list[str], says: str) -> None:
    cluster = InMemoryCluster(lambda: STARTED)
    cluster.is_down = True
    code, out, err = run_command(cluster, "data", ["resolve", *words])
    assert (code, out) == (2, "")
    assert says in err
