"""One tenant who attacks and one who looks on. Each module has a fixture `one_operator`, the operator that its tests share."""

from collections.abc import Iterator

import pytest

from controlplane import RunningControlPlane
from hostile import Attacker, Bystander
from operator_process import Operator, Operators


@pytest.fixture(scope="module")
def operators(
    private_control_plane: RunningControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operators]:
    operators = Operators(private_control_plane, tmp_path_factory.mktemp("operators"))
    yield operators
    operators.stop()


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
