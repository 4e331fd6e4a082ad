"""No object of one tenant keeps the operator from serving another tenant, as long as the API server accepts the object.

One operator serves all namespaces from one watch of each kind. Its sweep is off, so that only the watches can bring an event.
"""

from collections.abc import Iterator

import pytest

from controlplane import RunningControlPlane
from hostile import (
    HOSTILE_CONFIGMAPS,
    HOSTILE_PODS,
    HOSTILE_TASKRUNS,
    UNREADABLE_TASKRUNS,
    Attacker,
    Bystander,
    HostileObject,
    must_run,
    undisturbed,
)
from operating import Operator, Operators
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


@pytest.fixture(scope="module")
def operators(
    private_control_plane: RunningControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    operators = Operators(private_control_plane, tmp_path_factory.mktemp("operators"))
    yield operators
    operators.stop()


@pytest.fixture(scope="module")
def one_operator(operators: Operators) -> Iterator[Operator]:
    """Operator for the tests that share one process. Not started yet."""
    operator = operators.make(*SWEEP_OFF, namespaces=[])
    yield operator
    operator.kill()


@pytest.fixture
def operator(one_operator: Operator) -> Operator:
    """Running operator. It is started again after a test that ended it, so that only that test fails."""
    if one_operator.process is None or one_operator.exit_code() is not None:
        one_operator.start()
    return one_operator


@pytest.fixture
def attacker(private_control_plane: RunningControlPlane) -> Iterator[Attacker]:
    attacker = Attacker(private_control_plane, private_control_plane.create_namespace("attacker"))
    yield attacker
    attacker.withdraw()


@pytest.fixture(scope="module")
def bystander_namespace(private_control_plane: RunningControlPlane) -> str:
    return private_control_plane.create_namespace("bystander")


@pytest.fixture
def bystander(private_control_plane: RunningControlPlane, bystander_namespace: str, operator: Operator) -> Bystander:
    return Bystander(private_control_plane, bystander_namespace, operator)


# -- while the operator runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", WATCHED)
def test_operator_watching_hostile_object_serves_other_namespace(
    case: str, operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    with undisturbed(operator):
        name = attacker.create(HOSTILE[case], case)
        bystander.run()
        attacker.touch(name)
        bystander.run()


@pytest.mark.parametrize("case", ["nested-maps", "others-lists"])
def test_operator_watching_unreadable_taskrun_reports_it_once(
    case: str, operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    metric = 'reattach_unreadable_objects_total{resource="taskruns"}'
    before = operator.metric(metric) or 0
    name = attacker.create(UNREADABLE_TASKRUNS[case], case)

    def lines() -> list[str]:
        must_run(operator)
        return [line for line in operator.log.splitlines() if name in line]

    wait_until(lines, seconds=20, what="the log names the unreadable TaskRun")
    attacker.touch(name)
    bystander.run()
    assert len(lines()) == 1, lines()
    assert (operator.metric(metric) or 0) > before
    path = f"/apis/events.k8s.io/v1/namespaces/{attacker.namespace}/events"
    events = attacker.control_plane.call("GET", path)["items"]
    assert [event["reason"] for event in events if event["regarding"]["name"] == name] == ["Unreadable"]


# -- hostile objects that are there already ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def later_operator(
    private_control_plane: RunningControlPlane, operators: Operators, one_operator: Operator
) -> Iterator[Operator]:
    """Operator that starts among one hostile object of each case. Not known to be ready yet."""
    attacker = Attacker(private_control_plane, private_control_plane.create_namespace("attacker"))
    one_operator.kill()
    for case, hostile in HOSTILE.items():
        attacker.touch(attacker.create(hostile, case), times=1)
    operator = operators.make(*SWEEP_SOON, *LONG_LEASE, namespaces=[]).start(wait=False)
    yield operator
    operator.kill()
    attacker.withdraw()


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
