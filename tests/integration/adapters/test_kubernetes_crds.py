"""SparkApplications and RayJobs on a real API server with CRDs of their names. Their operators don't run here: the tests write the statuses that
those would, in the words of spark-operator's `v1beta2` and KubeRay's `ray.io/v1` types.
"""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from controlplane import RunningControlPlane
from reattach.adapter import Active, Cancelled, Failed, Rejected, Submission, Succeeded, Unknown
from reattach.adapters.kubernetes import RAY_JOB, SPARK_APPLICATION, Access, Kind, KubernetesObjects, When
from waiting import wait_until

WORKFLOW = Kind(
    api_version="example.org/v1",
    kind="Workflow",
    plural="workflows",
    standings=(
        When("Succeeded", {"status.phase": ("Done",), "status.clean": ("true",)}),
        When("Failed", {"status.phase": ("Broken",)}),
        When("Active", {"status.phase": ("",)}),
    ),
    result="status.outputs",
)
"""A kind of one's own."""


def crd_of(kind: Kind) -> dict[str, Any]:
    group, _, version = kind.api_version.partition("/")
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "unapproved, a test"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind.kind, "plural": kind.plural},
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": schema, "subresources": {"status": {}}}
            ],
        },
    }


@pytest.fixture(scope="module")
def served(private_control_plane: RunningControlPlane) -> RunningControlPlane:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    for kind in (SPARK_APPLICATION, RAY_JOB, WORKFLOW):
        private_control_plane.call("POST", path, crd_of(kind))
    return private_control_plane


@pytest.fixture
def namespace(served: RunningControlPlane) -> Iterator[str]:
    name = served.create_namespace()
    yield name
    served.delete_namespace(name)


class Objects:
    """The adapter for one kind, and its operator played."""

    def __init__(self, control_plane: RunningControlPlane, namespace: str, kind: Kind) -> None:
        self._control_plane = control_plane
        self._kind = kind
        access = Access.from_kubeconfig(control_plane.kubeconfig(namespace=namespace))
        self.adapter = KubernetesObjects(kind, access=access)

    def submit(self, **spec: Any) -> str:
        manifest = {"apiVersion": self._kind.api_version, "kind": self._kind.kind, "spec": spec}
        token = str(uuid.uuid4())
        submission = Submission(
            token=token, request=manifest, key="load", generation=1, namespace="ns", taskrun="nightly"
        )

        def accepted() -> str:
            # An API server serves a new kind a little after it says so.
            try:
                return self.adapter.submit(submission).handle
            except Rejected as rejected:
                if "is its CRD installed" not in str(rejected):
                    raise
            return ""

        handle = wait_until(accepted, seconds=60, what="the kind is served")
        assert self.adapter.submit(submission).existed
        return handle

    def write(self, handle: str, status: dict[str, Any]) -> None:
        namespace, name, _ = handle.split("/")
        self._control_plane.call("PATCH", f"{self._kind.path(namespace, name)}/status", {"status": status})


def test_a_sparkapplication_is_over_when_its_operator_says_so_for_good(
    served: RunningControlPlane, namespace: str
) -> None:
    spark = Objects(served, namespace, SPARK_APPLICATION)
    handle = spark.submit(type="Python")
    assert spark.adapter.status(handle) == Active()
    for state in ("SUBMITTED", "RUNNING", "SUBMISSION_FAILED", "PENDING_RERUN", "SUCCEEDING", "FAILING"):
        spark.write(handle, {"applicationState": {"state": state}})
        assert spark.adapter.status(handle) == Active(state)
    spark.write(handle, {"applicationState": {"state": "UNKNOWN"}})
    assert isinstance(spark.adapter.status(handle), Unknown)
    spark.write(handle, {"applicationState": {"state": "COMPLETED"}})
    assert spark.adapter.status(handle) == Succeeded()
    spark.write(handle, {"applicationState": {"state": "FAILED", "errorMessage": "driver container failed"}})
    assert spark.adapter.status(handle) == Failed("FAILED: driver container failed")


def test_a_sparkapplication_that_goes_by_itself_is_rejected(served: RunningControlPlane, namespace: str) -> None:
    with pytest.raises(Rejected, match=r"spec.timeToLiveSeconds must be left out"):
        Objects(served, namespace, SPARK_APPLICATION).submit(timeToLiveSeconds=3600)


@pytest.mark.parametrize(
    "deployment,job,expected",
    [
        ("", "", Active()),
        ("Initializing", "", Active("Initializing")),
        ("Running", "RUNNING", Active("Running: RUNNING")),
        ("Running", "SUCCEEDED", Active("Running: SUCCEEDED")),
        ("Retrying", "FAILED", Active("Retrying: FAILED")),
        ("Suspended", "", Active("Suspended")),
        ("Complete", "SUCCEEDED", Succeeded()),
        ("Complete", "FAILED", Failed("Complete: FAILED: AppFailed: out of memory")),
        ("Complete", "STOPPED", Cancelled("Complete: STOPPED")),
        ("Failed", "", Failed("Failed: AppFailed: out of memory")),
        ("ValidationFailed", "", Failed("ValidationFailed: AppFailed: out of memory")),
    ],
)
def test_a_rayjob_is_over_when_deployment_and_job_are(
    served: RunningControlPlane, namespace: str, deployment: str, job: str, expected: Any
) -> None:
    ray = Objects(served, namespace, RAY_JOB)
    handle = ray.submit(entrypoint="python load.py")
    status = {"jobDeploymentStatus": deployment, "jobStatus": job}
    if isinstance(expected, Failed):
        status |= {"reason": "AppFailed", "message": "out of memory"}
    ray.write(handle, status)
    assert ray.adapter.status(handle) == expected


def test_a_word_of_a_newer_version_is_no_end(served: RunningControlPlane, namespace: str) -> None:
    ray = Objects(served, namespace, RAY_JOB)
    handle = ray.submit(entrypoint="python load.py")
    ray.write(handle, {"jobDeploymentStatus": "Pondering"})
    status = ray.adapter.status(handle)
    assert isinstance(status, Unknown)
    assert "'Pondering'" in status.message


def test_a_rayjob_that_deletes_itself_is_rejected(served: RunningControlPlane, namespace: str) -> None:
    with pytest.raises(Rejected, match=r"spec.deletionStrategy must be left out"):
        Objects(served, namespace, RAY_JOB).submit(deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}})


def test_a_kind_of_ones_own_needs_no_more_than_a_description(served: RunningControlPlane, namespace: str) -> None:
    workflows = Objects(served, namespace, WORKFLOW)
    handle = workflows.submit(steps=3)
    assert workflows.adapter.status(handle) == Active()
    workflows.write(handle, {"phase": "Done", "clean": True, "outputs": {"rows": 7}})
    assert workflows.adapter.status(handle) == Succeeded({"rows": 7})
    workflows.adapter.cancel(handle)
    assert workflows.adapter.status(handle) == Succeeded({"rows": 7})
