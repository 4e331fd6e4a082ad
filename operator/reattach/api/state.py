"""What the operator reads of a TaskRun's state: the summary in the ConfigMap's annotation, and the completion record.

The full format of the ConfigMap is known to `reattach.state` alone.
"""

from datetime import datetime

import msgspec

from reattach.api.objects import Shape

FORMAT_VERSION = "1"


class Epoch(Shape, frozen=True):
    """The attempt that opened the state last."""

    attempt: int
    pod_uid: str = msgspec.field(name="podUID")


class Completion(Shape, frozen=True):
    """The record that the task wrote when it was done. `result` is JSON text, at most 4 KiB."""

    attempt: int
    pod_uid: str = msgspec.field(name="podUID")
    time: datetime
    result: str | None = None


class Summary(Shape, frozen=True):
    """The annotation `reattach.dev/summary`: enough for the operator to know whether it must read the state."""

    epoch: Epoch | None = None
    completed_attempt: int | None = None


class StateView(Shape, frozen=True):
    """The state as far as decisions need it, read from the ConfigMap itself."""

    uid: str
    resource_version: str
    epoch: Epoch | None = None
    completion: Completion | None = None
