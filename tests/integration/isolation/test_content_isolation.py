"""No TaskRun, Pod or ConfigMap that the API server accepts keeps a TaskRun of another namespace from its pod.

The policies of the chart are not installed, so users may write the labels, finalizers and statuses of Reattach.
"""

import os
import re
import unicodedata

import pytest

from hostile import JSON_BYTES, LEVELS, PROTOBUF_BYTES, Attacker, Bystander, nested_lists, taskrun, undisturbed
from hostile_cases import CASES, CATEGORIES, INTEGERS, KINDS, NAIVE_TIME, case_of, levels_of
from operator_process import Cluster, Operator, Operators
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
