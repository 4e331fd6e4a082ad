"""Text of `explain`, word by word, for every situation that a TaskRun can be in.

The texts are in `stories/`; after an intended change `REATTACH_WRITE_STORIES=1 pytest
tests/unit/cli` writes them again; read the diff.
"""

import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders import SEALED, START, ATaskRun, a_pod, a_state, a_taskrun, at
from reattach.api.names import ANNOTATION_CLEANUP_OF
from reattach.api.objects import Condition
from reattach.api.orphans import OrphanedJob
from reattach.api.reasons import SENTENCES, Reason
from reattach.api.state import JobOrigin, JobState, JobSummary, Seal, SealPurpose, StateView
from reattach.api.taskrun import AttemptPurpose, Charged, Counts, Ending, ExternalJobStatus, FoldedAttempts
from reattach.cli.explain import format_report
from reattach.cli.report import build_report
from reattach.cli.snapshot import Event, FieldWriter, JobSubmission, Snapshot
from reattach.cli.text import Styler
from reattach.planner.textformat import describe_end
from reattach.planner.waiting import with_wait

STORIES = Path(__file__).parent / "stories"
NOW = at(600)


RULE = {"match": {"exitCodes": {"operator": "In", "values": [2]}}, "action": "Fail"}


def shows(
    taskrun: ATaskRun, reason: Reason, message: str | None = None, status: str = "Unknown", **fields: Any
) -> ATaskRun:
    condition = Condition(type="Succeeded", status=status, reason=reason, message=message or SENTENCES[reason])
    return taskrun.with_status(conditions=(condition,), **fields)


def held(taskrun: ATaskRun, reason: Reason, message: str | None = None) -> ATaskRun:
    shown = shows(taskrun, reason, message).status.conditions
    hold = Condition(type="Held", status="True", reason=reason, message=message or SENTENCES[reason])
    return taskrun.with_status(conditions=(*shown, hold))


def over(taskrun: ATaskRun, outcome: str, reason: Reason, **fields: Any) -> ATaskRun:
    value = "True" if outcome == "Succeeded" else "False"
    return shows(taskrun, reason, status=value, outcome=outcome, start_time=START, completion_time=at(300), **fields)


def a_job(key: str = "load", **fields: Any) -> JobSummary:
    generation = fields.pop("generation", 1)
    state = fields.pop("state", JobState.ACTIVE)
    defaults = {"adapter": "ray", "handle": "raysubmit_7", "submitted_time": at(3), "submitted_by_attempt": 1}
    defaults |= {"origin": JobOrigin.SUBMITTED} if fields.get("handle", "x") else {}
    return JobSummary(key=key, generation=generation, state=state, **{**defaults, **fields})


def an_intent(key: str = "load", **fields: Any) -> JobSummary:
    nothing = {"handle": None, "submitted_time": None, "origin": None}
    return a_job(key, **{"state": JobState.INTENDED, **nothing, **fields})


REPEATED = {JobOrigin.RESUBMITTED, JobOrigin.EXISTED}


def a_submission(job: JobSummary, **fields: Any) -> JobSubmission:
    """Return a submission by attempt 1 after 2 s, which attempt 2 may have repeated after 120 s."""
    is_repeated = job.origin in REPEATED and not job.preexisting
    submitters = ((1, at(2)), (2, at(120))) if is_repeated else ((1, at(2)),)
    defaults = {"intended_time": at(2), "intended_by_attempt": 1, "submitters": submitters}
    return JobSubmission(key=job.key, generation=job.generation, **{**defaults, **fields})


def see(taskrun: ATaskRun, *jobs: JobSummary, now: datetime = NOW, **more: Any) -> Snapshot:
    state = more.pop("state", None)
    if jobs:
        state = msgspec.structs.replace(state or a_state(1), jobs=jobs)
    more.setdefault("submissions", tuple(a_submission(job) for job in jobs))
    return Snapshot(taskrun=taskrun.build(), state=state, now=now, **more)


def tried_once(**spec: Any) -> ATaskRun:
    """Its first attempt was evicted."""
    return a_taskrun(retry={"budgets": {"application": 2}}, **spec).with_failed_attempt(1, "Disruption", "disruption")


def resolution(**fields: Any) -> dict[str, Any]:
    return {"held": "SubmissionUnknown", "key": "load", "generation": 1, **fields}


def just_created() -> Snapshot:
    return see(a_taskrun(), now=at(5))


def created_without_an_operator() -> Snapshot:
    return see(a_taskrun())


def managed_by_another() -> Snapshot:
    return see(a_taskrun(managedBy="kueue.x-k8s.io/multikueue"))


def image_that_can_not_be_pulled() -> Snapshot:
    message = "The container task does not start (ImagePullBackOff): Back-off pulling image."
    return see(shows(a_taskrun().with_attempt(1, node="node-1"), Reason.PENDING, message))


def gated() -> Snapshot:
    return see(shows(a_taskrun().with_attempt(1), Reason.WAITING_FOR_GATES))


def no_room_in_the_quota() -> Snapshot:
    message = (
        f"{SENTENCES[Reason.QUOTA_EXCEEDED]} exceeded quota: compute, requested: pods=1, used: pods=5, limited: pods=5"
    )
    return see(shows(a_taskrun(), Reason.QUOTA_EXCEEDED, message))


def pod_name_taken() -> Snapshot:
    return see(shows(tried_once(), Reason.POD_NAME_TAKEN))


def running_first_attempt() -> Snapshot:
    return see(shows(a_taskrun().with_attempt(1, node="node-1"), Reason.RUNNING, "Attempt 1 is running."), now=at(90))


def running_with_rules() -> Snapshot:
    taskrun = a_taskrun(retry={"rules": [RULE]}).with_attempt(1, node="node-1")
    return see(shows(taskrun, Reason.RUNNING, "Attempt 1 is running."), now=at(90))


def failed_by_a_rule() -> Snapshot:
    taskrun = a_taskrun(retry={"budgets": {"application": 3}, "rules": [RULE]}).with_attempt(
        1,
        finish_time=at(60),
        end="Reported",
        cause="Application",
        reason="Error",
        exit_code=2,
        message="unknown option --dat (spec.retry.rules[0] applied: Fail)",
    )
    message = f"{SENTENCES[Reason.FAILED_BY_RULE]} {describe_end(taskrun.status.attempts[0])}"
    return see(over(taskrun, "Failed", Reason.FAILED_BY_RULE, message=message))


def backing_off_because_its_input_is_not_ready() -> Snapshot:
    taskrun = a_taskrun()
    for number in (1, 2):
        taskrun = taskrun.with_failed_attempt(number, cause="NotReady", charged_to="notReady")
    status = taskrun.status
    entries = [msgspec.structs.replace(one, reason="NotReady", message="no partition") for one in status.attempts]
    taskrun = taskrun.with_status(attempts=tuple(entries), not_ready_start_time=at(1), next_attempt_time=at(900))
    return see(shows(taskrun, Reason.BACKING_OFF, describe_end(entries[-1])))


def running_and_reattached() -> Snapshot:
    counts = Counts(attempts=2, charged=Charged(disruption=1), submissions=1, reattachments=1)
    taskrun = shows(tried_once().with_attempt(2, node="node-2"), Reason.RUNNING, "Attempt 2 is running.", counts=counts)
    events = (
        Event(
            time=at(3),
            type="Normal",
            reason="Submitted",
            message="External job load (handle raysubmit_7) was submitted.",
        ),
        Event(time=at(4), type="Warning", reason="AttemptFailed", message="Attempt 1 ended by Disruption."),
    )
    return see(taskrun, a_job(url="http://ray.example:8265/#/jobs/raysubmit_7"), events=events)


def running_with_its_completion_recorded() -> Snapshot:
    taskrun = shows(a_taskrun().with_attempt(1, node="node-1"), Reason.RUNNING, "Attempt 1 is running.")
    return see(taskrun, state=a_state(1, completed_by=1))


def backing_off_with_a_job() -> Snapshot:
    return see(shows(tried_once(), Reason.BACKING_OFF, next_attempt_time=at(640)), a_job())


def backing_off_with_an_unresolved_intent() -> Snapshot:
    return see(shows(tried_once(), Reason.BACKING_OFF, next_attempt_time=at(640)), an_intent())


def held_for_an_unknown_submission() -> Snapshot:
    message = "no lookup, and attempt 1 may be frozen: its end is presumed"
    how = " To resolve: kubectl reattach resolve nightly --adopt HANDLE | --resubmit | --fail."
    said = f"{SENTENCES[Reason.SUBMISSION_UNKNOWN]} External job load (no handle known): {message}.{how}"
    return see(held(tried_once(), Reason.SUBMISSION_UNKNOWN, said), an_intent(held=True, holds=1, message=message))


def held_for_a_job_that_is_not_found() -> Snapshot:
    job = a_job(state=JobState.NOT_FOUND, held=True, holds=1, message="ray does not know raysubmit_7")
    return see(held(tried_once(), Reason.SUBMISSION_UNKNOWN), job)


def held_for_two_jobs_while_a_third_runs() -> Snapshot:
    jobs = [an_intent("load/eu", held=True, holds=1), an_intent("load us", held=True, holds=1), a_job("prepare")]
    return see(held(tried_once(), Reason.SUBMISSION_UNKNOWN), *jobs)


def held_a_second_time() -> Snapshot:
    taskrun = tried_once(resolutions=[resolution(action="Resubmit")])
    return see(held(taskrun, Reason.SUBMISSION_UNKNOWN), an_intent(held=True, holds=2))


def held_with_a_resolution() -> Snapshot:
    taskrun = tried_once(resolutions=[resolution(action="Adopt", handle="raysubmit_9")])
    return see(held(taskrun, Reason.SUBMISSION_UNKNOWN), an_intent(held=True, holds=1))


def suspended_with_a_job() -> Snapshot:
    message = f"{SENTENCES[Reason.SUSPENDED]} External jobs that continue: load (handle raysubmit_7)."
    return see(shows(tried_once(suspend=True), Reason.SUSPENDED, message), a_job())


def suspended_before_the_first_attempt() -> Snapshot:
    return see(shows(a_taskrun(suspend=True), Reason.SUSPENDED))


def suspended_and_held() -> Snapshot:
    return see(held(tried_once(suspend=True), Reason.SUBMISSION_UNKNOWN), an_intent(held=True, holds=1))


def suspended_and_held_with_a_resolution() -> Snapshot:
    taskrun = tried_once(suspend=True, resolutions=[resolution(action="Adopt", handle="raysubmit_9")])
    return see(held(taskrun, Reason.SUBMISSION_UNKNOWN), an_intent(held=True, holds=1))


def held_for_a_lost_state() -> Snapshot:
    taskrun = held(tried_once().with_state(), Reason.STATE_LOST)
    taskrun = taskrun.with_status(
        external_jobs=(ExternalJobStatus(key="load", generation=1, state="Active", handle="raysubmit_7"),)
    )
    return see(taskrun, state_note="The state of load was deleted by force.", state_lost=True)


def held_for_an_exhausted_budget() -> Snapshot:
    counts = Counts(attempts=22, charged=Charged(disruption=21), submissions=1, reattachments=20)
    return see(held(tried_once(), Reason.BUDGET_EXHAUSTED).with_status(counts=counts), a_job())


def granted_once_more_and_used_up_again() -> Snapshot:
    counts = Counts(attempts=43, charged=Charged(disruption=42), submissions=1, reattachments=41)
    taskrun = tried_once(resolutions=[{"held": "BudgetExhausted", "action": "Continue"}])
    return see(held(taskrun, Reason.BUDGET_EXHAUSTED).with_status(counts=counts), a_job())


def held_for_a_state_that_can_not_be_read() -> Snapshot:
    taskrun = held(tried_once().with_state(), Reason.STATE_UNREADABLE)
    return see(
        taskrun,
        state_note="The state of load can't be read: a newer version of Reattach wrote the state, with formatVersion 3; upgrade this one.",
    )


def held_for_the_state_of_another_taskrun() -> Snapshot:
    message = f"{SENTENCES[Reason.STATE_SOURCE_UNAVAILABLE]} TaskRun load-1 must be over; it is unfinished."
    return see(held(a_taskrun(stateFrom="load-1"), Reason.STATE_SOURCE_UNAVAILABLE, message))


def being_cancelled_with_a_state_that_can_not_be_read() -> Snapshot:
    taskrun = held(tried_once(cancel=True).with_state(), Reason.STATE_UNREADABLE)
    return see(taskrun, state_note="The state of load can't be read: the entry jobs is no JSON.")


def being_cancelled_while_held_for_an_exhausted_budget() -> Snapshot:
    taskrun = held(tried_once(cancel=True), Reason.BUDGET_EXHAUSTED)
    counts = Counts(attempts=21, charged=Charged(disruption=21))
    return see(taskrun.with_status(counts=counts, conditions=taskrun.status.conditions), a_job())


def being_deleted_while_held_for_a_lost_state() -> Snapshot:
    about = {"deletionTimestamp": at(590).isoformat(), "finalizers": ["reattach.dev/external-jobs"]}
    return see(held(tried_once(), Reason.STATE_LOST).with_metadata(**about))


def restored_from_a_backup() -> Snapshot:
    return see(held(a_taskrun(), Reason.RESTORED))


def being_cancelled() -> Snapshot:
    taskrun = shows(a_taskrun(cancel=True).with_attempt(1, node="node-1"), Reason.RUNNING, "Attempt 1 is running.")
    return see(taskrun, a_job(), pods=(a_pod(1).running().build(),))


def failed_for_good_and_held() -> Snapshot:
    taskrun = held(a_taskrun().with_failed_attempt(1), Reason.SUBMISSION_UNKNOWN)
    return see(taskrun, an_intent(), state=msgspec.structs.replace(a_state(1), seal=SEALED))


def being_deleted_and_held() -> Snapshot:
    about = {
        "deletionTimestamp": at(590).isoformat(),
        "finalizers": ["reattach.dev/external-jobs", "example.com/audit"],
    }
    taskrun = held(tried_once(), Reason.SUBMISSION_UNKNOWN).with_metadata(**about)
    state = msgspec.structs.replace(a_state(1), seal=Seal(through_attempt=1, purpose=SealPurpose.END))
    return see(taskrun, an_intent(), state=state)


def being_deleted() -> Snapshot:
    about = {
        "deletionTimestamp": at(590).isoformat(),
        "finalizers": ["reattach.dev/external-jobs", "example.com/audit"],
    }
    return see(shows(tried_once(), Reason.BACKING_OFF).with_metadata(**about), a_job())


def being_cancelled_with_an_unresolved_intent() -> Snapshot:
    taskrun = shows(
        a_taskrun(cancel=True).with_finalizer().with_attempt(1, node="node-1"), Reason.RUNNING, "Attempt 1 is running."
    )
    return see(taskrun, an_intent(), a_job("prepare"))


def succeeded() -> Snapshot:
    counts = Counts(attempts=2, charged=Charged(disruption=1), submissions=2, reattachments=1, duplicates_averted=1)
    taskrun = tried_once().with_attempt(
        2, node="node-2", finish_time=at(300), end="Reported", cause="Succeeded", reason="Completed", exit_code=0
    )
    taskrun = over(taskrun, "Succeeded", Reason.SUCCEEDED, counts=counts, result='{"rows_written":4211}')
    report = a_job("report", state=JobState.ACTIVE, handle="raysubmit_8", detached=True)
    final = ExternalJobStatus(key="report", generation=1, state="Detached", handle="raysubmit_8")
    return see(
        taskrun.with_status(external_jobs=(final,)), a_job(state=JobState.SUCCEEDED, origin=JobOrigin.FOUND), report
    )


def failed() -> Snapshot:
    message = f"{SENTENCES[Reason.APPLICATION_FAILED]} Attempt 1 ended by Application (Error, exit code 1): ValueError: no rows."
    taskrun = a_taskrun().with_attempt(
        1,
        node="node-1",
        finish_time=at(300),
        end="Reported",
        cause="Application",
        charged_to="application",
        reason="Error",
        exit_code=1,
        message="ValueError:\n  no \x1b[31mrows",
    )
    counts = Counts(attempts=1, charged=Charged(application=1))
    taskrun = over(taskrun, "Failed", Reason.APPLICATION_FAILED, counts=counts)
    condition = msgspec.structs.replace(taskrun.status.conditions[0], message=message)
    return see(taskrun.with_status(conditions=(condition,)))


def cancelled_and_orphaned() -> Snapshot:
    left = ExternalJobStatus(key="load", generation=1, state="Orphaned", handle="raysubmit_7", adapter="ray")
    taskrun = a_taskrun(cancel=True).with_attempt(
        1, finish_time=at(300), end="Presumed", cause="Stopped", reason="Cancelled"
    )
    return see(over(taskrun, "Cancelled", Reason.CANCELLED).with_status(external_jobs=(left,)), a_job())


def jobs_of_each_origin() -> Snapshot:
    jobs = [
        a_job(
            origin.value.lower(),
            origin=origin,
            handle=f"h{number}",
            submitted_by_attempt=2 if origin is JobOrigin.RESUBMITTED else 1,
        )
        for number, origin in enumerate(JobOrigin, start=1)
    ]
    again = a_job("twice", generation=2, handle="h8", strays=("h9", "h10"))
    return see(shows(a_taskrun().with_attempt(1, node="n"), Reason.RUNNING, "Attempt 1 is running."), *jobs, again)


def adopted_and_existing_jobs() -> Snapshot:
    # From spec.adopt, from another TaskRun with the same idempotency key, and submitted twice.
    adopted = a_job("adopted", origin=JobOrigin.ADOPTED, submitted_by_attempt=None, submitted_time=at(590))
    existed = a_job("existed", origin=JobOrigin.EXISTED, submitted_time=at(590), preexisting=True)
    repeated = a_job("repeated", origin=JobOrigin.EXISTED, submitted_time=at(590))
    submissions = (
        a_submission(adopted, submitters=()),
        a_submission(existed),
        a_submission(repeated),
    )
    taskrun = shows(tried_once().with_attempt(2, node="node-2"), Reason.RUNNING, "Attempt 2 is running.")
    counts = msgspec.structs.replace(taskrun.status.counts, submissions=1, duplicates_averted=1, preexisting_jobs=1)
    return see(taskrun.with_status(counts=counts), adopted, existed, repeated, submissions=submissions)


def ending_without_a_retry_left() -> Snapshot:
    return see(shows(a_taskrun().with_failed_attempt(1), Reason.ENDING))


def ending_before_the_next_attempt() -> Snapshot:
    return see(shows(tried_once(), Reason.ENDING, next_attempt_time=at(640)), a_job())


def ending_with_a_late_completion() -> Snapshot:
    return see(shows(tried_once(), Reason.ENDING, next_attempt_time=at(640)), state=a_state(1, completed_by=1))


def pending_without_a_retry_left() -> Snapshot:
    return see(shows(a_taskrun(retry={"budgets": {"neverStarted": 0}}).with_attempt(1), Reason.PENDING))


def failed_with_a_traceback() -> Snapshot:
    message = (
        "Traceback (most recent call last):\n"
        '  File "<frozen runpy>", line 198, in _run_module_as_main\n'
        '  File "<frozen runpy>", line 88, in _run_code\n'
        '  File "/program/example_task_state.py", line 32, in <module>\n'
        "    from airflow.sdk import DAG, task\n"
        "ImportError: cannot import name 'DAG' from 'airflow.sdk' (unknown location)\n"
    )
    taskrun = a_taskrun().with_failed_attempt(1)
    attempt = msgspec.structs.replace(taskrun.status.attempts[0], message=message)
    return see(over(taskrun.with_status(attempts=(attempt,)), "Failed", Reason.APPLICATION_FAILED))


def waiting_without_a_pod() -> Snapshot:
    attempt = {"end": "Reported", "cause": "Waiting", "reason": "Waiting", "exit_code": 87, "message": "Waits."}
    taskrun = a_taskrun().with_state().with_attempt(4, finish_time=at(590), **attempt)
    job = ExternalJobStatus(key="load", generation=1, state="Active", handle="raysubmit_7", submitted_time=at(1))
    taskrun = taskrun.with_status(
        external_jobs=(job,), folded_attempts=(FoldedAttempts("Waiting", 1, 3, 3),), next_attempt_time=at(1190)
    )
    waits = with_wait(taskrun.status, at(590))
    return see(taskrun.with_status(waits), state=a_state(4, jobs=[a_job("load")]))


def many_attempts() -> Snapshot:
    taskrun = a_taskrun().with_failed_attempt(41).with_failed_attempt(42, "NeverStarted", "neverStarted")
    folded = (FoldedAttempts("NotReady", 1, 40, 38), FoldedAttempts("Disruption", 7, 9, 2))
    taskrun = taskrun.with_status(folded_attempts=folded)
    return see(shows(taskrun, Reason.BACKING_OFF, next_attempt_time=at(5)))


def state_without_read_permission() -> Snapshot:
    taskrun = shows(tried_once(), Reason.BACKING_OFF, next_attempt_time=at(640))
    status = ExternalJobStatus(
        key="load", generation=1, state="Active", handle="raysubmit_7", adapter="ray", submitted_time=at(300)
    )
    note = 'ann lacks the right to get configmaps in namespace data; the ClusterRole "view" has it, ask who administers the namespace.'
    return see(taskrun.with_status(external_jobs=(status,)), state_note=f"The state: {note}")


def ending(taskrun: ATaskRun, outcome: str | None, reason: Reason | str, message: str = "", **fields: Any) -> ATaskRun:
    """Record that the run began to end after 500 s, with a cleanup deadline after 1400 s."""
    text = message or (SENTENCES[reason] if isinstance(reason, Reason) else "The TaskRun is being deleted.")
    decided = Ending(outcome=outcome, reason=str(reason), message=text, time=at(500), cleanup_deadline=at(1400))
    shown = shows(taskrun, Reason.ENDING, fields.pop("shown", None) or text)
    return shown.with_finalizer().with_status(ending=decided, **fields)


def stopped(taskrun: ATaskRun | None = None, **spec: Any) -> ATaskRun:
    """Its only run attempt was stopped."""
    end = {"finish_time": at(510), "end": "Reported", "cause": "Stopped", "reason": "Cancelled"}
    return (taskrun or a_taskrun(**spec)).with_attempt(1, node="node-1", **end)


def sealed_state(**fields: Any) -> StateView:
    return a_state(1, seal=SEALED, **{"can_cleanup": True, **fields})


def with_cleanup(taskrun: ATaskRun, number: int = 2, **fields: Any) -> ATaskRun:
    return taskrun.with_attempt(number, purpose=AttemptPurpose.CLEANUP, node="node-2", **fields)


def cancelled_job(**fields: Any) -> JobSummary:
    return a_job(**{"cancel_requested_time": at(530), **fields})


def cancelled_by(job: JobSummary, **fields: Any) -> tuple[JobSubmission, ...]:
    return (a_submission(job, cancel_requested_by_attempt=2, **fields),)


def cancelled_with_adapters_before_the_operator_acts() -> Snapshot:
    taskrun = shows(
        a_taskrun(cancel=True).with_finalizer().with_attempt(1, node="node-1"), Reason.RUNNING, "Attempt 1 is running."
    )
    by = FieldWriter(manager="kubectl-reattach", time=at(595))
    return see(
        taskrun, a_job(), state=a_state(1, can_cleanup=True), pods=(a_pod(1).running().build(),), cancelled_by=by
    )


def cancelled_while_a_cleanup_attempt_runs() -> Snapshot:
    shown = "Cleanup attempt 2 was started. Open external jobs: 1."
    taskrun = ending(with_cleanup(stopped(cancel=True)), "Cancelled", Reason.CANCELLED, shown=shown)
    by = FieldWriter(manager="kubectl-patch", time=at(499))
    job = cancelled_job()
    return see(taskrun, job, state=sealed_state(), submissions=cancelled_by(job), cancelled_by=by)


def cancelled_while_a_cleanup_attempt_can_not_start() -> Snapshot:
    shown = "Cleanup attempt 2 can't start. The container task does not start (ImagePullBackOff): not found."
    taskrun = ending(with_cleanup(stopped(cancel=True)), "Cancelled", Reason.CANCELLED, shown=shown)
    return see(taskrun, a_job(), state=sealed_state())


def failed_cleanup(taskrun: ATaskRun, number: int) -> ATaskRun:
    end = {"finish_time": at(550 + number), "end": "Reported", "cause": "Application", "charged_to": "cleanup"}
    return with_cleanup(taskrun, number, **end, reason="Error", exit_code=1, message="ConnectionError: ray is away")


def cancelled_between_two_cleanup_attempts() -> Snapshot:
    taskrun = failed_cleanup(stopped(cancel=True), 2)
    counts = Counts(attempts=2, charged=Charged(cleanup=1), submissions=1)
    taskrun = ending(taskrun, "Cancelled", Reason.CANCELLED, counts=counts, next_attempt_time=at(610))
    job = cancelled_job()
    return see(taskrun, job, state=sealed_state(), submissions=cancelled_by(job))


def cancelled_with_the_cleanup_budget_used_up() -> Snapshot:
    taskrun = failed_cleanup(failed_cleanup(failed_cleanup(stopped(cancel=True), 2), 3), 4)
    counts = Counts(attempts=4, charged=Charged(cleanup=3), submissions=1)
    taskrun = ending(taskrun, "Cancelled", Reason.CANCELLED, counts=counts)
    return see(taskrun, a_job(), state=sealed_state())


def cancelled_with_the_policy_orphan() -> Snapshot:
    taskrun = ending(stopped(cancel=True, cleanup={"onCancel": "Orphan"}), "Cancelled", Reason.CANCELLED)
    return see(taskrun, a_job(), state=sealed_state())


def cancelled_without_a_way_to_clean_up() -> Snapshot:
    taskrun = ending(stopped(cancel=True), "Cancelled", Reason.CANCELLED)
    return see(taskrun, a_job(), state=sealed_state(can_cleanup=False))


def cancelled_with_an_unresolved_and_an_adopted_job() -> Snapshot:
    taskrun = ending(stopped(cancel=True), "Cancelled", Reason.CANCELLED)
    adopted = a_job("adopted", origin=JobOrigin.ADOPTED, handle="raysubmit_1")
    return see(taskrun, an_intent(), adopted, a_job("train", handle="raysubmit_9"), state=sealed_state())


def cancelled_with_a_state_that_you_may_not_read() -> Snapshot:
    status = ExternalJobStatus(key="load", generation=1, state="Active", handle="raysubmit_7", adapter="ray")
    taskrun = ending(stopped(cancel=True).with_state(), "Cancelled", Reason.CANCELLED, external_jobs=(status,))
    return see(taskrun, state_note="The state: ann lacks the right to get configmaps in namespace data.")


def cancelled_with_a_cleanup_handler_and_no_job() -> Snapshot:
    taskrun = ending(stopped(cancel=True), "Cancelled", Reason.CANCELLED)
    return see(taskrun, state=sealed_state(cleanup_handler=True))


def deleted_with_an_idempotency_key() -> Snapshot:
    taskrun = ending(stopped(submission={"idempotencyKey": "load-2026-03-01"}), None, "Deleted")
    taskrun = taskrun.with_metadata(deletionTimestamp=at(499).isoformat())
    return see(taskrun, a_job(), state=sealed_state())


def deleted_with_a_cleanup_command() -> Snapshot:
    taskrun = ending(stopped(cleanup={"command": ["/bin/stop"]}), None, "Deleted")
    taskrun = taskrun.with_metadata(deletionTimestamp=at(499).isoformat())
    return see(taskrun, a_job(), state=sealed_state(can_cleanup=False))


def ending_at_the_deadline_of_the_run() -> Snapshot:
    taskrun = ending(stopped(deadlines={"runSeconds": 500}), "Failed", Reason.RUN_DEADLINE_EXCEEDED)
    return see(taskrun, a_job(), state=sealed_state())


def ending_at_the_deadline_of_the_run_and_held() -> Snapshot:
    taskrun = ending(stopped(deadlines={"runSeconds": 500}), "Failed", Reason.RUN_DEADLINE_EXCEEDED)
    hold = held(taskrun, Reason.SUBMISSION_UNKNOWN).status.conditions
    return see(taskrun.with_status(conditions=hold), an_intent(), state=sealed_state())


def past_the_deadline_of_the_run() -> Snapshot:
    taskrun = a_taskrun(deadlines={"runSeconds": 500}).with_finalizer().with_attempt(1, node="node-1")
    taskrun = shows(taskrun, Reason.RUNNING, "Attempt 1 is running.", start_time=START)
    return see(taskrun, a_job(), state=a_state(1, can_cleanup=True))


def ending_because_the_budget_is_used_up() -> Snapshot:
    message = f"{SENTENCES[Reason.APPLICATION_FAILED]} Attempt 1 ended by Application (Error, exit code 1)."
    taskrun = ending(a_taskrun().with_failed_attempt(1), "Failed", Reason.APPLICATION_FAILED, message)
    return see(taskrun, a_job(), state=sealed_state())


def ending_by_a_permanent_failure_and_held() -> Snapshot:
    end = {"finish_time": at(490), "end": "Reported", "cause": "Permanent", "reason": "PermanentFailure"}
    taskrun = ending(a_taskrun().with_attempt(1, node="node-1", **end), "Failed", Reason.PERMANENT_FAILURE)
    hold = held(taskrun, Reason.SUBMISSION_UNKNOWN).status.conditions
    return see(taskrun.with_status(conditions=hold), an_intent(held=True, holds=1), state=sealed_state())


def failed_by_a_resolution_before_the_operator_acts() -> Snapshot:
    counts = Counts(attempts=22, charged=Charged(disruption=21), submissions=1)
    taskrun = tried_once(resolutions=[{"held": "BudgetExhausted", "action": "Fail"}])
    taskrun = held(taskrun, Reason.BUDGET_EXHAUSTED).with_status(counts=counts)
    return see(taskrun, a_job(), state=a_state(1, can_cleanup=True))


def ending_by_a_resolution() -> Snapshot:
    message = f"{SENTENCES[Reason.FAILED_BY_RESOLUTION]} It was held for its budget disruption."
    taskrun = ending(tried_once(), "Failed", Reason.FAILED_BY_RESOLUTION, message)
    return see(taskrun, a_job(), state=sealed_state())


def cancelled_with_each_job_cancelled() -> Snapshot:
    end: dict[str, Any] = {
        "finish_time": at(590),
        "end": "Reported",
        "cause": "Succeeded",
        "reason": "Completed",
        "exit_code": 0,
    }
    taskrun = ending(with_cleanup(stopped(cancel=True), **end), "Cancelled", Reason.CANCELLED)
    job = cancelled_job(state=JobState.CANCELLED)
    taskrun = over(taskrun, "Cancelled", Reason.CANCELLED)
    return see(taskrun, job, state=sealed_state(), submissions=cancelled_by(job, ended_time=at(580)))


LEFT = ExternalJobStatus(
    key="load", generation=1, state="Orphaned", handle="raysubmit_7", adapter="ray", cancel_requested_time=at(530)
)
WHY = "Its cancellation was requested at 2026-03-01T12:08:50Z, and its end is not known."


def left_at_the_deadline(message: str = WHY) -> ATaskRun:
    end: dict[str, Any] = {"finish_time": at(590), "end": "Presumed", "cause": "Stopped", "reason": "CleanupDeadline"}
    taskrun = ending(with_cleanup(stopped(cancel=True), **end), "Cancelled", Reason.CANCELLED)
    taskrun = over(taskrun, "Cancelled", Reason.CANCELLED, external_jobs=(LEFT,), orphaned=True)
    named = f"{SENTENCES[Reason.JOBS_ORPHANED]} External job load (handle raysubmit_7): {message}"
    orphaned = Condition(type="Orphaned", status="True", reason=Reason.JOBS_ORPHANED, message=named)
    return taskrun.with_status(conditions=(*taskrun.status.conditions, orphaned))


def cancelled_with_a_job_that_ignores_it() -> Snapshot:
    orphans = (OrphanedJob(key="load", generation=1, why=WHY, handle="raysubmit_7", cancel_requested_time=at(530)),)
    job = cancelled_job()
    return see(
        left_at_the_deadline(), job, state=sealed_state(), submissions=cancelled_by(job), orphans=orphans, now=at(2000)
    )


def cancelled_with_a_record_that_was_dismissed() -> Snapshot:
    job = cancelled_job()
    return see(left_at_the_deadline(), job, state=sealed_state(), submissions=cancelled_by(job), now=at(2000))


def running_after_a_predecessor_that_left_a_job() -> Snapshot:
    taskrun = shows(a_taskrun().with_attempt(1, node="node-1"), Reason.RUNNING, "Attempt 1 is running.")
    sentence = SENTENCES[Reason.PREDECESSOR_LEFT_JOBS]
    message = f"{sentence} See ConfigMap load-98765-orphans, or run: kubectl reattach orphans -n data"
    before = Condition(type="PredecessorOrphaned", status="True", reason=Reason.PREDECESSOR_LEFT_JOBS, message=message)
    return see(taskrun.with_status(conditions=(*taskrun.status.conditions, before)), state=a_state(1))


SITUATIONS: list[Callable[[], Snapshot]] = [
    just_created,
    created_without_an_operator,
    managed_by_another,
    image_that_can_not_be_pulled,
    gated,
    no_room_in_the_quota,
    pod_name_taken,
    running_first_attempt,
    running_with_rules,
    failed_by_a_rule,
    backing_off_because_its_input_is_not_ready,
    running_and_reattached,
    running_with_its_completion_recorded,
    backing_off_with_a_job,
    backing_off_with_an_unresolved_intent,
    held_for_an_unknown_submission,
    held_for_a_job_that_is_not_found,
    held_for_two_jobs_while_a_third_runs,
    held_a_second_time,
    held_with_a_resolution,
    suspended_with_a_job,
    suspended_before_the_first_attempt,
    suspended_and_held,
    suspended_and_held_with_a_resolution,
    held_for_a_lost_state,
    held_for_an_exhausted_budget,
    granted_once_more_and_used_up_again,
    held_for_a_state_that_can_not_be_read,
    held_for_the_state_of_another_taskrun,
    being_cancelled_with_a_state_that_can_not_be_read,
    being_cancelled_while_held_for_an_exhausted_budget,
    being_deleted_while_held_for_a_lost_state,
    restored_from_a_backup,
    being_cancelled,
    failed_for_good_and_held,
    being_deleted_and_held,
    being_deleted,
    being_cancelled_with_an_unresolved_intent,
    succeeded,
    failed,
    cancelled_and_orphaned,
    jobs_of_each_origin,
    adopted_and_existing_jobs,
    ending_without_a_retry_left,
    ending_before_the_next_attempt,
    ending_with_a_late_completion,
    pending_without_a_retry_left,
    failed_with_a_traceback,
    many_attempts,
    waiting_without_a_pod,
    state_without_read_permission,
    cancelled_with_adapters_before_the_operator_acts,
    cancelled_while_a_cleanup_attempt_runs,
    cancelled_while_a_cleanup_attempt_can_not_start,
    cancelled_between_two_cleanup_attempts,
    cancelled_with_the_cleanup_budget_used_up,
    cancelled_with_the_policy_orphan,
    cancelled_without_a_way_to_clean_up,
    cancelled_with_an_unresolved_and_an_adopted_job,
    cancelled_with_a_state_that_you_may_not_read,
    cancelled_with_a_cleanup_handler_and_no_job,
    deleted_with_an_idempotency_key,
    deleted_with_a_cleanup_command,
    ending_at_the_deadline_of_the_run,
    ending_at_the_deadline_of_the_run_and_held,
    past_the_deadline_of_the_run,
    ending_because_the_budget_is_used_up,
    ending_by_a_permanent_failure_and_held,
    failed_by_a_resolution_before_the_operator_acts,
    ending_by_a_resolution,
    cancelled_with_each_job_cancelled,
    cancelled_with_a_job_that_ignores_it,
    cancelled_with_a_record_that_was_dismissed,
    running_after_a_predecessor_that_left_a_job,
]


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.__name__)
def test_report_equals_the_stored_text(situation: Callable[[], Snapshot]) -> None:
    seen = situation()
    text = "\n".join(format_report(build_report(seen), seen.now)) + "\n"
    file = STORIES / f"{situation.__name__}.txt"
    if os.environ.get("REATTACH_WRITE_STORIES"):
        file.write_text(text)
    assert text == file.read_text()


def test_stored_texts_have_a_situation_each() -> None:
    assert {file.stem for file in STORIES.iterdir()} == {one.__name__ for one in SITUATIONS}


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.__name__)
def test_coloured_report_without_its_colours_equals_the_plain_report(situation: Callable[[], Snapshot]) -> None:
    seen = situation()
    coloured = "\n".join(format_report(build_report(seen), seen.now, Styler(on=True)))
    plain = coloured
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"):
        plain = plain.replace(code, "")
    assert "\x1b" in coloured
    assert plain.splitlines() == format_report(build_report(seen), seen.now)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda one: one.__name__)
def test_report_survives_json(situation: Callable[[], Snapshot]) -> None:
    story = build_report(situation())
    assert msgspec.json.decode(msgspec.json.encode(story), type=type(story)) == story


def test_report_of_a_run_that_only_cancelled_jobs_does_not_offer_to_run_its_task() -> None:
    taskrun = a_taskrun(cancel=True).with_metadata(annotations={ANNOTATION_CLEANUP_OF: "load"})
    seen = see(over(taskrun, "Cancelled", Reason.CANCELLED))
    text = "\n".join(format_report(build_report(seen), seen.now))
    assert "Nothing: the run has ended. It only cancelled jobs that load left, and ran no task." in text
    assert "rerun" not in text


def test_report_of_a_hold_has_a_command_for_each_resolution() -> None:
    commands = [way.command for way in build_report(held_for_an_unknown_submission()).ways]
    assert commands == [
        "kubectl reattach resolve load -n data --key load --generation 1 --adopt HANDLE",
        "kubectl reattach resolve load -n data --key load --generation 1 --resubmit",
        "kubectl reattach resolve load -n data --key load --generation 1 --fail",
    ]


def test_decisions_about_two_jobs_of_one_key_name_the_generation_of_each() -> None:
    first = a_job(state=JobState.FAILED, cancel_requested_time=at(60))
    jobs = (first, a_job(generation=2, handle="raysubmit_8"), a_job("other"))
    decisions = build_report(see(a_taskrun().with_attempt(1), *jobs)).decisions
    assert [one.partition(":")[0] for one in decisions[:4]] == [
        "load, generation 1",
        "load, generation 2",
        "other",
        "load, generation 1",
    ]
