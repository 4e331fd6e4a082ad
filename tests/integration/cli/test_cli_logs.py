"""`kubectl reattach logs`: the API server asks a kubelet for them, as it does for `kubectl logs`."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli_session import BackgroundCommand, CliUser, CommandResult, Node, node_of
from controlplane import ControlPlane
from reattach.cluster.paths import pods
from stateapi import Task
from tcp_relay import Relay
from waiting import wait_until

TIME = "2026-03-01T12:00:00Z"
SLOW = 120


@pytest.fixture(scope="module")
def node(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with node_of(control_plane, tmp_path_factory.mktemp("node")) as found:
        yield found


class Pods:
    """The pods of a TaskRun's attempts, on the node."""

    def __init__(self, task: Task, node: Node) -> None:
        self.task, self.node, self.names = task, node, dict[int, str]()

    def start(self, number: int) -> str:
        pod = self.task.pod(number)
        self.names[number] = name = pod["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": self.node.name}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        self.task.control_plane.call("POST", f"{pods(self.task.namespace, name)}/binding", binding)
        self._write(name, "Running", {"running": {"startedAt": TIME}})
        return name

    def end(self, number: int, code: int) -> None:
        name = self.names[number]
        self.node.write(name, is_over=True)
        self._write(name, "Failed" if code else "Succeeded", {"terminated": {"exitCode": code, "finishedAt": TIME}})

    def _write(self, name: str, phase: str, state: dict[str, object]) -> None:
        status = {"name": "task", "state": state, "image": "", "imageID": "", "ready": False, "restartCount": 0}
        body = {"status": {"phase": phase, "containerStatuses": [status]}}
        self.task.control_plane.call("PATCH", f"{pods(self.task.namespace, name)}/status", body)


@pytest.fixture
def attempts(task: Task, node: Node) -> Pods:
    return Pods(task, node)


def an_attempt(number: int, **fields: object) -> dict[str, object]:
    return {"number": number, "purpose": "Run", "startTime": TIME, **fields}


ENDED = {"finishTime": TIME, "end": "Reported", "cause": "Application", "chargedTo": "application", "reason": "Error"}
OVER = {"type": "Succeeded", "status": "True", "reason": "Succeeded", "message": "Done.", "lastTransitionTime": TIME}


def test_all_attempts_are_shown_in_order_and_their_headings_apart(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    first, second = attempts.start(1), attempts.start(2)
    node.write(first, "submitted job-7")
    node.write(second, "reattached to job-7", "done")
    attempts.end(1, 1)
    write_status(attempts=[an_attempt(1, podName=first, **ENDED), an_attempt(2, podName=second)])
    result = viewer("logs", "load")
    assert result.code == 0, result.err
    assert result.out == "submitted job-7\nreattached to job-7\ndone\n"
    assert result.err.splitlines() == [
        f"==> attempt 1, ended by Application (pod {first})",
        f"==> attempt 2 (pod {second})",
    ]
    attempts.end(2, 0)


def test_one_attempt_and_its_last_lines(viewer: CliUser, node: Node, attempts: Pods) -> None:
    name = attempts.start(1)
    node.write(name, "a", "b", "c")
    assert viewer("logs", "load", "--attempt", "1", "--tail", "2").out == "b\nc\n"
    assert (
        viewer("logs", "load", "--attempt", "1", "--tail", "1", "--timestamps").out
        == "2026-03-01T12:00:03.000000000Z c\n"
    )
    result = viewer("logs", "load", "--attempt", "4")
    assert (result.code, result.err) == (1, "error: load has no attempt 4; there is 1.\n")


def test_logs_since_requests_the_lines_from_that_time_on_of_each_attempt_until_a_line_was_shown(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    first, second = attempts.start(1), attempts.start(2)
    node.write(first, "old")
    node.write(second, "new")
    assert viewer("logs", "load", "--since", "90s").code == 0
    requested = {each["pod"]: int(each["sinceSeconds"]) for each in node.requests if each["pod"] in {first, second}}
    assert requested.keys() == {first, second}
    # The kubelet counts back from its request, so a later request must reach further back.
    assert 90 <= requested[first] <= requested[second] < 90 + SLOW
    node.requests.clear()
    assert viewer("logs", "load", "--since", "0s", "--attempt", "1").code == 0
    assert "sinceSeconds" not in node.requests[-1]
    following = viewer.in_background("logs", "load", "-f", "--since", "5m", "--attempt", "2")
    following.wait_for("new")
    node.cut_off(second)
    wait_until(lambda: "sinceTime" in node.requests[-1], seconds=SLOW, what="the log is requested again")
    assert "sinceSeconds" not in node.requests[-1]
    attempts.end(2, 0)
    assert following.wait().code == 0
    assert viewer("logs", "load", "--since", "yesterday").code == 2


def test_following_goes_over_a_retry_until_the_run_is_over(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    first = attempts.start(1)
    node.write(first, "submitted job-7")
    following = viewer.in_background("logs", "load", "-f")
    following.wait_for("submitted job-7")
    node.write(first, "about to die")
    following.wait_for("about to die")
    attempts.end(1, 1)
    write_status(attempts=[an_attempt(1, podName=first, **ENDED)])
    second = attempts.start(2)
    node.write(second, "reattached to job-7")
    following.wait_for("reattached to job-7")
    attempts.end(2, 0)
    write_status(outcome="Succeeded", conditions=[OVER])
    result = following.wait()
    assert result.code == 0, result.err
    assert result.out == "submitted job-7\nabout to die\nreattached to job-7\n"
    assert result.err.splitlines()[-1] == "==> load ended as Succeeded (Succeeded): Done."


def test_a_log_that_breaks_off_goes_on_where_it_was(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    name = attempts.start(1)
    node.write(name, "one", "two")
    following = viewer.in_background("logs", "load", "-f")
    following.wait_for("two")
    node.cut_off(name)
    wait_until(lambda: "sinceTime" in node.requests[-1], seconds=120, what="the log is asked for again")
    node.write(name, "three")
    following.wait_for("three")
    attempts.end(1, 0)
    write_status(outcome="Succeeded", conditions=[OVER])
    result = following.wait()
    assert result.out == "one\ntwo\nthree\n", result.err
    again = [requests["sinceTime"] for requests in node.requests if requests["pod"] == name and "sinceTime" in requests]
    assert again[0] == "2026-03-01T12:00:02Z"


def test_logs_follow_outlasts_an_api_server_that_is_away(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None], tmp_path: Path
) -> None:
    name = attempts.start(1)
    node.write(name, "one")
    port = urlsplit(viewer.control_plane.url).port
    with Relay(port) as relay:
        following = viewer.in_background(
            "logs", "load", "-f", "--kubeconfig", viewer.kubeconfig_through(relay, tmp_path)
        )
        following.wait_for("one")
        relay.lead_to(None)
        following.wait_for(f"{relay.url} does not respond")
        requests = relay.connections
        wait_until(lambda: relay.connections > requests, seconds=60, what="it is asked again")
        relay.lead_to(port)
        node.write(name, "two")
        following.wait_for("two")
        attempts.end(1, 0)
        write_status(outcome="Succeeded", conditions=[OVER])
        result = following.wait()
    assert result.code == 0, result.err
    assert result.out == "one\ntwo\n"
    assert result.err.count("trying again") == 1


def test_logs_follow_outlasts_an_absent_api_server_between_two_pods(
    viewer: CliUser, task: Task, write_status: Callable[..., None], tmp_path: Path
) -> None:
    held = {"type": "Held", "status": "True", "reason": "StateLost", "message": "", "lastTransitionTime": TIME}
    write_status(conditions=[held])
    port = urlsplit(viewer.control_plane.url).port
    with Relay(port) as relay:
        flags = ["-f", "--kubeconfig", viewer.kubeconfig_through(relay, tmp_path)]
        following = viewer.in_background("logs", task.name, *flags)
        following.wait_for("load is held for StateLost")
        relay.lead_to(None)
        following.wait_for(f"{relay.url} does not respond")
        relay.lead_to(port)
        write_status(outcome="Succeeded", conditions=[OVER])
        result = following.wait()
    assert result.code == 0, result.err


LOST = (500, 'Get "https://10.0.0.1:10250/containerLogs/load": dial tcp 10.0.0.1:10250: i/o timeout')
PRESUMED = {
    "finishTime": TIME,
    "end": "Presumed",
    "cause": "Disruption",
    "chargedTo": "disruption",
    "reason": "NodeLost",
    "message": "The node did not answer.",
}


def follow_the_first(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> tuple[str, BackgroundCommand]:
    """The pod of attempt 1, and who follows it and has seen what it wrote."""
    first = attempts.start(1)
    node.write(first, "submitted job-7")
    write_status(attempts=[an_attempt(1, podName=first)])
    following = viewer.in_background("logs", "load", "-f")
    following.wait_for("submitted job-7")
    return first, following


def take_over(
    first: str, following: BackgroundCommand, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> CommandResult:
    """Attempt 1's end is presumed, and attempt 2 ends well. What who follows was told in the end: each line once."""
    second = attempts.start(2)
    node.write(second, "reattached to job-7")
    write_status(attempts=[an_attempt(1, podName=first, **PRESUMED), an_attempt(2, podName=second)])
    following.wait_for("reattached to job-7")
    attempts.end(2, 0)
    write_status(outcome="Succeeded", conditions=[OVER])
    result = following.wait()
    assert result.code == 0, result.err
    assert result.out == "submitted job-7\nreattached to job-7\n"
    return result


def test_unreadable_log_of_an_ended_attempt_does_not_hide_the_next_attempt(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    first, second = attempts.start(1), attempts.start(2)
    node.refuse(first, *LOST)
    node.write(second, "reattached to job-7")
    write_status(attempts=[an_attempt(1, podName=first, **PRESUMED), an_attempt(2, podName=second)])
    result = viewer("logs", "load")
    assert (result.code, result.out) == (0, "reattached to job-7\n"), result.err
    [_, unread, heading] = result.err.splitlines()
    assert unread.startswith("The log of attempt 1, which has ended, can't be read to its end: ")
    assert unread.endswith(" The operator recorded: The node did not answer.")
    assert heading == f"==> attempt 2 (pod {second})"
    assert viewer("logs", "load", "--attempt", "1").err == f"error: {unread}\n"
    attempts.end(2, 0)


def test_unreadable_log_of_an_attempt_without_a_recorded_end_is_an_error(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    first = attempts.start(1)
    node.refuse(first, *LOST)
    write_status(attempts=[an_attempt(1, podName=first)])
    assert viewer("logs", "load").code == 1


def test_a_following_leaves_a_lost_node_when_the_end_of_its_attempt_is_recorded(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    first, following = follow_the_first(viewer, node, attempts, write_status)
    node.refuse(first, *LOST)
    following.wait_for("The log of attempt 1 can't be read now")
    requests = len(node.requests)
    wait_until(lambda: len(node.requests) > requests + 1, seconds=60, what="it is asked again")
    result = take_over(first, following, node, attempts, write_status)
    assert result.err.count("trying again") == 1
    assert result.err.count("The log of attempt 1, which has ended, can't be read to its end: ") == 1


def test_a_log_that_falls_silent_is_left_when_the_end_of_its_attempt_is_recorded(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    """A node that lost its power closes no connection."""
    first, following = follow_the_first(viewer, node, attempts, write_status)
    result = take_over(first, following, node, attempts, write_status)
    assert (
        "The log of attempt 1, which has ended, can't be read to its end: the node sends nothing any more."
        in result.err
    )


def test_a_log_that_is_silent_for_long_is_followed_as_long_as_its_attempt_goes_on(
    viewer: CliUser,
    node: Node,
    attempts: Pods,
    write_status: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each line once, over many looks at the TaskRun, and by one request."""
    monkeypatch.setattr("reattach.cli.attempt_log.QUIET_SECONDS", 0.05)
    name = attempts.start(1)
    node.write(name, "one")
    write_status(attempts=[an_attempt(1, podName=name)])

    def go_on() -> None:
        wait_until(
            lambda: any(requests["pod"] == name for requests in node.requests), seconds=60, what="the log is followed"
        )
        for text in ("two", "three"):
            time.sleep(1)  # it is silence that is tried
            node.write(name, text)
        time.sleep(1)
        requests.extend(requests for requests in node.requests if requests["pod"] == name)
        attempts.end(1, 0)
        write_status(outcome="Succeeded", conditions=[OVER])

    requests: list[dict[str, str]] = []
    writing = threading.Thread(target=go_on)
    writing.start()
    result = viewer("logs", "load", "-f")
    writing.join()
    assert (result.code, result.out) == (0, "one\ntwo\nthree\n"), result.err
    assert len(requests) == 1


def test_a_container_that_is_not_there_is_an_error(viewer: CliUser, node: Node, attempts: Pods) -> None:
    name = attempts.start(1)
    node.write(name, "one")
    for flags in ([], ["-f"], ["--attempt", "1"]):
        result = viewer("logs", "load", "-c", "typo", *flags)
        assert (result.code, result.out) == (1, "")
        assert result.err.endswith(
            f"error: The pod {name} has no container 'typo'; leave out -c for the task's container.\n"
        )


def test_log_of_a_deleted_pod_is_replaced_by_the_recorded_message(
    viewer: CliUser, node: Node, attempts: Pods, write_status: Callable[..., None]
) -> None:
    write_status(attempts=[an_attempt(1, podName="load-1", message="ValueError: no rows", **ENDED)])
    result = viewer("logs", "load")
    assert result.code == 0
    assert "The pod of attempt 1 is gone, and its log with it. The operator recorded: ValueError: no rows" in result.err
    assert viewer("logs", "load", "--attempt", "1").code == 1
    assert node.name
    assert not attempts.names


def test_no_attempt_yet_is_no_error(viewer: CliUser, task: Task) -> None:
    result = viewer("logs", task.name)
    assert (result.code, result.out) == (0, "")
    assert "load has no attempt yet" in result.err


def test_a_following_ends_when_the_taskrun_is_deleted(viewer: CliUser, task: Task) -> None:
    following = viewer.in_background("logs", task.name, "-f")
    following.wait_for("")
    task.control_plane.call("DELETE", f"/apis/reattach.dev/v1alpha1/namespaces/{task.namespace}/taskruns/load")
    assert following.wait().code in {1, 7}  # 1: deleted before the first look
