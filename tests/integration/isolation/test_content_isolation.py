"""No TaskRun, Pod or ConfigMap that the API server accepts keeps a TaskRun of another namespace from its pod.

The policies of the chart are not installed, so users may write the labels, finalizers and statuses of Reattach.
"""

import contextlib
import os
import re
import unicodedata
from typing import Any

import pytest

from controlplane import ControlPlaneError, RunningControlPlane
from hostile import JSON_BYTES, LEVELS, PROTOBUF_BYTES, Attacker, Bystander, nested_lists, taskrun, undisturbed
from hostile_cases import CASES, CATEGORIES, INTEGERS, KINDS, NAIVE_TIME, case_of, levels_of
from operator_process import Cluster, Operator, Operators
from reattach.cluster.paths import taskruns
from waiting import wait_until

COUNT = 500 if os.environ.get("REATTACH_ALL") else 40


@pytest.fixture(scope="module")
def one_operator(operators: Operators) -> Operator:
    """Operator that is not started yet. It sweeps all the time, because sweeps read all ConfigMaps."""
    return operators.make("--sweep-seconds", "1", namespaces=[])


def unescaped(stored: bytes) -> str:
    """Return JSON with the characters that the API server escapes, such as control characters."""
    return re.sub(r"\\u([0-9a-f]{4})", lambda code: chr(int(code[1], 16)), stored.decode())


def test_operator_among_random_objects_of_all_classes_serves_other_namespace(
    operator: Operator, attacker: Attacker, bystander: Bystander
) -> None:
    assert COUNT >= CASES, "each kind with each trait"
    victim = Cluster(attacker.control_plane, attacker.namespace).create("victim")
    levels = dict.fromkeys(KINDS, 0)
    sizes = dict.fromkeys(KINDS, 0)
    categories: set[str] = set()
    texts: list[bytes] = []
    with undisturbed(operator, log_lines=20 * COUNT):
        for index in range(COUNT):
            case = case_of(index, victim["metadata"]["uid"])
            name = attacker.create(case.body, f"{case.trait}-{index}")
            if case.status is not None:
                attacker.write_status(name, case.status)
            stored = attacker.read(name)
            levels[case.kind] = max(levels[case.kind], levels_of(stored))
            sizes[case.kind] = max(sizes[case.kind], len(stored))
            if case.trait == "unicode":
                categories |= {unicodedata.category(character) for character in unescaped(stored)}
            elif len(stored) < 10_000:
                texts.append(stored)
            attacker.touch(name)
            bystander.start()
    assert all(reached >= LEVELS for reached in levels.values()), levels
    assert sizes["taskruns"] >= JSON_BYTES
    assert sizes["pods"] >= 6 * PROTOBUF_BYTES
    assert sizes["configmaps"] >= 6 * PROTOBUF_BYTES
    assert categories >= CATEGORIES
    for needle in (NAIVE_TIME, "0001-01-01", "9999-12-31", *map(str, INTEGERS[:4])):
        assert any(needle.encode() in text for text in texts), needle


@pytest.mark.parametrize("levels", [150, 900, 5_000, LEVELS])
def test_operator_with_a_deeply_nested_template_fails_the_run_as_invalid_template(
    operator: Operator, attacker: Attacker, levels: int
) -> None:
    name = attacker.create(taskrun(template={"extra": "@nested@"}, nested=nested_lists(levels)), "deep")
    before = len(operator.log.splitlines())

    def ended() -> bool:
        return b'"outcome":"Failed"' in attacker.read(name)

    wait_until(ended, seconds=60, what=f"{name} has an outcome")
    status = attacker.read(name).rpartition(b'"status":{')[2]
    assert b'"reason":"InvalidTemplate"' in status
    assert b"at most 100 levels" in status or b"unknown field" in status
    lines = operator.log.splitlines()[before:]
    assert [line for line in lines if "Traceback" in line] == []
    assert len([line for line in lines if name in line]) <= 1, lines


def test_operator_taskrun_that_is_too_large_for_its_status_is_shown_and_tried_rarely(
    operator: Operator, private_control_plane: RunningControlPlane, bystander: Bystander
) -> None:
    cluster = Cluster(private_control_plane, private_control_plane.create_namespace("large"))
    mark = private_control_plane.audit_mark()
    uid = create_largest(cluster, "large")["metadata"]["uid"]

    def notes() -> list[str]:
        found = private_control_plane.call("GET", f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events")
        return [event["note"] for event in found["items"] if event["reason"] == "TooLarge"]

    wait_until(notes, seconds=60, what="an event about the TaskRun")
    (note,) = notes()
    assert "is too large to be stored: etcdserver: request is too large." in note
    assert "Delete the TaskRun, and create it with a smaller spec" in note
    for _ in range(5):
        bystander.start()
    assert cluster.status("large").get("outcome") is None
    found = private_control_plane.audit(mark, user=operator.user, namespace=cluster.namespace)
    assert len([event for event in found if event["verb"] == "patch"]) <= 3
    assert len([line for line in operator.log.splitlines() if f"{cluster.namespace}/large" in line]) <= 2
    private_control_plane.call("DELETE", f"{taskruns(cluster.namespace)}/large", {"preconditions": {"uid": uid}})


def create_largest(cluster: Cluster, name: str) -> dict[str, Any]:
    """Create a TaskRun that etcd can just store."""
    for size in range(1_572_800, 1_560_000, -200):
        container = {"name": "task", "image": "task:1", "args": ["x" * size]}
        with contextlib.suppress(ControlPlaneError):
            return cluster.create(name, template={"spec": {"containers": [container]}})
    raise AssertionError("etcd stores none of them")
