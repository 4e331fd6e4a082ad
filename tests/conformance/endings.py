"""Ends of a TaskRun with an external job, against the job server in each of its modes.

The end comes at one moment of the first attempt's submission. The job server's own list shows which
jobs still run afterwards. This module computes the expected result from end, moment and mode,
independently of the code under test.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from conformance.fault_plans import LOST_SECONDS
from conformance.jobadapter import CAPABILITIES, JobServerSystem, serving
from reattach.adapters.base import Adapter
from reattach.api.messages import Decision, IntentResponse
from reattach.api.names import LABEL_ORPHANS, PLURAL
from reattach.api.orphans import RECORD, OrphanRecord
from reattach.api.reasons import ConditionType, EventReason, Reason
from reattach.api.taskrun import TaskRun
from reattach.cluster.paths import configmaps
from reattach.errors import PermanentFailure
from reattach.state import view_of
from reattach.task.context import Task
from reattach.testing.fault_injection import FaultInjectingAdapter
from reattach.testing.memory_api import FOREGROUND_DELETION
from reattach.testing.simulated_cluster import NAMESPACE, SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

KEY = "load"
END_SECONDS = 7 * 24 * 3600.0
JOB_SECONDS, SHORT_SECONDS = 30 * 24 * 3600.0, 60.0
"""Durations of a job that must be cancelled, and of one that is over when its run ends."""
FLIGHT_SECONDS = 10.0
FROZEN_SECONDS = 1800.0
"""Longer than the cleanup, so that a frozen process continues after it."""
CLEANUP_SECONDS, POLL_SECONDS = 300, 15.0
CLEANUP_ATTEMPT = 2
"""Number of the first cleanup attempt. No other one is needed unless it crashes."""


class End(StrEnum):
    """Reason for which the run ends."""

    CANCEL = "cancel"
    DELETION = "deletion"
    FOREGROUND = "deletion in the foreground"
    DEADLINE = "run deadline"
    BUDGET = "application budget used up"
    PERMANENT = "PermanentFailure"
    RESOLUTION = "`resolve --fail`"
    NAMESPACE = "namespace deleted"


class Moment(StrEnum):
    """Progress of the first attempt when the end comes."""

    BEFORE_INTENT = "before the intent"
    INTENT_STORED = "intent stored"
    IN_FLIGHT = "request in flight"
    HANDLE_STORED = "handle stored"
    RUNNING = "job running"
    OVER = "job over"
    FROZEN_BEFORE_INTENT = "node lost before the intent"
    FROZEN_BEFORE_REQUEST = "node lost before the request"


class Cancelling(StrEnum):
    """Time after which a job ends that is cancelled."""

    AT_ONCE = "at once"
    LATE = "after 60 s"
    NEVER = "never"


class Result(StrEnum):
    """State of the job when the run has ended."""

    NO_JOB = "no job"
    ENDED = "ended"
    ORPHANED = "orphaned"
    HELD = "held"
    """The run was held for the intent until a user named the job, or stated that no job exists."""


STEPS = {
    Moment.BEFORE_INTENT: "before-intent",
    Moment.INTENT_STORED: "after-intent",
    Moment.IN_FLIGHT: "submit leaving",
    Moment.HANDLE_STORED: "after-handle",
    Moment.RUNNING: "watching",
    Moment.OVER: "before-outcome",
    Moment.FROZEN_BEFORE_INTENT: "before-intent",
    Moment.FROZEN_BEFORE_REQUEST: "submit leaving",
}
FROZEN = (Moment.FROZEN_BEFORE_INTENT, Moment.FROZEN_BEFORE_REQUEST)
"""Moments at which the node is lost. The process continues after the run's end."""
STATUSES = {"Succeeded": "SUCCEEDED", "Cancelled": "CANCELLED", "Orphaned": "RUNNING"}
"""Statuses of the job server for the states in `status.externalJobs`."""
CANCEL_SECONDS = {Cancelling.AT_ONCE: 0.0, Cancelling.LATE: 60.0, Cancelling.NEVER: None}
BY_TASK = (End.BUDGET, End.PERMANENT)
"""Ends that the process itself causes, so a process whose node is lost does not cause them."""
DELETIONS = (End.DELETION, End.FOREGROUND, End.NAMESPACE)
REASONS = {
    End.CANCEL: Reason.CANCELLED,
    End.DEADLINE: Reason.RUN_DEADLINE_EXCEEDED,
    End.BUDGET: Reason.APPLICATION_FAILED,
    End.PERMANENT: Reason.PERMANENT_FAILURE,
    End.RESOLUTION: Reason.FAILED_BY_RESOLUTION,
}


@dataclass(frozen=True)
class Combination:
    """One end of one run."""

    end: End
    mode: str
    moment: Moment
    cancelling: Cancelling = Cancelling.AT_ONCE


def combinations_of(end: End, mode: str) -> list[Combination]:
    """Return the combinations of an end and a mode."""
    can_freeze = end not in (*BY_TASK, End.NAMESPACE)
    moments = [moment for moment in Moment if can_freeze or moment not in FROZEN]
    slow = [
        Combination(end, mode, moment, cancelling)
        for moment in (Moment.IN_FLIGHT, Moment.RUNNING)
        for cancelling in (Cancelling.LATE, Cancelling.NEVER)
    ]
    return [Combination(end, mode, moment) for moment in moments] + slow


def expected(combination: Combination) -> Result:
    """Return the result that the end must have."""
    moment, look_up = combination.moment, CAPABILITIES[combination.mode].look_up
    is_found, proves_absence = look_up is not None, look_up is not None and not look_up.while_open
    has_handle = moment in {Moment.HANDLE_STORED, Moment.RUNNING, Moment.OVER}
    if moment in {Moment.BEFORE_INTENT, Moment.FROZEN_BEFORE_INTENT}:
        return Result.NO_JOB
    if moment is Moment.OVER:
        return Result.ENDED
    if combination.end is End.NAMESPACE:  # no cleanup pod can start, and no run is held
        return Result.NO_JOB if moment is Moment.INTENT_STORED else Result.ORPHANED
    if moment is Moment.FROZEN_BEFORE_REQUEST:  # the process may still submit, so no lookup is a proof
        return Result.HELD
    if not has_handle and not (proves_absence if moment is Moment.INTENT_STORED else is_found):
        return Result.HELD
    if moment is Moment.INTENT_STORED:
        return Result.NO_JOB
    return Result.ORPHANED if combination.cancelling is Cancelling.NEVER else Result.ENDED


class EndingError(AssertionError):
    """A run that ended left something wrong. The message names the combination."""


@dataclass(frozen=True)
class Observation:
    """Result of a combination. `jobs`: number of jobs that the job server made."""

    combination: Combination
    result: Result
    jobs: int
    attempts: int

    def to_json(self) -> dict[str, Any]:
        """Return what the table needs."""
        of = self.combination
        return {
            "end": of.end,
            "mode": of.mode,
            "moment": of.moment,
            "cancelling": of.cancelling,
            "result": self.result,
            "jobs": self.jobs,
            "attempts": self.attempts,
        }


class EndedRun:
    """One TaskRun from its creation to its end.

    `crash_at`: number of the step at which the first cleanup attempt crashes, from 1; 0: at none.
    """

    def __init__(
        self,
        cluster: SimulatedCluster,
        served: JobServerSystem,
        combination: Combination,
        name: str,
        *,
        crash_at: int = 0,
    ) -> None:
        self.cluster = cluster
        self.served = served
        self.combination = combination
        self.name = name
        self.crash_at = crash_at
        self.run = SimulatedRun(name, self._main, self._on_step, lambda process: [self._adapter(process)])
        self.shown: TaskRun
        """The TaskRun as it was last written."""
        self.is_gone = False
        self.was_held = False
        self.problem = ""
        """First problem that a step of a process has shown."""
        self._adapters: dict[str, FaultInjectingAdapter] = {}
        self._has_come = False
        self._raises: Exception | None = None

    # -- from start to end -------------------------------------------------------------------------

    def execute(self) -> Observation:
        """Run until the TaskRun has ended. Raises `EndingError`."""
        budgets = {"application": 0, "disruption": 0 if self.combination.end is End.RESOLUTION else 20}
        spec = {
            "deadlines": {"lostSeconds": LOST_SECONDS},
            "retry": {"budgets": budgets},
            "cleanup": {"deadlineSeconds": CLEANUP_SECONDS},
        }
        with self._watching():
            self.cluster.create(self.name, spec)
            while not self._is_over():
                if not self._wait(lambda: self._is_over() or bool(self._held())):
                    raise self._error(f"it must end within {END_SECONDS:.0f} s; its status is {self.shown.status}")
                if not self._is_over():
                    self._resolve(self._held())
            self._check_left("at its end")
            self._check_recorded()
            # Requests in flight arrive, and frozen processes continue.
            self.cluster.run_until(self.run, lambda: False, seconds=2 * FROZEN_SECONDS)
        self.cluster.kill_processes(self.run)
        self._check_left("after an hour")
        if self.combination.end is End.NAMESPACE:
            self.cluster.create_namespace()
        return Observation(self.combination, self._result(), len(self.made()), len(self.run.processes))

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Keep `shown` up to date."""
        cluster = self.cluster.cluster
        wake = cluster.on_change

        def note() -> None:
            change = cluster.changes[-1]
            if change.resource == PLURAL:
                found = msgspec.json.decode(change.raw, type=TaskRun)
                if found.metadata.name == self.name:
                    self.shown, self.is_gone = found, change.kind == "DELETED"
            wake()

        cluster.on_change = note
        try:
            yield
        finally:
            cluster.on_change = wake

    def _wait(self, until: Callable[[], bool]) -> bool:
        return self.cluster.run_until(self.run, until, seconds=END_SECONDS)

    def _is_over(self) -> bool:
        """Return whether the operator has nothing left to do for the TaskRun.

        The pod of a lost node keeps a TaskRun that is deleted in the foreground.
        """
        metadata = self.shown.metadata
        is_released = metadata.deletion_timestamp is not None and set(metadata.finalizers) <= {FOREGROUND_DELETION}
        return self.is_gone or is_released or self.shown.status.outcome is not None

    def _held(self) -> str:
        """Return the reason for which the run is held."""
        held = [one for one in self.shown.status.conditions if one.type == ConditionType.HELD and one.status == "True"]
        return held[0].reason if held else ""

    def _resolve(self, reason: str) -> None:
        """Resolve a hold as a careful user does, after requests in flight have arrived."""
        if reason == Reason.BUDGET_EXHAUSTED:
            self.cluster.resolve(self.name, {"held": reason, "action": "Fail"})
        elif reason == Reason.SUBMISSION_UNKNOWN:
            self.was_held = True
            self._check_left("while it is held")
            self.cluster.run_until(self.run, lambda: False, seconds=2 * FROZEN_SECONDS)
            [job] = [job for job in self.cluster.jobs(self.name) if job.is_open and job.handle is None]
            made = self.made()
            action = {"action": "Adopt", "handle": made[0]} if made else {"action": "Resubmit"}
            about = {"held": reason, "key": job.key, "generation": job.generation}
            self.cluster.resolve(self.name, {**about, **action})
        else:
            raise self._error(f"it is held for {reason or 'nothing'}, and must not be")
        self._wait(lambda: self._is_over() or self._held() != reason)

    # -- the task ----------------------------------------------------------------------------------

    def _adapter(self, process: TaskProcess) -> Adapter:
        adapter = FaultInjectingAdapter(self.served.adapter(), process, self.cluster.clock, POLL_SECONDS)
        self._adapters[process.uid] = adapter
        return adapter

    def _main(self, process: TaskProcess, task: Task) -> Any:
        seconds = SHORT_SECONDS if self.combination.moment is Moment.OVER else JOB_SECONDS
        cancel_seconds = CANCEL_SECONDS[self.combination.cancelling]
        request = {"seconds": seconds, "rows": 7, "label": self.name, "cancel_seconds": cancel_seconds}
        return task.submit_once(KEY, self._adapters[process.uid], request).wait()

    def _on_step(self, process: TaskProcess, step: str) -> None:
        if process.is_cleanup and step == "submit leaving":
            self.problem = self.problem or "a cleanup attempt must not submit"
        if process.attempt == CLEANUP_ATTEMPT and len(process.steps) == self.crash_at:
            process.kill()
        if step.startswith("after POST") and step.endswith("/intent"):
            self._check_not_sealed(process)
        if self._raises is not None and not process.is_cleanup and not step.endswith((" leaving", " accepted")):
            raise self._raises
        if self._has_come or step != STEPS[self.combination.moment]:
            return
        self._has_come = True
        match self.combination.moment:
            case Moment.RUNNING:
                process.sleep(30)
            case Moment.IN_FLIGHT:
                self._adapters[process.uid].deliver_later(FLIGHT_SECONDS)
            case Moment.FROZEN_BEFORE_INTENT | Moment.FROZEN_BEFORE_REQUEST:
                self.cluster.lose_node(self.run, process)
        self._end(process)

    def _end(self, process: TaskProcess) -> None:
        is_frozen = self.combination.moment in FROZEN
        match self.combination.end:
            case End.CANCEL:
                self.cluster.patch(self.name, {"spec": {"cancel": True}})
            case End.DELETION:
                self.cluster.delete(self.name)
            case End.FOREGROUND:
                self.cluster.delete(self.name, propagation_policy="Foreground")
            case End.DEADLINE:
                self.cluster.patch(self.name, {"spec": {"deadlines": {"runSeconds": 1}}})
            case End.NAMESPACE:
                self.cluster.delete_namespace()
            case End.BUDGET:
                process.kill()
            case End.PERMANENT:
                self._raises = PermanentFailure("on purpose")
                if self.combination.moment is Moment.IN_FLIGHT:
                    raise ConnectionError("the connection was cut")
                raise self._raises
            case End.RESOLUTION if not is_frozen:
                self.cluster.evict(process)
                process.kill()
        process.sleep(FROZEN_SECONDS if is_frozen else END_SECONDS)

    # -- the job server's own count ------------------------------------------------------------

    def made(self) -> list[str]:
        """Return the handles of all jobs that were made."""
        made: list[str] = self.served.made_of(self.name)
        return made

    def running(self) -> set[str]:
        """Return the handles of the jobs that run now, by the job server's own list."""
        jobs, now = self.served.server.jobs, self.cluster.clock.now().timestamp()
        return {handle for handle in self.made() if (jobs.status(handle, now) or {}).get("status") == "RUNNING"}

    def named(self) -> tuple[set[str], bool]:
        """Return the handles that the run names as left running, and whether it names an intent."""
        if self.combination.end is End.NAMESPACE:
            notes = " ".join(self._notes())
            return {handle for handle in self.made() if handle in notes}, KEY in notes
        if self.combination.end in DELETIONS and self._is_over():
            jobs = [job for record in self.records() for job in record.jobs]
            return {job.handle for job in jobs if job.handle}, any(job.handle is None for job in jobs)
        jobs = [job for job in self.shown.status.external_jobs if job.state == "Orphaned"]
        is_held = self._held() == Reason.SUBMISSION_UNKNOWN
        return {job.handle for job in jobs if job.handle}, is_held or any(job.handle is None for job in jobs)

    def records(self) -> list[OrphanRecord]:
        """Return the records of orphaned jobs of this run."""
        listed = self.cluster.cluster.list(configmaps(NAMESPACE), labelSelector=f"{LABEL_ORPHANS}={self.name}")
        items = msgspec.json.decode(self.cluster.server.call(listed))["items"]
        return [msgspec.json.decode(item["data"][RECORD], type=OrphanRecord) for item in items]

    def _notes(self) -> list[str]:
        """Return the events about orphaned jobs, which the operator also logs."""
        return [
            event.note
            for uid, event in self.cluster.operator.events
            if uid == self.shown.metadata.uid and event.reason == EventReason.ORPHANED
        ]

    # -- checks ------------------------------------------------------------------------------------

    def _check_left(self, when: str) -> None:
        if self.problem:
            raise self._error(self.problem)
        handles, names_intent = self.named()
        left, made = self.running() - handles, self.made()
        if left and not (names_intent and len(made) == 1 and not handles):
            raise self._error(f"{when}, these jobs run and are not named: {left}; named are {handles}")
        if len(made) > 1:
            raise self._error(f"there must be at most one job; there are {made}")
        allowed = CLEANUP_ATTEMPT + (1 if self.crash_at else 0)
        if len(self.run.processes) > allowed:
            raise self._error(f"it had {len(self.run.processes)} pods; at most {allowed} are allowed")

    def _check_recorded(self) -> None:
        """Check that the TaskRun shows what became of the job, and why the run ended."""
        for job in self.shown.status.external_jobs:
            known = self.served.server.jobs.status(job.handle, self.cluster.clock.now().timestamp())
            is_unwatched = self.combination.end is End.NAMESPACE and job.state == "Orphaned"
            is_as_shown = known is not None and known["status"] == STATUSES.get(job.state)
            if job.handle is not None and not is_as_shown and not is_unwatched:
                raise self._error(f"it shows {job}, but the job server shows {known}")
            if job.handle is not None and job.state == "Orphaned" and job.cancel_requested_time is not None:
                self._check_named_as_cancelled()
        wanted = REASONS.get(self.combination.end)
        has_budget_left = self.combination.end is not End.RESOLUTION or self.shown.status.external_jobs
        reasons = {condition.reason for condition in self.shown.status.conditions}
        if wanted is not None and has_budget_left and wanted not in reasons:
            raise self._error(f"it must end for the reason {wanted}; its conditions have {reasons}")

    def _check_named_as_cancelled(self) -> None:
        whys = [job.why for record in self.records() for job in record.jobs]
        if not whys or "cancellation was requested at" not in whys[0]:
            raise self._error(f"its record must have the time of the cancellation; it has {whys}")

    def _check_not_sealed(self, process: TaskProcess) -> None:
        """Check that no submission is allowed after the seal."""
        assert process.response is not None
        if not process.response.is_success:
            return
        allowed = msgspec.json.decode(process.response.content, type=IntentResponse).decision is Decision.SUBMIT
        found = self.cluster.state_configmap(self.name)
        if allowed and found is not None and view_of(msgspec.json.encode(found)).seal is not None:
            self.problem = self.problem or "a submission was allowed after the seal"

    def _result(self) -> Result:
        if self.was_held:
            return Result.HELD
        if not self.made():
            return Result.NO_JOB
        return Result.ORPHANED if self.running() else Result.ENDED

    def _error(self, what: str) -> EndingError:
        steps = "\n".join(
            f"attempt {p.attempt}{' (cleanup)' if p.is_cleanup else ''}: {' · '.join(p.steps[-12:])}; {p.error!r}"
            for p in self.run.processes
        )
        return EndingError(f"{self.combination}: {what}\n{steps}")


def run_endings(end: End, mode: str, combinations: list[Combination] | None = None) -> list[Observation]:
    """Run the combinations of an end and a mode. Raises `EndingError`."""
    chosen = combinations_of(end, mode) if combinations is None else combinations
    with serving(mode) as served, SimulatedCluster(served.clock, seed=1) as cluster:
        return [
            EndedRun(cluster, served, combination, f"ending-{number}").execute()
            for number, combination in enumerate(chosen)
        ]


def run_with_crashes(combination: Combination, every: int) -> tuple[list[str], dict[int, Observation]]:
    """Run a combination once for every n-th step of its cleanup attempt, which crashes there.

    Return all steps, and the observation for each index of them. Raises `EndingError`.
    """
    with serving(combination.mode) as served, SimulatedCluster(served.clock, seed=1) as cluster:
        undisturbed = EndedRun(cluster, served, combination, "undisturbed")
        undisturbed.execute()
        steps = undisturbed.run.processes[-1].steps
        crashed = {
            index: EndedRun(cluster, served, combination, f"crash-{index}", crash_at=index + 1)
            for index in range(0, len(steps), every)
        }
        return steps, {index: run.execute() for index, run in crashed.items()}
