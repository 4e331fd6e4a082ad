"""Kinds of runs that the benchmark compares, and the objects that it creates."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from reattach.api.names import API_VERSION
from reattach.api.names import KIND as TASKRUN_KIND
from reattach.cluster import paths

NODE = "bench"
LABEL_END = "bench.reattach.example/end"
"""Label of pods that do not succeed at once. `stages.yaml` reads it."""


class PodEnd(StrEnum):
    """End of the pods of a run."""

    SUCCEEDS = "succeeds"
    FAILS_ONCE = "fails-once"
    """The first pod fails, the second one succeeds."""
    HELD = "held"
    """kwok starts the pod; the benchmark ends it."""


class Kind(StrEnum):
    """Kind of run with its controller."""

    TASKRUN = "taskrun"
    JOB = "job"
    BARE = "bare"

    @property
    def label(self) -> str:
        """Name in tables."""
        return LABELS[self]

    def path(self, namespace: str) -> str:
        """Return the path of the collection of the objects."""
        if self is Kind.JOB:
            return f"/apis/batch/v1/namespaces/{namespace}/jobs"
        return paths.taskruns(namespace)

    def build_object(self, name: str, end: PodEnd = PodEnd.SUCCEEDS) -> dict[str, Any]:
        """Return the object to create. Every kind gets the same pod template."""
        retries = 1 if end is PodEnd.FAILS_ONCE else 0
        metadata = {} if end is PodEnd.SUCCEEDS else {"metadata": {"labels": {LABEL_END: end.value}}}
        if self is Kind.JOB:
            template = {**metadata, "spec": {**POD, "restartPolicy": "Never"}}
            spec: dict[str, Any] = {"template": template}
            if retries:
                # The pods of an indexed Job have their number in an annotation for kwok.
                spec |= {"completionMode": "Indexed", "completions": 1, "backoffLimitPerIndex": retries}
            return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}
        spec = {"template": {**metadata, "spec": POD}}
        if retries:
            spec["retry"] = {"budgets": {"application": retries}}
        return {"apiVersion": API_VERSION, "kind": TASKRUN_KIND, "metadata": {"name": name}, "spec": spec}


POD: Mapping[str, Any] = {
    # Assign the node, because no scheduler runs.
    "nodeName": NODE,
    "containers": [
        {
            "name": "task",
            "image": "registry.example/task:1",
            "command": ["python", "-m", "task"],
            "env": [{"name": "TARGET", "value": "warehouse"}],
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}},
        }
    ],
}

LABELS: Mapping[Kind, str] = {
    Kind.TASKRUN: "TaskRun",
    Kind.JOB: "batch/v1 Job",
    Kind.BARE: "bare loop",
}

API_SERVER, ETCD, CONTROLLER_MANAGER = "API server", "etcd", "controller manager"
OPERATOR, LOOP = "operator", "loop"
STATE_API = "state API"
NODES, CLIENT = "kwok", "benchmark"
