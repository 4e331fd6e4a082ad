"""Columns of `kubectl get trun`, as the API server fills them."""

from typing import Any

from controlplane import ControlPlane
from reattach.cluster.paths import taskruns

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def row(control_plane: ControlPlane, path: str) -> dict[str, Any]:
    table = control_plane.client().get(path, headers={"Accept": TABLE}).json()
    [found] = table["rows"]
    names = [column["name"] for column in table["columnDefinitions"]]
    return dict(zip(names, found["cells"], strict=True))


def test_deleted_column_shows_only_a_taskrun_that_is_being_deleted(control_plane: ControlPlane, namespace: str) -> None:
    metadata = {"name": "load", "finalizers": ["example.com/test"]}
    spec = {"template": {"spec": {"containers": [{"name": "task", "image": "task"}]}}}
    manifest = {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "metadata": metadata, "spec": spec}
    control_plane.call("POST", taskruns(namespace), manifest)
    path = f"{taskruns(namespace)}/load"
    assert row(control_plane, path)["Deleted"] is None
    control_plane.call("DELETE", path)
    assert row(control_plane, path)["Deleted"] is not None
    control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})
