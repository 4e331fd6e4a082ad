"""A node is lost while tasks submit a job by a token, and then gets the taint out-of-service."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from hang_scenarios import (
    ALL,
    LOST_NODE,
    TOKEN,
    HangScenario,
    Processes,
    is_ready,
    log_on,
    lost_node,
    out_of_service,
    start_scenarios,
)
from realcluster import Cluster, condition_of
from reattach.task.submission import STALE_SECONDS
from waiting import wait_until

# With an hour of lostSeconds, only evidence ends the attempt.
DEAD = {
    "dead-before": HangScenario(TOKEN, "before-submit", LOST_NODE, lost_seconds=3600),
    "dead-after": HangScenario(TOKEN, "after-submit", LOST_NODE, lost_seconds=3600),
}
PRESUMED = {
    "presumed-before": HangScenario(TOKEN, "before-submit", LOST_NODE),
    "presumed-after": HangScenario(TOKEN, "after-submit", LOST_NODE),
}
SCENARIOS = DEAD | (PRESUMED if ALL else {})
EVIDENCE = f"Node {LOST_NODE} has the taint node.kubernetes.io/out-of-service, so no container runs on it."


@pytest.fixture(scope="module")
def namespace(release: Cluster) -> Iterator[str]:
    """Return a namespace whose job server returns the same job for the same token."""
    name = release.create_namespace()
    try:
        release.start_jobserver(name, mode="token")
        yield name
    finally:
        release.let_go_of_held(name)
        release.delete_namespace(name)


def wait_held(release: Cluster, name: str, namespace: str) -> dict[str, Any]:
    def held() -> dict[str, Any] | None:
        found = release.get("taskrun", name, namespace)
        return found if condition_of(found, "Held").get("status") == "True" else None

    return wait_until(held, seconds=90, what=f"{name} is held", every=0.5)


def wait_refused(pod: str, namespace: str) -> None:
    """Wait until the state API refuses the process, which is fenced, or whose token is void."""
    refusals = ("Fenced", "401 unauthenticated")

    def refused() -> bool:
        log = log_on(LOST_NODE, pod, namespace)
        return any(refusal in log for refusal in refusals)

    wait_until(refused, seconds=30, what=f"the state API refuses {pod}", every=0.5)


def test_submission_on_a_node_out_of_service_makes_one_job(release: Cluster, namespace: str) -> None:
    pods = start_scenarios(release, SCENARIOS, namespace)
    processes = Processes(SCENARIOS, LOST_NODE)
    with lost_node(release):
        processes.freeze()
        frozen_at = time.monotonic()
        wait_until(lambda: not is_ready(release), seconds=60, what=f"{LOST_NODE} is not ready", every=0.5)
        for name in PRESUMED.keys() & SCENARIOS.keys():
            held = wait_held(release, name, namespace)
            assert [(one["cause"], one["end"]) for one in held["status"]["attempts"]] == [
                ("Disruption", "Presumed"),
                ("Held", "Reported"),
            ]
            hint = f"kubectl taint node {LOST_NODE} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
            assert hint in condition_of(held, "Held")["message"]
        for name in DEAD:
            assert len(release.pods_of(name, namespace)) == 1

        with out_of_service(release):
            finished = {name: release.finished(name, namespace)["status"] for name in SCENARIOS}
            if ALL:
                # The permission to submit is void then. Before, the process would repeat the token.
                time.sleep(max(0.0, frozen_at + STALE_SECONDS - time.monotonic()))
                processes.wake()
                for pod in pods.values():
                    wait_refused(pod, namespace)

    for name, status in finished.items():
        assert status["outcome"] == "Succeeded"
        first, *others = status["attempts"]
        assert (first["cause"], first["end"]) == ("Disruption", "Reported")
        assert EVIDENCE in first["message"]
        before = ["Held"] if name in PRESUMED else []
        assert [one["cause"] for one in others] == [*before, "Succeeded"]
        assert condition_of({"status": status}, "Held").get("status") != "True"
        assert release.submissions(namespace)[name] == 1
    # With the token, a frozen process that submits makes no second job, but one more request.
    by_token = release.ask_jobserver("counts", namespace)["by_token"].values()
    requests = [1 if name.endswith("-before") else 2 for name in SCENARIOS]
    assert sorted((found["asked"], found["made"]) for found in by_token) == sorted((count, 1) for count in requests)
