"""Large objects of one tenant leave the operator below the memory limit of the chart, so that it serves another tenant."""

from pathlib import Path

import pytest
import yaml

from controlplane import CHART, RunningControlPlane
from hostile import JSON_BYTES, OTHER_MANAGER, Attacker, Bystander, HostileObject, taskrun, undisturbed
from operator_process import Cluster, Operator, Operators

LIMIT = yaml.safe_load((CHART / "values.yaml").read_text())["operator"]["resources"]["limits"]["memory"]
LIMIT_MIB = int(LIMIT.removesuffix("Mi"))
COUNT = 12
OBJECTS = "[" + "{}," * (JSON_BYTES // 3) + "{}]"
"""Empty objects need 24 times the memory of their JSON as Python objects."""
OURS: HostileObject = taskrun(template={"extra": "a" * JSON_BYTES})
OTHERS: HostileObject = taskrun(template={"extra": "@nested@"}, nested=OBJECTS, managedBy=OTHER_MANAGER)


@pytest.fixture(scope="module")
def one_operator(operators: Operators) -> Operator:
    """Operator that is not started yet."""
    return operators.make("--sweep-seconds", "86400", namespaces=[])


def peak_mib(operator: Operator) -> float:
    """Return the peak of the resident memory of the process."""
    assert operator.process is not None
    status = Path(f"/proc/{operator.process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def test_operator_with_large_taskruns_stays_below_its_memory_limit(
    private_control_plane: RunningControlPlane, operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    others = [attacker.create(OTHERS, "others") for _ in range(COUNT)]
    tenant = Cluster(private_control_plane, attacker.namespace)
    with undisturbed(operator):
        for name in [attacker.create(OURS, "ours") for _ in range(COUNT)]:
            tenant.wait_for_reason(name, "InvalidTemplate", seconds=60)
        for name in others[:3]:
            attacker.touch(name)
        bystander.run()
        assert peak_mib(operator) < LIMIT_MIB
    operator.kill()
    operator.start()  # so that a list brings all of them at once
    with undisturbed(operator):
        bystander.run()
        assert peak_mib(operator) < LIMIT_MIB, "of TaskRuns that were there at the start"
