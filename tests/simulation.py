"""A small cluster in which whole lives of one TaskRun are played: pods, their nodes, the state, and an operator that may die anywhere.

Whatever happens is chosen by `choices`, so that a test can replay and shrink it. The rules that must always hold are checked where they
could be broken: when a pod is created, a status written, a finalizer taken off.
"""

import itertools
import random
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, assert_never

import msgspec

from builders import NAME, SETTINGS, STATE_UID, APod, a_pod, a_taskrun, at
from reattach.api.names import FINALIZER_ATTEMPT, FINALIZER_EXTERNAL_JOBS, state_name
from reattach.api.objects import Pod
from reattach.api.reasons import Budget, ConditionType, EventReason, Reason
from reattach.api.state import Completion, Epoch, JobState, JobSummary, Seal, StateView, Summary
from reattach.api.taskrun import Resolution, StateReference, TaskRun, TaskRunStatus
from reattach.planner.budgets import amount, exhausted
from reattach.planner.decide import decide
from reattach.planner.external_jobs import describe_job
from reattach.planner.plan import (
    AbsentState,
    Action,
    CreatePod,
    DeletePod,
    EmitEvent,
    Observed,
    Plan,
    PodRejection,
    PodRejectionKind,
    ReadState,
    ReleasePod,
    ReleaseState,
    ReleaseTaskRun,
    SealState,
)

HELD = '{"reattach":"v1","kind":"Held","message":"nobody can tell"}'
JobId = tuple[str, int]
PASSES_MAX = 10
"""After how many looks in a row, with nothing happening, there must be nothing left to do."""


OPEN = {JobState.INTENDED, JobState.ACTIVE, JobState.UNKNOWN, JobState.NOT_FOUND}


class OperatorDiedError(Exception):
    """The operator's process ended between two effects."""


@dataclass
class SimulatedPod:
    """What is true of a pod, whoever has seen it."""

    apod: APod
    number: int
    version: int
    runs: bool = False
    """Its container's process is alive, be it on a node that nobody reaches."""
    node_lost: bool = False
    intending: str | None = None
    """The key of an intent that the state API has found allowed and not stored yet."""
    submitting: JobId | None = None
    """Its intent is stored: it may submit at any time, also long after."""
    submitted: JobId | None = None
    """Only its process knows the handle."""

    @property
    def view(self) -> Pod:
        return self.apod.with_metadata(resourceVersion=str(self.version)).build()

    @property
    def is_deleted(self) -> bool:
        return "deletionTimestamp" in self.apod.metadata

    @property
    def is_over(self) -> bool:
        return self.apod.status.get("phase") in {"Succeeded", "Failed"} or (
            self.is_deleted and not self.apod.spec.get("nodeName")
        )


@dataclass
class World:
    """What is true of the cluster."""

    choices: random.Random
    spec: dict[str, Any]
    seconds: float = 0
    versions: "itertools.count[int]" = field(default_factory=lambda: itertools.count(100))
    taskrun: TaskRun = field(init=False)
    pods: dict[str, SimulatedPod] = field(default_factory=dict)
    state: StateView | None = None
    created: list[int] = field(default_factory=list)
    exited_well: set[int] = field(default_factory=set)
    status_writes: int = 0
    happenings: int = 0
    completed: bool = False
    budgets_edited: bool = False
    is_gone: bool = False
    """The TaskRun was deleted, and carries no finalizer any more."""
    let_go_by_hand: bool = False
    """Somebody took our finalizer off the TaskRun."""
    submitters: dict[JobId, set[str]] = field(default_factory=dict)
    asked: set[JobId] = field(default_factory=set)
    """The jobs that were held by a task whose end was reported: the operator has seen that."""
    losses: int = 0
    is_calm: bool = False
    told_of_state: bool = False
    """Nothing about TaskRun and state is on its way to the operator any more."""

    def __post_init__(self) -> None:
        self.taskrun = self._versioned(a_taskrun(**self.spec).build())

    # -- what the API server does ------------------------------------------------------------------

    def write_status(self, based_on: str, status: TaskRunStatus) -> TaskRun | None:
        """Compare-and-set; None if somebody else has written since."""
        if self.taskrun.metadata.resource_version != based_on:
            return None
        self._check_status(self.taskrun.status, status)
        self.status_writes += 1
        self.taskrun = self._versioned(msgspec.structs.replace(self.taskrun, status=status))
        return self.taskrun

    def create_pod(self, action: CreatePod, based_on: TaskRun) -> SimulatedPod:
        name = action.name
        if name in self.pods:
            assert self.pods[name].number == action.attempt
            return self.pods[name]
        self._check_create(action, based_on)
        apod = a_pod(action.attempt).with_metadata(
            uid=f"uid-{next(self.versions)}", name=name, creationTimestamp=at(self.seconds).isoformat()
        )
        if self.choices.random() < 0.1:
            apod = apod.gated()
        if self.choices.random() < 0.2:
            apod = apod.with_container("proxy", waiting={"reason": "ContainerCreating"})
        self.created.append(action.attempt)
        self.pods[name] = SimulatedPod(apod, action.attempt, next(self.versions))
        return self.pods[name]

    def delete_pod(self, name: str, uid: str, grace: int = 30) -> None:
        pod = self.pods.get(name)
        if pod is None or pod.apod.metadata["uid"] != uid or pod.is_deleted:
            return
        if not pod.apod.spec.get("nodeName") or pod.is_over:
            grace = 0
        self.change(pod, pod.apod.deleted(self.seconds, grace))

    def release_pod(self, seen: Pod) -> bool:
        """Under the precondition that nothing has changed since it was seen."""
        pod = self.pods.get(seen.metadata.name)
        if pod is None or pod.apod.metadata["uid"] != seen.metadata.uid:
            return True
        if str(pod.version) != seen.metadata.resource_version:
            return False
        self._check_release(pod)
        self.change(pod, pod.apod.released())
        return True

    def change(self, pod: SimulatedPod, apod: APod) -> None:
        pod.apod, pod.version = apod, next(self.versions)
        if pod.is_deleted and pod.is_over and FINALIZER_ATTEMPT not in apod.metadata["finalizers"]:
            del self.pods[apod.metadata["name"]]

    def summary(self) -> Summary | None:
        if self.state is None:
            return None
        completed = self.state.completion.attempt if self.state.completion else None
        return Summary(
            epoch=self.state.epoch,
            completed_attempt=completed,
            seal=self.state.seal,
            jobs=self.state.jobs,
            counts=self.state.counts,
        )

    def seal(self, action: SealState) -> None:
        """As the store does it: it only grows."""
        state = self.existing_state
        if state is not None:
            through = max(action.through_attempt, state.seal.through_attempt if state.seal else 0)
            self.state = msgspec.structs.replace(state, seal=Seal(through_attempt=through, purpose=action.purpose))

    def release_taskrun(self, based_on: str) -> bool:
        """Under the precondition that nothing has changed since it was seen."""
        if self.taskrun.metadata.resource_version != based_on:
            return False
        self._check_jobs(self.taskrun.status)
        self.take_finalizer_off()
        return True

    def take_finalizer_off(self) -> None:
        self._update_metadata(finalizers=())
        self.is_gone = self.taskrun.metadata.deletion_timestamp is not None

    @property
    def existing_state(self) -> StateView | None:
        """The state, unless it is not the one that status names."""
        named = self.taskrun.status.state
        return self.state if self.state is None or named is None or named.uid == self.state.uid else None

    def _update_metadata(self, **fields: Any) -> None:
        about = msgspec.structs.replace(self.taskrun.metadata, **fields)
        self.taskrun = self._versioned(msgspec.structs.replace(self.taskrun, metadata=about))

    def _versioned(self, taskrun: TaskRun) -> TaskRun:
        about = msgspec.structs.replace(taskrun.metadata, resource_version=str(next(self.versions)))
        return msgspec.structs.replace(taskrun, metadata=about)

    # -- what must always hold ---------------------------------------------------------------------

    def is_presumed_over(self, pod: SimulatedPod) -> bool:
        deleted = pod.view.metadata.deletion_timestamp
        lost = timedelta(seconds=self.taskrun.spec.deadlines.lost_seconds)
        return pod.is_over or (deleted is not None and deleted + lost <= at(self.seconds))

    def is_recorded(self, number: int) -> bool:
        status = self.taskrun.status
        listed = {attempt.number: attempt for attempt in status.attempts}
        return listed[number].finish_time is not None if number in listed else number <= status.counts.attempts

    def _check_create(self, action: CreatePod, based_on: TaskRun) -> None:
        status = self.taskrun.status
        assert status.outcome is None, "a pod was made for a finished TaskRun"
        assert action.attempt not in self.created, "a number was used twice"
        assert all(self.is_presumed_over(pod) for pod in self.pods.values()), "two attempts live at once"
        assert all(self.is_recorded(number) for number in self.created), (
            "a pod was made before the last end was recorded"
        )
        assert status.next_attempt_time is None or status.next_attempt_time <= at(self.seconds), "a wait was cut short"
        grants = sum(one.action == "Continue" for one in based_on.spec.resolutions)
        budgets = based_on.spec.retry.budgets
        assert exhausted(status.counts, budgets, grants) is None, "a pod was made without a budget for it"
        assert not is_held(status), "a pod was made while the run is held"
        about = based_on.metadata
        assert not based_on.spec.cancel, "a pod was made for a cancelled TaskRun"
        for job in self.existing_state.jobs if self.existing_state else ():
            which = (job.key, job.generation)
            is_waiting = job.held and which in self.asked and len(self._answers("SubmissionUnknown", which)) < job.holds
            assert not is_waiting, "a pod was made before a person had answered"
        assert about.deletion_timestamp is None, "a pod was made for a TaskRun that is being deleted"

    def _check_release(self, pod: SimulatedPod) -> None:
        assert self.is_recorded(pod.number) or self.is_over, "a pod was let go before its end was recorded"
        assert self.is_presumed_over(pod), "a pod was let go that still runs"

    def _check_status(self, before: TaskRunStatus, after: TaskRunStatus) -> None:
        assert before.outcome is None, "a finished TaskRun was written to"
        ended = {attempt.number: attempt for attempt in before.attempts if attempt.finish_time}
        listed = {attempt.number: attempt for attempt in after.attempts}
        for number, attempt in ended.items():
            assert listed.get(number, attempt) == attempt, "a recorded end was changed"
        new = [attempt for attempt in after.attempts if attempt.finish_time and attempt.number not in ended]
        for attempt in new:
            if attempt.cause == "Stopped":
                assert attempt.charged_to is None, "who was stopped pays nothing"
                assert self._is_unwanted(), "an attempt was stopped that nobody wanted to end"
        assert all(
            attempt.number > before.counts.attempts or attempt.number in {a.number for a in before.attempts}
            for attempt in new
        )
        for budget in Budget:
            charged = sum(attempt.charged_to == budget for attempt in new)
            assert amount(after.counts.charged, budget) == amount(before.counts.charged, budget) + charged, "wrong sum"
        presumed = [attempt.number for attempt in new if attempt.end == "Presumed"]
        assert after.counts.last_presumed == max([before.counts.last_presumed, *presumed]), (
            "a presumed end is forgotten"
        )
        assert len(after.attempts) <= max(
            self.taskrun.spec.history_limit, 1 + sum(a.finish_time is None for a in after.attempts)
        )
        if after.outcome is not None:
            self._check_outcome(after)

    def _check_outcome(self, status: TaskRunStatus) -> None:
        assert all(self.is_presumed_over(pod) for pod in self.pods.values()), "it ended while a pod lives"
        assert all(attempt.finish_time is not None for attempt in status.attempts), "it ended while an attempt goes on"
        assert FINALIZER_EXTERNAL_JOBS not in self.taskrun.metadata.finalizers, "it ended before it let go of its jobs"
        self._check_jobs(status)
        record = self.state.completion if self.state else None
        if status.outcome == "Cancelled":
            assert self.taskrun.spec.cancel, "cancelled unasked"
        if status.outcome == "Succeeded":
            by_exit_code = self.taskrun.spec.completion != "Recorded" and bool(self.exited_well)
            assert self.completed or by_exit_code, "success without a positive sign"
        elif self.taskrun.spec.completion != "ExitCode" and not self.budgets_edited and record is not None:
            assert record.attempt < status.attempts[-1].number, "a recorded completion was thrown away"

    def _check_jobs(self, status: TaskRunStatus) -> None:
        """At the end of the TaskRun no job is open and not named."""
        shown = {(job.key, job.generation): job for job in status.external_jobs}
        state = self.existing_state
        for job in state.jobs if state else ():
            if not job.is_open:
                continue
            answers = self._answers("SubmissionUnknown", (job.key, job.generation))
            left = shown.get((job.key, job.generation))
            assert left is not None, "an open job is not even shown"
            # Resubmit says that there is no such job; one whose handle is known since, and that nobody asked about again, there is.
            is_denied = "Fail" in answers or ("Resubmit" in answers and (job.held or job.handle is None))
            assert left.state in {"Orphaned", "Detached"} or (left.state == "Failed" and is_denied), "not named"
            assert left.handle is not None or answers or self.let_go_by_hand, "an intent was forgotten"
        over = {(job.key, job.generation) for job in state.jobs if not job.is_open} if state else set()
        for which, job in shown.items():
            assert job.state not in OPEN or (status.outcome is None and which in over), "an open job was left behind"

    def _answers(self, held: str, job: JobId | None = None) -> list[str]:
        about = job or (None, None)
        given = self.taskrun.spec.resolutions
        return [one.action for one in given if one.held == held and (one.key, one.generation) == about]

    def _is_unwanted(self) -> bool:
        spec, about = self.taskrun.spec, self.taskrun.metadata
        return (
            spec.cancel or about.deletion_timestamp is not None or any(one.action == "Fail" for one in spec.resolutions)
        )

    # -- what happens ------------------------------------------------------------------------------

    def happen(self) -> None:
        """One thing happens to one pod, or to the rest of the world."""
        self.happenings += 1
        # Time goes by in all sizes.
        self.seconds += self.choices.choice([0, 0.3, 1, 1, 2, 5, 20, 60, 400])
        pods = list(self.pods.values())
        what = self.choices.random()
        if what < 0.03 and self.state is not None and self.taskrun.status.state is not None:
            self.state = None
        elif what < 0.06:
            self._edit_budgets()
        elif what < 0.07:
            self._edit_spec(cancel=True)
        elif what < 0.08:
            self._delete()
        elif what < 0.14:
            self.answer()
        elif what < 0.145 and self.taskrun.metadata.finalizers:
            self.let_go_by_hand = True
            self.take_finalizer_off()
        elif pods:
            self.happen_to(self.choices.choice(pods))

    def happen_meanwhile(self) -> None:
        """Between what the operator read and what it writes: intents that were found allowed are stored, or refused."""
        for pod in list(self.pods.values()):
            if not self.is_calm and pod.runs and pod.intending is not None and self.choices.random() < 0.5:
                self.act_on_jobs(pod)

    def check_zombies(self) -> None:
        """After the end: whoever still runs somewhere, or whose call is still under way, gets nothing stored any more."""
        for pod in list(self.pods.values()):
            for _ in range(3):
                if pod.runs:
                    self.open_state(pod)
                    self.act_on_jobs(pod)

    def happen_to(self, pod: SimulatedPod) -> None:
        if pod.node_lost:
            self._happen_unseen(pod)
        elif pod.is_over:
            if self.choices.random() < 0.3:
                self.delete_pod(pod.apod.metadata["name"], pod.apod.metadata["uid"])
        elif pod.is_deleted:
            self.stop(pod)
        elif pod.runs:
            self._happen_to_running(pod)
        elif "waiting" in _container(pod).get("state", {}) or not _container(pod):
            self._happen_to_pending(pod)
        else:
            self.end_pod(pod)

    def _happen_to_pending(self, pod: SimulatedPod) -> None:
        apod, name, uid = pod.apod, pod.apod.metadata["name"], pod.apod.metadata["uid"]
        match self.choices.randrange(9):
            case 0:
                self.delete_pod(name, uid)
            case 1:
                self.change(
                    pod, apod.with_spec(schedulingGates=[]).unschedulable(f"0/{self.choices.randrange(9)} nodes")
                )
            case 2:
                reason = self.choices.choice(["ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"])
                self.change(pod, apod.scheduled(self.seconds).waiting(reason, "not found"))
            case 3:
                self.change(pod, apod.scheduled(self.seconds).failed("UnexpectedAdmissionError"))
            case _:
                self.start(pod)

    def _happen_to_running(self, pod: SimulatedPod) -> None:
        name, uid = pod.apod.metadata["name"], pod.apod.metadata["uid"]
        if self.choices.random() < 0.6:
            self.act_on_jobs(pod)
            return
        match self.choices.randrange(13):
            case 0:
                self.delete_pod(name, uid)
            case 1:
                self.change(pod, pod.apod.disrupted(seconds=self.seconds))
                self.delete_pod(name, uid)
            case 2:
                # The worst time: the state API has found its intent allowed, and the answer is all that is missing.
                self.open_state(pod)
                self._allow_intent(pod, self.choices.choice("ab"))
                pod.node_lost = True
            case 3:
                self._vanish(pod)
            case 4 | 5 | 6:
                self.open_state(pod)
            case 7:
                self.complete(pod)
            case 8:
                self.exit(pod, 137, reason="OOMKilled")
            case 9 | 10:
                self.exit(pod, 0)
            case _:
                self.exit(pod, 1)

    def _happen_unseen(self, pod: SimulatedPod) -> None:
        """Its node is unreachable: what runs there goes on, and its deletion only hangs."""
        if pod.runs and self.choices.random() < 0.5:
            self.act_on_jobs(pod)
            return
        match self.choices.randrange(5):
            case 0:
                self.complete(pod)
            case 1:
                pod.node_lost = False
            case 2 if not pod.is_over:
                self.change(pod, pod.apod.disrupted("DeletionByPodGC", self.seconds).with_status(phase="Failed"))
            case _ if not pod.is_deleted:
                self.change(pod, pod.apod.disrupted("DeletionByTaintManager", self.seconds))
                self.delete_pod(pod.apod.metadata["name"], pod.apod.metadata["uid"])
            case _:
                pass

    def start(self, pod: SimulatedPod) -> None:
        pod.runs = True
        self.change(pod, pod.apod.scheduled(self.seconds).running(self.seconds))
        if any(one["name"] == "proxy" for one in pod.apod.status["containerStatuses"]):
            self.change(pod, pod.apod.with_container("proxy", running={"startedAt": at(self.seconds).isoformat()}))

    def open_state(self, pod: SimulatedPod) -> None:
        """As the state API does it, for which an older attempt is fenced."""
        named = self.taskrun.status.state
        if self.is_over or self.taskrun.metadata.deletion_timestamp is not None:
            return
        if self.existing_state is None and named is not None:
            return
        epoch = self.state.epoch if self.state else None
        if epoch is not None and epoch.attempt >= pod.number:
            return
        if self.state is not None and self.state.seal is not None:
            return
        mine = Epoch(attempt=pod.number, pod_uid=pod.apod.metadata["uid"])
        if self.state is None:
            self.losses += 1
            self.submitters, self.asked = {}, set()
        uid = f"{STATE_UID}-{self.losses}"
        state = self.state or StateView(uid=uid, resource_version="1")
        self.state = msgspec.structs.replace(state, epoch=mine)
        if named is None:
            name = state_name(NAME, self.taskrun.metadata.uid)
            status = msgspec.structs.replace(self.taskrun.status, state=StateReference(config_map=name, uid=uid))
            self.taskrun = self._versioned(msgspec.structs.replace(self.taskrun, status=status))

    def complete(self, pod: SimulatedPod) -> None:
        state = self.existing_state
        if state is None or not self._is_current(pod) or self.is_over:
            return
        if any(job.is_open and not (job.detached and job.handle) for job in state.jobs):
            return
        self.completed = True
        done = Completion(
            attempt=pod.number, pod_uid=pod.apod.metadata["uid"], time=at(self.seconds), result=str(pod.number)
        )
        jobs = (msgspec.structs.replace(job, state=JobState.DETACHED) if job.is_open else job for job in state.jobs)
        self.state = msgspec.structs.replace(state, completion=done, jobs=tuple(jobs))

    # -- its external jobs, as state API and SDK go about them -------------------------------------

    @property
    def is_over(self) -> bool:
        """The TaskRun is finished or gone."""
        return self.is_gone or self.taskrun.status.outcome is not None

    def act_on_jobs(self, pod: SimulatedPod) -> None:
        """The next step of a task that submits once."""
        if pod.submitted is not None:
            self._record_handle(pod, pod.submitted)
            pod.submitted = None
        elif pod.submitting is not None:
            pod.submitted, pod.submitting = pod.submitting, None
        elif pod.intending is not None:
            key, pod.intending = pod.intending, None
            self._store_intent(pod, key)
        elif self.choices.random() < 0.6:
            self._allow_intent(pod, self.choices.choice("ab"))
        else:
            self._watch_job(pod)

    def _is_current(self, pod: SimulatedPod) -> bool:
        state = self.existing_state
        if state is None or state.epoch is None or not pod.runs:
            return False
        return state.epoch.pod_uid == pod.apod.metadata["uid"]

    def _allow_intent(self, pod: SimulatedPod, key: str) -> None:
        """The TaskRun is looked at, and carries our finalizer from now on."""
        about = self.taskrun.metadata
        if (
            not self._is_current(pod)
            or self.is_over
            or about.deletion_timestamp is not None
            or self.taskrun.spec.cancel
        ):
            return
        if FINALIZER_EXTERNAL_JOBS not in about.finalizers:
            self._update_metadata(finalizers=(FINALIZER_EXTERNAL_JOBS,))
        pod.intending = key

    def _store_intent(self, pod: SimulatedPod, key: str) -> None:
        """The compare-and-set: what was found allowed may have come too late."""
        state = self.existing_state
        if state is None or not self._is_current(pod) or state.seal is not None:
            return
        if state.completion is not None and state.completion.attempt == pod.number:
            return
        if self.let_go_by_hand:
            return
        assert not self.is_over, "an intent was stored that nobody will ever look at"
        newest = next((job for job in reversed(state.jobs) if job.key == key), None)
        if newest is None or newest.state in {JobState.FAILED, JobState.CANCELLED}:
            job = JobSummary(
                key=key,
                generation=newest.generation + 1 if newest else 1,
                state=JobState.INTENDED,
                submitted_by_attempt=pod.number,
                detached=self.choices.random() < 0.2,
            )
            self.state = msgspec.structs.replace(state, jobs=(*state.jobs, job))
            self._let_submit(pod, job)
        elif newest.held:
            self._heed_answer(pod, newest)
        elif newest.handle is None and self.choices.random() < 0.5:
            self._ask(pod, newest)
        elif newest.handle is None:
            self._let_submit(pod, newest)
        else:
            counts = msgspec.structs.replace(state.counts, reattachments=state.counts.reattachments + 1)
            self.state = msgspec.structs.replace(state, counts=counts)

    def _heed_answer(self, pod: SimulatedPod, job: JobSummary) -> None:
        given = [
            one
            for one in self.taskrun.spec.resolutions
            if (one.held, one.key, one.generation) == ("SubmissionUnknown", job.key, job.generation)
        ]
        if len(given) < job.holds:
            self.exit(pod, 85, message=HELD)
            return
        match given[job.holds - 1].action:
            case "Adopt":
                self._change_job(job, held=False, state=JobState.ACTIVE, handle=given[job.holds - 1].handle)
            case "Fail":
                self._change_job(job, held=False, state=JobState.FAILED)
            case _ if job.handle is not None:
                self._change_job(job, held=False, state=JobState.FAILED)
            case _:
                self._change_job(job, held=False)
                self._let_submit(pod, job)

    def _ask(self, pod: SimulatedPod, job: JobSummary) -> None:
        if not job.held:
            answers = self._answers("SubmissionUnknown", (job.key, job.generation))
            self._change_job(job, held=True, holds=len(answers) + 1)
            if not pod.node_lost and not pod.is_deleted:
                self.asked.add((job.key, job.generation))
        self.exit(pod, self.choices.choice([85, 85, 1]), message=self.choices.choice([HELD, HELD, ""]))

    def _let_submit(self, pod: SimulatedPod, job: JobSummary) -> None:
        pod.submitting = (job.key, job.generation)
        self.submitters.setdefault(pod.submitting, set()).add(pod.apod.metadata["uid"])

    def _record_handle(self, pod: SimulatedPod, which: JobId) -> None:
        """Evidence, which is taken from whoever stored the intent, fenced or sealed or not."""
        job = self._job(which)
        if job is None or job.handle is not None or not job.is_open:
            return
        if pod.apod.metadata["uid"] not in self.submitters.get(which, set()):
            return
        since = at(self.seconds) if self.choices.random() < 0.9 else None
        self._change_job(
            job, handle=f"job-{next(self.versions)}", state=JobState.ACTIVE, submitted_time=since, held=False
        )
        assert self.state is not None
        counts = msgspec.structs.replace(self.state.counts, submissions=self.state.counts.submissions + 1)
        self.state = msgspec.structs.replace(self.state, counts=counts)

    def _watch_job(self, pod: SimulatedPod) -> None:
        state = self.existing_state
        if state is None or not self._is_current(pod) or state.completion is not None:
            return
        watched = [job for job in state.jobs if job.is_open and job.handle is not None and not job.held]
        if not watched:
            return
        job = self.choices.choice(watched)
        new = self.choices.choice([JobState.SUCCEEDED, JobState.FAILED, JobState.UNKNOWN, JobState.NOT_FOUND])
        self._change_job(job, state=new)
        if new is JobState.NOT_FOUND and (changed := self._job((job.key, job.generation))) is not None:
            self._ask(pod, changed)

    def _job(self, which: JobId) -> JobSummary | None:
        state = self.existing_state
        return next((job for job in state.jobs if (job.key, job.generation) == which), None) if state else None

    def _change_job(self, job: JobSummary, **fields: Any) -> None:
        assert self.state is not None
        which, changed = (job.key, job.generation), msgspec.structs.replace(job, **fields)
        jobs = tuple(changed if (one.key, one.generation) == which else one for one in self.state.jobs)
        self.state = msgspec.structs.replace(self.state, jobs=jobs)

    # -- what people do ----------------------------------------------------------------------------

    def answer(self) -> None:
        """One answer to what the TaskRun is held for; if it is held for nothing, one in advance."""
        held = next(
            (one for one in self.taskrun.status.conditions if one.type == "Held" and one.status == "True"), None
        )
        open_jobs = [job for job in self.state.jobs if job.is_open] if self.state else []
        match held.reason if held else "":
            case Reason.STATE_LOST:
                self._append(Resolution(held="StateLost", action=self.choices.choice(["StartEmpty", "Fail"])))
            case Reason.BUDGET_EXHAUSTED:
                self._append(Resolution(held="BudgetExhausted", action=self.choices.choice(["Continue", "Fail"])))
            case _ if open_jobs:
                asked = [job for job in open_jobs if job.held or job.handle is None] or open_jobs
                job = self.choices.choice(asked)
                action = self.choices.choice(["Adopt", "Resubmit", "Fail"])
                handle = f"named-{next(self.versions)}" if action == "Adopt" else None
                about = {"key": job.key, "generation": job.generation, "handle": handle}
                self._append(Resolution(held="SubmissionUnknown", action=action, **about))

    def _append(self, resolution: Resolution) -> None:
        given = msgspec.to_builtins((*self.taskrun.spec.resolutions, resolution))
        self._edit_spec(resolutions=given)

    def _delete(self) -> None:
        if self.taskrun.metadata.deletion_timestamp is not None:
            return
        self._update_metadata(deletion_timestamp=at(self.seconds))
        self.is_gone = FINALIZER_EXTERNAL_JOBS not in self.taskrun.metadata.finalizers

    def exit(self, pod: SimulatedPod, code: int, reason: str | None = None, message: str = "") -> None:
        """Its process ended by itself; the pod's phase may follow later."""
        pod.runs = False
        if code == 0:
            self.exited_well.add(pod.number)
        apod = pod.apod.exited(code, self.seconds, reason=reason, message=message)
        self.change(pod, apod.not_over() if self.choices.random() < 0.3 else apod)

    def stop(self, pod: SimulatedPod) -> None:
        """Its kubelet does what a deletion asks for."""
        apod = pod.apod
        if pod.runs:
            pod.runs = False
            apod = apod.exited(self.choices.choice([0, 143]), self.seconds)
        self.change(pod, apod.with_status(phase="Failed"))

    def end_pod(self, pod: SimulatedPod) -> None:
        """The rest of the pod ends by itself."""
        for status in pod.apod.status.get("containerStatuses", ()):
            if "terminated" not in status["state"]:
                return
        code = _container(pod)["state"]["terminated"]["exitCode"]
        self.change(pod, pod.apod.with_status(phase="Failed" if code else "Succeeded"))

    def _vanish(self, pod: SimulatedPod) -> None:
        """Somebody takes all finalizers off and deletes it by force. What nobody has heard of can't be known: that is left out.

        (Its number is then used again. If it had opened the state, the next pod of that number is fenced by it, and all is well.)
        """
        heard_of = pod.number <= self.taskrun.status.counts.attempts
        opened = self.state is not None and self.state.epoch is not None and self.state.epoch.attempt >= pod.number
        if heard_of or opened:
            del self.pods[pod.apod.metadata["name"]]
            self.told_of_state = True

    def _edit_budgets(self) -> None:
        self.budgets_edited = True
        budgets = {name: self.choices.randrange(4) for name in ("application", "disruption", "neverStarted")}
        self._edit_spec(retry={**self.spec["retry"], "budgets": budgets})

    def _edit_spec(self, **fields: Any) -> None:
        self.spec = {**self.spec, **fields}
        self.taskrun = msgspec.structs.replace(self.taskrun, spec=a_taskrun(**self.spec).build().spec)
        self._update_metadata(generation=self.taskrun.metadata.generation + 1)

    def calm(self) -> bool:
        """From now on everything goes its way: nodes report, pods start and end. Tells whether anything happened."""
        self.seconds += 1
        for pod in list(self.pods.values()):
            if pod.node_lost:
                pod.node_lost = False
            if pod.is_over:
                continue
            if pod.is_deleted:
                self.stop(pod)
            elif pod.runs:
                self.exit(pod, self.choices.choice([0, 1]))
            elif "terminated" in _container(pod).get("state", {}):
                before = pod.version
                self.end_pod(pod)
                if pod.version == before:
                    continue
            elif pod.apod.spec.get("schedulingGates"):
                self.change(pod, pod.apod.with_spec(schedulingGates=[]))
            else:
                self.start(pod)
            return True
        return False


@dataclass
class Operator:
    """Looks, decides and acts; its view is behind the world by what it was not told yet."""

    world: World
    taskrun: TaskRun | None = None
    pods: dict[str, Pod] = field(default_factory=dict)
    summary: Summary | None = None
    rejection: PodRejection | None = None
    wakes_at: float | None = None
    announced: list[EmitEvent] = field(default_factory=list)

    def hear(self, *, everything: bool) -> None:
        """What the watches tell: all, or only some of it. A TaskRun, once written by us, is never seen older than that."""
        world, late = self.world, self.world.choices
        if everything or world.told_of_state or late.random() < 0.5 or self.taskrun is None:
            self.taskrun = world.taskrun
        if everything or world.told_of_state or late.random() < 0.5:
            self.summary = world.summary()
        world.told_of_state = False
        for uid in list(self.pods):
            if all(pod.apod.metadata["uid"] != uid for pod in world.pods.values()) and (
                everything or late.random() < 0.5
            ):
                del self.pods[uid]
        for pod in world.pods.values():
            if everything or late.random() < 0.5:
                self._learn(pod)

    def restart(self) -> None:
        self.pods, self.rejection = {}, None
        self.hear(everything=True)

    def look(self, *, dies: float = 0.0, refuses: float = 0.0) -> Plan:
        """One pass. With the chance `dies` the process ends before any of its effects."""
        assert self.taskrun is not None
        seen = Observed(
            taskrun=self.taskrun, pods=tuple(self.pods.values()), summary=self.summary, rejection=self.rejection
        )
        now = at(self.world.seconds)
        decision = decide(seen, SETTINGS, now)
        if isinstance(decision, ReadState):
            seen = replace(seen, state=self.world.state or AbsentState())
            decision = decide(seen, SETTINGS, now)
            assert not isinstance(decision, ReadState), "the state is read once"
        if isinstance(decision, SealState):
            self._die(dies)
            self.world.seal(decision)
            self._die(dies)
            self.world.happen_meanwhile()
            seen = replace(seen, state=self.world.state or AbsentState())
            decision = decide(seen, SETTINGS, now)
        assert isinstance(decision, Plan), "the state is sealed once, and not read again afterwards"
        plan = decision
        self.world.happen_meanwhile()
        assert plan == decide(seen, SETTINGS, now), "the same is decided for the same"
        self.wakes_at = None if plan.requeue_at is None else (plan.requeue_at - at(0)).total_seconds()
        if plan.status is not None:
            self._die(dies)
            written = self.world.write_status(self.taskrun.metadata.resource_version, plan.status)
            if written is None:
                self.taskrun = self.world.taskrun
                return plan
            self.taskrun = written
        else:
            said = [action.reason for action in plan.actions if isinstance(action, EmitEvent)]
            # That jobs are left running is said again, as long as it may be that nobody came to it.
            assert all(reason == EventReason.ORPHANED for reason in said), "said without a write"
            assert not said or ReleaseTaskRun() in plan.actions, "said without a need"
        # The worst time to die: what is named in status alone is about to go with it.
        dies = 5 * dies if ReleaseTaskRun() in plan.actions else dies
        for action in plan.actions:
            self._die(dies)
            self._act(action, refuses)
        self._die(dies)
        return plan

    def _act(self, action: Action, refuses: float) -> None:
        world = self.world
        match action:
            case CreatePod():
                if world.choices.random() < refuses:
                    kind = world.choices.choice(
                        [PodRejectionKind.QUOTA, PodRejectionKind.FORBIDDEN, PodRejectionKind.ERROR]
                    )
                    message = f"no {world.choices.randrange(3)}"
                    self.rejection = PodRejection(kind, action.attempt, message, at(world.seconds + 2))
                    return
                assert self.taskrun is not None
                self._learn(world.create_pod(action, self.taskrun))
                self.rejection = None
            case DeletePod():
                world.delete_pod(action.name, action.uid)
                if action.name in world.pods:
                    self._learn(world.pods[action.name])
            case ReleasePod():
                world.release_pod(action.pod)
                name, uid = action.pod.metadata.name, action.pod.metadata.uid
                if name in world.pods and world.pods[name].apod.metadata["uid"] == uid:
                    self._learn(world.pods[name])
                else:
                    self.pods.pop(uid, None)
            case ReleaseTaskRun():
                assert self.taskrun is not None
                self._check_named(self.taskrun.status)
                world.release_taskrun(self.taskrun.metadata.resource_version)
                self.taskrun = world.taskrun
            case ReleaseState():
                assert world.taskrun.status.outcome is not None, "the state was let go of while the run goes on"
            case EmitEvent():
                self.announced.append(action)
            case _:
                assert_never(action)

    def _check_named(self, status: TaskRunStatus) -> None:
        """In the log, which outlives the operator's processes and the TaskRun."""
        left = [describe_job(job) for job in status.external_jobs if job.state == JobState.ORPHANED]
        said = [one.note for one in self.announced if one.reason == EventReason.ORPHANED]
        assert all(any(name in note for note in said) for name in left), "let go of before its jobs were named"

    def _learn(self, pod: SimulatedPod) -> None:
        self.pods[pod.apod.metadata["uid"]] = pod.view

    def _die(self, chance: float) -> None:
        if chance and self.world.choices.random() < chance:
            raise OperatorDiedError


def _container(pod: SimulatedPod) -> dict[str, Any]:
    statuses = pod.apod.status.get("containerStatuses", ())
    return next((status for status in statuses if status["name"] == "task"), {})


def is_held(status: TaskRunStatus) -> bool:
    return any(one.type == ConditionType.HELD and one.status == "True" for one in status.conditions)


def live(choices: random.Random, spec: dict[str, Any], *, chaos: int) -> World:
    """A whole life: `chaos` happenings with an operator that dies and hears late, then calm, until the end."""
    world = World(choices, spec)
    operator = Operator(world)
    operator.restart()
    for _ in range(chaos):
        world.happen()
        operator.hear(everything=False)
        try:
            operator.look(dies=0.1, refuses=0.1)
        except OperatorDiedError:
            operator.restart()
        if world.is_over:
            break
    operator.restart()
    world.is_calm = True
    for _ in range(500):
        settle(operator)
        status = world.taskrun.status
        if world.is_over:
            world.check_zombies()
            return world
        if is_held(status):
            world.answer()
        if not world.calm() and not is_held(status):
            # Nothing will happen by itself: the operator must know when to look again.
            assert operator.wakes_at is not None, f"stuck: {status}"
            world.seconds = max(world.seconds, operator.wakes_at)
        operator.hear(everything=True)
    raise AssertionError("it never ends")


def settle(operator: Operator) -> None:
    """While nothing happens, there is soon nothing to do."""
    for _ in range(PASSES_MAX):
        plan = operator.look()
        operator.hear(everything=True)
        if plan.status is None and not plan.actions:
            return
        if operator.world.is_over:
            return
    raise AssertionError("it does not settle")
