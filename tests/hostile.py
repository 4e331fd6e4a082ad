"""Objects that the API server accepts and that one tenant can use against all others: nested deeply, very long, or with a wrong annotation.

Every object is written and answered as raw bytes, because Python's json fails on these objects just as an operator does.
"""

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from controlplane import ControlPlane, ControlPlaneError
from operator_process import CONTAINER, Cluster, Kubelet, Operator, succeed
from reattach.api.names import (
    ANNOTATION_SUMMARY,
    API_VERSION,
    FINALIZER_ATTEMPT,
    KIND,
    LABEL_ATTEMPT,
    LABEL_TASKRUN,
    state_name,
)
from reattach.cluster.paths import configmaps, core, taskruns
from waiting import wait_until

JSON = dict[str, Any]

LEVELS = 9_900
"""Levels of nesting. The API server accepts 10,000 in one object, managedFields included; Python's json fails at some 990."""
PROTOBUF_BYTES = 1_300_000
"""Length of a string in a Pod or ConfigMap. etcd takes 1.5 MiB. Each `<` becomes the six bytes `\\u003c` in JSON only."""
JSON_BYTES = 1_400_000
"""Length of a string in a TaskRun, which etcd stores as JSON."""
SECONDS = 20.0
"""Bound for all that the operator does for a TaskRun of another namespace."""

_METADATA_IN_PROTOBUF = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


# -- hostile objects -------------------------------------------------------------------------------


def nested_maps(levels: int, key: str = "a", leaf: str = "1") -> str:
    """Return JSON of maps inside maps. A recursive encoder can't write it."""
    return f'{{"{key}":' * levels + leaf + "}" * levels


def nested_lists(levels: int) -> str:
    """Return JSON of lists inside lists."""
    return "[" * levels + "]" * levels


@dataclass(frozen=True)
class HostileObject:
    """A body without a name. `nested` is JSON text that stands for each string `@nested@` in the body."""

    plural: str
    body: JSON
    nested: str = "null"

    def to_json(self, name: str) -> str:
        """Return the object under this name."""
        body = {**self.body, "metadata": {**self.body["metadata"], "name": name}}
        return json.dumps(body).replace('"@nested@"', self.nested)

    def path(self, namespace: str, name: str | None = None) -> str:
        """Return the path of the object; without a name, of its collection."""
        return taskruns(namespace, name) if self.plural == "taskruns" else core(self.plural, namespace, name)


def taskrun(
    metadata: JSON | None = None, *, template: JSON | None = None, nested: str = "null", **spec: Any
) -> HostileObject:
    """Return a TaskRun. `template` is added to the pod's spec, `spec` to the TaskRun's."""
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata or {},
        "spec": {"template": {"spec": {"containers": [CONTAINER], **(template or {})}}, **spec},
    }
    return HostileObject("taskruns", body, nested)


def pod(metadata: JSON | None = None, *, container: JSON | None = None, nested: str = "null") -> HostileObject:
    """Return a Pod that carries the label of a TaskRun."""
    body = {
        "metadata": {"labels": {LABEL_TASKRUN: "victim"}, **(metadata or {})},
        "spec": {"containers": [{**CONTAINER, **(container or {})}]},
    }
    return HostileObject("pods", body, nested)


def configmap(metadata: JSON | None = None, *, nested: str = "null") -> HostileObject:
    """Return a ConfigMap that carries the label of a TaskRun."""
    return HostileObject("configmaps", {"metadata": {"labels": {LABEL_TASKRUN: "victim"}, **(metadata or {})}}, nested)


def summary(text: str) -> HostileObject:
    """Return a ConfigMap with this annotation as its summary."""
    return configmap({"annotations": {ANNOTATION_SUMMARY: text}})


def owned_by(uid: str) -> JSON:
    """Return metadata with an owner of this UID. The kind is unknown, so that the garbage collector leaves the object alone."""
    return {"ownerReferences": [{"apiVersion": "example.com/v1", "kind": "Absent", "name": "absent", "uid": uid}]}


def managed_fields(api_version: str) -> JSON:
    """Return metadata with nested managedFields, which the API server keeps as the author wrote them."""
    entry = {"manager": "m", "operation": "Update", "apiVersion": api_version, "fieldsType": "FieldsV1"}
    return {"managedFields": [{**entry, "time": "2026-01-01T00:00:00Z", "fieldsV1": "@nested@"}]}


FIELDS = nested_maps(LEVELS, key="f:a", leaf="{}")
OTHER_MANAGER = "example.com/other"

NESTED_TASKRUNS: dict[str, HostileObject] = {
    "nested-maps": taskrun(template={"extra": "@nested@"}, nested=nested_maps(LEVELS)),
    "nested-lists": taskrun(template={"extra": "@nested@"}, nested=nested_lists(LEVELS)),
    "others-maps": taskrun(template={"extra": "@nested@"}, nested=nested_maps(LEVELS), managedBy=OTHER_MANAGER),
    "others-lists": taskrun(template={"extra": "@nested@"}, nested=nested_lists(LEVELS), managedBy=OTHER_MANAGER),
}
"""TaskRuns that no recursive decoder reads whole."""

HOSTILE_TASKRUNS: dict[str, HostileObject] = {
    **NESTED_TASKRUNS,
    # Python's json reads it, a deepcopy on top of some frames doesn't.
    "half-nested": taskrun(template={"extra": "@nested@"}, nested=nested_maps(900)),
    "nested-fields": taskrun(managed_fields(API_VERSION), nested=FIELDS),
    "long-uid": taskrun(owned_by("a" * JSON_BYTES)),
    "long-value": taskrun(template={"extra": "a" * JSON_BYTES}, managedBy=OTHER_MANAGER),
}

HOSTILE_PODS: dict[str, HostileObject] = {
    "nested-fields": pod(managed_fields("v1"), nested=FIELDS),
    "long-uid": pod(owned_by("<" * PROTOBUF_BYTES)),
    "long-value": pod(container={"env": [{"name": "A", "value": "<" * PROTOBUF_BYTES}]}),
    "no-taskrun": pod({"labels": {LABEL_TASKRUN: ""}, "finalizers": [FINALIZER_ATTEMPT]}),
    "no-number": pod({"labels": {LABEL_TASKRUN: "victim", LABEL_ATTEMPT: "x"}, "finalizers": [FINALIZER_ATTEMPT]}),
}

HOSTILE_CONFIGMAPS: dict[str, HostileObject] = {
    "naive-time": summary('{"nextExpiry":"2020-01-01T00:00:00"}'),
    "extreme-time": summary('{"nextExpiry":"0001-01-01T00:00:00+23:59"}'),
    "nested-summary": summary(f'{{"unknown":{nested_lists(20_000)}}}'),
    "garbage": summary('{"nextExpiry'),
    "nested-fields": configmap(managed_fields("v1"), nested=FIELDS),
    "long-uid": configmap(owned_by("<" * PROTOBUF_BYTES)),
}
"""ConfigMaps that look like the state of a TaskRun that is over."""


# -- the tenants -----------------------------------------------------------------------------------


@dataclass
class Attacker:
    """A tenant who writes hostile objects into one namespace."""

    control_plane: ControlPlane
    namespace: str
    _created: dict[str, HostileObject] = field(default_factory=dict)

    def create(self, hostile: HostileObject, prefix: str) -> str:
        """Create the object under a name with this prefix, and return the name."""
        name = f"{prefix}-{secrets.token_hex(4)}"
        self._send("POST", hostile.path(self.namespace), hostile.to_json(name))
        self._created[name] = hostile
        return name

    def write_status(self, name: str, status: JSON) -> None:
        """Write a status, as a user may who has rights on the subresource."""
        path = self._created[name].path(self.namespace, name) + "/status"
        self._send("PATCH", path, json.dumps({"status": status}))

    def read(self, name: str) -> bytes:
        """Return the JSON of the object."""
        return self.control_plane.client().get(self._created[name].path(self.namespace, name)).content

    def touch(self, name: str, times: int = 1) -> None:
        """Change a label of the object, which sends the whole object to every watch."""
        for number in range(times):
            labels = {"metadata": {"labels": {"touched": str(number)}}}
            self._send("PATCH", self._created[name].path(self.namespace, name), json.dumps(labels))

    def withdraw(self) -> None:
        """Delete every object, whatever its finalizers."""
        for name, hostile in self._created.items():
            path = hostile.path(self.namespace, name)
            with contextlib.suppress(ControlPlaneError):  # the operator may have removed the finalizer meanwhile
                self._send("PATCH", path, '{"metadata":{"finalizers":null}}')
                self._send("DELETE", path, '{"gracePeriodSeconds":0}')
        self._created.clear()

    def _send(self, method: str, path: str, body: str) -> None:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        response = self.control_plane.client().request(
            method, path, content=body, headers={"Content-Type": kind, "Accept": _METADATA_IN_PROTOBUF}
        )
        if response.is_error:
            raise ControlPlaneError(f"{response.status_code}: {method} {path}: {response.content[:500]!r}")


@dataclass(frozen=True)
class Bystander:
    """A tenant of another namespace, whom the operator must serve. No kubelet runs: it would read the hostile pods."""

    control_plane: ControlPlane
    namespace: str
    operator: Operator

    def run(self) -> None:
        """Run a new TaskRun up to its outcome. That takes the watch of TaskRuns, and the watch of pods."""
        cluster = Cluster(self.control_plane, self.namespace)
        name = f"bystander-{secrets.token_hex(4)}"
        cluster.create(name)
        found: list[JSON] = self._wait(lambda: cluster.pods(name), f"{name} has a pod")
        kubelet = Kubelet(self.control_plane)
        kubelet._play(found[0], succeed)
        assert kubelet.errors == []
        outcome = self._wait(lambda: cluster.status(name).get("outcome"), f"{name} has an outcome")
        assert outcome == "Succeeded"

    def start(self) -> None:
        """Create a TaskRun, wait for its pod, and delete both."""
        cluster = Cluster(self.control_plane, self.namespace)
        name = f"bystander-{secrets.token_hex(4)}"
        cluster.create(name)
        self._wait(lambda: cluster.pods(name), f"{name} has a pod")
        self.control_plane.call("DELETE", taskruns(self.namespace, name))

    def expire_key(self) -> None:
        """Create the state of a finished TaskRun with an expired key, and wait until a sweep has removed the key."""
        name = f"expired-{secrets.token_hex(4)}"
        path = create_expired_state(self.control_plane, self.namespace, name)
        self._wait(
            lambda: "key.job" not in self.control_plane.call("GET", path)["data"],
            f"the expired key of {name} is removed",
        )

    def _wait(self, condition: Callable[[], Any], what: str) -> Any:
        def reached() -> Any:
            must_run(self.operator)
            return condition()

        return wait_until(reached, seconds=SECONDS, what=what, every=0.1)


def create_expired_state(
    control_plane: ControlPlane, namespace: str, name: str, *, expires_at: str = "2020-01-01T00:00:00Z"
) -> str:
    """Create a TaskRun, and as its state a ConfigMap with one key that expired. Return the path of the ConfigMap.

    The summary names a correct time of expiry. Another manager has the TaskRun, so that nothing else writes the state.
    """
    owner = Cluster(control_plane, namespace).create(name, managedBy=OTHER_MANAGER)["metadata"]
    reference = {"apiVersion": API_VERSION, "kind": KIND, "name": name, "uid": owner["uid"], "controller": True}
    record = {
        "key": "job",
        "value": 1,
        "version": 1,
        "attempt": 1,
        "podUID": "uid",
        "updatedAt": "2019-01-01T00:00:00Z",
    }
    state = state_name(name, owner["uid"])
    body = {
        "metadata": {
            "name": state,
            "labels": {LABEL_TASKRUN: name},
            "annotations": {ANNOTATION_SUMMARY: '{"nextExpiry":"2020-01-01T00:00:00Z"}'},
            "ownerReferences": [reference],
        },
        "data": {
            "formatVersion": "1",
            "lastVersion": "1",
            "requests": "[]",
            "counts": '{"jobs":0,"submissions":0,"reattachments":0,"duplicatesAverted":0}',
            "key.job": json.dumps({**record, "expiresAt": expires_at}),
        },
    }
    control_plane.call("POST", configmaps(namespace), body)
    return configmaps(namespace, state)


# -- the operator ----------------------------------------------------------------------------------


def must_run(operator: Operator) -> None:
    """Raise AssertionError if the process of the operator has ended."""
    if (code := operator.exit_code()) is not None:
        raise AssertionError(f"the operator exited with {code}; its log ends with:\n{operator.log[-1500:]}")


@contextlib.contextmanager
def undisturbed(operator: Operator, *, log_lines: int = 200) -> Iterator[None]:
    """Check that the same process leads after the `with` block, started no loop again, and logged no more than these lines."""
    process, before = operator.process, len(operator.log.splitlines())
    yield
    must_run(operator)
    assert operator.process is process
    assert operator.metric("reattach_leader") == 1
    new = operator.log.splitlines()[before:]
    restarts = [line for line in new if "and restarts in" in line]
    assert restarts == []
    assert len(new) < log_lines, "\n".join(new[:50])
