"""Every file of examples/ does what its header says, on the real cluster."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from realcluster import REPOSITORY, Cluster
from waiting import wait_until

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
# What `kubectl get trun` shows at the end: outcome, attempts, result, submissions to the job server.
ENDS = {
    "01-hello": ("Succeeded", 1, None, 0),
    "02-task-state": ("Succeeded", 2, {"rows_written": 4211}, 1),
    "03-retry-backoff": ("Succeeded", 3, None, 0),
    "04-sidecar": ("Succeeded", 1, None, 0),
    "05-aip103": ("Succeeded", 2, 812, 1),
    "06-any-language": ("Succeeded", 2, {"color": "green"}, 0),
    "07-exit-code": ("Succeeded", 1, None, 0),
    "08-retry-later": ("Succeeded", 2, "done", 0),
    "09-permanent-failure": ("Failed", 1, None, 0),
    "10-submit-once": ("Succeeded", 2, {"rows_written": 4211}, 1),
    "11-held": ("Succeeded", 3, {"rows_written": 812}, 1),
    "12-kubernetes-job": ("Succeeded", 2, "counted", 0),
    "13-taskrun-of-a-taskrun": ("Succeeded", 2, {"rows_written": 99}, 0),
    "14-cleanup-command": ("Failed", 2, None, 1),
}
# What a person does meanwhile, in the words of the header.
HELD = "11-held"


@pytest.fixture(scope="module")
def namespace(release: Cluster, namespace: str) -> Iterator[str]:
    """All examples at once, side by side, with the job server."""
    try:
        for example in EXAMPLES:
            release.apply(example, namespace)
        yield namespace
    finally:
        release.let_go_of_held(namespace)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_ends_as_its_header_says(release: Cluster, namespace: str, example: Path) -> None:
    outcome, attempts, result, submissions = ENDS[example.stem]
    taskruns = [document for document in yaml.safe_load_all(example.read_text()) if document["kind"] == "TaskRun"]
    name = taskruns[0]["metadata"]["name"]
    if example.stem == HELD:
        adopt_what_runs(release, name, namespace)

    status = release.finished(name, namespace)["status"]

    assert status["outcome"] == outcome
    assert [attempt["number"] for attempt in status["attempts"]] == list(range(1, attempts + 1))
    assert len({attempt["podUID"] for attempt in status["attempts"]}) == attempts
    assert len(release.pods_of(name, namespace)) <= attempts
    assert json.loads(status.get("result", "null")) == result
    assert release.submissions(namespace).get(name, 0) == submissions


def test_example_with_a_sidecar_keeps_the_log_of_its_task(release: Cluster, namespace: str) -> None:
    release.finished("sidecar", namespace)

    assert "the work is done" in release.reattach("logs", "sidecar", namespace=namespace)


def adopt_what_runs(release: Cluster, name: str, namespace: str) -> None:
    """Wait until the run is held, look over there, and say which job it is."""

    def held() -> bool:
        return "SubmissionUnknown" in release.kubectl("get", "trun", name, namespace=namespace)

    wait_until(held, seconds=120, what=f"{name} is held", every=0.5)
    (job,) = release.jobs(namespace, label=name)
    assert "taskrun/held resolved: Adopt" in release.reattach("resolve", name, "--adopt", job, namespace=namespace)


def test_submitting_once_averts_the_second_job_and_says_so(release: Cluster, namespace: str) -> None:
    status = release.finished("submit-once", namespace)["status"]

    (job,) = release.jobs(namespace, label="submit-once")
    assert (status["counts"]["duplicatesAverted"], status["counts"]["reattachments"]) == (1, 1)
    assert [(known["key"], known["handle"], known["state"]) for known in status["externalJobs"]] == [
        ("load", job, "Succeeded")
    ]
    assert job in release.reattach("explain", "submit-once", namespace=namespace)


def test_the_kubernetes_adapter_makes_one_job(release: Cluster, namespace: str) -> None:
    status = release.finished("kubernetes-job", namespace)["status"]

    (job,) = release.items("jobs", namespace, "reattach.dev/submission-token")
    assert job["status"]["succeeded"] == 1
    assert status["externalJobs"][0]["handle"].split("/") == [
        namespace,
        job["metadata"]["name"],
        job["metadata"]["uid"],
    ]
    assert status["counts"]["submissions"] == status["counts"]["reattachments"] == 1


def test_a_taskrun_makes_one_other_and_has_its_result(release: Cluster, namespace: str) -> None:
    outer = release.finished("outer", namespace)["status"]

    (inner,) = release.items("taskruns", namespace, "reattach.dev/submission-token")
    assert inner["status"]["outcome"] == "Succeeded"
    assert len(inner["status"]["attempts"]) == 2
    assert outer["result"] == inner["status"]["result"]
    assert outer["externalJobs"][0]["handle"].split("/") == [
        namespace,
        inner["metadata"]["name"],
        inner["metadata"]["uid"],
    ]
    assert outer["counts"]["submissions"] == outer["counts"]["duplicatesAverted"] == 1
