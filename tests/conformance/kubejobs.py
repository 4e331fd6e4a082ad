"""External system of the kubernetes adapter: a real API server without controllers.

A thread in place of the controllers ends the objects that have run for a second or were cancelled.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from typing_extensions import override

from conformance.brokenapi import BrokenApi, broken_api
from controlplane import ControlPlane, ControlPlaneError
from reattach.adapters.base import Capabilities
from reattach.adapters.kubernetes import JOB, TASKRUN, Access, KubernetesObjects
from reattach.adapters.kubernetes.kinds import Kind
from reattach.testing import ExternalSystem

JSON = dict[str, Any]
RUNS_SECONDS = 1.0
_CONTAINER = {"name": "main", "image": "localhost/none", "command": ["true"]}
_MANIFESTS: dict[str, JSON] = {
    "Job": {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {"template": {"spec": {"containers": [_CONTAINER], "restartPolicy": "Never"}}},
    },
    "TaskRun": {
        "apiVersion": "reattach.dev/v1alpha1",
        "kind": "TaskRun",
        "spec": {"template": {"spec": {"containers": [_CONTAINER]}}},
    },
}
LASTS = "conformance/lasts"
"""Label of objects that do not end by themselves."""
KINDS = {"Job": JOB, "TaskRun": TASKRUN}


class FastSettlingObjects(KubernetesObjects):
    """Adapter with a short settling time, because the API server is idle."""

    @property
    @override
    def capabilities(self) -> Capabilities:
        can = super().capabilities
        assert can.look_up is not None
        return replace(can, look_up=replace(can.look_up, settling=timedelta(seconds=5)))


class Objects:
    """The objects of one kind in one namespace."""

    def __init__(
        self, control_plane: ControlPlane, address: str, broken: BrokenApi, namespace: str, kind: Kind
    ) -> None:
        self._control_plane = control_plane
        self._address = address
        self._broken = broken
        self._namespace = namespace
        self._kind = kind
        self._mark = control_plane.audit_mark()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._end_objects, daemon=True)

    def external_system(self) -> ExternalSystem:
        """Return the system for the suite."""
        manifest = _MANIFESTS[self._kind.kind]
        access = Access(server=self._address, namespace=self._namespace, ca=None)
        return ExternalSystem(
            adapter=lambda: FastSettlingObjects(self._kind, access=access, namespace=self._namespace),
            count_jobs=self.made,
            request=manifest,
            other_request={**manifest, "metadata": {"labels": {"other": "yes"}}},
            lasting_request={**manifest, "metadata": {"labels": {LASTS: "yes"}}},
            forget=self.forget,
            fail=self._broken.fail,
            count_running=self.running,
        )

    def made(self) -> int:
        """Return how many objects the audit log shows as created, with deleted ones."""
        events = self._control_plane.audit(self._mark, namespace=self._namespace)
        plural = self._kind.path(self._namespace).rpartition("/")[2]
        return sum(
            event["verb"] == "create"
            and event["objectRef"]["resource"] == plural
            and "subresource" not in event["objectRef"]
            and "dryRun" not in event["requestURI"]
            and event["responseStatus"]["code"] == 201
            for event in events
        )

    def running(self) -> int:
        """Return the number of objects that have not ended."""
        found = self._control_plane.call("GET", self._kind.path(self._namespace))["items"]
        return sum("completionTime" not in one.get("status", {}) for one in found)

    def forget(self, handle: str) -> None:
        """Delete the object, as a user does."""
        namespace, name, _ = handle.split("/")
        path = self._kind.path(namespace, name)
        with contextlib.suppress(ControlPlaneError):
            self._control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})
            self._control_plane.call("DELETE", path, {"propagationPolicy": "Background"})

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _end_objects(self) -> None:
        while not self._stopped.wait(0.3):
            with contextlib.suppress(ControlPlaneError):
                for found in self._control_plane.call("GET", self._kind.path(self._namespace))["items"]:
                    self._end(found)

    def _end(self, found: JSON) -> None:
        metadata, status = found["metadata"], found.get("status", {})
        if "deletionTimestamp" in metadata:
            self.forget(
                f"{self._namespace}/{metadata['name']}/{metadata['uid']}"
            )  # removes the finalizers, like the garbage collector
            return
        if LASTS in metadata.get("labels", {}) and not found["spec"].get("cancel"):
            return
        made = datetime.fromisoformat(metadata["creationTimestamp"]).timestamp()
        if time.time() - made < RUNS_SECONDS or "outcome" in status or "completionTime" in status:
            return
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        path = self._kind.path(self._namespace, metadata["name"])
        with contextlib.suppress(ControlPlaneError):  # deleted meanwhile
            self._control_plane.call("PATCH", f"{path}/status", {"status": self._ended(found, now)})

    def _ended(self, found: JSON, now: str) -> JSON:
        if self._kind.kind == "TaskRun":
            cancelled = found["spec"].get("cancel", False)
            return {"outcome": "Cancelled" if cancelled else "Succeeded", "completionTime": now}
        conditions = [{"type": kind, "status": "True"} for kind in ("SuccessCriteriaMet", "Complete")]
        return {"startTime": now, "completionTime": now, "conditions": conditions}


@contextlib.contextmanager
def objects(control_plane: ControlPlane, namespace: str, kind: str) -> Iterator[Objects]:
    """Yield the objects of a kind, which end by themselves."""
    with broken_api(control_plane.client()) as (address, broken):
        found = Objects(control_plane, address, broken, namespace, KINDS[kind])
        found.start()
        try:
            yield found
        finally:
            found.stop()
