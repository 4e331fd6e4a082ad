"""What the pod of an attempt is made of: the author's template, and what Reattach adds to it."""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from reattach.api import names
from reattach.api.taskrun import TaskRun
from reattach.planner.plan import PodDefaults

TOKEN_SECONDS = 3600
"""How long a pod token is valid; the kubelet renews it after four fifths of that."""


def template_hash(template: Mapping[str, Any]) -> str:
    """A hash of the template as it is stored, equal for equal JSON.

    It is compared with what earlier releases wrote to pods that still run, so the way it is made must not change.
    """
    text = json.dumps(template, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def task_container(taskrun: TaskRun) -> str:
    """The name of the container whose end is the attempt's end."""
    return taskrun.spec.container or str(taskrun.spec.template["spec"]["containers"][0]["name"])


def build_pod(taskrun: TaskRun, attempt: int, settings: PodDefaults) -> dict[str, Any]:
    """The body of the attempt's pod, as it is sent to the API server."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(taskrun, attempt, settings),
        "spec": _spec(taskrun, attempt, settings),
    }


def _metadata(taskrun: TaskRun, attempt: int, settings: PodDefaults) -> dict[str, Any]:
    about = taskrun.metadata
    given = taskrun.spec.template.get("metadata") or {}
    return {
        "name": names.pod_name(about.name, about.uid, attempt),
        "namespace": about.namespace,
        "labels": {
            **(given.get("labels") or {}),
            names.LABEL_TASKRUN: about.name,
            names.LABEL_ATTEMPT: str(attempt),
        },
        "annotations": {
            **(given.get("annotations") or {}),
            names.ANNOTATION_TEMPLATE_HASH: template_hash(taskrun.spec.template),
            names.ANNOTATION_CA: settings.ca,
        },
        "finalizers": [names.FINALIZER_ATTEMPT],
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": about.name,
                "uid": about.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def _spec(taskrun: TaskRun, attempt: int, settings: PodDefaults) -> dict[str, Any]:
    spec: dict[str, Any] = copy.deepcopy(taskrun.spec.template["spec"])
    spec["restartPolicy"] = "Never"
    spec.setdefault("enableServiceLinks", False)
    if (seconds := taskrun.spec.deadlines.attempt_seconds) is not None:
        spec["activeDeadlineSeconds"] = seconds
    spec["volumes"] = [*(spec.get("volumes") or ()), _volume()]
    for container in spec["containers"]:
        if container["name"] == task_container(taskrun):
            _equip(container, taskrun, attempt, settings)
    return spec


def _volume() -> dict[str, Any]:
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": names.TOKEN_FILE}
    # Through the annotation the bundle can be renewed in a pod that runs.
    ca = {"path": names.CA_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{names.ANNOTATION_CA}']"}}
    sources = [{"serviceAccountToken": token}, {"downwardAPI": {"items": [ca]}}]
    return {"name": names.VOLUME_NAME, "projected": {"sources": sources}}


def _equip(container: dict[str, Any], taskrun: TaskRun, attempt: int, settings: PodDefaults) -> None:
    # The last lines of the log reach us this way, without any right to read logs.
    container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")
    mount = {"name": names.VOLUME_NAME, "mountPath": names.MOUNT_PATH, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    variables = {
        names.ENV_URL: settings.url,
        names.ENV_PHASE: names.PHASE_RUN,
        names.ENV_NAMESPACE: taskrun.metadata.namespace,
        names.ENV_TASKRUN: taskrun.metadata.name,
        names.ENV_ATTEMPT: str(attempt),
    }
    ours = [{"name": name, "value": value} for name, value in variables.items()]
    # First, so that the author's own variables may refer to them: $(REATTACH_ATTEMPT).
    container["env"] = [*ours, *(container.get("env") or ())]
