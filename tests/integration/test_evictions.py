"""Evictions for a pod's own limits whose containers exit with 0, on the real API server.

A kubelet reports such a pod as Succeeded, and only its event shows the eviction.
"""

from dataclasses import replace

import pytest

from operator_process import Containers, Stage, succeed

SECONDS = 30
EMPTY_DIR = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Mi". '
LIMITED = {
    "spec": {
        "containers": [{"name": "task", "image": "task:1"}],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}],
    }
}


def test_attempt_that_was_evicted_for_its_own_limit_fails_although_it_exited_with_0(stage: Stage) -> None:
    def evicted(containers: Containers) -> None:
        containers.run()
        containers.evict_for_own_limit(EMPTY_DIR)

    retry = {"budgets": {"application": 1}, "backoff": {"initialSeconds": 1, "jitterPercent": 0}}
    stage.run("evicted", lambda number: evicted if number == 1 else succeed, template=LIMITED, retry=retry)
    status = stage.cluster.wait_for_outcome("evicted", seconds=SECONDS)
    ends = [(one["cause"], one["reason"], one["exitCode"]) for one in status["attempts"]]
    assert (status["outcome"], ends) == ("Succeeded", [("Resource", "Evicted", 0), ("Succeeded", "Completed", 0)])
    assert status["attempts"][0]["message"] == EMPTY_DIR.strip()
    assert status["counts"]["charged"]["application"] == 1


@pytest.mark.parametrize("controller", ["karpenter", "kubelet"])
def test_attempt_succeeds_unless_a_kubelet_evicted_its_own_pod(stage: Stage, controller: str) -> None:
    name = f"other-{controller}"

    def other(containers: Containers) -> None:
        containers.run()
        if controller == "kubelet":  # the event is about another pod
            other_pod = {**containers.pod, "metadata": {**containers.pod["metadata"], "uid": "another"}}
            replace(containers, pod=other_pod).emit_eviction(EMPTY_DIR)
            containers.end(0)
        else:
            containers.evict_for_own_limit(EMPTY_DIR, controller=controller)

    stage.run(name, lambda _: other, template=LIMITED)
    assert stage.cluster.wait_for_outcome(name, seconds=SECONDS)["outcome"] == "Succeeded"
