"""Columns of `kubectl get trun`, as the API server fills them."""

from typing import Any

import pytest

from controlplane import ControlPlane
from reattach.cluster.paths import taskruns
from reattach.planner.external_jobs import short_handle_of

TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


def table(control_plane: ControlPlane, path: str) -> dict[str, Any]:
    shown: dict[str, Any] = control_plane.client().get(path, headers={"Accept": TABLE}).json()
    return shown


def create(control_plane: ControlPlane, namespace: str, **metadata: Any) -> str:
    spec = {"template": {"spec": {"containers": [{"name": "task", "image": "task"}]}}}
    about = {"name": "load", **metadata}
    manifest = {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "metadata": about, "spec": spec}
    control_plane.call("POST", taskruns(namespace), manifest)
    return f"{taskruns(namespace)}/load"


def row(control_plane: ControlPlane, path: str) -> dict[str, Any]:
    shown = table(control_plane, path)
    [found] = shown["rows"]
    names = [column["name"] for column in shown["columnDefinitions"]]
    return dict(zip(names, found["cells"], strict=True))


def test_deleted_column_shows_only_a_taskrun_that_is_being_deleted(control_plane: ControlPlane, namespace: str) -> None:
    path = create(control_plane, namespace, finalizers=["example.com/test"])
    assert row(control_plane, path)["Deleted"] is None
    control_plane.call("DELETE", path)
    assert row(control_plane, path)["Deleted"] is not None
    control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})


ARN = "arn:aws:batch:eu-central-1:123456789012:job/1f0d5c3e-5a0c-4a7e-9d43-0b6c1e2f3a4b"
URL = "https://jobs.example.com/api/v2/namespaces/data/jobs/17"


@pytest.mark.parametrize(
    "handle, short",
    [
        ("4242", "4242"),
        ("raysubmit_8Vn1x5bCqT2kLm9z", "raysubmit_8Vn1x5bCqT2kLm9z"),
        (ARN, f"arn:aws:…{ARN[-23:]}"),
        (URL, f"https://…{URL[-23:]}"),
        (None, None),
    ],
)
def test_external_job_column_has_the_short_form_and_wide_the_whole_handle(
    control_plane: ControlPlane, namespace: str, handle: str | None, short: str | None
) -> None:
    job = {"key": "load", "generation": 1, "state": "Active"}
    if handle is not None:
        short_handle = short_handle_of(handle)
        job |= {"handle": handle} | ({"shortHandle": short_handle} if short_handle is not None else {})
    older = {"key": "load-0", "generation": 1, "state": "Succeeded", "handle": f"{ARN}-older", "shortHandle": "older"}
    path = create(control_plane, namespace)
    control_plane.call("PATCH", f"{path}/status", {"status": {"externalJobs": [older, job]}})
    shown = row(control_plane, path)
    assert (shown["External Job"], shown["Handle"]) == (short, handle)
    priorities = {one["name"]: one["priority"] for one in table(control_plane, path)["columnDefinitions"]}
    assert priorities["External Job"] == 0, "the short form must be a default column"
    assert priorities["Handle"] > 0, "the whole handle must be shown only with -o wide"
