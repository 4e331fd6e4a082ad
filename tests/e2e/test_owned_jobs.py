"""Jobs of the real Job controller that their TaskRun owns: the garbage collector deletes them after it."""

from typing import Any

import yaml

from realcluster import REPOSITORY, Cluster
from waiting import wait_until

EXAMPLE = (REPOSITORY / "examples/12-kubernetes-job.yaml").read_text()


def owning(**spec: Any) -> str:
    """Return the manifests of the example with a TaskRun that owns its Jobs."""
    plain, owned = "KubernetesObjects(JOB)", "KubernetesObjects(JOB, owned=True)"
    assert plain in EXAMPLE
    found = list(yaml.safe_load_all(EXAMPLE.replace(plain, owned)))
    [run] = [one for one in found if one["kind"] == "TaskRun"]
    run["spec"].update(spec)
    return yaml.safe_dump_all(found)


def test_finished_job_goes_with_the_taskrun_that_its_ttl_deletes(release: Cluster, namespace: str) -> None:
    release.apply(owning(ttl={"succeededSeconds": 0}), namespace)
    [job] = wait_until(lambda: release.items("jobs", namespace), seconds=120, what="the Job is submitted", every=0.5)
    assert [owner["kind"] for owner in job["metadata"]["ownerReferences"]] == ["TaskRun"]
    wait_until(lambda: not release.items("taskruns", namespace), seconds=180, what="the TaskRun is deleted", every=0.5)
    wait_until(lambda: not release.items("jobs", namespace), seconds=60, what="the Job is collected", every=0.5)
