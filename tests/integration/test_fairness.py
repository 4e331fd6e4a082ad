"""Fairness between namespaces: the number of one tenant's TaskRuns does not delay another tenant.

The API server, its ResourceQuota admission and the quota controller are real. `make test` creates
300 TaskRuns, because 5,000 take a minute to create; REATTACH_ALL=1 creates 5,000.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from apicalls import Event, call_of
from controlplane import CONTROLLERS, ControlPlane, ControlPlaneError, RunningControlPlane, Setup, running
from operator_process import Cluster, Kubelet, Operator, Operators, condition, kubelet_of, succeed
from reattach.cluster.paths import core, pods
from waiting import wait_until

COUNT = 5000 if os.environ.get("REATTACH_ALL") else 300
REQUESTS_MAX = 20
"""Requests about the full namespace that the operator may send before it creates the other pod."""
SLOW = ("--writes-per-second", "10")
"""Options with which the backlog of `COUNT` TaskRuns lasts for minutes, on any machine."""
CREATIONS_MAX = 40
"""Creations in a full namespace within a minute: at most 24 workers at once, then probes."""
RUNS, PLACES = 60, 5
LONGEST_PAUSE = timedelta(seconds=5)
"""Longest time without a new pod while pods end all the time. It is usually below a second."""


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningControlPlane]:
    setup = Setup(controllers=(*CONTROLLERS, "resourcequota-controller"))
    with running(Path(tmp_path_factory.mktemp("control-plane")), setup=setup) as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def operators(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operators]:
    operators = Operators(control_plane, tmp_path_factory.mktemp("operators"))
    yield operators
    operators.stop()


@pytest.fixture(scope="module")
def full(control_plane: ControlPlane) -> Cluster:
    """Namespace whose quota allows no pod, with `COUNT` TaskRuns."""
    cluster = Cluster(control_plane, control_plane.create_namespace("a"))
    set_quota(cluster, pods=0)
    create_many(cluster, COUNT)
    return cluster


def set_quota(cluster: Cluster, *, pods: int) -> None:
    """Create a ResourceQuota, and wait until the API server enforces it."""
    path = core("resourcequotas", cluster.namespace)
    body = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": str(pods)}}}
    cluster.control_plane.call("POST", path, body)

    def is_counted() -> bool:
        return "used" in cluster.control_plane.call("GET", f"{path}/few").get("status", {})

    wait_until(is_counted, seconds=30, what="the quota controller has counted the pods")
    if pods == 0:
        wait_until(lambda: is_rejected(cluster), seconds=30, what="the API server enforces the quota")


def is_rejected(cluster: Cluster) -> bool:
    body = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "probe", "image": "probe:1"}]}}
    try:
        cluster.control_plane.call("POST", pods(cluster.namespace), body, dryRun="All")
    except ControlPlaneError as error:
        return "exceeded quota" in str(error)
    return False


def create_many(cluster: Cluster, count: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cluster.create(f"load-{number}"), range(count)))


def requests_before_pod(full: Cluster, idle: Cluster, name: str, operator: Operator, mark: int) -> list[str]:
    """Return the operator's requests about `full` until it created the pod of `name` in `idle`."""
    wait_until(lambda: idle.pods(name), seconds=60, what=f"the pod of {name} is created")
    found = sorted(full.control_plane.audit(mark, user=operator.user), key=lambda each: str(each["stageTimestamp"]))
    counted = [event for event in found if event["verb"] not in {"watch", "list"} and "objectRef" in event]
    [pod] = [each for each in counted if is_creation(each, idle)]
    return [call_of(each) for each in counted[: counted.index(pod)] if namespace_of(each) == full.namespace]


def is_creation(event: Event, cluster: Cluster) -> bool:
    return call_of(event).startswith("create pods") and namespace_of(event) == cluster.namespace


def namespace_of(event: Event) -> str:
    return str(event["objectRef"].get("namespace"))


def test_pod_is_created_soon_during_a_backlog_of_another_namespace(
    control_plane: ControlPlane, operators: Operators, full: Cluster
) -> None:
    idle = Cluster(control_plane, control_plane.create_namespace("b"))
    idle.create("before-start")
    mark = control_plane.audit_mark()
    operator = operators.start(*SLOW, namespaces=[full.namespace, idle.namespace])
    sent = requests_before_pod(full, idle, "before-start", operator, mark)
    assert len(sent) <= REQUESTS_MAX, sent

    mark = control_plane.audit_mark()
    idle.create("after-start")
    sent = requests_before_pod(full, idle, "after-start", operator, mark)
    assert len(sent) <= REQUESTS_MAX, sent
    assert (operator.metric("reattach_queue_depth") or 0) > COUNT / 2, "there was no backlog"
    operator.kill(signal.SIGTERM)


def test_full_namespace_sends_few_creations_and_shows_why_its_taskruns_wait(
    control_plane: ControlPlane, operators: Operators, full: Cluster
) -> None:
    mark = control_plane.audit_mark()
    operator = operators.start(namespaces=[full.namespace])
    last = f"load-{COUNT - 1}"
    status = full.wait_for_reason(last, "QuotaExceeded", seconds=300)
    assert "exceeded quota: few" in condition(status, "Succeeded")["message"]
    found = control_plane.audit(mark, user=operator.user, namespace=full.namespace)
    times = sorted(time_of(event) for event in found if is_creation(event, full))
    assert len([time for time in times if time <= times[0] + timedelta(minutes=1)]) <= CREATIONS_MAX
    operator.kill(signal.SIGTERM)


def time_of(event: Event) -> datetime:
    return datetime.fromisoformat(event["requestReceivedTimestamp"])


@pytest.fixture
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(control_plane) as kubelet:
        yield kubelet


def test_runs_in_a_full_quota_start_as_pods_end(
    control_plane: ControlPlane, operators: Operators, kubelet: Kubelet
) -> None:
    cluster = Cluster(control_plane, control_plane.create_namespace("full"))
    set_quota(cluster, pods=PLACES)
    kubelet.play(cluster.namespace, lambda _, __: succeed)
    operator = operators.start(namespaces=[cluster.namespace])
    mark = control_plane.audit_mark()
    create_many(cluster, RUNS)

    def have_ended() -> bool:
        return (operator.metric("reattach_taskruns") or 0) == 0

    wait_until(have_ended, seconds=2 * RUNS, what="all TaskRuns have ended", every=0.2)
    found = control_plane.audit(mark, user=operator.user, namespace=cluster.namespace)
    creations = [event for event in found if is_creation(event, cluster)]
    assert len(creations) <= 2 * RUNS + CREATIONS_MAX
    times = sorted(time_of(event) for event in creations if is_success(event))
    assert len(times) == RUNS
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert max(pauses) < LONGEST_PAUSE, max(pauses)
    operator.kill()


def is_success(event: Event) -> bool:
    return int(event["responseStatus"]["code"]) < 400
