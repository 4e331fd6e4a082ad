"""Every file of examples/ does what its header says, on the real cluster."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from realcluster import REPOSITORY, Cluster

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
}


@pytest.fixture(scope="module")
def namespace(release: Cluster) -> Iterator[str]:
    """All examples at once, side by side, with the job server."""
    name = release.create_namespace("examples")
    release.start_jobserver(name)
    for example in EXAMPLES:
        release.apply(example, name)
    yield name
    release.delete_namespace(name)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_ends_as_its_header_says(release: Cluster, namespace: str, example: Path) -> None:
    outcome, attempts, result, submissions = ENDS[example.stem]
    taskruns = [document for document in yaml.safe_load_all(example.read_text()) if document["kind"] == "TaskRun"]
    name = taskruns[0]["metadata"]["name"]

    status = release.finished(name, namespace)["status"]

    assert status["outcome"] == outcome
    assert [attempt["number"] for attempt in status["attempts"]] == list(range(1, attempts + 1))
    assert len({attempt["podUID"] for attempt in status["attempts"]}) == attempts
    assert len(release.pods_of(name, namespace)) <= attempts  # one that a sidecar kept alive was deleted
    assert json.loads(status.get("result", "null")) == result
    assert release.submissions(namespace).get(name, 0) == submissions
