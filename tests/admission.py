"""The chart's CRD and admission policies in a control plane of the test's own."""

from typing import Any

from controlplane import ControlPlane, ControlPlaneError
from waiting import wait_until

OPERATOR = "system:serviceaccount:reattach:reattach-operator"
SERVER = "system:serviceaccount:reattach:reattach-server"


def install_admission(control_plane: ControlPlane, namespace: str = "default", **values: Any) -> None:
    """Apply them as helm renders them for release `reattach` in namespace `reattach`, and wait until they act in `namespace`."""
    control_plane.apply_chart("crd.yaml", "admission-*.yaml", values=values)

    def acts() -> bool:
        try:
            control_plane.call(
                "POST", f"/api/v1/namespaces/{namespace}/pods", pod(labels={"reattach.dev/probe": ""}), dryRun="All"
            )
        except ControlPlaneError as error:
            return "only Reattach's operator" in str(error)
        return False

    # The policy for pods and its binding are applied last, and the API server sees policies and bindings in order.
    wait_until(acts, seconds=30, what="the admission policies act", every=0.1)


def pod(name: str = "stray", *, spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    """A pod with one container."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **metadata},
        "spec": {"containers": [{"name": "task", "image": "registry.example/task:1"}], **(spec or {})},
    }
