"""State that exists before the first attempt: copied by `spec.stateFrom`, or imported by a user."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cli_session import grant
from controlplane import ControlPlane
from crash_points import crash_at, crash_at_each_write
from operator_process import Cluster, Containers, Kubelet, Operators, condition
from proxy import Point, Proxy, When
from reattach.api.names import LABEL_TASKRUN, state_name
from reattach.cluster.paths import configmaps, taskruns
from reattach.state.codec import DurableState, to_new_configmap
from reattach.state.operations import Clear, Set
from run_histories import NAME, HistoryRunner, RunHistory, Scenario
from stateapi import Servers
from taskscripts import Tasks
from waiting import wait_until

JSON = dict[str, Any]
SOURCE = "earlier"
COPIED: JSON = {"stateFrom": SOURCE}
READ = '{"attempt":0,"keys":["cursor","settings"],"value":7,"writer":"stateFrom:earlier"}'
"""Result of a task that finds the copied keys."""


@pytest.fixture
def operators(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Operators]:
    operators = Operators(control_plane, tmp_path)
    yield operators
    operators.stop()


@pytest.fixture
def tasks(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Tasks]:
    servers = Servers(control_plane, tmp_path / "state-api")
    try:
        yield Tasks(control_plane, servers.start())
    finally:
        servers.stop()


def read_keys(tasks: Tasks, containers: Containers) -> None:
    """Run a task that returns what it finds in its state."""
    containers.run()
    process = tasks.opened(containers)
    keys = [entry["key"] for entry in process.list().json()["items"]]
    found = process.get("cursor").json()
    result = {"keys": keys, "value": found.get("value"), "writer": found.get("podUID"), "attempt": found.get("attempt")}
    assert process.complete(result=dict(sorted(result.items()))).status_code == 204
    containers.end(0)


def end_source(
    control_plane: ControlPlane, namespace: str, name: str = SOURCE, *, outcome: str | None = "Failed"
) -> str:
    """Create a TaskRun that another operator ran, with two keys. Return the path of its state."""
    body = {
        "apiVersion": "reattach.dev/v1alpha1",
        "kind": "TaskRun",
        "metadata": {"name": name},
        "spec": {"managedBy": "example.org/other", "template": {"spec": {"containers": [{"name": "t", "image": "t"}]}}},
    }
    uid = control_plane.call("POST", taskruns(namespace), body)["metadata"]["uid"]
    state = to_new_configmap(namespace, name, uid, with_keys())
    del state["metadata"]["finalizers"]
    made = control_plane.call("POST", configmaps(namespace), state)["metadata"]
    status = {"state": {"configMap": made["name"], "uid": made["uid"]}} | ({"outcome": outcome} if outcome else {})
    control_plane.call("PATCH", taskruns(namespace, name, "status"), {"status": status})
    return configmaps(namespace, made["name"])


def with_keys() -> DurableState:
    from reattach.cli.state_edit import edit

    steps = [Clear(), Set("cursor", b"7", None), Set("settings", b'{"a":1}', None)]
    state, _ = edit(DurableState(), steps, "ann", datetime.now(UTC))
    return state


def test_copy_is_made_once_whichever_process_dies_between_two_writes(
    control_plane: ControlPlane, operators: Operators, kubelet: Kubelet, proxy: Proxy, tasks: Tasks
) -> None:
    runner = HistoryRunner(control_plane, operators, kubelet, proxy)
    scenario = Scenario(
        COPIED,
        lambda _: lambda containers: read_keys(tasks, containers),
        prepare=lambda namespace: end_source(control_plane, namespace) and None,
    )
    if os.environ.get("REATTACH_ALL"):
        history = crash_at_each_write(runner, scenario, check_copied, at_each_event=False)
    else:
        points = [Point(1, When.AFTER, kind) for kind in ("POST configmaps", "PATCH taskruns/status")]
        history = crash_at(runner, scenario, check_copied, points)
    writes = [
        write.partition("/namespaces/")[0].split()[0] + " " + write.rpartition("/")[2] for write in history.writes
    ]
    assert writes[:3] == ["POST configmaps", "PATCH status", "POST pods"]


def check_copied(history: RunHistory, _: RunHistory) -> None:
    """Check that the one attempt has found the copied keys."""
    status = history.status
    assert (status["outcome"], status["result"], history.pods) == ("Succeeded", READ, ["1"])
    assert [attempt["cause"] for attempt in status["attempts"]] == ["Succeeded"]
    copies = [write for write in history.writes if write.startswith("POST") and write.endswith("/configmaps")]
    assert len(copies) <= 2, "a repeated creation fails, and counts as done"


def test_run_whose_source_can_not_be_copied_is_held_until_it_can(
    control_plane: ControlPlane, namespace: str, operators: Operators, kubelet: Kubelet, tasks: Tasks
) -> None:
    cluster = Cluster(control_plane, namespace)
    kubelet.play(namespace, lambda *_: lambda containers: read_keys(tasks, containers))
    operators.start(namespaces=[namespace])
    paths = {name: end_source(control_plane, namespace, name) for name in ("lost", "newer")}
    end_source(control_plane, namespace, "unfinished", outcome=None)
    lost = control_plane.call("GET", paths["lost"])
    control_plane.call("DELETE", paths["lost"])
    control_plane.call("PATCH", paths["newer"], {"data": {"formatVersion": "9"}})
    expected = {
        "absent": "TaskRun absent must exist in this namespace",
        "unfinished": "TaskRun unfinished must be over; it is unfinished.",
        "lost": "The state of TaskRun lost must exist; it was deleted by force.",
        "newer": "The state of TaskRun newer must be readable: a newer version of Reattach wrote the state",
    }
    for source in expected:
        cluster.create(f"from-{source}", {"stateFrom": source})
    for number in (1, 2):
        cluster.create(f"ended-{number}", {"stateFrom": "absent"})
    for source, message in expected.items():
        status = cluster.wait_for_reason(f"from-{source}", "StateSourceUnavailable")
        assert message in condition(status, "Held")["message"]
        assert "state" not in status
    cluster.wait_for_reason("ended-1", "StateSourceUnavailable")
    assert cluster.pods() == [], "no attempt starts, so no task reads an empty state"

    control_plane.call("PATCH", taskruns(namespace, "ended-1"), {"spec": {"cancel": True}})
    assert cluster.wait_for_outcome("ended-1")["outcome"] == "Cancelled"
    control_plane.call("DELETE", taskruns(namespace, "ended-2"))
    wait_until(lambda: cluster.status_if_there("ended-2") is None, seconds=30, what="it is deleted")

    end_source(control_plane, namespace, "absent")
    control_plane.call("PATCH", taskruns(namespace, "unfinished", "status"), {"status": {"outcome": "Cancelled"}})
    control_plane.call("PATCH", paths["newer"], {"data": {"formatVersion": "1"}})
    begun = ["from-absent", "from-unfinished", "from-newer"]
    for name in begun if not os.environ.get("REATTACH_ALL") else ():
        # A change wakes the operator before its 30 seconds are over.
        control_plane.call("PATCH", taskruns(namespace, name), {"metadata": {"labels": {"wake": "now"}}})
    for name in begun:
        status = cluster.wait_for_outcome(name, seconds=60)
        source = name.removeprefix("from-")
        assert (status["outcome"], status["result"]) == ("Succeeded", READ.replace("earlier", source))
        assert condition(status, "Held")["status"] == "False"
    assert cluster.reason("from-lost") == "StateSourceUnavailable"

    metadata = {
        name: value for name, value in lost["metadata"].items() if name in {"name", "labels", "ownerReferences"}
    }
    control_plane.call("POST", configmaps(namespace), {**lost, "metadata": metadata})
    control_plane.call("PATCH", taskruns(namespace, "from-lost"), {"metadata": {"labels": {"wake": "now"}}})
    wait_until(lambda: "wake" in cluster.taskrun("from-lost")["metadata"]["labels"], seconds=60, what="it is patched")
    assert cluster.reason("from-lost") == "StateSourceUnavailable", "a ConfigMap with another UID is not the state"


def test_copied_state_does_not_need_its_source_any_more_and_is_lost_if_it_is_deleted(
    control_plane: ControlPlane, namespace: str, operators: Operators, kubelet: Kubelet, tasks: Tasks
) -> None:
    cluster = Cluster(control_plane, namespace)
    kubelet.play(namespace, lambda *_: lambda containers: read_keys(tasks, containers))
    end_source(control_plane, namespace)
    cluster.create(NAME, COPIED)
    first = operators.start("--paused", namespaces=[namespace], lease="copies")
    cluster.wait_for_reason(NAME, "Paused")
    assert "state" not in cluster.status(NAME), "a paused installation copies nothing"
    first.kill()
    operators.start(namespaces=[namespace], lease="copies", identity=first.identity)
    assert cluster.wait_for_outcome(NAME)["result"] == READ
    control_plane.call("DELETE", taskruns(namespace, SOURCE))

    cluster.create("next", {"stateFrom": NAME})
    assert cluster.wait_for_outcome("next")["result"] == READ.replace("earlier", NAME)
    control_plane.call("DELETE", configmaps(namespace, cluster.status("next")["state"]["configMap"]))
    cluster.create("last", {"stateFrom": "next"})
    cluster.wait_for_reason("last", "StateSourceUnavailable")


def test_first_attempt_reads_the_keys_that_a_user_imported_before(
    control_plane: ControlPlane, namespace: str, operators: Operators, kubelet: Kubelet, tasks: Tasks
) -> None:
    cluster, editor = Cluster(control_plane, namespace), grant(control_plane, namespace, "edit")
    end_source(control_plane, namespace)
    exported = editor("state", "export", SOURCE).out.encode()
    kubelet.play(namespace, lambda *_: lambda containers: read_keys(tasks, containers))
    operators.start(namespaces=[namespace])
    uid = cluster.create(NAME, {"suspend": True})["metadata"]["uid"]
    cluster.create("copying", {**COPIED, "suspend": True})
    for name in (NAME, "copying"):
        cluster.wait_for_reason(name, "Suspended")
    assert editor("state", "import", NAME, "-", stdin=exported).out == f"2 keys stored in the state of {NAME}.\n"
    assert editor("state", "rm", NAME, "settings").code == 0, "an imported state is changed like any other"
    assert editor("state", "import", NAME, "-", stdin=exported).code == 0
    assert [state["metadata"]["name"] for state in states(control_plane, namespace, "copying")] == [], (
        "nothing is copied"
    )
    assert all("state" not in cluster.status(name) for name in (NAME, "copying"))

    mark = control_plane.audit_mark()
    for name in (NAME, "copying"):
        control_plane.call("PATCH", taskruns(namespace, name), {"spec": {"suspend": False}})
    assert cluster.wait_for_outcome("copying")["result"] == READ
    result = json.loads(cluster.wait_for_outcome(NAME)["result"])
    assert (result["value"], result["keys"]) == (7, ["cursor", "settings"])
    assert result["writer"] == f"cli:{editor.user}"
    cluster.wait_for_release(NAME)
    path = configmaps(namespace, state_name(NAME, uid))
    wait_until(
        lambda: "finalizers" not in control_plane.call("GET", path)["metadata"],
        seconds=30,
        what="the state is released",
    )
    requests = [event for event in control_plane.audit(mark, namespace=namespace) if is_of(event, NAME)]
    named = [(event.get("requestObject") or {}).get("status", {}).get("state") is not None for event in requests]
    pods_created = [event["verb"] == "create" and event["objectRef"]["resource"] == "pods" for event in requests]
    assert named.index(True) < pods_created.index(True), "the state is named before the first pod"


def states(control_plane: ControlPlane, namespace: str, taskrun: str) -> list[JSON]:
    found: list[JSON] = control_plane.call("GET", configmaps(namespace), labelSelector=f"{LABEL_TASKRUN}={taskrun}")[
        "items"
    ]
    return found


def is_of(event: JSON, taskrun: str) -> bool:
    name = event["objectRef"].get("name", "")
    return event["objectRef"]["resource"] in {"taskruns", "pods"} and (
        name == taskrun or name.startswith(f"{taskrun}-")
    )
