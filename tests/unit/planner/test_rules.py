"""Rules in spec.retry.rules: which ends they match, in which order, and what follows."""

import json
import random
import time
from typing import Any

import pytest

from builders import (
    SEALED,
    APod,
    ATaskRun,
    a_job,
    a_pod,
    a_state,
    a_taskrun,
    at,
    decision_of,
    last_attempt_of,
    plan_of,
    progress_of,
    status_of,
)
from reattach.api.reasons import Budget
from reattach.api.taskrun import Attempt, AttemptPurpose, TaskRunStatus
from reattach.planner import conditions, history, rules
from reattach.planner.classification import EndedAttempt, classify
from reattach.planner.plan import EmitEvent, SealState

FAIL = {"action": "Fail"}
OWN_DISK = 'Container task exceeded its local ephemeral storage limit "1Gi". '


def message_of(kind: str, **fields: Any) -> str:
    return json.dumps({"reattach": "v1", "kind": kind, **fields})


def with_rules(*listed: dict[str, Any], **budgets: int) -> ATaskRun:
    budgets = {"application": 3, **budgets}
    return a_taskrun(retry={"budgets": budgets, "backoff": {"jitterPercent": 0}, "rules": list(listed)})


def when(action: str = "Fail", *, more: dict[str, Any] | None = None, **match: Any) -> dict[str, Any]:
    return {"match": match, "action": action, **(more or {})}


def ended(pod: APod, *listed: dict[str, Any], **more: Any) -> TaskRunStatus:
    return status_of(plan_of(with_rules(*listed), pod, **more))


def last(status: TaskRunStatus) -> Attempt:
    return status.attempts[-1]


def fails(pod: APod, **match: Any) -> bool:
    """Return whether a rule with this match, and the action Fail, fails the run."""
    return ended(pod, when(**match)).outcome == "Failed"


# -- what matches ----------------------------------------------------------------------------------

IN, NOT_IN = {"operator": "In", "values": [3, 42]}, {"operator": "NotIn", "values": [3, 42]}
EXITED = a_pod().exited(42, message="Traceback:\n  in load\nValueError: quota exceeded")
INIT = (
    a_pod()
    .with_init()
    .scheduled()
    .failed("")
    .with_container(
        "prepare",
        init=True,
        terminated={
            "exitCode": 42,
            "reason": "OOMKilled",
            "message": "quota exceeded",
            "finishedAt": "2026-03-01T12:00:05Z",
        },
    )
)
MATCHES: dict[str, tuple[APod, dict[str, Any], bool]] = {
    "an exit code in the list": (EXITED, {"exitCodes": IN}, True),
    "an exit code that is not in the list": (a_pod().exited(1), {"exitCodes": IN}, False),
    "an exit code, NotIn": (a_pod().exited(1), {"exitCodes": NOT_IN}, True),
    "a listed exit code, NotIn": (EXITED, {"exitCodes": NOT_IN}, False),
    "exit code 0, NotIn": (a_pod().exited(0), {"exitCodes": NOT_IN}, False),
    "the exit code of an init container": (INIT, {"exitCodes": IN}, False),
    "the reason of the container": (a_pod().exited(137, reason="OOMKilled"), {"reasons": ["X", "OOMKilled"]}, True),
    "the reason of the pod": (a_pod().exited(143).failed("DeadlineExceeded"), {"reasons": ["DeadlineExceeded"]}, True),
    "an eviction for the pod's own disk": (a_pod().exited(137).failed("Evicted", OWN_DISK), {"reasons": ["Evicted"]}, True),
    "the reason of an init container": (INIT, {"reasons": ["OOMKilled"]}, False),
    "another reason": (EXITED, {"reasons": ["OOMKilled"]}, False),
    "a reason that is only Reattach's": (
        a_pod().exited(1, message=message_of("RetryLater")), {"reasons": ["RetryLater"]}, False,
    ),
    "a condition that is True": (
        EXITED.with_condition("Gpu", "True"), {"podConditions": [{"type": "X"}, {"type": "Gpu"}]}, True,
    ),
    "a condition that is False": (EXITED.with_condition("Gpu", "False"), {"podConditions": [{"type": "Gpu"}]}, False),
    "a condition that is to be False": (
        EXITED.with_condition("Gpu", "False"), {"podConditions": [{"type": "Gpu", "status": "False"}]}, True,
    ),
    "an absent condition": (EXITED, {"podConditions": [{"type": "Gpu"}]}, False),
    "a pattern in the last log lines": (EXITED, {"messagePattern": "quota exce+ded"}, True),
    "a pattern in other letters": (EXITED, {"messagePattern": "Quota"}, False),
    "a pattern without case": (EXITED, {"messagePattern": "(?i)Quota"}, True),
    "a pattern at the start of the message": (EXITED, {"messagePattern": "^ValueError"}, False),
    "a pattern at the start of a line": (EXITED, {"messagePattern": "(?m)^ValueError"}, True),
    "a pattern in the SDK's message": (
        a_pod().exited(1, message=message_of("Failed", message="ValueError: quota")), {"messagePattern": "^ValueError"}, True,
    ),
    "a pattern in the JSON around the SDK's message": (
        a_pod().exited(1, message=message_of("Failed", message="x")), {"messagePattern": "reattach"}, False,
    ),
    "a pattern in the message of an init container": (INIT, {"messagePattern": "quota"}, False),
    "a pattern after 4096 characters": (a_pod().exited(1, message="x" * 4096 + "quota"), {"messagePattern": "quota"}, False),
    "all fields": (EXITED, {"exitCodes": IN, "reasons": ["Error"], "messagePattern": "quota"}, True),
    "all fields but one": (EXITED, {"exitCodes": IN, "reasons": ["Error"], "messagePattern": "memory"}, False),
    "an end that only the pod's phase shows": (
        a_pod().scheduled().with_status(phase="Succeeded"), {"exitCodes": NOT_IN}, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("pod, match, expected", MATCHES.values(), ids=MATCHES)
def test_rule_matches_only_if_each_of_its_fields_does(pod: APod, match: dict[str, Any], expected: bool) -> None:
    assert fails(pod, **match) is expected


def test_rule_about_an_end_without_a_terminated_container_sees_no_exit_code_and_no_message() -> None:
    pod = a_pod().scheduled().with_status(phase="Succeeded")
    taskrun = with_rules(when(exitCodes=NOT_IN), when(messagePattern="x")).with_spec(completion="Recorded")
    status = status_of(plan_of(taskrun, pod))
    assert (last(status).reason, status.outcome) == ("NoCompletionRecord", None)


ANY = when(messagePattern="")
NOT_MATCHED: dict[str, tuple[APod, str]] = {
    "disrupted": (a_pod().running().disrupted().deleted().exited(143), "Disruption"),
    "never started": (a_pod().scheduled().failed("UnexpectedAdmissionError"), "NeverStarted"),
    "unavailable state API": (a_pod().exited(83, message=message_of("Unavailable")), "Disruption"),
    "permanent": (a_pod().exited(1, message=message_of("Permanent")), "Permanent"),
    "succeeded": (a_pod().exited(0), "Succeeded"),
}


@pytest.mark.parametrize("pod, cause", NOT_MATCHED.values(), ids=NOT_MATCHED)
def test_rules_apply_only_to_failures_of_the_attempt_itself(pod: APod, cause: str) -> None:
    by_rule, plain = ended(pod, ANY), ended(pod)
    assert last(by_rule).cause == cause
    assert by_rule == plain


@pytest.mark.parametrize(
    "pod, cause",
    [
        (a_pod().exited(1), "Application"),
        (a_pod().exited(137, reason="OOMKilled"), "Resource"),
        (a_pod().exited(143).failed("DeadlineExceeded"), "Deadline"),
        (a_pod().exited(1, message=message_of("RetryLater", retryAfterSeconds=60)), "Application"),
    ],
)
def test_rule_keeps_the_cause_of_the_end(pod: APod, cause: str) -> None:
    attempt = last(ended(pod, ANY))
    assert (attempt.cause, attempt.charged_to) == (cause, None)


def test_stopped_attempt_is_not_matched() -> None:
    taskrun = with_rules(ANY).with_spec(cancel=True)
    attempt = last_attempt_of(plan_of(taskrun, a_pod().deleted().exited(143)))
    assert (attempt.cause, attempt.message) == ("Stopped", "The TaskRun was cancelled. Its pod was stopped.")


# -- order and actions -----------------------------------------------------------------------------


def test_first_rule_that_matches_applies() -> None:
    listed = [when(exitCodes={"operator": "In", "values": [7]}), when("Retry", exitCodes=IN), when(exitCodes=IN)]
    assert ended(EXITED, *listed).outcome is None
    assert ended(EXITED, *reversed(listed)).outcome == "Failed"


def test_without_a_matching_rule_the_cause_decides() -> None:
    attempt = last(ended(EXITED, when(reasons=["OOMKilled"])))
    assert (attempt.charged_to, attempt.message) == ("application", last(ended(EXITED)).message)


def test_fail_ends_the_run_at_once_and_charges_nothing() -> None:
    status = ended(EXITED, when(exitCodes=IN))
    assert (status.outcome, status.counts.charged.application, last(status).charged_to) == ("Failed", 0, None)
    reason, message = progress_of(status)
    assert reason == "FailedByRule"
    assert message.startswith(
        "A rule in spec.retry.rules failed the TaskRun. Attempt 1 ended by Application (Error, exit"
    )
    assert message.endswith("(spec.retry.rules[0] applied: Fail).")


def test_fail_ends_a_run_whose_budget_is_used_up() -> None:
    taskrun = with_rules(when(exitCodes=IN), application=0)
    assert progress_of(plan_of(taskrun, EXITED))[0] == "FailedByRule"


def test_fail_seals_the_state_before_it_ends_a_run_with_an_open_job() -> None:
    taskrun = with_rules(when(exitCodes=IN)).with_state().with_finalizer()
    state = a_state(1, jobs=[a_job()])
    status = status_of(plan_of(taskrun, EXITED, state=state))
    assert status.ending is not None
    assert (status.outcome, status.ending.outcome, status.ending.reason) == (None, "Failed", "FailedByRule")
    assert isinstance(decision_of(taskrun.with_status(status), EXITED, state=state), SealState)


@pytest.mark.parametrize("budget", ["application", "disruption", "neverStarted"])
def test_retry_charges_the_budget_that_the_rule_names(budget: str) -> None:
    status = ended(EXITED, when("Retry", more={"budget": budget}, exitCodes=IN))
    charged = status.counts.charged
    assert last(status).charged_to == budget
    assert (charged.application, charged.disruption, charged.never_started) == tuple(
        int(one == budget) for one in ("application", "disruption", "neverStarted")
    )


def test_retry_charges_application_by_default() -> None:
    assert last(ended(EXITED, when("Retry", exitCodes=IN))).charged_to == "application"


def test_retry_fails_the_run_once_its_budget_is_used_up() -> None:
    rule = when("Retry", more={"budget": "neverStarted"}, exitCodes=IN)
    status = status_of(plan_of(with_rules(rule, neverStarted=0), EXITED))
    assert (status.outcome, progress_of(status)[0]) == ("Failed", "NeverStarted")


def test_retry_waits_as_the_rule_says() -> None:
    assert ended(EXITED, when("Retry", more={"delaySeconds": 60}, exitCodes=IN)).next_attempt_time == at(65)
    assert ended(EXITED, when("Retry", more={"delaySeconds": 0}, exitCodes=IN)).next_attempt_time == at(5)


def test_retry_without_a_delay_waits_as_the_backoff_says() -> None:
    assert ended(EXITED, when("Retry", exitCodes=IN)).next_attempt_time == at(15)


@pytest.mark.parametrize("requested, rule, seconds", [(60, 7, 60), (7, 60, 60), (7, None, 7)])
def test_longer_wait_applies_if_the_task_requests_one_too(requested: int, rule: int | None, seconds: int) -> None:
    pod = a_pod().exited(1, message=message_of("RetryLater", retryAfterSeconds=requested))
    more = {} if rule is None else {"delaySeconds": rule}
    status = ended(pod, when("Retry", more=more, messagePattern=""))
    assert status.next_attempt_time == at(5 + seconds)


# -- what is shown ---------------------------------------------------------------------------------


def test_message_names_the_rule_after_the_message_of_the_task() -> None:
    message = last(ended(EXITED, when("Fail", reasons=["X"]), when("Retry", exitCodes=IN))).message
    assert message == "ValueError: quota exceeded (after: Traceback: in load) (spec.retry.rules[1] applied: Retry)"


def test_message_names_the_rule_if_the_task_has_none() -> None:
    assert last(ended(a_pod().exited(3), when(exitCodes=IN))).message == "spec.retry.rules[0] applied: Fail"


def test_message_names_the_rule_after_a_long_message() -> None:
    message = last(
        ended(a_pod().exited(3, message=message_of("Failed", message="é" * 900)), when(exitCodes=IN))
    ).message
    assert message is not None
    assert len(message.encode()) <= 1024
    assert message.endswith("… (spec.retry.rules[0] applied: Fail)")


def test_event_of_a_retry_names_the_rule() -> None:
    plan = plan_of(with_rules(when("Retry", exitCodes=IN)), EXITED)
    assert "spec.retry.rules[0] applied" in next(one.note for one in plan.actions if isinstance(one, EmitEvent))


@pytest.mark.parametrize("pattern", ["(quota", r"\pL{1000}"], ids=["no RE2 pattern", "too large"])
def test_pattern_that_does_not_compile_matches_nothing_and_is_reported(pattern: str) -> None:
    status = ended(EXITED, when(messagePattern=pattern), when("Retry", exitCodes=IN))
    assert (status.outcome, last(status).charged_to) == (None, "application")
    message = last(status).message
    assert message is not None
    assert "(spec.retry.rules[0] can't match, because its messagePattern can't be compiled: " in message
    assert "compiled: b'" not in message
    assert message.endswith("; spec.retry.rules[1] applied: Retry)")


def test_pattern_that_does_not_compile_is_not_reported_if_another_field_excludes_its_rule() -> None:
    assert "can't" not in (last(ended(EXITED, when(messagePattern="(", reasons=["X"]))).message or "")


# -- time ------------------------------------------------------------------------------------------

HOSTILE = [
    r"(x+x+)+y", r"(a|a)*b", r"(a*)*b", r"(.*)*\z.", r"(?:a?){500}a{500}", r"[ab]*a[ab]{400}c", r"(a{0,30}){33}b",
    r"(?:[a-z]{1,100}[^z]{1,100}){5}z$", r"(.*)(.*)(.*)(.*)[^\x00-\x{10FFFF}]", "(" * 100 + "a" + ")*" * 100,
]  # fmt: skip


def hostile_pairs() -> list[tuple[str, str]]:
    """Return 1,000 pairs of a pattern and the unit that a message repeats."""
    choice = random.Random(7)
    units = ["a", "ab", "xa", "é", "aaaaab"]
    nested = [
        f"({choice.choice('a.')}{choice.choice('*+?')}){{{choice.randint(2, 60)}}}[^\\x00-\\x{{10FFFF}}]"
        for _ in range(190)
    ]
    return [(pattern, unit) for pattern in [*HOSTILE, *nested] for unit in units]


def test_time_of_a_match_is_linear_in_the_length_of_the_message() -> None:
    """RE2 visits each state of the program at most once for each character.

    Its work is counted here as the CPU time of all pairs, for messages of 512 and of 4,096
    characters: the factor is 8 for linear work and 64 for quadratic work, and a backtracking matcher
    does not end. A factor of 24 is allowed.
    """
    pairs = hostile_pairs()
    assert len(pairs) == 1000

    def seconds_for(length: int) -> float:
        start = time.process_time()
        for pattern, unit in pairs:
            rules._is_found(pattern, (unit * length)[:length])
        return time.process_time() - start

    seconds_for(8)  # compiles the patterns
    assert seconds_for(4096) < 24 * max(seconds_for(512), 0.05)


# -- what is not ready -----------------------------------------------------------------------------

NOT_READY = message_of("RetryLater", message="no partition", retryAfterSeconds=60, notReady=True)
WAITING = a_pod().exited(1, message=NOT_READY)
WAIT = when("Wait", more={"delaySeconds": 30}, exitCodes=IN)
USED_UP = "counts as a failure, because spec.retry.budgets.notReady or spec.deadlines.notReadySeconds is used up"


def test_not_ready_is_charged_to_its_own_budget_and_waits_as_the_task_requests() -> None:
    status = status_of(plan_of(a_taskrun(), WAITING))
    attempt = last(status)
    assert (attempt.cause, attempt.charged_to, attempt.reason) == ("NotReady", "notReady", "NotReady")
    assert (status.outcome, status.next_attempt_time, status.not_ready_start_time) == (None, at(65), at(5))
    charged = status.counts.charged
    assert (charged.application, charged.not_ready) == (0, 1)


def test_not_ready_beyond_its_budget_counts_as_a_failure() -> None:
    status = status_of(plan_of(a_taskrun().with_budgets(notReady=0), WAITING))
    assert (status.outcome, progress_of(status)[0]) == ("Failed", "ApplicationFailed")
    attempt = last(status)
    assert (attempt.cause, attempt.charged_to) == ("Application", "application")
    assert attempt.message == f"no partition ({USED_UP})"


@pytest.mark.parametrize("since, cause", [(-3600, "Application"), (-30, "NotReady")])
def test_not_ready_after_its_deadline_counts_as_a_failure(since: int, cause: str) -> None:
    taskrun = with_rules().with_spec(deadlines={"notReadySeconds": 600}).with_status(not_ready_start_time=at(since))
    status = status_of(plan_of(taskrun, WAITING))
    assert (last(status).cause, status.not_ready_start_time, status.outcome) == (cause, at(since), None)


@pytest.mark.parametrize(
    "pod, since",
    [
        (WAITING, at(-30)),
        (a_pod().running().disrupted().deleted().exited(143), at(-30)),
        (a_pod().scheduled().failed("UnexpectedAdmissionError"), at(-30)),
        (a_pod().exited(1), None),
        (a_pod().exited(42), at(-30)),
    ],
    ids=["not ready", "disrupted", "never started", "failed", "waits by a rule"],
)
def test_only_a_failure_of_another_kind_interrupts_a_row_of_ends_that_were_not_ready(pod: APod, since: Any) -> None:
    taskrun = with_rules(WAIT).with_status(not_ready_start_time=at(-30))
    assert status_of(plan_of(taskrun, pod)).not_ready_start_time == since


@pytest.mark.parametrize(
    "since, pod, reasons",
    [
        (None, WAITING, ["AttemptFailed"]),
        (at(-30), WAITING, []),
        (None, a_pod().exited(42), ["AttemptFailed"]),
        (at(-30), a_pod().exited(42), []),
        (at(-30), a_pod().exited(1), ["AttemptFailed"]),
        (at(-30), a_pod().running().disrupted().deleted().exited(143), ["AttemptFailed"]),
    ],
    ids=["first", "second", "first by a rule", "second by a rule", "failed", "disrupted"],
)
def test_only_the_first_in_a_row_of_ends_that_were_not_ready_emits_an_event(
    since: Any, pod: APod, reasons: list[str]
) -> None:
    plan = plan_of(with_rules(WAIT).with_status(not_ready_start_time=since), pod)
    assert [one.reason for one in plan.actions if isinstance(one, EmitEvent)] == reasons


def test_end_that_was_not_ready_emits_an_event_if_it_counts_as_a_failure() -> None:
    plan = plan_of(with_rules(notReady=0).with_status(not_ready_start_time=at(-30)), WAITING)
    assert [one.reason for one in plan.actions if isinstance(one, EmitEvent)] == ["AttemptFailed"]


def test_rules_do_not_apply_to_what_is_not_ready_until_it_counts_as_a_failure() -> None:
    assert last(ended(WAITING, ANY)).cause == "NotReady"
    status = status_of(plan_of(with_rules(ANY, notReady=0), WAITING))
    assert (status.outcome, progress_of(status)[0]) == ("Failed", "FailedByRule")
    assert last(status).message == f"no partition ({USED_UP}; spec.retry.rules[0] applied: Fail)"


def test_wait_charges_the_budget_not_ready_and_keeps_the_cause() -> None:
    status = ended(EXITED, WAIT)
    attempt = last(status)
    assert (attempt.cause, attempt.charged_to) == ("Application", "notReady")
    assert (status.next_attempt_time, status.not_ready_start_time) == (at(35), at(5))


def test_wait_beyond_the_budget_not_ready_is_charged_to_application() -> None:
    status = status_of(plan_of(with_rules(WAIT, notReady=0), EXITED))
    assert (last(status).charged_to, status.outcome, status.next_attempt_time) == ("application", None, at(35))
    assert (last(status).message or "").endswith(f"(spec.retry.rules[0] applied: Wait; {USED_UP})")


def test_cleanup_attempt_that_is_not_ready_is_charged_to_the_cleanup() -> None:
    cleanup = EndedAttempt(
        number=2,
        purpose=AttemptPurpose.CLEANUP,
        pod_uid="pod-2",
        pod=WAITING.build(),
        container="task",
        completion="Auto",
    )
    found = rules.consequence_of((), cleanup, classify(cleanup), may_wait=True)
    assert (found.budget, found.waits) == (Budget.CLEANUP, False)


def test_run_whose_end_began_fails_even_if_its_last_attempt_was_not_ready() -> None:
    taskrun = a_taskrun().with_state().with_failed_attempt(1, cause="NotReady", charged_to="notReady")
    plan = plan_of(taskrun, state=a_state(1, seal=SEALED))
    assert progress_of(plan)[0] == "ApplicationFailed"


def test_newest_failure_stays_in_the_list_because_it_pays_for_a_failed_job() -> None:
    status = TaskRunStatus()
    ends = [(1, "Application"), (2, "Application"), (3, "NotReady"), (4, "Disruption"), (5, None)]
    for number, cause in ends:
        entry = Attempt(number=number, cause=cause, finish_time=at(number) if cause else None)
        status = history.with_folded(conditions.with_attempt(status, entry), 1)
    assert [one.number for one in status.attempts] == [2, 5]
