"""Random lives of a TaskRun with external jobs, against the job server in each of its modes.

A seed fixes everything, and means the same in each mode: the job, what breaks in which attempt at which step, for how long, and what the person does
who is asked. Where no promise of the other side ends, half of the adapters never ask whether their request may still leave. What may be
held is worked out here from what was injected, not asked of the code that is tested. Without the protocol (`PLAIN`), the same lives are
lived by a task that submits and then stores the id, as most do.
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

from conformance.jobadapter import CAPABILITIES, Served, serving
from reattach.adapters.base import LONGEST, Active, Capabilities, NotFound, Submission, Submitted, Succeeded, Unknown
from reattach.api.messages import Decision, IntentResponse
from reattach.api.reasons import ConditionType
from reattach.api.state import JobSummary
from reattach.task.context import Task
from reattach.testing.fault_injection import FaultInjectingAdapter
from reattach.testing.simulated_cluster import SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

SEEDS = tuple(range(1, 1001))
"""Of all lives. Each is lived in each mode."""
HISTORY_SECONDS = 30 * 24 * 3600.0
REQUEST_SECONDS = 30.0
MARGIN_SECONDS = 5.0
LOST_SECONDS = 60
STALE_SECONDS = 60.0
"""No request leaves on a word of the state API that is older, if the adapter asks whether it may."""
EDGES = (600, 7200)
"""When the promises end that do, in seconds; some lives ask for their job again right before that."""

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
    "look-up leaving",
    "look-up accepted",
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
"""Every place where a process may be struck."""
_TELLING = ("after-intent", "submit leaving", "submit accepted", "after-submit", "before PUT handle")
"""Where it matters most; these are chosen half of the time."""
KINDS = {
    "crash": 30,
    "evicted": 8,
    "node dies": 12,
    "frozen": 10,
    "frozen and presumed": 20,
    "on its way": 8,
    "cut": 8,
    "other side down": 8,
    "other side fails": 8,
    "state API down": 6,
}


def steps_of(mode: str) -> set[str]:
    """Those that processes get to in this mode: nothing is looked up where nothing can be."""
    return {step for step in STEPS if CAPABILITIES[mode].look_up or not step.startswith("look-up ")}


@dataclass(frozen=True)
class Blow:
    """What strikes an attempt: when it gets to `step` for the `nth` time, `kind` happens, for `seconds` where it lasts."""

    attempt: int
    step: str
    nth: int
    kind: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True)
class Fate:
    """All of one life. `late`: how long an attempt waits before it asks for its job."""

    seed: int
    mode: str
    keys: tuple[str, ...]
    job_seconds: int
    blows: tuple[Blow, ...]
    late: dict[int, float]


def fate_of(seed: int, mode: str) -> Fate:
    """What this seed means."""
    chance = random.Random(seed)
    attempts = chance.choice((1, 1, 2, 2, 3, 4))
    blows = []
    late = {}
    for attempt in range(1, attempts + 1):
        steps = _TELLING if chance.random() < 0.5 else STEPS
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        if kind == "cut":
            steps = tuple(step for step in steps if " " in step)
        step = "submit leaving" if kind == "on its way" else chance.choice(steps)
        seconds = chance.choice((0.5, 5, 40, 90, 300, 700, 4000, 8000)) * chance.uniform(0.5, 1)
        detail = chance.choice(("error", "lose", "half", "down"))
        blows.append(Blow(attempt, step, chance.choice((1, 1, 1, 2)), kind, seconds, detail))
        if chance.random() < 0.3:
            late[attempt + 1] = chance.choice((30, 500, 700, 8000)) * chance.uniform(0.5, 1)
    keys = ("load",) if chance.random() < 0.8 else ("load", "index")
    job_seconds = chance.choice((1, 20, 60, 600))
    if chance.random() < 0.1:  # it asks right before a promise ends
        step = chance.choice(("submit accepted", "after-submit", "before PUT handle"))
        on_its_way = Blow(2, "submit leaving", 1, "on its way", chance.uniform(0, REQUEST_SECONDS))
        blows[:2] = [Blow(1, step, 1, "crash", 0), on_its_way]
        late[2] = chance.choice(EDGES) - chance.uniform(0, 2 * REQUEST_SECONDS)
    elif chance.random() < 0.05:  # its job is gone when it asks, where jobs go, and the next one is struck
        kind = chance.choice(("crash", "frozen and presumed"))
        blows[:3] = [Blow(1, "after-handle", 1, "crash", 0), Blow(3, chance.choice(_TELLING), 1, kind, 300)]
        late[2] = max(EDGES) + job_seconds + chance.uniform(0, 2 * REQUEST_SECONDS)
    return Fate(seed, mode, keys, job_seconds, tuple(blows), late)


@dataclass
class Told:
    """A process that was told to submit one generation under a key: so the state API answered, whether or not that was seen."""

    process: TaskProcess
    key: str
    generation: int
    token: str
    time: float
    recorded: bool = False
    presumed: bool = False


@dataclass
class Row:
    """What came of the lives of these seeds in one mode."""

    mode: str
    seeds: tuple[int, ...]
    lives: int = 0
    attempts: int = 0
    struck: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By kind and step, what happened to processes; more was planned."""
    reached: set[str] = field(default_factory=set)
    """The steps that processes got to."""
    jobs: int = 0
    held: int = 0
    duplicates: list[int] = field(default_factory=list)
    """Seeds of lives in which a job was made more often than it was wanted."""
    lost: list[int] = field(default_factory=list)
    """Seeds of lives in which a job was made that nobody knows at the end."""

    def to_json(self) -> dict[str, Any]:
        """As a row of a table."""
        blows: Counter[str] = Counter()
        for (kind, _), times in self.struck.items():
            blows[kind] += times
        crashes = sum(blows[kind] for kind in ("crash", "evicted", "node dies", "on its way"))
        freezes = blows["frozen"] + blows["frozen and presumed"]
        return {
            "mode": self.mode,
            "seeds": f"{min(self.seeds)} to {max(self.seeds)}",
            "lives": self.lives,
            "attempts": self.attempts,
            "crashes": crashes,
            "freezes": freezes,
            "other faults": blows.total() - crashes - freezes,
            "jobs": self.jobs,
            "held": self.held,
            "duplicates": len(self.duplicates),
            "lost": len(self.lost),
        }

    def __str__(self) -> str:
        return " · ".join(f"{name} {value}" for name, value in self.to_json().items())


class WrongError(AssertionError):
    """A life did not go as it must; the message says which and how."""


class Unasking(FaultInjectingAdapter):
    """An adapter whose author forgot to ask whether the request may still leave."""

    @override
    def submit(self, submission: Submission) -> Submitted:
        return super().submit(replace(submission, may_leave=lambda: True))


def ends(can: Capabilities) -> bool:
    """Whether what is enforced over there ends; then no protocol saves an adapter that does not ask whether its request may still leave."""
    name, token = can.client_name, can.token
    return (name is not None and name.retention is not None) or (token is not None and token.lifetime < LONGEST)


class Life:
    """One life while it is lived."""

    def __init__(self, world: SimulatedCluster, served: Served, fate: Fate, row: Row, *, plain: bool) -> None:
        self.world = world
        self.served = served
        self.fate = fate
        self.row = row
        self.plain = plain
        self.can = CAPABILITIES[fate.mode]
        self.asks = fate.seed % 2 == 1 or ends(self.can)
        """Its adapter asks whether its request may still leave."""
        self.is_hasty = self.asks and fate.seed % 3 != 1
        """The person does not wait for processes that nothing can leave any more."""
        self.name = f"life-{fate.seed}"
        self.run = SimulatedRun(self.name, self._main, self._on_step)
        self.told: list[Told] = []
        self.resubmitted: Counter[str] = Counter()
        """By key, how often a person wanted another job than the one that was made."""
        self.struck: list[str] = []
        self._betweens: dict[str, FaultInjectingAdapter] = {}
        self._counts: Counter[tuple[int, str]] = Counter()
        self._key: dict[str, str] = {}
        self._down_until = 0.0
        self._state_api_down_until = 0.0
        self._seen_holds: dict[tuple[str, int], int] = {}

    @property
    def now(self) -> float:
        return self.world.clock.monotonic()

    # -- from start to end -------------------------------------------------------------------------

    def live(self) -> None:
        """Until it has an outcome. Raises `WrongError`."""
        self.world.create(self.name, {"deadlines": {"lostSeconds": LOST_SECONDS}})
        end = self.now + HISTORY_SECONDS
        while not (self._wait(lambda: self._is_over() or bool(self._held())) and self._is_over()):
            if self.now > end:
                raise self._wrong(f"it did not end: {self.world.taskrun(self.name).status}")
            self._judge_holds()
            self._answer()
        self._wait(lambda: all(process.has_ended for process in self.run.processes) and not self._is_on_its_way())
        self.world.end(self.run)
        self.served.server.faults.clear()
        self._judge_end()

    def _wait(self, until: Callable[[], bool]) -> bool:
        return self.world.live(self.run, until, seconds=HISTORY_SECONDS)

    def _is_over(self) -> bool:
        return self.world.taskrun(self.name).status.outcome is not None

    def _held(self) -> list[JobSummary]:
        """What waits for a person, once the operator says so and the pods are over."""
        status = self.world.taskrun(self.name).status
        if not any(c.type == ConditionType.HELD and c.status == "True" for c in status.conditions):
            return []
        return [job for job in self.jobs() if job.held]

    def jobs(self) -> tuple[JobSummary, ...]:
        """What the state's summary says."""
        return self.world.jobs(self.name)

    # -- the task ----------------------------------------------------------------------------------

    def request_of(self, key: str) -> dict[str, Any]:
        return {"seconds": self.fate.job_seconds, "rows": self.rows_of(key), "label": self.label_of(key)}

    def rows_of(self, key: str) -> int:
        """Another number for each key of each life, so that a job that is another's is seen by its result."""
        return 10 * self.fate.seed + self.fate.keys.index(key)

    def label_of(self, key: str) -> str:
        return f"{self.name}-{key}-{'plain' if self.plain else 'once'}"

    def _main(self, process: TaskProcess, task: Task) -> Any:
        kind = FaultInjectingAdapter if self.asks or self.plain else Unasking
        between = kind(self.served.adapter(), process, self.world.clock)
        self._betweens[process.uid] = between
        if (late := self.fate.late.get(process.attempt)) is not None:
            process.sleep(late)
        rows = {}
        for key in self.fate.keys:
            self._key[process.uid] = key
            result = self._plain(process, task, between, key) if self.plain else self._once(task, between, key)
            rows[key] = result["rows_written"]
        return rows

    def _once(self, task: Task, between: FaultInjectingAdapter, key: str) -> Any:
        return task.submit_once(key, between, self.request_of(key)).wait()

    def _plain(self, process: TaskProcess, task: Task, between: FaultInjectingAdapter, key: str) -> Any:
        """What a task does that knows nothing of submitting once. The steps are the same, as far as it takes them."""
        handle = task.state.get(key)
        if handle is None:
            process.step("before-intent")
            process.step("after-intent")
            token = f"{self.name}-{process.uid}-{self.now}"
            submission = Submission(token, self.request_of(key), key, 1, task.namespace, task.name)
            process.step("before-submit")
            handle = between.submit(submission).handle
            process.step("after-submit")
            task.state.set(key, handle)
            process.step("after-handle")
        while True:
            process.step("watching")
            try:
                status = between.status(handle)
            except (httpx.HTTPError, ConnectionError):
                status = Unknown()
            if isinstance(status, Succeeded):
                process.step("before-outcome")
                process.step("after-outcome")
                return status.result
            if not isinstance(status, Active | Unknown):
                return {"rows_written": 0, "status": str(status), "gone": isinstance(status, NotFound)}
            process.sleep(between.poll_seconds)

    # -- what strikes it ---------------------------------------------------------------------------

    def _on_step(self, process: TaskProcess, step: str) -> None:
        name = _short(step, plain=self.plain)
        self._counts[process.attempt, name] += 1
        self.row.reached.add(name)
        self._note(process, name)
        for blow in self.fate.blows:
            if (blow.attempt, blow.step, blow.nth) == (process.attempt, name, self._counts[process.attempt, name]):
                self.row.struck[blow.kind, name] += 1
                self.struck.append(f"{self.now:.1f} {blow}")
                self._strike(process, blow)
        if self.now < self._down_until and step.endswith(" leaving"):
            raise ConnectionError("the other side is down")
        if self.now < self._state_api_down_until and step.startswith("before ") and " /v1/" in step:
            raise httpx.ConnectError("the state API is down")

    def _strike(self, process: TaskProcess, blow: Blow) -> None:
        match blow.kind:
            case "crash":
                process.kill()
            case "evicted":
                self.world.evict(process)
                process.kill()
            case "node dies":
                self._lose_node(process)
                process.kill()
            case "frozen":
                process.freeze(blow.seconds)
            case "frozen and presumed":
                self._lose_node(process)
                process.freeze(LOST_SECONDS + blow.seconds)
            case "on its way":
                self._betweens[process.uid].send_later(min(blow.seconds, REQUEST_SECONDS))
                process.kill()
            case "cut":
                raise httpx.ReadError("the connection was cut")
            case "other side down":
                self._down_until = self.now + blow.seconds
            case "other side fails":
                self.served.server.fail(blow.detail, times=2)
            case "state API down":
                self._state_api_down_until = self.now + blow.seconds

    def _lose_node(self, process: TaskProcess) -> None:
        for told in self.told:
            told.presumed |= told.process is process
        self.world.lose_node(self.run, process)

    # -- what may be held --------------------------------------------------------------------------

    def _note(self, process: TaskProcess, name: str) -> None:
        if self.plain or (key := self._key.get(process.uid)) is None:
            return
        if name == "after POST intent" and (answer := _intent_answer(process)) and answer.decision is Decision.SUBMIT:
            job, is_lost = answer.job, self.run.nodes[process.uid].is_lost
            self.told.append(Told(process, key, job.generation, job.token, self.now, presumed=is_lost))
        if name == "after PUT handle" and (told := self._told_to(process, key)):
            told[-1].recorded = True

    def _told_to(self, process: TaskProcess, key: str) -> list[Told]:
        return [one for one in self.told if one.process is process and one.key == key]

    def _judge_holds(self) -> None:
        for job in self._held():
            if self._seen_holds.get((job.key, job.generation)) != job.holds:
                self._seen_holds[job.key, job.generation] = job.holds
                self.row.held += 1
                if why := self._must_not_hold(job):
                    raise self._wrong(f"{job} is held, and must not be: {why}")

    def _must_not_hold(self, job: JobSummary) -> str:
        """Why DESIGN §5 has an answer, so that no person may be asked; empty if it has none."""
        if job.handle is not None:
            known = self.served.server.jobs.status(job.handle, self.world.clock.now().timestamp())
            return "" if known is None else "the other side knows the job"
        told = [one for one in self.told if (one.key, one.generation) == (job.key, job.generation)]
        asking = self.run.processes[-1]
        may_live = any(one.presumed and not one.recorded and one.process is not asking for one in told)
        age = self.now - min(one.time for one in told)
        can = self.can
        if can.client_name and (
            can.client_name.retention is None
            or age + REQUEST_SECONDS + MARGIN_SECONDS < can.client_name.retention.total_seconds()
        ):
            return f"the other side refuses a second job of the name, {age:.0f} s after the intent"
        if can.look_up and self._is_found(job.key, {one.token for one in told}):
            return "a look-up finds the job"
        if may_live:
            return ""
        if can.token and age + REQUEST_SECONDS + MARGIN_SECONDS < can.token.lifetime.total_seconds():
            return f"the token is honoured still, {age:.0f} s after the intent"
        # Waiting for the settling time comes on top, and the other side counts from the submission.
        slack = REQUEST_SECONDS + 2 * MARGIN_SECONDS
        if can.look_up and (
            can.look_up.retention is None
            or age + can.look_up.settling.total_seconds() + slack < can.look_up.retention.total_seconds()
        ):
            return f"a look-up settles it, {age:.0f} s after the intent"
        return ""

    def _is_found(self, key: str, tokens: set[str]) -> bool:
        """Whether a look-up finds the job of this key, and found it half a minute ago too: it was looked up in between."""
        label, now, jobs = self.label_of(key), self.world.clock.now().timestamp(), self.served.server.jobs
        return any(
            all(any(found["label"] == label for found in jobs.find(token, at)) for at in (now - REQUEST_SECONDS, now))
            for token in tokens
        )

    # -- the person --------------------------------------------------------------------------------

    def _answer(self) -> None:
        """A careful person: waits until no attempt can submit any more, nothing is on its way and the other side can be asked, looks, and
        answers.
        """
        self._wait(lambda: all(self._is_harmless(process) for process in self.run.processes))
        self.world.live(self.run, lambda: False, seconds=max(2 * REQUEST_SECONDS, self._down_until - self.now))
        for job in self._held():
            self.world.resolve(self.name, {"held": "SubmissionUnknown", **self._answer_to(job)})
        self._wait(lambda: self._is_over() or not self._held() or self._has_new_hold())

    def _is_harmless(self, process: TaskProcess) -> bool:
        """It is over; or, to who knows that its adapter asks, the last word on which it may submit is too old: it is frozen, and fenced."""
        if process.has_ended or not self.is_hasty:
            return process.has_ended
        return all(self.now - one.time > STALE_SECONDS for one in self.told if one.process is process)

    def _is_on_its_way(self) -> bool:
        return any(between.on_their_way for between in self._betweens.values())

    def _answer_to(self, job: JobSummary) -> dict[str, Any]:
        about = {"key": job.key, "generation": job.generation}
        if job.handle is not None:  # it is gone
            self.resubmitted[job.key] += 1
            return {**about, "action": "Resubmit"}
        others = {one.handle for one in self.jobs() if one.generation != job.generation}
        if made := [handle for handle in self.made_of(job.key) if handle not in others]:
            return {**about, "action": "Adopt", "handle": made[-1]}
        return {**about, "action": "Resubmit"}

    def _has_new_hold(self) -> bool:
        return any(self._seen_holds.get((job.key, job.generation)) != job.holds for job in self._held())

    # -- how it ended ------------------------------------------------------------------------------

    def made_of(self, key: str) -> list[str]:
        """The ids of the jobs that were made, in order."""
        found: list[str] = self.served.made_of(self.label_of(key))
        return found

    def _judge_end(self) -> None:
        status = self.world.taskrun(self.name).status
        self.row.lives += 1
        self.row.attempts += len(self.run.processes)
        for key in self.fate.keys:
            made = self.made_of(key)
            self.row.jobs += len(made)
            if len(made) > 1 + self.resubmitted[key]:
                self.row.duplicates.append(self.fate.seed)
            if not self.plain and not set(made) <= self._known(key):
                self.row.lost.append(self.fate.seed)
        if self.plain:
            return
        result = msgspec.json.decode(status.result) if status.result else None
        if status.outcome != "Succeeded" or result != {key: self.rows_of(key) for key in self.fate.keys}:
            raise self._wrong(f"it must succeed with the rows of its jobs; it ended as {status}")
        for key in self.fate.keys:
            if not self.made_of(key) or not self._known(key) <= set(self.made_of(key)):
                raise self._wrong(f"{key} must know its own jobs, {self.made_of(key)}; it knows {self._known(key)}")

    def _known(self, key: str) -> set[str]:
        """The handles that the state has under this key."""
        jobs = [job for job in self.jobs() if job.key == key]
        return {handle for job in jobs for handle in (job.handle, *job.strays) if handle is not None}

    def _wrong(self, what: str) -> WrongError:
        steps = "\n".join(f"attempt {p.attempt}: {' · '.join(p.steps[-12:])}; {p.error!r}" for p in self.run.processes)
        struck = "\n".join(self.struck)
        return WrongError(f"seed {self.fate.seed}, {self.fate.mode}: {what}\n{struck}\n{steps}")


def _intent_answer(process: TaskProcess) -> IntentResponse | None:
    """What the state API has just answered to an intent; None: a refusal."""
    assert process.answer is not None
    return msgspec.json.decode(process.answer.content, type=IntentResponse) if process.answer.is_success else None


def _short(step: str, *, plain: bool) -> str:
    """`before PUT handle` of `before PUT /v1/jobs/load/handle`. A task without the protocol stores its handle as a key."""
    when, _, rest = step.partition(" ")
    method, _, path = rest.partition(" ")
    if not path.startswith("/v1/"):
        return step
    if plain and path == "/v1/state":
        return f"{when} PUT handle"
    return f"{when} {method} {path.rpartition('/')[2]}"


@contextmanager
def worlds(mode: str) -> Iterator[Callable[[int, Row, bool], None]]:
    """Lives of one mode, one after the other: call it with a seed."""
    with serving(mode) as served, SimulatedCluster(served.clock, seed=1) as world:

        def live(seed: int, row: Row, plain: bool) -> None:
            Life(world, served, fate_of(seed, mode), row, plain=plain).live()

        yield live


def live_all(mode: str, seeds: tuple[int, ...], *, plain: bool = False) -> Row:
    """The lives of these seeds in this mode. Raises `WrongError`."""
    row = Row(mode, seeds)
    with worlds(mode) as live:
        for seed in seeds:
            live(seed, row, plain)
    return row
