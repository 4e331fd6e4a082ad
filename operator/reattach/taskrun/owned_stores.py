"""Stores of the pods and states of unfinished TaskRuns, without those whose work is done."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from reattach.api.names import ANNOTATION_SUMMARY, ANNOTATION_TEMPLATE_HASH, FINALIZER_ATTEMPT, FINALIZER_STATE
from reattach.api.objects import PartialObject, Pod
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.workqueue import Key
from reattach.taskrun.reconciler import key_by_label

T = TypeVar("T", Pod, PartialObject)

_OVER = frozenset({"Succeeded", "Failed"})
_ANNOTATIONS = (ANNOTATION_SUMMARY, ANNOTATION_TEMPLATE_HASH)


def pod_store(on_change: Callable[[Key], None]) -> ObjectStore[Pod]:
    """Return a store of the pods that still run, or whose end is not recorded yet."""
    return ObjectStore(key_by_label, on_change, keep=is_pod_needed, transform=without_foreign_annotations)


def state_store(on_change: Callable[[Key], None]) -> ObjectStore[PartialObject]:
    """Return a store of the metadata of the states whose TaskRun is unfinished."""
    return ObjectStore(key_by_label, on_change, keep=is_state_needed, transform=without_foreign_annotations)


def is_pod_needed(pod: Pod) -> bool:
    """Return whether the pod runs, or has our finalizer because its end is not recorded yet."""
    return FINALIZER_ATTEMPT in pod.metadata.finalizers or pod.status.phase not in _OVER


def is_state_needed(state: PartialObject) -> bool:
    """Return whether the state has our finalizer because its TaskRun is unfinished."""
    return FINALIZER_STATE in state.metadata.finalizers


def without_foreign_annotations(found: T) -> T:
    """Return the object with only the annotations that decisions need.

    The CA bundle alone is 0.7 KB in each pod.
    """
    metadata = found.metadata
    kept = {name: metadata.annotations[name] for name in _ANNOTATIONS if name in metadata.annotations}
    return msgspec.structs.replace(found, metadata=msgspec.structs.replace(metadata, annotations=kept))
