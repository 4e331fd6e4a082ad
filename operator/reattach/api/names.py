"""Names that Reattach uses in clusters, pods and requests, and how derived names are made."""

from typing import Final

GROUP: Final = "reattach.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "TaskRun"
PLURAL: Final = "taskruns"

OPERATOR_NAME: Final = f"{GROUP}/operator"
"""The value of `spec.managedBy` that means this operator; also the field manager of its writes."""

LABEL_TASKRUN: Final = f"{GROUP}/taskrun"
LABEL_ATTEMPT: Final = f"{GROUP}/attempt"
LABEL_PURPOSE: Final = f"{GROUP}/purpose"
"""On the pod of a cleanup attempt: `Cleanup` (`api.taskrun.AttemptPurpose`). Other pods lack it."""
LABEL_ORPHANS: Final = f"{GROUP}/orphans"
"""On a ConfigMap with the record of orphaned jobs (`api.orphans`): the name of their TaskRun."""

FINALIZER_ATTEMPT: Final = f"{GROUP}/attempt"
"""On a pod: its end is not yet recorded in the TaskRun's status."""
FINALIZER_STATE: Final = f"{GROUP}/state"
"""On a state ConfigMap: its TaskRun is unfinished."""
FINALIZER_EXTERNAL_JOBS: Final = f"{GROUP}/external-jobs"
"""On a TaskRun: an external job of it may be open, or its end may need a cleanup attempt."""

ANNOTATION_TEMPLATE_HASH: Final = f"{GROUP}/template-hash"
ANNOTATION_FIXED_TEMPLATE_HASH: Final = f"{GROUP}/fixed-template-hash"
"""On a pod: the hash of its template without the fields that a user may change later."""
ANNOTATION_CA: Final = f"{GROUP}/ca.crt"
"""On a pod: the PEM bundle that the state API's certificate is checked with; follows a rotation."""
ANNOTATION_POD_RETENTION: Final = f"{GROUP}/pod-retention"
"""On a pod: `spec.podRetention`, unless it is `All`."""
ANNOTATION_CONTAINER: Final = f"{GROUP}/container"
"""On a pod with the annotation above: the name of the task's container."""
ANNOTATION_STOP_TIME: Final = f"{GROUP}/stop-time"
"""On a pod whose attempt has ended: when the operator stopped its other containers."""
ANNOTATION_SUMMARY: Final = f"{GROUP}/summary"
"""On a state ConfigMap: JSON (`api.state.Summary`), so that a metadata watch is enough."""

ANNOTATION_RERUN_OF: Final = f"{GROUP}/rerun-of"
"""On a TaskRun that `kubectl reattach rerun` created: the name that it appended its number to."""

ANNOTATION_WAKE: Final = f"{GROUP}/wake"
"""On a TaskRun that waits without a pod: start the next attempt now, once for each new value."""

ANNOTATION_CLEANUP_OF: Final = f"{GROUP}/cleanup-of"
"""On a TaskRun of `kubectl reattach orphans --cancel`: the name of the one that left the jobs."""

TOKEN_AUDIENCE: Final = GROUP
MOUNT_PATH: Final = "/var/run/reattach"
VOLUME_NAME: Final = "reattach"
TOKEN_FILE: Final = "token"  # noqa: S105 -- the name of a file
CA_FILE: Final = "ca.crt"

ENV_URL: Final = "REATTACH_URL"
ENV_ADDRESS: Final = "REATTACH_ADDRESS"
"""IP address of the host in `ENV_URL`, if it is known. The certificate has only the host's name."""
ENV_PHASE: Final = "REATTACH_PHASE"
ENV_NAMESPACE: Final = "REATTACH_NAMESPACE"
ENV_TASKRUN: Final = "REATTACH_TASKRUN"
ENV_ATTEMPT: Final = "REATTACH_ATTEMPT"
ENV_SESSION: Final = "REATTACH_SESSION"
ENV_TERMINATION_LOG: Final = "REATTACH_TERMINATION_LOG"
"""Termination message file, if its path is not the default of Kubernetes."""
"""Set by a process that opened the state, for its children: they write under the same session."""

PHASE_RUN: Final = "run"
PHASE_CLEANUP: Final = "cleanup"

HEADER_SESSION: Final = "Reattach-Session"
HEADER_REQUEST_ID: Final = "Reattach-Request-Id"

NAME_MAX: Final = 48
"""Longest name of a TaskRun, so that `<name>-<uid5>-<attempt>` stays a DNS label (63)."""


def uid5_of(uid: str) -> str:
    """Return the first five characters of a UID. They distinguish TaskRuns that reuse one name."""
    return uid[:5]


def pod_name(taskrun: str, uid: str, attempt: int) -> str:
    """Return the only valid name for the pod of this attempt."""
    return f"{taskrun}-{uid5_of(uid)}-{attempt}"


def orphans_name(taskrun: str, uid: str) -> str:
    """Return the name of the ConfigMap with the record of the jobs that this TaskRun orphaned."""
    return f"{taskrun}-{uid5_of(uid)}-orphans"


def state_name(taskrun: str, uid: str) -> str:
    """Return the only valid name for the state ConfigMap of this TaskRun."""
    return f"{taskrun}-{uid5_of(uid)}-state"
