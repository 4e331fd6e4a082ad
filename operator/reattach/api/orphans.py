"""Record of the external jobs that the end of a TaskRun left running.

A ConfigMap `<taskrun>-<uid5>-orphans` without an owner keeps the record after the TaskRun is
deleted. Its label `reattach.dev/orphans` is the name of the TaskRun, and `data.record` is an
`OrphanRecord` as JSON. Deleting the ConfigMap dismisses the record.
"""

from typing import Final

from reattach.api.objects import Shape, Time

RECORD: Final = "record"
"""The entry of the ConfigMap's data that has the record."""
FORMAT_VERSION: Final = 1


class OrphanedJob(Shape, frozen=True):
    """An external job that may be running although no attempt watches it.

    `why`: why it was not cancelled, as one sentence.
    """

    key: str
    generation: int
    why: str
    adapter: str = ""
    handle: str | None = None
    url: str | None = None
    cancel_requested_time: Time | None = None


class OrphanRecord(Shape, frozen=True, omit_defaults=False):
    """The orphaned jobs of one TaskRun. `reason` and `time` are those of its end."""

    taskrun: str
    uid: str
    reason: str
    time: Time
    jobs: tuple[OrphanedJob, ...]
    format_version: int = FORMAT_VERSION
