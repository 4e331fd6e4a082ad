"""Body of an attempt's pod: the author's template, with the additions of Reattach."""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from reattach.api import names
from reattach.api.taskrun import TaskRun
from reattach.planner.plan import AttemptPurpose, PodDefaults

_PHASES = {AttemptPurpose.RUN: names.PHASE_RUN}
TOKEN_SECONDS = 3600
"""Validity of a pod token; the kubelet renews it after four fifths of that time."""


def template_hash(template: Mapping[str, Any]) -> str:
    """Return a hash of the stored template, equal for equal JSON.

    It is compared with the hash that earlier releases wrote to running pods, so it must not change.
    """
    text = json.dumps(template, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def task_container(taskrun: TaskRun) -> str:
    """Return the name of the container whose exit is the end of the attempt."""
    return taskrun.spec.container or str(taskrun.spec.template["spec"]["containers"][0]["name"])


def build_pod(
    taskrun: TaskRun, attempt: int, defaults: PodDefaults, purpose: AttemptPurpose = AttemptPurpose.RUN
) -> dict[str, Any]:
    """Return the body of the attempt's pod for the API server."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(taskrun, attempt, defaults),
        "spec": _spec(taskrun, attempt, defaults, purpose),
    }


def _metadata(taskrun: TaskRun, attempt: int, defaults: PodDefaults) -> dict[str, Any]:
    metadata = taskrun.metadata
    given = taskrun.spec.template.get("metadata") or {}
    return {
        "name": names.pod_name(metadata.name, metadata.uid, attempt),
        "namespace": metadata.namespace,
        "labels": {
            **(given.get("labels") or {}),
            names.LABEL_TASKRUN: metadata.name,
            names.LABEL_ATTEMPT: str(attempt),
        },
        "annotations": {
            **(given.get("annotations") or {}),
            names.ANNOTATION_TEMPLATE_HASH: template_hash(taskrun.spec.template),
            names.ANNOTATION_CA: defaults.ca,
        },
        "finalizers": [names.FINALIZER_ATTEMPT],
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": metadata.name,
                "uid": metadata.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _spec(taskrun: TaskRun, attempt: int, defaults: PodDefaults, purpose: AttemptPurpose) -> dict[str, Any]:
    spec: dict[str, Any] = copy.deepcopy(taskrun.spec.template["spec"])
    spec["restartPolicy"] = "Never"
    spec.setdefault("enableServiceLinks", False)
    if (seconds := taskrun.spec.deadlines.attempt_seconds) is not None:
        spec["activeDeadlineSeconds"] = seconds
    spec["volumes"] = [*(spec.get("volumes") or ()), _volume()]
    for container in spec["containers"]:
        if container["name"] == task_container(taskrun):
            _add_to_container(container, _variables(taskrun, attempt, defaults, purpose))
    return spec


def _volume() -> dict[str, Any]:
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": names.TOKEN_FILE}
    # An annotation lets the operator renew the bundle in a running pod.
    ca = {"path": names.CA_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{names.ANNOTATION_CA}']"}}
    sources = [{"serviceAccountToken": token}, {"downwardAPI": {"items": [ca]}}]
    return {"name": names.VOLUME_NAME, "projected": {"sources": sources}}


def _variables(taskrun: TaskRun, attempt: int, defaults: PodDefaults, purpose: AttemptPurpose) -> dict[str, str]:
    return {
        names.ENV_URL: defaults.url,
        names.ENV_PHASE: _PHASES[purpose],
        names.ENV_NAMESPACE: taskrun.metadata.namespace,
        names.ENV_TASKRUN: taskrun.metadata.name,
        names.ENV_ATTEMPT: str(attempt),
    }


def _add_to_container(container: dict[str, Any], variables: Mapping[str, str]) -> None:
    # The last lines of the log reach the operator this way, without a permission to read logs.
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    mount = {"name": names.VOLUME_NAME, "mountPath": names.MOUNT_PATH, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    ours = [{"name": name, "value": value} for name, value in variables.items()]
    # First, so that the author's own variables may refer to them: $(REATTACH_ATTEMPT).
    container["env"] = [*ours, *(container.get("env") or ())]
