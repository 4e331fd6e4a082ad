"""A task that stores its intent, submits and records the handle while its run ends: the job is cancelled, kept or named, never lost.

200 interleavings of the task's steps with those of the end: `make test` plays one of each kind, `make test-all` (REATTACH_ALL=1) all. The
operator, the state API and the API server are real. The other side is a list of what was submitted to it; it has no token and no look-up, so
only what is recorded here is ever known of a job.
"""

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import httpx
import pytest

from conformance.tables import RACES, keep
from controlplane import ControlPlane, ControlPlaneError
from operator_process import Containers, Kubelet, Operators, Stage, condition, kubelet_of, stage_of
from reattach.api.names import ANNOTATION_SUMMARY, LABEL_PURPOSE
from reattach.cluster.paths import configmaps, taskruns
from stateapi import Servers
from taskscripts import Tasks
from waiting import wait_until

JSON = dict[str, Any]

STEPS = ("open", "intent", "submit", "handle", "end")
"""Of the task: before which one it waits."""
SIGNS = ("nothing", "asked", "sealed", "terminating")
"""Of the end: what it waits for."""
ENDS = ("cancel", "delete", "deadline")
AT_ONCE = 4
SECONDS = 180
SIGN_SECONDS = 60
"""How long a sign may take to come on a busy machine."""
NEVER_SECONDS = 2
"""How long one is waited for that never comes."""


@dataclass(frozen=True)
class Interleaving:
    """`step` waits for `sign`; then, as for every step, comes a pause.

    `forgets`: the container dies before it has recorded the handle. `cleans`: the task can cancel
    its job in a cleanup attempt.
    """

    number: int
    end: str
    step: str
    sign: str
    forgets: bool
    cleans: bool

    @property
    def name(self) -> str:
        return f"race-{self.number}"

    @property
    def is_possible(self) -> bool:
        """Whether the sign can come: a state that is not there yet is not sealed."""
        return (self.step, self.sign) != ("open", "sealed")

    def pause(self, step: str) -> float:
        """Seconds, the same each time."""
        chosen = random.Random(f"{self.number}/{step}")
        return chosen.choice([0, 0, 0.02, 0.1, 0.3])


def interleavings() -> list[Interleaving]:
    """Return 200 of them. A task that waits before its end has recorded the handle already."""
    kinds = product(ENDS, STEPS, SIGNS, (False, True), (False, True))
    every = [one for one in kinds if one[1] != "end" or not one[3]]
    chosen = random.Random(2).sample(every, 200)
    return [Interleaving(number, *how) for number, how in enumerate(chosen)]


def one_of_each(every: list[Interleaving]) -> list[Interleaving]:
    """One for each step and sign; every step and every sign with both ends."""
    chance, chosen = random.Random(4), []
    for number, (step, sign) in enumerate(product(STEPS, SIGNS)):
        end = ENDS[(number // len(SIGNS) + number) % len(ENDS)]
        chosen.append(chance.choice([one for one in every if (one.end, one.step, one.sign) == (end, step, sign)]))
    return chosen


ALL = interleavings()
SAMPLE = one_of_each(ALL)


@dataclass
class Race:
    """One run, and what is true of the other side."""

    stage: Stage
    tasks: Tasks
    how: Interleaving
    is_asked: bool = False
    has_seen: bool = False
    """Whether the sign came that it waited for."""
    has_reached: threading.Event = field(default_factory=threading.Event)
    """The step at which it waits; for the sign `nothing`, beside which the end is asked for."""
    submitted: list[str] = field(default_factory=list)
    refused: str = ""
    was_held: bool = False
    named: list[str] = field(default_factory=list)
    """Of what was submitted, what the operator named as left running."""
    cancelled: list[str] = field(default_factory=list)
    """Of what was submitted, what a cleanup attempt cancelled."""

    # -- the task ----------------------------------------------------------------------------------

    def script(self, containers: Containers) -> None:
        if containers.pod["metadata"]["labels"].get(LABEL_PURPOSE) == "Cleanup":
            self.cancelled += self.tasks.clean_up(containers)
            return
        containers.run()
        process = self.tasks.process(containers)
        self._wait_before("open", containers)
        if (response := process.open(canCleanup=self.how.cleans)).status_code != 200:
            self.refused = response.text
            return
        self._wait_before("intent", containers)
        if (response := process.intend()).status_code != 200:
            self.refused = response.text
            return
        assert response.json()["decision"] == "Submit"
        self._wait_before("submit", containers)
        handle = f"{self.how.name}-job"
        self.submitted.append(handle)
        self._wait_before("handle", containers)
        if self.how.forgets:
            return
        response = process.handle(handle)
        assert response.status_code == 204 or self._is_gone(), response.text
        self._wait_before("end", containers)

    def _wait_before(self, step: str, containers: Containers) -> None:
        if step == self.how.step:
            self.has_reached.set()
            seconds = SIGN_SECONDS if self.how.is_possible else NEVER_SECONDS
            with suppress(AssertionError):
                wait_until(lambda: self._is_seen(containers), seconds=seconds, what=self.how.sign, every=0.02)
                self.has_seen = True
        time.sleep(self.how.pause(step))

    def _is_seen(self, containers: Containers) -> bool:
        match self.how.sign:
            case "asked":
                return self.is_asked
            case "sealed":
                return self._is_sealed()
            case "terminating":
                return containers.is_terminating()
            case _:
                return True

    # -- its end -----------------------------------------------------------------------------------

    def run(self) -> str:
        """Play it; what is wrong, empty if nothing is."""
        try:
            self.stage.run(self.how.name, lambda _: self.script)
            self._ask_for_the_end()
            wait_until(self._is_settled, seconds=SECONDS, what=f"{self.how} is over or held", every=0.2)
            self._check()
        except (AssertionError, ControlPlaneError, httpx.TransportError) as error:
            return f"{self.how}: {error!r}; submitted {self.submitted}, refused {self.refused}, {self._status()}"
        return ""

    def _ask_for_the_end(self) -> None:
        """As soon as the task waits for it, or while it goes on."""
        path = taskruns(self.stage.namespace, self.how.name)
        assert self.has_reached.wait(SECONDS), f"the task never came to {self.how.step}"
        time.sleep(self.how.pause("the end"))
        if self.how.end == "cancel":
            self.stage.control_plane.call("PATCH", path, {"spec": {"cancel": True}})
        elif self.how.end == "deadline":
            self.stage.control_plane.call("PATCH", path, {"spec": {"deadlines": {"runSeconds": 1}}})
        else:
            self.stage.control_plane.call("DELETE", path)
        self.is_asked = True

    def _is_settled(self) -> bool:
        status = self._status()
        return self._is_over(status) or condition(status or {}, "Held").get("status") == "True"

    def _is_over(self, status: JSON | None) -> bool:
        """And its task is dead: who runs on could still do something."""
        is_over = status is None or "outcome" in status
        return is_over and all(
            pod["status"].get("phase") in {"Succeeded", "Failed"} for pod in self.stage.cluster.pods(self.how.name)
        )

    def _check(self) -> None:
        status = self._status()
        if not self._is_over(status):
            assert status is not None
            self.was_held = True
            assert condition(status, "Held")["reason"] == "SubmissionUnknown"
            assert [job["state"] for job in status["externalJobs"]] == ["Intended"], "held for a job that is known"
            self._adopt(self.submitted[0] if self.submitted else "none")
            wait_until(lambda: self._is_over(self._status()), seconds=SECONDS, what=f"{self.how} is over")
            status = self._status()
        assert self.how.cleans or not self.cancelled, "a task that can't clean up got a cleanup pod"
        for handle in self.submitted:
            state = "Cancelled" if handle in self.cancelled else "Orphaned"
            if status is not None:
                assert [(job["handle"], job["state"]) for job in status["externalJobs"]] == [(handle, state)]
            if handle in self.cancelled:
                continue
            wait_until(
                lambda handle=handle: handle in self.stage.operator.log, seconds=SECONDS, what="the job is named"
            )
            self.named.append(handle)
        if status is not None:
            assert status["outcome"] == ("Failed" if self.how.end == "deadline" else "Cancelled")

    def _adopt(self, handle: str) -> None:
        answer = {"held": "SubmissionUnknown", "key": "load", "generation": 1, "action": "Adopt", "handle": handle}
        path = taskruns(self.stage.namespace, self.how.name)
        self.stage.control_plane.call("PATCH", path, {"spec": {"resolutions": [answer]}})

    # -- what is there -----------------------------------------------------------------------------

    def _status(self) -> JSON | None:
        return self.stage.cluster.status_if_there(self.how.name)

    def _is_gone(self) -> bool:
        return self._status() is None

    def _is_sealed(self) -> bool:
        for found in self.stage.control_plane.call("GET", configmaps(self.stage.namespace))["items"]:
            if found["metadata"]["name"].startswith(f"{self.how.name}-"):
                return "seal" in json.loads(found["metadata"]["annotations"][ANNOTATION_SUMMARY])
        return False


@pytest.fixture
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    """What it reports as ended is dead: containers come to their own end within their grace period."""
    with kubelet_of(control_plane, is_graceful=True) as kubelet:
        yield kubelet


@pytest.fixture
def stage(control_plane: ControlPlane, kubelet: Kubelet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    operators = Operators(control_plane, tmp_path_factory.mktemp("operators"))
    with stage_of(control_plane, operators, kubelet) as stage:
        yield stage
    operators.stop()


def test_there_are_200_of_them_and_each_kind_is_there() -> None:
    assert len({one.number for one in ALL}) == 200
    assert {(one.end, one.step, one.sign) for one in ALL} == set(product(ENDS, STEPS, SIGNS))


def test_the_sample_has_each_step_with_each_sign_and_both_with_each_end() -> None:
    assert sorted((one.step, one.sign) for one in SAMPLE) == sorted(product(STEPS, SIGNS))
    assert {(one.end, one.step) for one in SAMPLE} == set(product(ENDS, STEPS))
    assert {(one.end, one.sign) for one in SAMPLE} == set(product(ENDS, SIGNS))
    assert {(one.forgets, one.cleans) for one in SAMPLE} == set(product((False, True), repeat=2))


def test_a_job_that_is_submitted_while_its_run_ends_is_cancelled_kept_or_named(
    control_plane: ControlPlane, stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    servers = Servers(control_plane, tmp_path_factory.mktemp("state-api"))
    try:
        tasks = Tasks(control_plane, servers.start())
        races = [Race(stage, tasks, how) for how in (ALL if os.environ.get("REATTACH_ALL") else SAMPLE)]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            wrong = [each for each in pool.map(Race.run, races) if each]
        assert not wrong, "\n".join(wrong)
        check_were_run(races)
        keep(RACES, "all", rows_of(races))
    finally:
        servers.stop()


def rows_of(races: list[Race]) -> list[JSON]:
    """What the document shows of races of which none went wrong."""
    rows = []
    for end, step in product(ENDS, STEPS):
        ran = [race for race in races if (race.how.end, race.how.step) == (end, step)]
        submitted = [race for race in ran if race.submitted]
        rows.append(
            {
                "end": end,
                "waits before": step,
                "races": len(ran),
                "submission refused": sum(bool(race.refused) for race in ran),
                "held": sum(race.was_held for race in ran),
                "jobs": len(submitted),
                "recorded": sum(not race.how.forgets for race in submitted),
                "cancelled": sum(race.cancelled == race.submitted for race in submitted),
                "named": sum(race.named == race.submitted for race in submitted),
            }
        )
    return rows


def check_were_run(races: list[Race]) -> None:
    """A race that nobody ran would prove nothing: who came as far submitted, and most waited for what then came."""
    idle = [race.how for race in races if race.how.step in {"submit", "handle", "end"} and not race.submitted]
    assert not idle, f"did not submit: {idle}"
    for sign in SIGNS:
        waited = [race for race in races if race.how.sign == sign and race.how.is_possible]
        blind = [race.how for race in waited if not race.has_seen]
        assert len(blind) <= len(waited) // 4, f"did not see what they waited for: {blind}"
