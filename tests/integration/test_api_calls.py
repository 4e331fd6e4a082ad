"""The cost of a run to the API server: every call of the operator and the state API, and the bytes of every request body.

The tables are exact, so one more read, or one more field in a body, fails a test. Change a table only together with the code that makes the
run cheaper, or with a reason why the run must become more expensive. Times are measured by `make bench` alone.
"""

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator

import pytest

from apicalls import Event, call_of
from controlplane import ControlPlane
from operator_process import Containers, Kubelet, Operators, Script, Stage, stage_of
from reattach.api.names import LABEL_PURPOSE
from reattach.cluster.paths import configmaps, events, taskruns
from taskscripts import Tasks
from waiting import wait_until

SECONDS = 60

VARIABLE = {
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}": "UID",
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)": "TIME",
    r'(resourceVersion\\*":\\*")\d+': r"\g<1>VERSION",
    r'("reportingInstance":")[^"]*': r"\g<1>HOST",
}
"""What differs in length from run to run, or from machine to machine."""

CONFLICT = "patch taskruns/status (409)"

NOT_SHOWN = """
operator: 1 create pods [1579]
operator: 1 patch pods [70]
operator: 1 patch taskruns/status [792]
"""
SHOWN = """
operator: 1 create pods [1579]
operator: 1 patch pods [70]
operator: 2 patch taskruns/status [750, 545]
"""
STATE = """
operator: 1 create pods [1579]
operator: 1 get configmaps [0]
operator: 1 patch configmaps [70]
operator: 1 patch pods [70]
operator: 1 patch taskruns/status [821]
state_api: 1 create configmaps [723]
state_api: 1 create tokenreviews [0]
state_api: 3 get configmaps [0, 0, 0]
state_api: 1 get configmaps (404) [0]
state_api: 1 get pods [0]
state_api: 1 get taskruns [0]
state_api: 1 patch taskruns/status [107]
state_api: 2 update configmaps [963, 1086]
"""
JOB = """
operator: 1 create events [557]
operator: 1 create pods [1579]
operator: 5 get configmaps [0, 0, 0, 0, 0]
operator: 1 patch configmaps [70]
operator: 1 patch pods [70]
operator: 1 patch taskruns [70]
operator: 4 patch taskruns/status [395, 236, 212, 598]
state_api: 1 create configmaps [723]
state_api: 1 create tokenreviews [0]
state_api: 4 get configmaps [0, 0, 0, 0]
state_api: 1 get configmaps (404) [0]
state_api: 1 get pods [0]
state_api: 2 get taskruns [0, 0]
state_api: 1 patch taskruns [86]
state_api: 1 patch taskruns/status [107]
state_api: 4 update configmaps [1164, 1373, 1421, 1544]
"""
CLEANUP = """
operator: 2 create events [557, 523]
operator: 2 create pods [1579, 1644]
operator: 1 delete pods [92]
operator: 1 patch configmaps [70]
operator: 2 patch pods [70, 70]
operator: 1 patch taskruns [70]
operator: 10 patch taskruns/status [395, 236, 582, 225, 716, 344, 242, 605, 838, 983]
operator: 1 update configmaps [1517]
state_api: 1 create configmaps [763]
state_api: 2 create tokenreviews [0, 0]
state_api: 1 patch taskruns [86]
state_api: 1 patch taskruns/status [107]
state_api: 5 update configmaps [1204, 1413, 1598, 1752, 1800]
"""
"""How often, what was called, and the bytes of each request's body in order. A read has none; a TokenReview has one, which is not logged."""


@pytest.fixture
def stage(control_plane: ControlPlane, operators: Operators, kubelet: Kubelet) -> Iterator[Stage]:
    """An operator that has finished a run already, so that nothing of its start is counted."""
    with stage_of(control_plane, operators, kubelet) as stage:
        finish(stage, "first", end)
        yield stage


def end(containers: Containers) -> None:
    """Succeed without having been seen running."""
    containers.end(0)


def finish(stage: Stage, name: str, script: Script, outcome: str = "Succeeded") -> None:
    """Create a TaskRun and wait until the operator has made its last call about it."""
    stage.run(name, lambda _: script)
    assert stage.cluster.wait_for_outcome(name, seconds=SECONDS)["outcome"] == outcome
    stage.cluster.wait_for_release(name)

    def is_state_released() -> bool:
        found = stage.control_plane.call("GET", configmaps(stage.namespace))["items"]
        return not any(configmap["metadata"].get("finalizers") for configmap in found)

    wait_until(is_state_released, seconds=SECONDS, what=f"the state of {name} has no finalizer")

    def is_reported() -> bool:
        found = stage.control_plane.call("GET", events(stage.namespace))["items"]
        return any((event["regarding"]["name"], event["reason"]) == (name, outcome) for event in found)

    if outcome != "Succeeded":  # A success has no event.
        wait_until(is_reported, seconds=SECONDS, what=f"the outcome of {name} is an event")


@contextlib.contextmanager
def reaction(stage: Stage) -> Iterator[None]:
    """Let the task make one step, and wait until the operator has reacted to it and has nothing left to do."""
    before = stage.operator.metric("reattach_reconciles_total")
    yield
    seen = [before]

    def is_over() -> bool:
        seen.append(stage.operator.metric("reattach_reconciles_total"))
        return len(set(seen[-6:])) == 1 and seen[-1] != before

    wait_until(is_over, seconds=SECONDS, what="the operator has reacted", every=0.1)


def calls_of(stage: Stage, script: Script, outcome: str = "Succeeded", **users: str) -> str:
    """Return what each of these users called for one run, as a table: how often, what, and the sizes in order."""
    mark = stage.control_plane.audit_mark()
    finish(stage, "happy", script, outcome)
    stage.operator.kill(signal.SIGTERM)
    found = sorted(stage.control_plane.audit(mark), key=lambda event: str(event["requestReceivedTimestamp"]))
    lines = []
    for part, user in users.items():
        own = [event for event in found if event["user"]["username"] == user and is_counted(event)]
        sizes: dict[str, list[int]] = {}
        for event in without_races(own):
            sizes.setdefault(call_of(event), []).append(size_of(event))
        lines += [f"{part}: {len(each)} {call} {each}" for call, each in sorted(sizes.items())]
    return "\n".join(lines)


def without_races(found: list[Event]) -> Iterator[Event]:
    """Leave out the calls that only a lost race explains, because no test can decide who wins.

    A status write conflicts if the watch of the state is faster than that of the TaskRun; a GET follows, and the decision is made again.
    """
    excused = 0
    for event, following in zip(found, [*found[1:], None], strict=True):
        call = call_of(event)
        if call == CONFLICT or (call == "get configmaps" and following is not None and call_of(following) == CONFLICT):
            excused += call == CONFLICT
        elif call == "get taskruns" and excused:
            excused -= 1
        else:
            yield event


def is_counted(event: Event) -> bool:
    """Return whether a call is part of a run. A watch is a stream, and the Lease is renewed whatever runs."""
    return event["verb"] != "watch" and event.get("objectRef", {}).get("resource", "leases") != "leases"


def size_of(event: Event) -> int:
    """Return the bytes of the request's body as compact JSON, with a fixed word for everything that differs from run to run."""
    if event.get("requestObject") is None:
        return 0
    text = json.dumps(event["requestObject"], separators=(",", ":"), ensure_ascii=False)
    for pattern, word in VARIABLE.items():
        text = re.sub(pattern, word, text)
    return len(text.encode())


def test_api_calls_of_a_run_never_shown_running(stage: Stage) -> None:
    assert calls_of(stage, end, operator=stage.operator.user) == NOT_SHOWN.strip()


def test_api_calls_of_a_run_shown_running(stage: Stage) -> None:
    def run_until_shown(containers: Containers) -> None:
        containers.run()
        stage.cluster.wait_for_reason("happy", "Running")
        containers.end(0)

    assert calls_of(stage, run_until_shown, operator=stage.operator.user) == SHOWN.strip()


def test_api_calls_of_a_run_with_state(stage: Stage, tasks: Tasks) -> None:
    def keep_state(containers: Containers) -> None:
        with reaction(stage):
            process = tasks.opened(containers)
        with reaction(stage):
            assert process.set("job_id", "job-1").is_success
        assert process.get("job_id").json()["value"] == "job-1"
        with reaction(stage):
            assert process.complete(result={"rows": 3}).is_success
        containers.end(0)

    found = calls_of(stage, keep_state, operator=stage.operator.user, state_api=tasks.server.user)
    assert found == STATE.strip()


def test_api_calls_of_a_run_with_an_external_job(stage: Stage, tasks: Tasks) -> None:
    def submit(containers: Containers) -> None:
        with reaction(stage):
            process = tasks.opened(containers)
        with reaction(stage):
            assert process.intend().json()["decision"] == "Submit"
        with reaction(stage):
            assert process.handle("job-1").is_success
        with reaction(stage):
            assert process.outcome("Succeeded").is_success
        with reaction(stage):
            assert process.complete(result={"rows": 3}).is_success
        containers.end(0)

    found = calls_of(stage, submit, operator=stage.operator.user, state_api=tasks.server.user)
    assert found == JOB.strip()


def test_api_calls_of_a_cancelled_run_whose_job_a_cleanup_attempt_cancels(
    stage: Stage, kubelet: Kubelet, tasks: Tasks
) -> None:
    is_cancelled = threading.Event()

    def submit(containers: Containers) -> None:
        with reaction(stage):
            process = tasks.process(containers)
            assert process.open(canCleanup=True).is_success
        with reaction(stage):
            assert process.intend().json()["decision"] == "Submit"
        with reaction(stage):
            assert process.handle("job-1").is_success
        stage.control_plane.call("PATCH", taskruns(stage.namespace, "happy"), {"spec": {"cancel": True}})
        # The pod ends after the cleanup, so that the operator always sees both in this order.
        assert is_cancelled.wait(SECONDS)

    def clean_up(containers: Containers) -> None:
        with reaction(stage):
            process = tasks.opened(containers)
        with reaction(stage):
            assert process.cancellation().is_success
        with reaction(stage):
            assert process.outcome("Cancelled").is_success
        with reaction(stage):
            containers.end(0)
        is_cancelled.set()

    def script(containers: Containers) -> None:
        is_cleanup = containers.pod["metadata"]["labels"].get(LABEL_PURPOSE) == "Cleanup"
        (clean_up if is_cleanup else submit)(containers)

    kubelet.is_graceful = True
    try:
        found = calls_of(stage, script, "Cancelled", operator=stage.operator.user, state_api=tasks.server.user)
    finally:
        kubelet.is_graceful = False
    # How often the operator reads depends on which watch is faster, because each event is a decision.
    writes = [line for line in found.splitlines() if not line.split()[2].startswith("get")]
    assert "\n".join(writes) == CLEANUP.strip()
