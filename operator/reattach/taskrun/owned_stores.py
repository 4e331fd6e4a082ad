"""Stores of the pods and states of TaskRuns.

The reconciler evicts those of finished TaskRuns, so that memory does not grow with them.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from reattach.api.names import (
    ANNOTATION_CONTAINER,
    ANNOTATION_FIXED_TEMPLATE_HASH,
    ANNOTATION_POD_RETENTION,
    ANNOTATION_STOP_TIME,
    ANNOTATION_SUMMARY,
    ANNOTATION_TEMPLATE_HASH,
)
from reattach.api.objects import PartialObject, Pod
from reattach.runtime.object_store import ObjectStore
from reattach.runtime.workqueue import Key
from reattach.taskrun.reconciler import key_by_label

T = TypeVar("T", Pod, PartialObject)

_ANNOTATIONS = (
    ANNOTATION_SUMMARY,
    ANNOTATION_TEMPLATE_HASH,
    ANNOTATION_FIXED_TEMPLATE_HASH,
    ANNOTATION_POD_RETENTION,
    ANNOTATION_CONTAINER,
    ANNOTATION_STOP_TIME,
)


def pod_store(on_change: Callable[[Key], None]) -> ObjectStore[Pod]:
    """Return a store of pods."""
    return ObjectStore(key_by_label, on_change, transform=without_foreign_annotations)


def state_store(on_change: Callable[[Key], None]) -> ObjectStore[PartialObject]:
    """Return a store of the metadata of states."""
    return ObjectStore(key_by_label, on_change, transform=without_foreign_annotations)


def without_foreign_annotations(found: T) -> T:
    """Return the object with only the annotations that decisions need.

    The CA bundle alone is 0.7 KB in each pod.
    """
    metadata = found.metadata
    kept = {name: metadata.annotations[name] for name in _ANNOTATIONS if name in metadata.annotations}
    return msgspec.structs.replace(found, metadata=msgspec.structs.replace(metadata, annotations=kept))
