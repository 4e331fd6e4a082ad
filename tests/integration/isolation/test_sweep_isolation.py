"""No ConfigMap or TaskRun of one tenant keeps the sweeps of the operator from removing the expired keys of another tenant."""

import pytest

from controlplane import RunningControlPlane
from hostile import (
    HOSTILE_CONFIGMAPS,
    NESTED_TASKRUNS,
    Attacker,
    Bystander,
    create_expired_state,
    undisturbed,
)
from operator_process import Operator, Operators


@pytest.fixture(scope="module")
def one_operator(operators: Operators) -> Operator:
    """Operator for the tests that share one process. Not started yet."""
    return operators.make("--sweep-seconds", "1", namespaces=[])


@pytest.mark.parametrize("case", HOSTILE_CONFIGMAPS)
def test_sweep_meeting_hostile_configmap_removes_expired_keys_of_others(
    case: str, operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    with undisturbed(operator):
        name = attacker.create(HOSTILE_CONFIGMAPS[case], case)
        bystander.expire_key()  # in one sweep
        attacker.touch(name, times=5 if "long" in case else 1)
        bystander.expire_key()  # in a later sweep
        bystander.run()


@pytest.mark.parametrize("case", NESTED_TASKRUNS)
def test_sweep_meeting_nested_taskrun_removes_expired_keys_of_others(
    case: str, operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    with undisturbed(operator):
        attacker.create(NESTED_TASKRUNS[case], case)
        bystander.expire_key()
        bystander.expire_key()


def test_sweep_meeting_key_that_expires_without_time_zone_removes_expired_keys_of_others(
    private_control_plane: RunningControlPlane, operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    with undisturbed(operator):
        path = create_expired_state(
            private_control_plane, attacker.namespace, "naive", expires_at="2020-01-01T00:00:00"
        )
        try:
            bystander.expire_key()
            bystander.expire_key()
        finally:
            private_control_plane.call("DELETE", path)
