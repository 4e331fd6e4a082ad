"""Codec of the ConfigMap that holds a TaskRun's state. Only this module knows the format.

    data:
      formatVersion: "1"
      epoch: '{"attempt":2,"podUID":"…","session":"…","time":"…","firstAttempt":1,…}'
      lastVersion: "17"                      # the counter of versions; only grows
      completion: '{"attempt":2,…}'          # absent until the task completes
      end: '{"attempt":1,"kind":"RetryLater",…}'  # absent until an attempt reports its end
      requests: '[{"id":"…","digest":"…","answer":{…}}]'
      key.job_id: '{"key":"job_id","value":"job-7","version":3,"attempt":1,"podUID":"…",…}'
      key-escaped.a_2Fb: …                   # the key `a/b`: other bytes as _ and 2 hex digits
      key-hashed.9f86d0…: …                  # a key too long for that, by its SHA-256
      seal: '{"throughAttempt":2,"purpose":"End"}'  # absent before a seal
      counts: '{"jobs":1,"submissions":1,"reattachments":0,"duplicatesAverted":0}'
      job.1.load: '{"key":"load","generation":1,"adapter":"ray","token":"…","state":"Intended",…}'
      job-escaped.1.a_2Fb, job-hashed.1.9f86d0…                # as for keys

Format 2 adds entries and fields that a reader may ignore (`reattach.state.formats`). Any other
unknown content makes the whole state unreadable: a skipped record would look like one that was
never stored.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from reattach.api.names import (
    ANNOTATION_SUMMARY,
    API_VERSION,
    FINALIZER_STATE,
    KIND,
    LABEL_TASKRUN,
    state_name,
)
from reattach.api.objects import Count, ObjectMeta, Ordinal, Shape, Time
from reattach.api.state import (
    Completion,
    Epoch,
    JobCounts,
    JobState,
    JobSummary,
    PodUid,
    ReportedEnd,
    Seal,
    StateView,
    Summary,
)
from reattach.api.taskrun import AttemptPurpose, StateMetadata
from reattach.state.data_names import JOB_NAMES, KEY_NAMES, data_name_of, job_name_of
from reattach.state.errors import UnreadableError
from reattach.state.formats import OPTIONAL, VERSION, known_part, optional_of, with_format, with_unknown
from reattach.state.job_record import JobName, JobRecord, in_order, to_summary

SUMMARY_BYTES_MAX = 128 * 1024
"""A larger summary omits first strays, then messages, then URLs.

Kubernetes accepts 256 KiB of annotations.
"""


_NEVER_STORED = {JobState.ORPHANED, JobState.CANCELLING}
"""States that only `status.externalJobs` has."""

Version = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""A counter that all JSON parsers read exactly."""


class Opening(Shape, frozen=True, forbid_unknown_fields=True):
    """The epoch as stored: the session that opened the state last. `api.state.Epoch` is its part.

    `fenced_sessions` are earlier sessions of the same pod, the newest last. Defaults are omitted,
    so that a state without a cleanup stays in format 1.
    """

    attempt: Ordinal
    pod_uid: PodUid = msgspec.field(name="podUID")
    session: str
    time: Time
    first_attempt: Count
    can_cleanup: bool = False
    fenced_sessions: tuple[str, ...] = ()
    purpose: AttemptPurpose = AttemptPurpose.RUN
    cleanup_handler: bool = False


class StateEntry(Shape, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """One key as stored. `value` is unparsed JSON text, so that no number loses a digit."""

    key: str
    value: msgspec.Raw
    version: Version
    attempt: Count
    pod_uid: str = msgspec.field(name="podUID")
    updated_at: Time
    expires_at: Time | None


class StoredResponse(Shape, frozen=True, forbid_unknown_fields=True):
    """The response (JSON text) to a change, stored under its request id."""

    id: str
    digest: str
    answer: msgspec.Raw


class DurableState(Shape, frozen=True):
    """The whole state of one TaskRun. `records` by key; `jobs` by key and generation."""

    epoch: Opening | None = None
    last_version: int = 0
    completion: Completion | None = None
    end: ReportedEnd | None = None
    seal: Seal | None = None
    counts: JobCounts = JobCounts()
    requests: tuple[StoredResponse, ...] = ()
    records: Mapping[str, StateEntry] = {}
    jobs: Mapping[JobName, JobRecord] = {}


class _Counts(JobCounts, frozen=True, omit_defaults=False, forbid_unknown_fields=True):
    """Counts with the number of jobs. It detects a missing job, which would be submitted again."""

    jobs: Count = 0


class _Seal(Seal, frozen=True, forbid_unknown_fields=True):
    """The seal as stored. The seal in a summary may have more fields."""


_PARTS: dict[str, tuple[str, Any]] = {
    "epoch": ("epoch", Opening),
    "lastVersion": ("last_version", Version),
    "completion": ("completion", Completion),
    "end": ("end", ReportedEnd),
    "requests": ("requests", tuple[StoredResponse, ...]),
}
"""Fields of the state and their types, by their names in the data."""


class _ConfigMap(Shape, frozen=True):
    metadata: ObjectMeta
    data: dict[str, str] = msgspec.field(default_factory=dict)


class StoredState(Shape, frozen=True):
    """A state and the ConfigMap that it was read from.

    `body` is the whole object, for writing it back.
    """

    metadata: ObjectMeta
    state: DurableState
    body: dict[str, Any]


def to_data(state: DurableState) -> dict[str, str]:
    """Return the ConfigMap's data."""
    data = {
        "lastVersion": str(state.last_version),
        "requests": _text(state.requests),
        "counts": _text(_Counts(jobs=len(state.jobs), **msgspec.structs.asdict(state.counts))),
        **{job_name_of(*name): _text(record) for name, record in state.jobs.items()},
        **records_to_data(state.records),
    }
    parts = {"epoch": state.epoch, "completion": state.completion, "end": state.end, "seal": state.seal}
    return with_format(data | {name: _text(part) for name, part in parts.items() if part is not None})


def records_to_data(records: Mapping[str, StateEntry]) -> dict[str, str]:
    """Return the part of the data that holds the keys."""
    return {data_name_of(key): _text(record) for key, record in records.items()}


def from_data(data: Mapping[str, str]) -> DurableState:
    """Return the state in a ConfigMap's data. Raises `UnreadableError`."""
    optional = optional_of(data)
    parts: dict[str, Any] = {"records": {}, "jobs": {}}
    jobs_counted = 0
    for name, text in data.items():
        match name:
            case _ if name in {VERSION, OPTIONAL}:
                pass
            case "counts":
                counts = _decoded(name, text, _Counts, optional)
                jobs_counted, parts["counts"] = counts.jobs, _without_jobs(counts)
            case "seal":
                parts["seal"] = Seal(**msgspec.structs.asdict(_decoded(name, text, _Seal, optional)))
            case _ if name in _PARTS:
                field, kind = _PARTS[name]
                parts[field] = _decoded(name, text, kind, optional)
            case _ if name.startswith(JOB_NAMES):
                job = _job_of(name, text, optional)
                parts["jobs"][job.name] = job
            case _ if name.startswith(KEY_NAMES):
                record = _record_of(name, text, optional)
                parts["records"][record.key] = record
            case _ if name in optional:
                pass
            case _:
                raise UnreadableError(f"this version does not know {name!r} in the state")
    if len(parts["jobs"]) != jobs_counted:
        raise UnreadableError(f"the state must hold {jobs_counted} external jobs; it has {len(parts['jobs'])}")
    state = DurableState(**parts)
    _check_counter(state, data)
    return state


def from_configmap(configmap: bytes) -> StoredState:
    """Return the state in a ConfigMap (JSON). Raises `UnreadableError`."""
    try:
        body = msgspec.json.decode(configmap)
        read = msgspec.convert(body, _ConfigMap)
    except msgspec.ValidationError as error:
        raise UnreadableError(f"the state is not a ConfigMap: {error}") from None
    except RecursionError:
        raise UnreadableError("the state's ConfigMap is nested too deeply, perhaps in metadata.managedFields") from None
    return StoredState(metadata=read.metadata, state=from_data(read.data), body=body)


def to_new_configmap(
    namespace: str, taskrun: str, uid: str, state: DurableState, given: StateMetadata | None = None
) -> dict[str, Any]:
    """Return a ConfigMap with the state of a TaskRun that has none yet.

    `given`: the author's labels and annotations. The schema refuses those under reattach.dev/.
    """
    given = given or StateMetadata()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": state_name(taskrun, uid),
            "namespace": namespace,
            "labels": {**given.labels, LABEL_TASKRUN: taskrun},
            "annotations": {**given.annotations, ANNOTATION_SUMMARY: summary_annotation_of(state)},
            "finalizers": [FINALIZER_STATE],
            "ownerReferences": [
                {"apiVersion": API_VERSION, "kind": KIND, "name": taskrun, "uid": uid, "controller": True}
            ],
        },
        "data": to_data(state),
    }


def to_configmap(stored: StoredState, state: DurableState) -> dict[str, Any]:
    """Return the ConfigMap with another state. It keeps what this version does not know.

    Writing it is a compare-and-set on the resourceVersion that was read.
    """
    metadata = {name: value for name, value in stored.body["metadata"].items() if name != "managedFields"}
    annotations = {**(metadata.get("annotations") or {}), ANNOTATION_SUMMARY: summary_annotation_of(state)}
    before, data = stored.body["data"], to_data(state)
    if OPTIONAL in before:
        data = with_unknown(before, to_data(stored.state), data)
    return {**stored.body, "metadata": {**metadata, "annotations": annotations}, "data": data}


def summary_annotation_of(state: DurableState) -> str:
    """Return the text of the annotation `reattach.dev/summary`."""
    completed = None if state.completion is None else state.completion.attempt
    summary = Summary(
        epoch=_epoch_of(state),
        completed_attempt=completed,
        seal=state.seal,
        jobs=_job_summaries_of(state),
        counts=state.counts,
        next_expiry=min((at for record in state.records.values() if (at := record.expires_at)), default=None),
    )
    text = _text(summary)
    for left_out in ({"strays": ()}, {"message": ""}, {"url": None}):
        if len(text.encode()) <= SUMMARY_BYTES_MAX:
            break
        jobs = tuple(msgspec.structs.replace(job, **left_out) for job in summary.jobs)
        summary = msgspec.structs.replace(summary, jobs=jobs)
        text = _text(summary)
    return text


def summary_of(annotations: Mapping[str, str]) -> Summary | None:
    """Return the summary in a ConfigMap's annotations, or None if it is absent or invalid.

    Then read the state itself.
    """
    try:
        return msgspec.json.decode(annotations[ANNOTATION_SUMMARY], type=Summary)
    except (KeyError, msgspec.DecodeError, RecursionError):
        return None


def view_of(configmap: bytes) -> StateView:
    """Return the fields of a state ConfigMap (JSON) that decisions need.

    Raises `UnreadableError`.
    """
    stored = from_configmap(configmap)
    return StateView(
        uid=stored.metadata.uid,
        resource_version=stored.metadata.resource_version,
        epoch=_epoch_of(stored.state),
        completion=stored.state.completion,
        seal=stored.state.seal,
        jobs=_job_summaries_of(stored.state),
        counts=stored.state.counts,
        end=stored.state.end,
    )


def _job_summaries_of(state: DurableState) -> tuple[JobSummary, ...]:
    return tuple(to_summary(record) for record in in_order(state.jobs))


def _epoch_of(state: DurableState) -> Epoch | None:
    if state.epoch is None:
        return None
    return Epoch(**{name: getattr(state.epoch, name) for name in Epoch.__struct_fields__})


def _record_of(name: str, text: str, optional: frozenset[str]) -> StateEntry:
    record: StateEntry = _decoded(name, text, StateEntry, optional)
    # Reject a record that a user copied or renamed, and a value that no `set` accepts.
    if data_name_of(record.key) != name or bytes(record.value) == b"null":
        raise UnreadableError(f"{name!r} in the state holds a record of another key, or no value")
    return record


def _job_of(name: str, text: str, optional: frozenset[str]) -> JobRecord:
    job: JobRecord = _decoded(name, text, JobRecord, optional)
    if job.state in _NEVER_STORED:
        raise UnreadableError(f"{name!r} in the state has the state {job.state}, which is never stored")
    unresolved = job.handle is None and not job.is_over
    if job_name_of(*job.name) != name or unresolved is not (job.state is JobState.INTENDED):
        raise UnreadableError(f"{name!r} in the state holds another external job, or an inconsistent one")
    return job


def _without_jobs(counts: _Counts) -> JobCounts:
    return JobCounts(**{name: getattr(counts, name) for name in JobCounts.__struct_fields__})


def _check_counter(state: DurableState, data: Mapping[str, str]) -> None:
    # If the counter were absent or too low, two values could get the same version, and `if-version`
    # would be wrong.
    newest = max((record.version for record in state.records.values()), default=0)
    if "lastVersion" not in data or state.last_version < newest:
        raise UnreadableError(f"lastVersion in the state must be at least {newest}, the newest version in use")


def _decoded(name: str, text: str, kind: Any, optional: frozenset[str]) -> Any:
    try:
        return msgspec.json.decode(known_part(name, text, kind, optional), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UnreadableError(f"{name!r} in the state is damaged: {error}") from None


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
