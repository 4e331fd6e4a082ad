"""Body of an attempt's pod: the author's template, with the additions of Reattach."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec

from reattach.api import names
from reattach.api.objects import Named, Pod, Shape
from reattach.api.taskrun import AttemptPurpose, Cleanup, TaskRun
from reattach.planner import retention
from reattach.planner.plan import CreatePod, PodDefaults

_PHASES = {AttemptPurpose.RUN: names.PHASE_RUN, AttemptPurpose.CLEANUP: names.PHASE_CLEANUP}
_QUEUE_PREFIX = "kueue.x-k8s.io/"
"""Prefix of the labels and annotations that make a pod wait in a queue."""
_ENV_PREFIX = "REATTACH_"
"""Prefix of our variables. The schema refuses it in a template."""
_CLEANUP_GRACE_SECONDS_MAX = 30
"""Longest grace period of a cleanup pod. Its deadline has passed when it is stopped."""
_OF_THE_TASK = ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle")
"""Fields of a container that check or prepare the task, which a cleanup pod does not run."""
_REPAIRABLE_IN_POD = frozenset({"affinity", "nodeSelector", "resources", "tolerations"})
"""Fields of the pod spec that a user may change while no attempt runs."""
_REPAIRABLE_IN_CONTAINER = frozenset({"env", "image", "resources"})
_CONTAINERS = frozenset({"containers", "initContainers"})
_MESSAGE_POLICY = "FallbackToLogsOnError"
_DEFAULT_MESSAGE_PATH = "/dev/termination-log"
"""Policy by which the last lines of a log reach the operator, without a right to read logs."""
TOKEN_SECONDS = 3600
"""Validity of a pod token; the kubelet renews it after four fifths of that time."""
TEMPLATE_BYTES_MAX = 256 * 1024
"""Size of a template as the API server writes it. A larger one would keep the operator from other
TaskRuns for too long.
"""
TEMPLATE_LEVELS_MAX = 100
"""Levels of nesting in a template. The deepest field of a pod has fewer than 20."""
_HASH = re.compile("[0-9a-f]{16}")
_TOO_DEEP = f"spec.template must be nested at most {TEMPLATE_LEVELS_MAX} levels deep."


class InvalidTemplateError(ValueError):
    """Template from which no pod can be built. The message states what must hold."""


class _Metadata(Shape, frozen=True):
    labels: dict[str, str | None] | None = None
    annotations: dict[str, str | None] | None = None


class _Container(Shape, frozen=True):
    name: str
    env: list[Any] | None = None
    volume_mounts: list[Any] | None = None


class _PodSpec(Shape, frozen=True):
    containers: Annotated[tuple[_Container, ...], msgspec.Meta(min_length=1)]
    volumes: list[Any] | None = None


class _Template(Shape, frozen=True):
    """The parts of a template that Reattach changes. The API server checks the rest."""

    spec: _PodSpec
    metadata: _Metadata | None = None


class _NamesSpec(Shape, frozen=True):
    """Containers only, because authors may set other fields of a pod to null."""

    containers: tuple[Named, ...] = ()


class _Names(Shape, frozen=True):
    spec: _NamesSpec = _NamesSpec()


def parse_template(template: msgspec.Raw) -> dict[str, Any]:
    """Return the template as Python objects. Raises `InvalidTemplateError`."""
    if len(template) > TEMPLATE_BYTES_MAX:
        raise InvalidTemplateError(f"spec.template must have at most {TEMPLATE_BYTES_MAX // 1024} KiB of JSON.")
    try:
        content: dict[str, Any] = msgspec.json.decode(template)
        msgspec.convert(content, _Template)
    except msgspec.DecodeError as error:
        raise InvalidTemplateError(f"spec.template must be a pod template: {error}.") from None
    except RecursionError:
        raise InvalidTemplateError(_TOO_DEEP) from None
    if _has_more_levels(content, TEMPLATE_LEVELS_MAX):
        raise InvalidTemplateError(_TOO_DEEP)
    return content


def _has_more_levels(value: Any, most: int) -> bool:
    layer = [value]
    for _ in range(most):
        layer = [inner for outer in layer for inner in _items_of(outer) if isinstance(inner, dict | list)]
    return bool(layer)


def _items_of(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def template_hash(template: Mapping[str, Any]) -> str:
    """Return a hash of the stored template, equal for equal JSON.

    It is compared with the hash that earlier releases wrote to running pods, so it must not change.
    """
    text = json.dumps(template, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fixed_template_hash(template: Mapping[str, Any]) -> str:
    """Return a hash of the template without the fields that a user may change to repair a run.

    The admission policy `immutable` of the chart has the same fields.
    """
    spec = {name: _fixed_part(name, value) for name, value in template["spec"].items() if _is_fixed(name, value)}
    return template_hash({**template, "spec": spec})


def _is_fixed(name: str, value: Any) -> bool:
    # The policy takes an empty or null list of containers for an absent one.
    return name not in _REPAIRABLE_IN_POD and (name not in _CONTAINERS or value not in (None, []))


def _fixed_part(name: str, value: Any) -> Any:
    if name not in _CONTAINERS or not isinstance(value, list):
        return value
    return [
        # The policy takes a null field for an absent one.
        {
            field: inner
            for field, inner in container.items()
            if field not in _REPAIRABLE_IN_CONTAINER and inner is not None
        }
        if isinstance(container, dict)
        else container
        for container in value
    ]


def has_template_changed(taskrun: TaskRun, pods: Iterable[Pod]) -> bool:
    """Return whether a pod has a template from which no repair leads to the current one.

    Pods of earlier releases don't have the hash of the fixed part, and are not compared. Raises
    `InvalidTemplateError`.
    """
    template = parse_template(taskrun.spec.template)
    hashes = {pod.metadata.annotations.get(names.ANNOTATION_FIXED_TEMPLATE_HASH) for pod in pods} - {None}
    return bool(hashes) and hashes != {fixed_template_hash(template)}


def template_hash_of(pod: Pod) -> str | None:
    """Return the hash of the template from which the pod was made; None if it is not known."""
    found = pod.metadata.annotations.get(names.ANNOTATION_TEMPLATE_HASH, "")
    return found if _HASH.fullmatch(found) else None


def task_container(taskrun: TaskRun) -> str:
    """Return the name of the container whose exit is the end of the attempt.

    It is empty if the template has no container. Then no pod can be built from it.
    """
    if taskrun.spec.container:
        return taskrun.spec.container
    try:
        containers = msgspec.json.decode(taskrun.spec.template, type=_Names).spec.containers
    except (msgspec.DecodeError, RecursionError):
        containers = ()
    return containers[0].name if containers else ""


def pod_creation(
    taskrun: TaskRun, attempt: int, defaults: PodDefaults, *, cleanup_seconds: int | None = None
) -> CreatePod:
    """Return the creation of the attempt's pod. Raises `InvalidTemplateError`.

    `cleanup_seconds`: how long a cleanup pod may run; None if the pod runs the task.
    """
    body = build_pod(taskrun, attempt, defaults, cleanup_seconds=cleanup_seconds)
    metadata = body["metadata"]
    return CreatePod(
        attempt=attempt,
        name=metadata["name"],
        template_hash=metadata["annotations"][names.ANNOTATION_TEMPLATE_HASH],
        quota_size=quota_size_of(body),
        body=msgspec.json.encode(body),
        purpose=_purpose(cleanup_seconds),
    )


def template_of_pod(body: bytes) -> dict[str, Any]:
    """Return a PodTemplate with the content of a pod, to check the pod without its admission.

    `body`: of `CreatePod`. Our variables come before those of the author, and are left out so
    that an error names the index that the author wrote. Our volume and mount come last.
    """
    pod = msgspec.json.decode(body)
    metadata, spec = pod["metadata"], pod["spec"]
    for container in spec["containers"]:
        if isinstance(container.get("env"), list):
            container["env"] = [variable for variable in container["env"] if not _is_ours(variable)]
    return {
        "apiVersion": "v1",
        "kind": "PodTemplate",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "template": {"metadata": {name: metadata[name] for name in ("labels", "annotations")}, "spec": spec},
    }


def _is_ours(variable: Any) -> bool:
    return isinstance(variable, dict) and str(variable.get("name")).startswith(_ENV_PREFIX)


def quota_size_of(pod: Mapping[str, Any]) -> str:
    """Return a digest of what decides whether a quota has room for a pod.

    These are the resources of its containers, and the fields that scopes of a ResourceQuota match.
    A digest, because it is kept while the TaskRun waits, and a user decides how long the rest is.
    """
    spec = pod["spec"]
    lists = [spec.get(name) for name in ("containers", "initContainers")]
    containers = [
        container.get("resources")
        for found in lists
        if isinstance(found, list)
        for container in found
        if isinstance(container, dict)
    ]
    scopes = [spec.get(name) for name in ("resources", "overhead", "priorityClassName")]
    size = [containers, scopes, "activeDeadlineSeconds" in spec, "affinity" in spec]
    return hashlib.sha256(json.dumps(size, sort_keys=True).encode()).hexdigest()[:16]


def build_pod(
    taskrun: TaskRun, attempt: int, defaults: PodDefaults, *, cleanup_seconds: int | None = None
) -> dict[str, Any]:
    """Return the body of the attempt's pod for the API server. Raises `InvalidTemplateError`."""
    template = parse_template(taskrun.spec.template)
    hashes = {
        names.ANNOTATION_TEMPLATE_HASH: template_hash(template),
        names.ANNOTATION_FIXED_TEMPLATE_HASH: fixed_template_hash(template),
    }
    purpose = _purpose(cleanup_seconds)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(taskrun, template.get("metadata") or {}, hashes, attempt, defaults),
        "spec": _spec(taskrun, template["spec"], _variables(taskrun, attempt, defaults, purpose)),
    }
    return pod if cleanup_seconds is None else _to_cleanup_pod(taskrun, pod, cleanup_seconds)


def _purpose(cleanup_seconds: int | None) -> AttemptPurpose:
    return AttemptPurpose.RUN if cleanup_seconds is None else AttemptPurpose.CLEANUP


def _to_cleanup_pod(taskrun: TaskRun, pod: dict[str, Any], seconds: int) -> dict[str, Any]:
    """Return the pod with what a cleanup changes, so that it waits in no queue of the task."""
    metadata, spec, cleanup = pod["metadata"], pod["spec"], taskrun.spec.cleanup
    for field in ("labels", "annotations"):
        kept = {name: value for name, value in metadata[field].items() if not name.startswith(_QUEUE_PREFIX)}
        metadata[field] = kept
    metadata["labels"][names.LABEL_PURPOSE] = AttemptPurpose.CLEANUP.value
    spec.pop("schedulingGates", None)
    spec["activeDeadlineSeconds"] = seconds
    grace = spec.get("terminationGracePeriodSeconds")
    if not isinstance(grace, int) or grace > _CLEANUP_GRACE_SECONDS_MAX:
        spec["terminationGracePeriodSeconds"] = _CLEANUP_GRACE_SECONDS_MAX
    for container in spec["containers"]:
        if container["name"] == task_container(taskrun):
            _use_cleanup(container, cleanup)
    return pod


def _use_cleanup(container: dict[str, Any], cleanup: Cleanup) -> None:
    for name in _OF_THE_TASK:
        container.pop(name, None)
    if cleanup.command:
        container["command"] = list(cleanup.command)
        container.pop("args", None)
    if cleanup.resources is not None:
        container["resources"] = msgspec.to_builtins(cleanup.resources)


def _metadata(
    taskrun: TaskRun, given: Mapping[str, Any], hashes: Mapping[str, str], attempt: int, defaults: PodDefaults
) -> dict[str, Any]:
    metadata = taskrun.metadata
    return {
        "name": names.pod_name(metadata.name, metadata.uid, attempt),
        "namespace": metadata.namespace,
        "labels": {
            **_without_purpose(given.get("labels") or {}),
            names.LABEL_TASKRUN: metadata.name,
            names.LABEL_ATTEMPT: str(attempt),
        },
        "annotations": {
            **_without_ours(given.get("annotations") or {}),
            **retention.annotations_of(taskrun.spec, task_container(taskrun)),
            **hashes,
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


def _without_purpose(labels: Mapping[str, str | None]) -> dict[str, str | None]:
    # A template must not make the pod of a run attempt look like one that may clean up.
    return {name: value for name, value in labels.items() if name != names.LABEL_PURPOSE}


def _without_ours(annotations: Mapping[str, str | None]) -> dict[str, str | None]:
    # The absence of an annotation has a meaning, too. The schema refuses these keys.
    return {name: value for name, value in annotations.items() if not name.startswith(f"{names.GROUP}/")}


def _spec(taskrun: TaskRun, spec: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    spec["restartPolicy"] = "Never"
    _set_default(spec, "enableServiceLinks", False)
    if (seconds := taskrun.spec.deadlines.attempt_seconds) is not None:
        spec["activeDeadlineSeconds"] = seconds
    spec["volumes"] = [*(spec.get("volumes") or ()), _volume()]
    for container in spec["containers"]:
        if container["name"] == task_container(taskrun):
            _add_to_container(container, variables)
    for container in _dicts_of(spec.get("initContainers")):
        _set_default(container, "terminationMessagePolicy", _MESSAGE_POLICY)
    return spec


def _dicts_of(value: Any) -> Iterable[dict[str, Any]]:
    """Return the objects in a list of the template, which the API server has not checked yet."""
    return (one for one in value if isinstance(one, dict)) if isinstance(value, list) else ()


def _set_default(fields: dict[str, Any], name: str, value: Any) -> None:
    """Set a field that is absent or null, which has the same meaning in a pod."""
    if fields.get(name) is None:
        fields[name] = value


def _volume() -> dict[str, Any]:
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": names.TOKEN_FILE}
    # An annotation lets the operator renew the bundle in a running pod.
    ca = {"path": names.CA_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{names.ANNOTATION_CA}']"}}
    sources = [{"serviceAccountToken": token}, {"downwardAPI": {"items": [ca]}}]
    return {"name": names.VOLUME_NAME, "projected": {"sources": sources}}


def _variables(taskrun: TaskRun, attempt: int, defaults: PodDefaults, purpose: AttemptPurpose) -> dict[str, str]:
    address = {names.ENV_ADDRESS: defaults.address} if defaults.address else {}
    return {
        names.ENV_URL: defaults.url,
        **address,
        names.ENV_PHASE: _PHASES[purpose],
        names.ENV_NAMESPACE: taskrun.metadata.namespace,
        names.ENV_TASKRUN: taskrun.metadata.name,
        names.ENV_ATTEMPT: str(attempt),
    }


def _message_path_of(container: Mapping[str, Any]) -> dict[str, str]:
    """Return the variable that names the termination message file, if its path is the author's."""
    path = container.get("terminationMessagePath")
    if not isinstance(path, str) or path in {"", _DEFAULT_MESSAGE_PATH}:
        return {}
    return {names.ENV_TERMINATION_LOG: path.replace("$", "$$")}  # The kubelet expands $(NAME).


def _add_to_container(container: dict[str, Any], variables: dict[str, str]) -> None:
    _set_default(container, "terminationMessagePolicy", _MESSAGE_POLICY)
    mount = {"name": names.VOLUME_NAME, "mountPath": names.MOUNT_PATH, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    ours = [{"name": name, "value": value} for name, value in (variables | _message_path_of(container)).items()]
    # First, so that the author's own variables may refer to them: $(REATTACH_ATTEMPT).
    container["env"] = [*ours, *(container.get("env") or ())]
