"""No object of one tenant keeps the operator from serving another tenant, as long as the API server accepts the object.

One operator serves all namespaces from one watch of each kind. Its sweep is off, so that only the watches can bring an event.
"""

from collections.abc import AsyncIterator, Iterator

import pytest

from controlplane import RunningControlPlane
from hostile import (
    HOSTILE_CONFIGMAPS,
    HOSTILE_PODS,
    HOSTILE_TASKRUNS,
    OTHER_MANAGER,
    Attacker,
    Bystander,
    HostileObject,
    configmap,
    must_run,
    pod,
    taskrun,
    undisturbed,
)
from operator_process import Operator, Operators
from reattach.api.names import ANNOTATION_CA, FINALIZER_ATTEMPT, FINALIZER_EXTERNAL_JOBS, FINALIZER_STATE
from reattach.cluster import Cluster
from reattach.cluster.paths import pods
from reattach.pki.certificates import distribute
from reattach.uninstall import release
from waiting import wait_until

SWEEP_OFF = ("--sweep-seconds", "86400")
SWEEP_SOON = ("--sweep-seconds", "1")
LONG_LEASE = ("--lease-seconds", "120")
"""Outlives a restart of the API server; a shorter Lease ends the operator, as it should."""

HOSTILE: dict[str, HostileObject] = {
    f"{kind}-{case}": hostile
    for kind, cases in {
        "taskrun": HOSTILE_TASKRUNS,
        "pod": HOSTILE_PODS,
        "configmap": HOSTILE_CONFIGMAPS,
    }.items()
    for case, hostile in cases.items()
}
WATCHED = [case for case in HOSTILE if not case.startswith("configmap")]
"""ConfigMaps have a test of their own, test_sweep_isolation.py: only a sweep shows that the operator knows a ConfigMap."""

YEAR_ZERO = "0000-01-01T00:00:00Z"
"""Time that the API server accepts, and that Python has no type for."""


@pytest.fixture(scope="module")
def one_operator(operators: Operators) -> Iterator[Operator]:
    """Operator for the tests that share one process. Not started yet."""
    operator = operators.make(*SWEEP_OFF, namespaces=[])
    yield operator
    operator.kill()


# -- while the operator runs -----------------------------------------------------------------------


@pytest.mark.parametrize("case", WATCHED)
def test_operator_watching_hostile_object_serves_other_namespace(
    case: str, operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    with undisturbed(operator):
        name = attacker.create(HOSTILE[case], case)
        bystander.run()
        attacker.touch(name, times=5 if "long" in case else 1)
        bystander.run()


def test_operator_watching_unreadable_taskrun_reports_it_once(
    operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    metric = 'reattach_unreadable_objects_total{resource="taskruns"}'
    before = operator.metric(metric) or 0
    name = attacker.create(taskrun(), "year-zero")
    attacker.write_status(name, {"startTime": YEAR_ZERO})

    def lines() -> list[str]:
        must_run(operator)
        return [line for line in operator.log.splitlines() if name in line]

    wait_until(lines, seconds=60, what="the log names the unreadable TaskRun")
    attacker.touch(name)
    bystander.run()
    assert len(lines()) == 1, lines()
    assert (operator.metric(metric) or 0) > before
    path = f"/apis/events.k8s.io/v1/namespaces/{attacker.namespace}/events"
    events = attacker.control_plane.call("GET", path)["items"]
    assert [event["reason"] for event in events if event["regarding"]["name"] == name] == ["Unreadable"]


# -- what reads all objects once -------------------------------------------------------------------


@pytest.fixture
async def cluster(private_control_plane: RunningControlPlane) -> AsyncIterator[Cluster]:
    async with await Cluster.connect(str(private_control_plane.kubeconfig())) as cluster:
        yield cluster


async def test_certificates_among_hostile_pods_reach_pods_of_others(
    private_control_plane: RunningControlPlane, cluster: Cluster, attacker: Attacker
) -> None:
    for case, hostile in HOSTILE_PODS.items():
        attacker.create(hostile, case)
    # Its name comes last in a list of all pods, which is sorted by namespace.
    other = Attacker(private_control_plane, private_control_plane.create_namespace("zz-other"))
    name = other.create(pod(), "pod")
    await distribute(cluster, cluster, [], "a bundle")
    metadata = private_control_plane.call("GET", pods(other.namespace, name))["metadata"]
    assert metadata["annotations"][ANNOTATION_CA] == "a bundle"
    other.withdraw()


async def test_release_among_hostile_objects_removes_finalizers_of_others(
    private_control_plane: RunningControlPlane, cluster: Cluster, attacker: Attacker
) -> None:
    for case in ("taskrun-nested-maps", "pod-nested-fields", "pod-long-uid", "configmap-nested-fields"):
        attacker.create(HOSTILE[case], case)
    other = Attacker(private_control_plane, private_control_plane.create_namespace("zz-other"))
    paths = [
        hostile.path(other.namespace, other.create(hostile, "kept"))
        for hostile in (  # without what would make an operator remove the finalizers
            taskrun({"finalizers": [FINALIZER_EXTERNAL_JOBS]}, managedBy=OTHER_MANAGER),
            pod({"finalizers": [FINALIZER_ATTEMPT], "labels": {}}),
            configmap({"finalizers": [FINALIZER_STATE], "labels": {}}),
        )
    ]
    await release(cluster, [attacker.namespace, other.namespace])
    assert [private_control_plane.call("GET", path)["metadata"].get("finalizers") for path in paths] == [None] * 3
    other.withdraw()


# -- hostile objects that are there already --------------------------------------------------------


@pytest.fixture(scope="module")
def later_operator(
    private_control_plane: RunningControlPlane, operators: Operators, one_operator: Operator
) -> Iterator[Operator]:
    """Operator that starts among one hostile object of each case. Not known to be ready yet."""
    attacker = Attacker(private_control_plane, private_control_plane.create_namespace("attacker"))
    one_operator.kill()
    for case, hostile in HOSTILE.items():
        attacker.create(hostile, case)
    operator = operators.make(*SWEEP_SOON, *LONG_LEASE, namespaces=[]).start(wait=False)
    yield operator
    operator.kill()


def test_operator_starting_among_hostile_objects_serves_other_namespace(
    private_control_plane: RunningControlPlane, bystander_namespace: str, later_operator: Operator
) -> None:
    wait_until(later_operator.leads, seconds=60, what="the operator leads")
    bystander = Bystander(private_control_plane, bystander_namespace, later_operator)
    with undisturbed(later_operator):
        bystander.run()
        bystander.expire_key()


def test_operator_after_api_server_restart_among_hostile_objects_serves_other_namespace(
    private_control_plane: RunningControlPlane, bystander_namespace: str, later_operator: Operator
) -> None:
    wait_until(later_operator.leads, seconds=60, what="the operator leads")
    bystander = Bystander(private_control_plane, bystander_namespace, later_operator)
    with undisturbed(later_operator):
        # The new API server ends a watch from an old resourceVersion by an ERROR event within the stream.
        private_control_plane.restart()
        bystander.run()
        bystander.expire_key()
