"""Whether an adapter keeps what it declares: every crash point, against the other side itself.

    @pytest.mark.parametrize("case", reattach.testing.CASES, ids=str)
    def test_it_keeps_its_word(case):
        with Suite(OtherSide(adapter=MyAdapter, count_jobs=count, request={...}, other_request={...})) as suite:
            suite.check(case)

or, as a table: `print(conformance(MyAdapter, count, request={...}, other_request={...}))`.
"""

import contextlib
import itertools
import math
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec
from typing_extensions import override

from reattach.adapters.base import Adapter, Capabilities, JobStatus, Submission, Succeeded, Unknown
from reattach.api.reasons import ConditionType, Outcome, Reason
from reattach.errors import JobFailed
from reattach.task.context import Task
from reattach.testing.cases import CASES, Arranged, Case, ExpectedResult, Fault, UnresolvedSubmission, expected
from reattach.testing.clocks import Clock, RealClock, VirtualClock
from reattach.testing.fault_injection import FaultInjectingAdapter
from reattach.testing.simulated_cluster import NAMESPACE, SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

KEY = "load"
COUNT_SECONDS = 10.0
"""How long a job may take until it is counted."""


@dataclass(frozen=True, kw_only=True)
class CaseTiming:
    """How long things last, in seconds. With a clock that is made up they cost nothing.

    `lost`: `spec.deadlines.lostSeconds`. `frozen`: how long a frozen process sleeps. `outage`: of the other side. `on_the_way`: how long a
    request may take to arrive after its process has died. `poll`: between questions for the status. `longest`: no case waits longer
    for the other side to forget something. `patience`: until a case must have ended.
    """

    lost: int = 60
    frozen: float = 3600
    outage: float = 600
    on_the_way: float = 20
    poll: float | None = None
    longest: float = 1e9
    patience: float = 30 * 24 * 3600


MADE_UP = CaseTiming()
REAL = CaseTiming(lost=2, frozen=25, outage=6, on_the_way=0.3, poll=0.5, longest=10, patience=600)


@dataclass(frozen=True, kw_only=True)
class ExternalSystem:
    """What the suite needs of one external system.

    `adapter()`: a new adapter, as each pod would make one. `count_jobs()`: how many jobs the other side has made in all, forgotten and
    ended ones too. `request`: a job that ends well, within seconds, and takes at least one. `other_request`: another one. `lasting_request`: one
    that takes many minutes; it is cancelled (None: cancelling is not tried). `forget(handle)`: makes the other side forget a job (None: it
    can't be made to). `fail(fault)`: from now on the other side does this wrong, and nothing that it was told before; `fail(None)`: nothing any
    more (None: it can't be made to). `count_running()`: how many jobs run over there now (None: that a job was cancelled is then the adapter's
    word alone). `clock`: the one that the other side goes by, None: it goes by the real one.
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
    pace: CaseTiming | None = None


@dataclass(frozen=True)
class CaseResult:
    """How one case went. `wrong`: what must hold and does not; empty if all is well. `skipped`: why it was not tried."""

    case: Case
    verdict: ExpectedResult | None = None
    jobs: int = 0
    attempts: int = 0
    wrong: str = ""
    skipped: str = ""


@dataclass(frozen=True)
class Report:
    """All cases of one adapter. As text it is a table."""

    adapter: str
    outcomes: tuple[CaseResult, ...]

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """Those that are not as they must be."""
        return tuple(outcome for outcome in self.outcomes if outcome.wrong)

    @property
    def tried(self) -> tuple[CaseResult, ...]:
        """Those that were tried."""
        return tuple(outcome for outcome in self.outcomes if not outcome.skipped)

    @override
    def __str__(self) -> str:
        rows = ["| case | what happens | ended as | jobs | attempts |", "| --- | --- | --- | --- | --- |"]
        for outcome in self.outcomes:
            ended = f"not tried: {outcome.skipped}" if outcome.skipped else str(outcome.verdict)
            ended = f"**{outcome.wrong}**" if outcome.wrong else ended
            numbers = " | " if outcome.skipped else f"{outcome.jobs} | {outcome.attempts}"
            rows.append(f"| {outcome.case.name} | {outcome.case.what} | {ended} | {numbers} |")
        return "\n".join(rows)


class CaseRun:
    """One case while it is played: what a case arranges, and what happened."""

    def __init__(self, suite: "Suite", name: str) -> None:
        self.other = suite.other
        self.pace = suite.pace
        self.world = suite.world
        self.can: Capabilities = suite.can
        self.request_seconds = suite.request_seconds
        self.requests: dict[int, Any] = {}
        """What an attempt asks for, where it is not the same as ever."""
        self.cancels = False
        self.aside = 0
        """How many jobs must have been made beside the run's."""
        self.early: str = ""
        self.checks: list[Callable[[], str]] = []
        """What must hold in the end beside the verdict: each tells what is wrong, or nothing."""
        self.standings: list[JobStatus] = []
        """What the other side says of the run's jobs when it has ended."""
        self.run = SimulatedRun(name, self._main, self._on_step)
        self._plans: dict[tuple[int, str], list[Callable[[TaskProcess], object]]] = {}
        self._betweens: dict[int, FaultInjectingAdapter] = {}
        self._starts: dict[int, Callable[[TaskProcess], None]] = {}
        self._outage: tuple[str, float] | None = None
        self._down_until = 0.0
        self._state_api_down_until = 0.0
        self._broken_until = math.inf
        self._lagging = False

    # -- what a case arranges ----------------------------------------------------------------------

    def at(self, attempt: int, step: str, act: Callable[[TaskProcess], object]) -> None:
        """Do this when that attempt gets to that step for the first time."""
        self._plans.setdefault((attempt, step), []).append(act)

    def before_main(self, attempt: int, act: Callable[[TaskProcess], None]) -> None:
        """Do this when that attempt begins."""
        self._starts[attempt] = act

    def process(self, attempt: int) -> TaskProcess:
        """The process of that attempt."""
        return next(process for process in self.run.processes if process.attempt == attempt)

    def between(self, attempt: int) -> FaultInjectingAdapter:
        """The adapter as that attempt's process sees it."""
        return self._betweens[attempt]

    def fail_once(self, attempt: int, step: str) -> None:
        """An error of the network at this step."""

        def fail(_process: TaskProcess) -> None:
            raise ConnectionError("the connection was cut")

        self.at(attempt, step, fail)

    def out_of_order(self, *, from_step: str, seconds: float) -> None:
        """The other side can't be reached, for so long from that step of the first attempt on."""
        self._outage = (from_step, seconds)

    def break_down(self, fault: Fault, seconds: float = math.inf) -> None:
        """The other side itself does this wrong, for so long."""
        assert self.other.fail is not None
        self.other.fail(fault)
        self._broken_until = self.world.clock.monotonic() + seconds

    def mend(self) -> None:
        """Nothing of it is broken any more."""
        if self.other.fail is not None:
            self.other.fail(None)
        self._broken_until = math.inf

    def lag(self) -> None:
        """What was submitted is not found until just before the settling time is over."""
        self._lagging = True

    def stop_state_api(self, seconds: float) -> None:
        """It can't be reached for so long."""
        self._state_api_down_until = self.world.clock.monotonic() + seconds

    def note_early(self, jobs_before: int) -> None:
        """Whether something was submitted while the state API was down."""
        if self.other.count_jobs() != jobs_before or self.world.clock.monotonic() < self._state_api_down_until:
            self.early = "a job was submitted though its intent could not be stored"

    def forget(self) -> None:
        """The other side forgets what it was given so far."""
        assert self.other.forget is not None
        for between in self._betweens.values():
            for handle in between.handles:
                self.other.forget(handle)

    def submit_at_once(self, processes: int) -> set[str]:
        """So many processes submit the same side by side, whatever the clock, beside what the run submits; the handles that they were told."""
        adapters = [self.other.adapter() for _ in range(processes)]
        sent = Submission(str(uuid.uuid4()), self.other.request, KEY, 1, NAMESPACE, self.run.name)
        self.aside += 1
        all_ready = threading.Barrier(processes)

        def submit(adapter: Adapter) -> str | None:
            all_ready.wait()
            try:
                return adapter.submit(sent).handle
            except Exception:  # noqa: BLE001 -- whatever it is, what counts is how many jobs were made
                return None

        with ThreadPoolExecutor(processes) as pool:
            return {handle for handle in pool.map(submit, adapters) if handle is not None}

    def freeze(self, process: TaskProcess) -> None:
        """Nothing of it happens for a while, and nobody can reach its node."""
        self.lose_node(process)
        process.freeze(self.pace.frozen)

    def lose_node(self, process: TaskProcess) -> None:
        """Nobody can reach its node any more."""
        self.world.lose_node(self.run, process)

    def evict(self, process: TaskProcess) -> None:
        """As the eviction API does it."""
        self.world.evict(process)

    def too_long(self, seconds: float, what: str) -> str:
        """Why something takes too long to be tried, or nothing."""
        return "" if seconds <= self.pace.longest else f"{what} for {seconds:.0f} s"

    # -- what happens in pods ----------------------------------------------------------------------

    def _main(self, process: TaskProcess, task: Task) -> Any:
        between = FaultInjectingAdapter(self.other.adapter(), process, self.world.clock, self.pace.poll)
        between.found_from = self._visible_from
        self._betweens[process.attempt] = between
        if process.attempt in self._starts:
            self._starts[process.attempt](process)
        usual = self.other.lasting_request if self.cancels else self.other.request
        job = task.submit_once(KEY, between, self.requests.get(process.attempt, usual))
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
        for name in (step, _short(step)):
            for act in self._plans.pop((process.attempt, name), ()):
                act(process)
        now = self.world.clock.monotonic()
        if now >= self._broken_until:
            self.mend()
        if self._outage is not None and step == self._outage[0]:
            self._down_until, self._outage = now + self._outage[1], None
        if now < self._down_until and step.endswith(" leaving"):
            process.sleep(0.1)
            raise ConnectionError("the other side is down")
        if now < self._state_api_down_until and step.startswith("before ") and " /v1/" in step:
            raise httpx.ConnectError("the state API is down")

    def _visible_from(self) -> float:
        """When a look-up begins to find what was submitted first: at once, unless the case lets it lag."""
        settling = self.can.look_up.settling.total_seconds() if self.can.look_up else 0.0
        sent = min((between.accepted_at for between in self._betweens.values() if between.accepted_at), default=0.0)
        return sent + 0.9 * settling if self._lagging else 0.0

    def ask(self) -> None:
        """Note how the run's jobs stand over there, whoever submitted them."""
        adapter = self.other.adapter()

        def told(handle: str) -> JobStatus:
            try:
                return adapter.status(handle)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it says nothing about the job
                return Unknown(str(error))

        self.standings = [told(job.handle) for job in self.world.jobs(self.run.name) if job.handle]

    def unlike_results(self) -> str:
        """The result of a job is the same on every path: as the other side tells it, as attempts returned it, and as the TaskRun shows it."""
        shown = self.world.taskrun(self.run.name).status.result
        results = [None if shown is None else msgspec.json.decode(shown)]
        results += [process.result for process in self.run.processes if process.code == 0]
        results += [_as_json(told.result) for told in self.standings if isinstance(told, Succeeded)]
        others = [result for result in results if result != results[0]]
        return f"a job's result must be the same whoever asks; it was {results[0]} and {others[0]}" if others else ""

    def is_quiet(self) -> bool:
        """Whether nothing runs and nothing is on its way any more."""
        over = all(process.has_ended for process in self.run.processes)
        return over and not any(between.on_their_way for between in self._betweens.values())


def _as_json(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value))


def _short(step: str) -> str:
    """`before PUT handle` of `before PUT /v1/jobs/load/handle`."""
    when, _, rest = step.partition(" ")
    method, _, path = rest.partition(" ")
    return f"{when} {method} {path.rpartition('/')[2]}" if path.startswith("/v1/jobs/") else step


class CountError(Exception):
    """`count_jobs` does not tell how many jobs were made, so no case would mean anything."""


class Suite:
    """The world that cases are played in, one after the other. Use it by `with`, which raises `CountError` where jobs are not counted."""

    def __init__(self, other: ExternalSystem, *, seed: int = 0) -> None:
        self.other = other
        clock = other.clock or RealClock()
        self.pace = other.pace or (MADE_UP if isinstance(clock, VirtualClock) else REAL)
        self.world = SimulatedCluster(clock, seed=seed, report_seconds=0.2)
        adapter = other.adapter()
        self.name, self.can, self.request_seconds = adapter.name, adapter.capabilities, adapter.request_seconds
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.world)
            self._try_count()
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.world.__exit__(kind, error, trace)

    def _try_count(self) -> None:
        """Two jobs, of which one is forgotten, must be counted as two."""
        before, adapter = self.other.count_jobs(), self.other.adapter()
        tokens = (str(uuid.uuid4()), str(uuid.uuid4()))
        request = self.other.request
        made = [adapter.submit(Submission(token, request, KEY, 1, NAMESPACE, "control")) for token in tokens]
        self.world.clock.wait(lambda: self.other.count_jobs() >= before + len(made), COUNT_SECONDS)
        if self.other.forget is not None:
            self.other.forget(made[0].handle)
        if (counted := self.other.count_jobs() - before) != len(made):
            raise CountError(
                "count_jobs must count every job that was ever made, also those that are over or forgotten, and no other: "
                f"{len(made)} were submitted with different tokens, and it rose by {counted}"
            )

    def check(self, case: Case) -> CaseResult:
        """Play it; raises AssertionError if it does not end as it must."""
        outcome = self.play(case)
        if outcome.wrong:
            raise AssertionError(f"{self.name}, {case.name} ({case.what}): {outcome.wrong}")
        return outcome

    def play(self, case: Case) -> CaseResult:
        """Play it, and judge how it ended."""
        scene = CaseRun(self, f"case-{next(self._numbers)}")
        if why := case.needs(scene):
            return CaseResult(case, skipped=why)
        before = self.other.count_jobs()
        found = case.arrange(scene)
        must = self._must(found)
        self.world.create(scene.run.name, {"deadlines": {"lostSeconds": self.pace.lost}})
        ended = self.world.live(scene.run, lambda: self._verdict(scene) is not None, seconds=self.pace.patience)
        verdict = self._verdict(scene)
        scene.mend()
        scene.ask()
        # Whatever is frozen wakes up now and goes on; what is on its way arrives.
        self.world.live(scene.run, scene.is_quiet, seconds=2 * self.pace.frozen)
        self.world.end(scene.run)
        jobs, attempts = self.other.count_jobs() - before - scene.aside, len(scene.run.processes)
        wrong = (
            self._wrong(scene, verdict, must, jobs) if ended else f"it did not end within {self.pace.patience:.0f} s"
        )
        return CaseResult(case, verdict, jobs, attempts, wrong)

    def _must(self, found: Arranged) -> frozenset[ExpectedResult]:
        if isinstance(found, frozenset):
            return found
        if isinstance(found, UnresolvedSubmission):
            found = expected(self.can, self.request_seconds, found)
        return frozenset({found or ExpectedResult.ONE_JOB})

    def _verdict(self, scene: CaseRun) -> ExpectedResult | None:
        status = self.world.taskrun(scene.run.name).status
        if status.outcome is not None:
            return ExpectedResult.ONE_JOB if status.outcome == Outcome.SUCCEEDED else ExpectedResult.FAILED
        for condition in status.conditions:
            if condition.type == ConditionType.HELD and condition.status == "True":
                return ExpectedResult.HELD if condition.reason == Reason.SUBMISSION_UNKNOWN else ExpectedResult.FAILED
        return None

    def _wrong(self, scene: CaseRun, verdict: ExpectedResult | None, must: frozenset[ExpectedResult], jobs: int) -> str:
        if jobs > 1:
            return f"the other side made {jobs} jobs: it does not keep what the adapter declares"
        if verdict not in must:
            return f"it must end as {' or '.join(sorted(must))}; it ended as {verdict}"
        if any(job.generation > 1 for job in self.world.jobs(scene.run.name)):
            return (
                "the adapter said that the job failed or was refused, and nobody knew that: it was asked for once more"
            )
        if verdict is ExpectedResult.ONE_JOB and jobs < 1:
            return f"the other side must have made 1 job; it made {jobs}"
        if verdict is ExpectedResult.ONE_JOB and not scene.cancels and (unlike := scene.unlike_results()):
            return unlike
        return next((wrong for check in scene.checks if (wrong := check())), "")


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
    pace: CaseTiming | None = None,
    cases: Iterable[Case] = CASES,
) -> Report:
    """Play all cases against the other side; see `ExternalSystem` for what is asked of it. The report tells how each ended."""
    other = ExternalSystem(
        adapter=adapter_factory,
        count_jobs=count_jobs,
        request=request,
        other_request=other_request,
        lasting_request=lasting_request,
        forget=forget,
        fail=fail,
        count_running=count_running,
        clock=clock,
        pace=pace,
    )
    with Suite(other) as suite:
        return Report(suite.name, tuple(suite.play(case) for case in cases))
