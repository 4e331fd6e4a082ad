"""Runs the cases against an external system, to check the guarantees that its adapter declares.

    system = ExternalSystem(adapter=MyAdapter, count_jobs=count, request={...}, other_request={...})

    @pytest.mark.parametrize("case", reattach.testing.CASES, ids=str)
    def test_adapter_conforms(case):
        with Suite(system) as suite:
            suite.check(case)

`print(conformance(MyAdapter, count, request={...}, other_request={...}))` prints a table instead.
"""

import contextlib
import itertools
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
from typing_extensions import override

from reattach.adapters.base import Adapter, Capabilities, JobStatus, Submission, Submitted, Succeeded, Unknown
from reattach.api.reasons import ConditionType, Outcome, Reason
from reattach.errors import JobFailed
from reattach.task.context import Task
from reattach.testing.cases import (
    CASES,
    ENDING_CASES,
    Arrangement,
    Case,
    ExpectedResult,
    Fault,
    UnresolvedSubmission,
    absence_seconds,
    expected,
    find_false_report,
    settling_of,
)
from reattach.testing.clocks import Clock, RealClock, VirtualClock
from reattach.testing.fault_injection import FaultInjectingAdapter
from reattach.testing.progress import ShowProgress, TaskLog, captured_log, describe_case, describe_start, print_line
from reattach.testing.simulated_cluster import NAMESPACE, SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

KEY = "load"
COUNT_SECONDS = 10.0
"""Seconds until `count_jobs` must count a new job."""
CLEANUP_SECONDS = 300
"""Seconds for which the run's cleanup may go on, shorter than the patience in real time."""
WAITS_MAX = 3
"""Number of times that the SDK may have to wait in one case until a lookup proves absence."""


@dataclass(frozen=True, kw_only=True)
class CaseTiming:
    """Durations in seconds. With a virtual clock they cost no time.

    lost: `spec.deadlines.lostSeconds`.
    frozen: how long a frozen process sleeps.
    outage: shortest duration of an outage of the external system. A fault that the adapter sees
        lasts longer if the adapter declares longer times, until the SDK acts on what the adapter
        reports.
    in_flight: how long a request takes to arrive after its process was killed.
    poll: interval of status calls, by default the adapter's.
    wait_max: a case that must wait longer for a guarantee to expire is skipped.
    patience: time within which a case must end, beyond the time that the SDK must wait because of
        what the adapter declares.
    """

    lost: int = 60
    frozen: float = 3600
    outage: float = 600
    in_flight: float = 20
    poll: float | None = None
    wait_max: float = 1e9
    patience: float = 30 * 24 * 3600


VIRTUAL_TIMING = CaseTiming()
REAL_TIMING = CaseTiming(lost=2, frozen=25, outage=6, in_flight=0.3, poll=0.5, wait_max=10, patience=600)


@dataclass(frozen=True, kw_only=True)
class ExternalSystem:
    """An external system under test, as the suite uses it.

    adapter: returns a new adapter, as the process of each pod makes one.
    count_jobs: returns how many jobs the system has made in all, with ended and forgotten ones.
    request: a job that succeeds within seconds, and takes at least one second.
    other_request: another such job.
    lasting_request: a job of many minutes, which the suite cancels. Optional.
    forget: makes the system forget the job of a handle. Optional.
    fail: puts a fault in force, in place of an earlier one; the argument None clears it. Optional.
    count_running: returns how many jobs run now. Without it, the suite relies on the adapter's
        status for whether a job was cancelled.
    clock: the clock of the system, by default the real one.
    timing: durations, by default those for the clock.

    Cases that need an optional part are skipped without it.
    """

    adapter: Callable[[], Adapter]
    count_jobs: Callable[[], int]
    request: Any
    other_request: Any
    lasting_request: Any = None
    forget: Callable[[str], None] | None = None
    fail: Callable[[Fault | None], None] | None = None
    count_running: Callable[[], int] | None = None
    clock: Clock | None = None
    timing: CaseTiming | None = None


@dataclass(frozen=True)
class CaseResult:
    """Result of one case.

    problem: what must hold and does not, or an empty string.
    skipped: why the case was not run, or an empty string.
    """

    case: Case
    outcome: ExpectedResult | None = None
    jobs: int = 0
    attempts: int = 0
    problem: str = ""
    skipped: str = ""

    @property
    def summary(self) -> str:
        """Return how the case ended, in a few words."""
        if self.problem:
            return f"PROBLEM: {self.problem}"
        return f"not tried: {self.skipped}" if self.skipped else str(self.outcome)


@dataclass(frozen=True)
class Report:
    """Results of all cases for one adapter. Its text form is a table."""

    adapter: str
    results: tuple[CaseResult, ...]

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """Results with a problem."""
        return tuple(result for result in self.results if result.problem)

    @property
    def tried(self) -> tuple[CaseResult, ...]:
        """Results of the cases that were run."""
        return tuple(result for result in self.results if not result.skipped)

    @override
    def __str__(self) -> str:
        rows = ["| case | what happens | ended as | jobs | attempts |", "| --- | --- | --- | --- | --- |"]
        for result in self.results:
            ended = f"**{result.problem}**" if result.problem else result.summary
            numbers = " | " if result.skipped else f"{result.jobs} | {result.attempts}"
            rows.append(f"| {result.case.name} | {result.case.what} | {ended} | {numbers} |")
        return "\n".join(rows)


class CaseRun:
    """One run of a case: its faults, its processes and its checks."""

    def __init__(self, suite: "Suite", name: str) -> None:
        self.system = suite.system
        self.timing = suite.timing
        self.cluster = suite.cluster
        self.capabilities: Capabilities = suite.capabilities
        self.request_seconds = suite.request_seconds
        self.requests: dict[int, Any] = {}
        """Requests of attempts that do not use the usual one."""
        self.cancels = False
        self.ends_early = False
        """Set if the run is cancelled, so that a cleanup attempt ends its job."""
        self.extra_jobs = 0
        """Number of jobs that the case itself submits, beside the run's."""
        self.submitted_early: str = ""
        self.false_report = ""
        """Problem of the first report of the adapter that is false, because of a fault."""
        self.checks: list[Callable[[], str]] = []
        """Further checks at the end. Each returns a problem or an empty string."""
        self.final_statuses: list[JobStatus] = []
        """Statuses of the run's jobs after its end."""
        self.run = SimulatedRun(name, self._main, self._on_step, self._registered_adapters)
        self._plans: dict[tuple[int, str], list[Callable[[TaskProcess], object]]] = {}
        self._adapters: dict[int, FaultInjectingAdapter] = {}
        self._starts: dict[int, Callable[[TaskProcess], None]] = {}
        self._outage: tuple[str, float] | None = None
        self._down_until = 0.0
        self._state_api_down_until = 0.0
        self._fault: Fault | None = None
        self._broken_until = math.inf
        self._are_lookups_delayed = False

    # -- faults ----------------------------------------------------------------------

    def at_step(self, attempt: int, step: str, act: Callable[[TaskProcess], object]) -> None:
        """Call `act` when an attempt gets to a step for the first time."""
        self._plans.setdefault((attempt, step), []).append(act)

    def before_main(self, attempt: int, act: Callable[[TaskProcess], None]) -> None:
        """Call `act` when an attempt starts."""
        self._starts[attempt] = act

    def process(self, attempt: int) -> TaskProcess:
        """Return the process of an attempt."""
        return next(process for process in self.run.processes if process.attempt == attempt)

    def adapter(self, attempt: int) -> FaultInjectingAdapter:
        """Return the adapter that an attempt's process uses."""
        return self._adapters[attempt]

    def fail_once(self, attempt: int, step: str) -> None:
        """Raise an error of the network at a step of an attempt."""

        def fail(_process: TaskProcess) -> None:
            raise ConnectionError("the connection was cut")

        self.at_step(attempt, step, fail)

    def start_outage(self, *, from_step: str, seconds: float) -> None:
        """Make the external system unavailable from a step of the first attempt on."""
        self._outage = (from_step, seconds)

    def inject_fault(self, fault: Fault, seconds: float = math.inf) -> None:
        """Put a fault of the external system in force."""
        assert self.system.fail is not None
        self.system.fail(fault)
        self._fault = fault
        self.clear_faults_in(seconds)

    def clear_faults_in(self, seconds: float) -> None:
        """Clear the fault of the external system at the first step after `seconds`."""
        self._broken_until = self.cluster.clock.monotonic() + seconds

    def clear_faults(self) -> None:
        """Clear the fault of the external system."""
        if self.system.fail is not None:
            self.system.fail(None)
        self._fault = None
        self._broken_until = math.inf

    def look_up(self, attempt: int) -> Submitted | Exception | None:
        """Look up the last submission of an attempt, and return what the adapter returns or raises.

        The SDK is not involved, because it does not look up a job with a name that is kept.
        """
        adapter = self._adapters[attempt]
        assert adapter.last_submission is not None
        response: Submitted | Exception | None
        try:
            response = adapter.adapter.look_up(adapter.last_submission)
        except Exception as error:  # noqa: BLE001 -- the case decides what an error means
            response = error
        self._check_response("lookup", response)
        return response

    def delay_lookups(self) -> None:
        """Delay lookups until shortly before the settling time is over."""
        self._are_lookups_delayed = True

    def stop_state_api(self, seconds: float) -> None:
        """Make the state API unavailable."""
        self._state_api_down_until = self.cluster.clock.monotonic() + seconds

    def check_submitted_early(self, jobs_before: int) -> None:
        """Record a problem if a job was submitted while the state API was down."""
        if self.system.count_jobs() != jobs_before or self.cluster.clock.monotonic() < self._state_api_down_until:
            self.submitted_early = "a job was submitted before its intent was stored"

    def forget(self) -> None:
        """Make the external system forget all jobs of this run."""
        assert self.system.forget is not None
        for adapter in self._adapters.values():
            for handle in adapter.handles:
                self.system.forget(handle)

    def submit_concurrently(self, processes: int) -> set[str]:
        """Submit one further job from several threads at once, and return the handles."""
        adapters = [self.system.adapter() for _ in range(processes)]
        sent = Submission(str(uuid.uuid4()), self.system.request, KEY, 1, NAMESPACE, self.run.name)
        self.extra_jobs += 1
        all_ready = threading.Barrier(processes)

        def submit(adapter: Adapter) -> str | None:
            all_ready.wait()
            try:
                return adapter.submit(sent).handle
            except Exception:  # noqa: BLE001 -- only the number of jobs is checked
                return None

        with ThreadPoolExecutor(processes) as pool:
            return {handle for handle in pool.map(submit, adapters) if handle is not None}

    def freeze(self, process: TaskProcess) -> None:
        """Freeze the process on a node that is lost."""
        self.lose_node(process)
        process.freeze(self.timing.frozen)

    def lose_node(self, process: TaskProcess) -> None:
        """Lose the node of the process."""
        self.cluster.lose_node(self.run, process)

    def cancel_run(self) -> None:
        """Set `spec.cancel` of the TaskRun, as a user does."""
        self.cluster.patch(self.run.name, {"spec": {"cancel": True}})

    def evict(self, process: TaskProcess) -> None:
        """Evict the pod of the process."""
        self.cluster.evict(process)

    def reason_if_too_long(self, seconds: float, what: str) -> str:
        """Return why a case takes too long to be run, or an empty string."""
        return "" if seconds <= self.timing.wait_max else f"{what} for {seconds:.0f} s"

    # -- in the pods ----------------------------------------------------------------------

    def _new_adapter(self, process: TaskProcess) -> FaultInjectingAdapter:
        adapter = FaultInjectingAdapter(self.system.adapter(), process, self.cluster.clock, self.timing.poll)
        adapter.visible_from = self._visible_from
        adapter.on_response = self._check_response
        self._adapters[process.attempt] = adapter
        return adapter

    def _registered_adapters(self, process: TaskProcess) -> tuple[Adapter, ...]:
        return (self._new_adapter(process),) if self.ends_early else ()

    def _main(self, process: TaskProcess, task: Task) -> Any:
        adapter = self._new_adapter(process)
        if process.attempt in self._starts:
            self._starts[process.attempt](process)
        usual = self.system.lasting_request if self.cancels or self.ends_early else self.system.request
        job = task.submit_once(KEY, adapter, self.requests.get(process.attempt, usual))
        if not self.cancels:
            return job.wait()
        job.cancel()
        try:
            return job.wait()
        except JobFailed as ended:
            if ended.cancelled:
                return None
            raise

    def _on_step(self, process: TaskProcess, step: str) -> None:
        for name in (step, _shorten(step)):
            for act in self._plans.pop((process.attempt, name), ()):
                act(process)
        now = self.cluster.clock.monotonic()
        if now >= self._broken_until:
            self.clear_faults()
        if self._outage is not None and step == self._outage[0]:
            self._down_until, self._outage = now + self._outage[1], None
        if now < self._down_until and step.endswith(" leaving"):
            process.sleep(0.1)
            raise ConnectionError("the external system is down")
        if now < self._state_api_down_until and step.startswith("before ") and " /v1/" in step:
            raise httpx.ConnectError("the state API is down")

    def _check_response(self, operation: str, response: object) -> None:
        """Record a problem if the adapter reports a fact that it can't know, because of a fault."""
        fault = self._fault
        if fault is None or operation != fault.on.replace("-", ""):
            return
        if fault.once:
            self._fault = None
        self.false_report = self.false_report or find_false_report(fault, response)

    def _visible_from(self) -> float:
        """Return the time from which a lookup finds the first job."""
        sent = min((adapter.accepted_at for adapter in self._adapters.values() if adapter.accepted_at), default=0.0)
        return sent + 0.9 * settling_of(self.capabilities) if self._are_lookups_delayed else 0.0

    def read_final_statuses(self) -> None:
        """Read the statuses of all jobs of the run."""
        adapter = self.system.adapter()

        def handles(handle: str) -> JobStatus:
            try:
                return adapter.status(handle)
            except Exception as error:  # noqa: BLE001 -- no error is evidence of the job's state
                return Unknown(str(error))

        self.final_statuses = [handles(job.handle) for job in self.cluster.jobs(self.run.name) if job.handle]

    def find_result_mismatch(self) -> str:
        """Return a problem if the result differs between external system, attempts and TaskRun."""
        shown = self.cluster.taskrun(self.run.name).status.result
        results = [None if shown is None else msgspec.json.decode(shown)]
        results += [process.result for process in self.run.processes if process.code == 0]
        results += [_as_json(handles.result) for handles in self.final_statuses if isinstance(handles, Succeeded)]
        others = [result for result in results if result != results[0]]
        return (
            f"the result of a job must be the same for each attempt; it was {results[0]} and {others[0]}"
            if others
            else ""
        )

    def is_idle(self) -> bool:
        """Return whether no process runs and no request is in flight."""
        over = all(process.has_ended for process in self.run.processes)
        return over and not any(adapter.in_flight for adapter in self._adapters.values())


def _as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _shorten(step: str) -> str:
    """Return `before PUT handle` for `before PUT /v1/jobs/load/handle`."""
    when, _, rest = step.partition(" ")
    method, _, path = rest.partition(" ")
    return f"{when} {method} {path.rpartition('/')[2]}" if path.startswith("/v1/jobs/") else step


class CountError(Exception):
    """`count_jobs` does not count the jobs, so no case could be checked."""


class Suite:
    """Runs cases one after the other in a simulated cluster.

    Use it by `with`, which raises `CountError` if `count_jobs` does not count correctly.
    """

    def __init__(self, system: ExternalSystem, *, seed: int = 0) -> None:
        self.system = system
        clock = system.clock or RealClock()
        self.timing = system.timing or (VIRTUAL_TIMING if isinstance(clock, VirtualClock) else REAL_TIMING)
        self.cluster = SimulatedCluster(clock, seed=seed, report_seconds=0.2)
        adapter = system.adapter()
        self.name, self.capabilities, self.request_seconds = adapter.name, adapter.capabilities, adapter.request_seconds
        self.patience = self.timing.patience + WAITS_MAX * absence_seconds(self.capabilities, self.request_seconds)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.cluster)
            self._check_count()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.__exit__(kind, error, trace)

    def _check_count(self) -> None:
        """Check that two jobs are counted as two, even after one of them is forgotten."""
        before, adapter = self.system.count_jobs(), self.system.adapter()
        tokens = (str(uuid.uuid4()), str(uuid.uuid4()))
        request = self.system.request
        made = [adapter.submit(Submission(token, request, KEY, 1, NAMESPACE, "control")) for token in tokens]
        self.cluster.clock.wait(lambda: self.system.count_jobs() >= before + len(made), COUNT_SECONDS)
        if self.system.forget is not None:
            self.system.forget(made[0].handle)
        if (counted := self.system.count_jobs() - before) != len(made):
            raise CountError(
                "count_jobs must count every job that was ever made, with ended and forgotten ones, and no other. "
                f"The suite submitted {len(made)} jobs with different tokens, but the count rose by {counted}"
            )

    def check(self, case: Case) -> CaseResult:
        """Run a case. Raises `AssertionError` if it has a problem."""
        result = self.run_case(case)
        if result.problem:
            raise AssertionError(f"{self.name}, {case.name} ({case.what}): {result.problem}")
        return result

    def run_case(self, case: Case) -> CaseResult:
        """Run a case, and return its result."""
        case_run = CaseRun(self, f"case-{next(self._numbers)}")
        if why := case.skip_reason(case_run):
            return CaseResult(case, skipped=why)
        before = self.system.count_jobs()
        allowed = self._allowed_outcomes(case.arrange(case_run))
        spec = {"deadlines": {"lostSeconds": self.timing.lost}, "cleanup": {"deadlineSeconds": CLEANUP_SECONDS}}
        self.cluster.create(case_run.run.name, spec)
        ended = self.cluster.run_until(case_run.run, lambda: self._outcome(case_run) is not None, seconds=self.patience)
        outcome = self._outcome(case_run)
        case_run.clear_faults()
        case_run.read_final_statuses()
        # Frozen processes continue now, and requests in flight arrive.
        self.cluster.run_until(case_run.run, case_run.is_idle, seconds=2 * self.timing.frozen)
        self.cluster.kill_processes(case_run.run)
        jobs, attempts = self.system.count_jobs() - before - case_run.extra_jobs, len(case_run.run.processes)
        problem = (
            self._find_problem(case_run, outcome, allowed, jobs)
            if ended
            else f"it did not end within {self.patience:.0f} s"
        )
        return CaseResult(case, outcome, jobs, attempts, problem)

    def _allowed_outcomes(self, arrangement: Arrangement) -> frozenset[ExpectedResult]:
        if isinstance(arrangement, frozenset):
            return arrangement
        if isinstance(arrangement, UnresolvedSubmission):
            look_up, exists = self.capabilities.look_up, arrangement.exists
            arrangement = expected(self.capabilities, self.request_seconds, arrangement)
            if exists and look_up is not None and look_up.while_open:
                # The job may end before the lookup.
                return frozenset({arrangement, ExpectedResult.HELD})
        return frozenset({arrangement or ExpectedResult.ONE_JOB})

    def _outcome(self, case_run: CaseRun) -> ExpectedResult | None:
        status = self.cluster.taskrun(case_run.run.name).status
        if status.outcome is not None:
            wanted = Outcome.CANCELLED if case_run.ends_early else Outcome.SUCCEEDED
            return ExpectedResult.ONE_JOB if status.outcome == wanted else ExpectedResult.FAILED
        for condition in status.conditions:
            if condition.type == ConditionType.HELD and condition.status == "True":
                return ExpectedResult.HELD if condition.reason == Reason.SUBMISSION_UNKNOWN else ExpectedResult.FAILED
        return None

    def _find_problem(
        self, case_run: CaseRun, outcome: ExpectedResult | None, allowed: frozenset[ExpectedResult], jobs: int
    ) -> str:
        if case_run.false_report:
            return f"{case_run.false_report}. The external system made {jobs} job{'' if jobs == 1 else 's'}"
        if jobs > 1:
            return (
                f"the external system made {jobs} jobs, so it does not have the capabilities that the adapter declares"
            )
        if outcome not in allowed:
            return f"the case must end as {' or '.join(sorted(allowed))}; it ended as {outcome}"
        if any(job.generation > 1 for job in self.cluster.jobs(case_run.run.name)):
            return "the adapter reported the job as failed or rejected without evidence, so that it was submitted again"
        if outcome is ExpectedResult.ONE_JOB and jobs < 1:
            return f"the external system must have made 1 job; it made {jobs}"
        has_result = outcome is ExpectedResult.ONE_JOB and not (case_run.cancels or case_run.ends_early)
        if has_result and (unlike := case_run.find_result_mismatch()):
            return unlike
        return next((problem for check in case_run.checks if (problem := check())), "")


def conformance(
    adapter_factory: Callable[[], Adapter],
    count_jobs: Callable[[], int],
    *,
    request: Any,
    other_request: Any,
    lasting_request: Any = None,
    forget: Callable[[str], None] | None = None,
    fail: Callable[[Fault | None], None] | None = None,
    count_running: Callable[[], int] | None = None,
    clock: Clock | None = None,
    timing: CaseTiming | None = None,
    cases: Iterable[Case] = (*CASES, *ENDING_CASES),
    show: ShowProgress = print_line,
) -> Report:
    """Run all cases against an external system, and return their results.

    `ExternalSystem` describes the arguments. `show` is called with a line at the start and after
    each case, by default on stderr.
    """
    system = ExternalSystem(
        adapter=adapter_factory,
        count_jobs=count_jobs,
        request=request,
        other_request=other_request,
        lasting_request=lasting_request,
        forget=forget,
        fail=fail,
        count_running=count_running,
        clock=clock,
        timing=timing,
    )
    with captured_log() as log, Suite(system) as suite:
        return Report(suite.name, tuple(_shown_results(suite, tuple(cases), log, show)))


def _shown_results(suite: Suite, cases: Sequence[Case], log: TaskLog, show: ShowProgress) -> Iterator[CaseResult]:
    if not isinstance(suite.cluster.clock, VirtualClock):
        show(describe_start(suite.capabilities, suite.request_seconds, len(cases)))
    for number, case in enumerate(cases, 1):
        log.lines.clear()
        began = time.monotonic()
        result = suite.run_case(case)
        took = timedelta(seconds=time.monotonic() - began)
        show(describe_case(number, len(cases), case.name, result.summary, took))
        if result.problem:
            for line in log.lines:
                show(line)
        yield result
