"""Random histories of a TaskRun with external jobs, against the job server in each of its modes.

A seed determines the job, the faults (attempt, step, kind, duration) and the user's reaction to a
hold. It gives the same plan in each mode. If no guarantee of the external system expires, half of
the adapters never check whether their request may still leave. This module computes what may be
held from the injected faults, independently of the code under test. With `plain`, a task without
the protocol runs the same plans: it submits, and then stores the id.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import msgspec
from typing_extensions import override

from conformance.jobadapter import CAPABILITIES, JobServerSystem, serving
from reattach.adapters.base import LONGEST, Active, Capabilities, NotFound, Submission, Submitted, Succeeded, Unknown
from reattach.api.messages import Decision, IntentResponse
from reattach.api.reasons import ConditionType
from reattach.api.state import JobSummary
from reattach.task.context import Task
from reattach.testing.fault_injection import FaultInjectingAdapter
from reattach.testing.simulated_cluster import SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

SEEDS = tuple(range(1, 1001))
"""Seeds of all histories. Each is run in each mode."""
HISTORY_SECONDS = 30 * 24 * 3600.0
REQUEST_SECONDS = 30.0
MARGIN_SECONDS = 5.0
LOST_SECONDS = 60
STALE_SECONDS = 60.0
"""Age of a grant after which an adapter that checks `may_leave` does not send its request."""
EDGES = (600, 7200)
"""Seconds after which guarantees expire. Some attempts start right before that."""

STEPS = (
    "before POST open",
    "after POST open",
    "before-intent",
    "before POST intent",
    "after POST intent",
    "after-intent",
    "before-submit",
    "submit leaving",
    "submit accepted",
    "after-submit",
    "before PUT handle",
    "after PUT handle",
    "after-handle",
    "lookup leaving",
    "lookup accepted",
    "watching",
    "status leaving",
    "status accepted",
    "before-outcome",
    "before PUT outcome",
    "after PUT outcome",
    "after-outcome",
    "before POST complete",
    "after POST complete",
)
"""Steps at which a fault can be injected."""
_DECISIVE_STEPS = ("after-intent", "submit leaving", "submit accepted", "after-submit", "before PUT handle")
"""Steps at which a fault makes a submission ambiguous. Half of the faults are drawn from these."""
KINDS = {
    "crash": 30,
    "evicted": 8,
    "node dies": 12,
    "frozen": 10,
    "frozen and presumed": 20,
    "in flight": 8,
    "cut": 8,
    "system down": 8,
    "system fails": 8,
    "state API down": 6,
}


def steps_of(mode: str) -> set[str]:
    """Return the steps that occur in a mode, without those of lookups if it has none."""
    return {step for step in STEPS if CAPABILITIES[mode].look_up or not step.startswith("lookup ")}


@dataclass(frozen=True)
class PlannedFault:
    """A fault of kind `kind`, when an attempt gets to `step` for the `nth` time.

    seconds: duration, for the kinds that have one.
    """

    attempt: int
    step: str
    nth: int
    kind: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class FaultPlan:
    """The faults of one history.

    delays: seconds before an attempt requests its job, by attempt.
    """

    seed: int
    mode: str
    keys: tuple[str, ...]
    job_seconds: int
    faults: tuple[PlannedFault, ...]
    delays: dict[int, float]


def plan_of(seed: int, mode: str) -> FaultPlan:
    """Return the plan of a seed."""
    rng = random.Random(seed)
    attempts = rng.choice((1, 1, 2, 2, 3, 4))
    faults = []
    delays = {}
    for attempt in range(1, attempts + 1):
        steps = _DECISIVE_STEPS if rng.random() < 0.5 else STEPS
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "cut":
            steps = tuple(step for step in steps if " " in step)
        step = "submit leaving" if kind == "in flight" else rng.choice(steps)
        seconds = rng.choice((0.5, 5, 40, 90, 300, 700, 4000, 8000)) * rng.uniform(0.5, 1)
        detail = rng.choice(("error", "lose", "half", "down"))
        faults.append(PlannedFault(attempt, step, rng.choice((1, 1, 1, 2)), kind, seconds, detail))
        if rng.random() < 0.3:
            delays[attempt + 1] = rng.choice((30, 500, 700, 8000)) * rng.uniform(0.5, 1)
    keys = ("load",) if rng.random() < 0.8 else ("load", "index")
    job_seconds = rng.choice((1, 20, 60, 600))
    if rng.random() < 0.1:  # attempt 2 requests its job right before a guarantee expires
        step = rng.choice(("submit accepted", "after-submit", "before PUT handle"))
        in_flight = PlannedFault(2, "submit leaving", 1, "in flight", rng.uniform(0, REQUEST_SECONDS))
        faults[:2] = [PlannedFault(1, step, 1, "crash", 0), in_flight]
        delays[2] = rng.choice(EDGES) - rng.uniform(0, 2 * REQUEST_SECONDS)
    elif rng.random() < 0.05:  # a lost job, and a fault of its successor
        kind = rng.choice(("crash", "frozen and presumed"))
        faults[:3] = [
            PlannedFault(1, "after-handle", 1, "crash", 0),
            PlannedFault(3, rng.choice(_DECISIVE_STEPS), 1, kind, 300),
        ]
        delays[2] = max(EDGES) + job_seconds + rng.uniform(0, 2 * REQUEST_SECONDS)
    return FaultPlan(seed, mode, keys, job_seconds, tuple(faults), delays)


@dataclass
class Grant:
    """A decision `Submit` that the state API returned to a process, received or not."""

    process: TaskProcess
    key: str
    generation: int
    token: str
    time: float
    recorded: bool = False
    presumed: bool = False


@dataclass
class HistoryTotals:
    """Totals of the histories of these seeds in one mode."""

    mode: str
    seeds: tuple[int, ...]
    histories: int = 0
    attempts: int = 0
    injected: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Number of injected faults by kind and step. A plan may have more."""
    reached: set[str] = field(default_factory=set)
    """Steps that processes reached."""
    jobs: int = 0
    held: int = 0
    duplicates: list[int] = field(default_factory=list)
    """Seeds of histories in which a job was made more often than requested."""
    lost: list[int] = field(default_factory=list)
    """Seeds of histories in which a job was made that the state does not contain at the end."""

    def to_json(self) -> dict[str, Any]:
        """Return the row of the table."""
        faults: Counter[str] = Counter()
        for (kind, _), times in self.injected.items():
            faults[kind] += times
        crashes = sum(faults[kind] for kind in ("crash", "evicted", "node dies", "in flight"))
        freezes = faults["frozen"] + faults["frozen and presumed"]
        return {
            "mode": self.mode,
            "seeds": f"{min(self.seeds)} to {max(self.seeds)}",
            "histories": self.histories,
            "attempts": self.attempts,
            "crashes": crashes,
            "freezes": freezes,
            "other faults": faults.total() - crashes - freezes,
            "jobs": self.jobs,
            "held": self.held,
            "duplicates": len(self.duplicates),
            "lost": len(self.lost),
        }

    def __str__(self) -> str:
        return " · ".join(f"{name} {value}" for name, value in self.to_json().items())


class HistoryError(AssertionError):
    """A history violated a rule. The message has its seed and its faults."""


class UncheckedAdapter(FaultInjectingAdapter):
    """Adapter that never checks whether its request may still leave."""

    @override
    def submit(self, submission: Submission) -> Submitted:
        return super().submit(replace(submission, may_leave=lambda: True))


def has_expiring_guarantee(capabilities: Capabilities) -> bool:
    """Return whether a name or token expires.

    An adapter that does not check `may_leave` can then make a duplicate with any protocol.
    """
    name, token = capabilities.client_name, capabilities.token
    return (name is not None and name.retention is not None) or (token is not None and token.lifetime < LONGEST)


class History:
    """One history: its TaskRun, its faults and the user."""

    def __init__(
        self, cluster: SimulatedCluster, served: JobServerSystem, plan: FaultPlan, totals: HistoryTotals, *, plain: bool
    ) -> None:
        self.cluster = cluster
        self.served = served
        self.plan = plan
        self.totals = totals
        self.plain = plain
        self.capabilities = CAPABILITIES[plan.mode]
        self.checks_may_leave = plan.seed % 2 == 1 or has_expiring_guarantee(self.capabilities)
        # Its adapter checks whether its request may still leave.
        self.resolves_early = self.checks_may_leave and plan.seed % 3 != 1
        # The user resolves a hold while frozen processes remain that can't submit any more.
        self.name = f"history-{plan.seed}"
        self.run = SimulatedRun(self.name, self._main, self._on_step)
        self.grants: list[Grant] = []
        self.resubmitted: Counter[str] = Counter()
        """Number of further jobs that the user requested, by key."""
        self.injected: list[str] = []
        self._adapters: dict[str, FaultInjectingAdapter] = {}
        self._counts: Counter[tuple[int, str]] = Counter()
        self._key: dict[str, str] = {}
        self._down_until = 0.0
        self._state_api_down_until = 0.0
        self._seen_holds: dict[tuple[str, int], int] = {}

    @property
    def now(self) -> float:
        return self.cluster.clock.monotonic()

    # -- from start to end -------------------------------------------------------------------------

    def execute(self) -> None:
        """Run until the TaskRun has an outcome. Raises `HistoryError`."""
        self.cluster.create(self.name, {"deadlines": {"lostSeconds": LOST_SECONDS}})
        end = self.now + HISTORY_SECONDS
        while not (self._wait(lambda: self._is_over() or bool(self._held())) and self._is_over()):
            if self.now > end:
                raise self._error(f"it did not end: {self.cluster.taskrun(self.name).status}")
            self._check_holds()
            self._resolve_holds()
        self._wait(lambda: all(process.has_ended for process in self.run.processes) and not self._is_in_flight())
        self.cluster.kill_processes(self.run)
        self.served.server.faults.clear()
        self._check_end()

    def _wait(self, until: Callable[[], bool]) -> bool:
        return self.cluster.run_until(self.run, until, seconds=HISTORY_SECONDS)

    def _is_over(self) -> bool:
        return self.cluster.taskrun(self.name).status.outcome is not None

    def _held(self) -> list[JobSummary]:
        """Return the held jobs, after the operator has reported the hold."""
        status = self.cluster.taskrun(self.name).status
        if not any(c.type == ConditionType.HELD and c.status == "True" for c in status.conditions):
            return []
        return [job for job in self.jobs() if job.held]

    def jobs(self) -> tuple[JobSummary, ...]:
        """Return the jobs in the summary of the state."""
        return self.cluster.jobs(self.name)

    # -- the task ----------------------------------------------------------------------------------

    def request_of(self, key: str) -> dict[str, Any]:
        return {"seconds": self.plan.job_seconds, "rows": self.rows_of(key), "label": self.label_of(key)}

    def rows_of(self, key: str) -> int:
        """Return a number that identifies key and seed in a job's result."""
        return 10 * self.plan.seed + self.plan.keys.index(key)

    def label_of(self, key: str) -> str:
        return f"{self.name}-{key}-{'plain' if self.plain else 'once'}"

    def _main(self, process: TaskProcess, task: Task) -> Any:
        kind = FaultInjectingAdapter if self.checks_may_leave or self.plain else UncheckedAdapter
        adapter = kind(self.served.adapter(), process, self.cluster.clock)
        self._adapters[process.uid] = adapter
        if (delays := self.plan.delays.get(process.attempt)) is not None:
            process.sleep(delays)
        rows = {}
        for key in self.plan.keys:
            self._key[process.uid] = key
            result = self._plain(process, task, adapter, key) if self.plain else self._once(task, adapter, key)
            rows[key] = result["rows_written"]
        return rows

    def _once(self, task: Task, adapter: FaultInjectingAdapter, key: str) -> Any:
        return task.submit_once(key, adapter, self.request_of(key)).wait()

    def _plain(self, process: TaskProcess, task: Task, adapter: FaultInjectingAdapter, key: str) -> Any:
        """Submit without the protocol, and report the steps that also exist with it."""
        handle = task.state.get(key)
        if handle is None:
            process.step("before-intent")
            process.step("after-intent")
            token = f"{self.name}-{process.uid}-{self.now}"
            submission = Submission(token, self.request_of(key), key, 1, task.namespace, task.name)
            process.step("before-submit")
            handle = adapter.submit(submission).handle
            process.step("after-submit")
            task.state.set(key, handle)
            process.step("after-handle")
        while True:
            process.step("watching")
            try:
                status = adapter.status(handle)
            except (httpx.HTTPError, ConnectionError):
                status = Unknown()
            if isinstance(status, Succeeded):
                process.step("before-outcome")
                process.step("after-outcome")
                return status.result
            if not isinstance(status, Active | Unknown):
                return {"rows_written": 0, "status": str(status), "gone": isinstance(status, NotFound)}
            process.sleep(adapter.poll_seconds)

    # -- faults ---------------------------------------------------------------------------

    def _on_step(self, process: TaskProcess, step: str) -> None:
        name = _shorten(step, plain=self.plain)
        self._counts[process.attempt, name] += 1
        self.totals.reached.add(name)
        self._record_grant(process, name)
        for fault in self.plan.faults:
            if (fault.attempt, fault.step, fault.nth) == (process.attempt, name, self._counts[process.attempt, name]):
                self.totals.injected[fault.kind, name] += 1
                self.injected.append(f"{self.now:.1f} {fault}")
                self._inject(process, fault)
        if self.now < self._down_until and step.endswith(" leaving"):
            raise ConnectionError("the external system is down")
        if self.now < self._state_api_down_until and step.startswith("before ") and " /v1/" in step:
            raise httpx.ConnectError("the state API is down")

    def _inject(self, process: TaskProcess, fault: PlannedFault) -> None:
        match fault.kind:
            case "crash":
                process.kill()
            case "evicted":
                self.cluster.evict(process)
                process.kill()
            case "node dies":
                self._lose_node(process)
                process.kill()
            case "frozen":
                process.freeze(fault.seconds)
            case "frozen and presumed":
                self._lose_node(process)
                process.freeze(LOST_SECONDS + fault.seconds)
            case "in flight":
                self._adapters[process.uid].deliver_later(min(fault.seconds, REQUEST_SECONDS))
                process.kill()
            case "cut":
                raise httpx.ReadError("the connection was cut")
            case "system down":
                self._down_until = self.now + fault.seconds
            case "system fails":
                self.served.server.fail(fault.detail, times=2)
            case "state API down":
                self._state_api_down_until = self.now + fault.seconds

    def _lose_node(self, process: TaskProcess) -> None:
        for grant in self.grants:
            grant.presumed |= grant.process is process
        self.cluster.lose_node(self.run, process)

    # -- what may be held --------------------------------------------------------------------------

    def _record_grant(self, process: TaskProcess, name: str) -> None:
        if self.plain or (key := self._key.get(process.uid)) is None:
            return
        if (
            name == "after POST intent"
            and (response := _intent_response(process))
            and response.decision is Decision.SUBMIT
        ):
            job, is_lost = response.job, self.run.nodes[process.uid].is_lost
            self.grants.append(Grant(process, key, job.generation, job.token, self.now, presumed=is_lost))
        if name == "after PUT handle" and (grants := self._grants_of(process, key)):
            grants[-1].recorded = True

    def _grants_of(self, process: TaskProcess, key: str) -> list[Grant]:
        return [one for one in self.grants if one.process is process and one.key == key]

    def _check_holds(self) -> None:
        for job in self._held():
            if self._seen_holds.get((job.key, job.generation)) != job.holds:
                self._seen_holds[job.key, job.generation] = job.holds
                self.totals.held += 1
                if why := self._reason_not_to_hold(job):
                    raise self._error(f"{job} is held, and must not be: {why}")

    def _reason_not_to_hold(self, job: JobSummary) -> str:
        """Return why the submission can be resolved without a user, or an empty string."""
        if job.handle is not None:
            known = self.served.server.jobs.status(job.handle, self.cluster.clock.now().timestamp())
            return "" if known is None else "the external system has the job"
        grants = [one for one in self.grants if (one.key, one.generation) == (job.key, job.generation)]
        asking = self.run.processes[-1]
        may_live = any(one.presumed and not one.recorded and one.process is not asking for one in grants)
        age = self.now - min(one.time for one in grants)
        capabilities = self.capabilities
        if capabilities.client_name and (
            capabilities.client_name.retention is None
            or age + REQUEST_SECONDS + MARGIN_SECONDS < capabilities.client_name.retention.total_seconds()
        ):
            return f"the external system rejects a second job of this name, {age:.0f} s after the intent"
        if capabilities.look_up and self._is_found(job.key, {one.token for one in grants}):
            return "a lookup finds the job"
        if may_live:
            return ""
        if capabilities.token and age + REQUEST_SECONDS + MARGIN_SECONDS < capabilities.token.lifetime.total_seconds():
            return f"the token is still valid, {age:.0f} s after the intent"
        # The settling time is waited for in addition. The external system counts from the
        # submission.
        slack = REQUEST_SECONDS + 2 * MARGIN_SECONDS
        if capabilities.look_up and (
            capabilities.look_up.retention is None
            or age + capabilities.look_up.settling.total_seconds() + slack
            < capabilities.look_up.retention.total_seconds()
        ):
            return f"a lookup resolves it, {age:.0f} s after the intent"
        return ""

    def _is_found(self, key: str, tokens: set[str]) -> bool:
        """Return whether a lookup found the job of this key for the last half minute."""
        label, now, jobs = self.label_of(key), self.cluster.clock.now().timestamp(), self.served.server.jobs
        return any(
            all(any(found["label"] == label for found in jobs.find(token, at)) for at in (now - REQUEST_SECONDS, now))
            for token in tokens
        )

    # -- the user --------------------------------------------------------------------------------

    def _resolve_holds(self) -> None:
        """Resolve the holds as a careful user does.

        Wait until no attempt can submit any more, no request is in flight, and the external system
        is available. Then look the job up and resolve the submission.
        """
        self._wait(lambda: all(self._can_not_submit(process) for process in self.run.processes))
        self.cluster.run_until(self.run, lambda: False, seconds=max(2 * REQUEST_SECONDS, self._down_until - self.now))
        for job in self._held():
            self.cluster.resolve(self.name, {"held": "SubmissionUnknown", **self._resolution_of(job)})
        self._wait(lambda: self._is_over() or not self._held() or self._has_new_hold())

    def _can_not_submit(self, process: TaskProcess) -> bool:
        """Return whether a process has ended, or its grants are too old for a checking adapter."""
        if process.has_ended or not self.resolves_early:
            return process.has_ended
        return all(self.now - one.time > STALE_SECONDS for one in self.grants if one.process is process)

    def _is_in_flight(self) -> bool:
        return any(adapter.in_flight for adapter in self._adapters.values())

    def _resolution_of(self, job: JobSummary) -> dict[str, Any]:
        about = {"key": job.key, "generation": job.generation}
        if job.handle is not None:  # the job is gone
            self.resubmitted[job.key] += 1
            return {**about, "action": "Resubmit"}
        others = {one.handle for one in self.jobs() if one.generation != job.generation}
        if made := [handle for handle in self.made_of(job.key) if handle not in others]:
            return {**about, "action": "Adopt", "handle": made[-1]}
        return {**about, "action": "Resubmit"}

    def _has_new_hold(self) -> bool:
        return any(self._seen_holds.get((job.key, job.generation)) != job.holds for job in self._held())

    # -- checks at the end -------------------------------------------------------------------------

    def made_of(self, key: str) -> list[str]:
        """Return the ids of the jobs that were made, in order."""
        found: list[str] = self.served.made_of(self.label_of(key))
        return found

    def _check_end(self) -> None:
        status = self.cluster.taskrun(self.name).status
        self.totals.histories += 1
        self.totals.attempts += len(self.run.processes)
        for key in self.plan.keys:
            made = self.made_of(key)
            self.totals.jobs += len(made)
            if len(made) > 1 + self.resubmitted[key]:
                self.totals.duplicates.append(self.plan.seed)
            if not self.plain and not set(made) <= self._known(key):
                self.totals.lost.append(self.plan.seed)
        if self.plain:
            return
        result = msgspec.json.decode(status.result) if status.result else None
        if status.outcome != "Succeeded" or result != {key: self.rows_of(key) for key in self.plan.keys}:
            raise self._error(f"the run must succeed with the rows of its jobs; it ended as {status}")
        for key in self.plan.keys:
            if not self.made_of(key) or not self._known(key) <= set(self.made_of(key)):
                raise self._error(f"{key} must know its own jobs, {self.made_of(key)}; it knows {self._known(key)}")

    def _known(self, key: str) -> set[str]:
        """Return the handles in the state under a key."""
        jobs = [job for job in self.jobs() if job.key == key]
        return {handle for job in jobs for handle in (job.handle, *job.strays) if handle is not None}

    def _error(self, what: str) -> HistoryError:
        steps = "\n".join(f"attempt {p.attempt}: {' · '.join(p.steps[-12:])}; {p.error!r}" for p in self.run.processes)
        injected = "\n".join(self.injected)
        return HistoryError(f"seed {self.plan.seed}, {self.plan.mode}: {what}\n{injected}\n{steps}")


def _intent_response(process: TaskProcess) -> IntentResponse | None:
    """Return the last response to an intent, or None if it was an error."""
    assert process.response is not None
    return msgspec.json.decode(process.response.content, type=IntentResponse) if process.response.is_success else None


def _shorten(step: str, *, plain: bool) -> str:
    """Return `before PUT handle` for `before PUT /v1/jobs/load/handle`.

    A task without the protocol stores its handle as a key.
    """
    when, _, rest = step.partition(" ")
    method, _, path = rest.partition(" ")
    if not path.startswith("/v1/"):
        return step
    if plain and path == "/v1/state":
        return f"{when} PUT handle"
    return f"{when} {method} {path.rpartition('/')[2]}"


@contextmanager
def history_runner(mode: str) -> Iterator[Callable[[int, HistoryTotals, bool], None]]:
    """Yield a function that runs the history of a seed in one mode."""
    with serving(mode) as served, SimulatedCluster(served.clock, seed=1) as cluster:

        def run(seed: int, totals: HistoryTotals, plain: bool) -> None:
            History(cluster, served, plan_of(seed, mode), totals, plain=plain).execute()

        yield run


def run_histories(mode: str, seeds: tuple[int, ...], *, plain: bool = False) -> HistoryTotals:
    """Run the histories of these seeds in one mode. Raises `HistoryError`."""
    totals = HistoryTotals(mode, seeds)
    with history_runner(mode) as run:
        for seed in seeds:
            run(seed, totals, plain)
    return totals
