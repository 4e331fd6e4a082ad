"""The chart's CRD and admission policies in a control plane of the test's own."""

from typing import Any

from controlplane import ControlPlane, ControlPlaneError
from waiting import wait_until

OPERATOR = "system:serviceaccount:reattach:reattach-operator"
SERVER = "system:serviceaccount:reattach:reattach-server"
RELEASE = "system:serviceaccount:reattach:reattach-release"


def install_admission(control_plane: ControlPlane, namespace: str = "default", **values: Any) -> None:
    """Apply them as helm renders them for release `reattach` in namespace `reattach`, and wait until they act in `namespace`."""
    control_plane.apply_chart("crd.yaml", "admission-*.yaml", values=values)

    def rejects(message: str, plural: str, body: dict[str, Any], **who: Any) -> bool:
        try:
            control_plane.call("POST", f"/api/v1/namespaces/{namespace}/{plural}", body, dryRun="All", **who)
        except ControlPlaneError as error:
            return message in str(error)
        return False

    def acts() -> bool:
        release = {"user": RELEASE, "groups": ("system:masters",)}
        return rejects("only Reattach's operator", "pods", pod(labels={"reattach.dev/probe": ""})) and rejects(
            "Reattach's release Job may only", "configmaps", {"metadata": {"name": "probe"}}, **release
        )

    # The API server sees policies and bindings in order. The last ones are those for pods, which depend on watchNamespaces, and the hook's.
    wait_until(acts, seconds=30, what="the admission policies act", every=0.1)


def pod(name: str = "stray", *, spec: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    """A pod with one container."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, **metadata},
        "spec": {"containers": [{"name": "task", "image": "registry.example/task:1"}], **(spec or {})},
    }
