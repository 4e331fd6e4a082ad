"""The object to create, its owner, and the meaning of the API server's responses. Pure.

An object is ours if it carries the submission token as a label or an annotation. The label is for
users and `kubectl get -l`. The annotation is also checked, because a webhook that removes labels
must not cause a second submission. An object without the token, or with another one, belongs to
another client, whatever its name is.
"""

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Self

import msgspec

from reattach.adapters.base import (
    Active,
    Cancelled,
    Failed,
    JobStatus,
    NotFound,
    Rejected,
    Submission,
    Submitted,
    Succeeded,
    Unknown,
)
from reattach.adapters.http_client import CallError, HttpResponse
from reattach.adapters.kubernetes.kinds import TASKRUN, Kind, text_at, value_at

LABEL_TOKEN: Final = "reattach.dev/submission-token"  # noqa: S105 -- the name of a label
ANNOTATION_TASKRUN: Final = "reattach.dev/submitted-by"
ANNOTATION_JOB: Final = "reattach.dev/submitted-as"

_REFUSED: Final = frozenset({400, 403, 404, 405, 413, 415, 422})
"""Statuses that reject the object finally.

401, and 403 for want of a right, are about the credentials: a right may be granted while the task
waits. An API server that starts, or has rotated its keys, rejects valid tokens for a while.
"""
_BUSY: Final = frozenset({429})
_NO_RIGHT: Final = re.compile(r'is forbidden: User ".*" cannot \w+ resource ')
"""Message of the authorizer. Admission also rejects objects with 403, and those for good."""


@dataclass(frozen=True)
class ObjectHandle:
    """Permanent identity of one object; another object with the same name has another UID."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Parse `namespace/name/uid`. Return None for any other text."""
        parts = text.split("/")
        return cls(*parts) if len(parts) == 3 and all(_is_name(part) for part in parts) else None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}/{self.uid}"


def object_of(
    kind: Kind, submission: Submission, namespace: str, retention: timedelta | None, *, owned: bool = False
) -> dict[str, Any]:
    """Return the object to create: the task's manifest with our name, the token, and the TaskRun.

    owned: the TaskRun is the object's owner.

    Raises `Rejected`.
    """
    manifest = submission.request
    if not isinstance(manifest, dict) or (manifest.get("apiVersion"), manifest.get("kind")) != (
        kind.api_version,
        kind.kind,
    ):
        raise Rejected(f"the request must be the manifest of a {kind.kind} of {kind.api_version}")
    metadata = manifest.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise Rejected("metadata must be an object")
    if taken := [name for name in ("name", "generateName", "uid", "resourceVersion") if name in metadata]:
        raise Rejected(
            f"the manifest must have no metadata.{taken[0]}: Reattach chooses the name, because it identifies the object"
        )
    if metadata.get("namespace", namespace) != namespace:
        raise Rejected(f"metadata.namespace must be {namespace!r}, the adapter's namespace, or be left out")
    _check_ends(kind, manifest, retention)
    owner = {"ownerReferences": [_owner_of(kind, submission, metadata, namespace)]} if owned else {}
    body = copy.deepcopy(manifest)
    body["metadata"] = {
        **copy.deepcopy(metadata),
        **owner,
        "name": submission.name,
        "namespace": namespace,
        "labels": {**(metadata.get("labels") or {}), LABEL_TOKEN: submission.token},
        "annotations": {
            **(metadata.get("annotations") or {}),
            LABEL_TOKEN: submission.token,
            ANNOTATION_TASKRUN: f"{submission.namespace}/{submission.taskrun}",
            ANNOTATION_JOB: f"{submission.key}#{submission.generation}",
        },
    }
    return body


def _owner_of(kind: Kind, submission: Submission, metadata: dict[str, Any], namespace: str) -> dict[str, Any]:
    """Return the reference to the TaskRun. Raises `Rejected` if it must not own the object."""
    owner = submission.owner
    if owner is None:
        raise Rejected(
            "owned=True requires a state API that reports the owner of a job; upgrade Reattach, or leave `owned` out"
        )
    if namespace != submission.namespace:
        raise Rejected(
            f"owned=True requires the namespace of the TaskRun, {submission.namespace!r}, because Kubernetes deletes an object"
            f" whose owner is not in the same namespace; the adapter's namespace is {namespace!r}"
        )
    if owner.kept_because:
        raise Rejected(
            f"the {kind.kind} must not be deleted with its TaskRun: {owner.kept_because}. Leave `owned` out of the adapter"
        )
    if "ownerReferences" in metadata:
        raise Rejected("metadata.ownerReferences must be left out with owned=True, because the TaskRun is the owner")
    return {
        "apiVersion": TASKRUN.api_version,
        "kind": TASKRUN.kind,
        "name": submission.taskrun,
        "uid": owner.uid,
        "controller": False,
        "blockOwnerDeletion": False,
    }


def created_of(response: HttpResponse) -> Submitted | None:
    """Return the job from the response to its creation, or None if the name already has an object.

    Raises:
        Rejected: this request certainly created no object.
        CallError: the outcome is unknown.
    """
    if response.is_success:
        return Submitted(str(_handle_of(response)))
    reason = _reason_of(response)
    if response.status == 409 and reason == "AlreadyExists":
        return None
    if response.status == 403 and "exceeded quota" in response.text:
        raise Rejected(f"the namespace's quota has no room: {response_text(response)}", retriable=True)
    if response.status == 404 and reason != "NotFound":
        raise Rejected(f"the API server must serve this kind; is its CRD installed? {response_text(response)}")
    if _is_about_credentials(response):
        raise Rejected(f"the API server refuses the credentials: {response_text(response)}", credentials=True)
    if response.status in _REFUSED:
        raise Rejected(f"the API server refuses the object: {response_text(response)}")
    if response.status in _BUSY:
        raise Rejected(
            f"the API server refuses the object for now: {response_text(response)}",
            retriable=True,
            retry_after=response.retry_after,
        )
    raise CallError(
        f"the response does not show whether the object was created: {response_text(response)}",
        retry_after=response.retry_after,
    )


def existing_of(response: HttpResponse, submission: Submission) -> Submitted | None:
    """Return our object of this name, or None if no object has the name.

    Raises:
        ForeignObjectError: the object with this name is not ours.
        CallError: the response does not show whether the object exists.
    """
    if is_absent(response, submission.name):
        return None
    if not response.is_success:
        raise CallError(f"the object could not be read: {response_text(response)}", retry_after=response.retry_after)
    carried = [value_at(response.body, f"metadata.{part}") or {} for part in ("labels", "annotations")]
    handle = _handle_of(response)
    if {of[LABEL_TOKEN] for of in carried if LABEL_TOKEN in of} != {submission.token}:
        raise ForeignObjectError(
            f"{handle.namespace}/{handle.name} was not submitted by this run: it must carry the label "
            f"{LABEL_TOKEN}={submission.token}. Check which client created it; then delete it, or adopt it with `spec.adopt`"
        )
    return Submitted(str(handle), existed=True)


class ForeignObjectError(CallError):
    """An object has our name and does not carry our token."""


def status_of(kind: Kind, response: HttpResponse, handle: ObjectHandle) -> JobStatus:
    """Return the status of the job."""
    if is_absent(response, handle.name):
        return NotFound(response_text(response))
    if not response.is_success or not isinstance(response.body, dict):
        return Unknown(response_text(response), response.retry_after)
    found = response.body
    if (uid := text_at(found, "metadata.uid")) != handle.uid:
        return NotFound(f"the {kind.kind} {handle.name} is another object: its UID is {uid}, not {handle.uid}")
    return _standing_of(kind, found)


def is_absent(response: HttpResponse, name: str) -> bool:
    """Return whether the API server itself reports that no object has this name.

    A 404 of a proxy, or for a kind that is not served, does not count.
    """
    return (
        response.status == 404 and _reason_of(response) == "NotFound" and text_at(response.body, "details.name") == name
    )


def delete_options_of(preconditions: Mapping[str, str]) -> dict[str, Any]:
    """Return options for a foreground deletion.

    The object then exists until its dependents are deleted, so NotFound means that no pod runs.
    """
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": dict(preconditions),
        "propagationPolicy": "Foreground",
    }


def response_text(response: HttpResponse) -> str:
    """Return the message of a Status."""
    message = text_at(response.body, "message") if isinstance(response.body, dict) else ""
    return f"{response.status} {message}"[:400] if message else str(response)


def _standing_of(kind: Kind, found: dict[str, Any]) -> JobStatus:
    standing = next((when.standing for when in kind.standings if when.matches(found)), None)
    message = ": ".join(text for place in kind.messages if (text := text_at(found, place)))
    match standing:
        case "Succeeded":
            return Succeeded(_result_of(kind, found))
        case "Failed":
            return Failed(message or "the job failed")
        case "Cancelled":
            return Cancelled(message)
        case "Active" if value_at(found, "metadata.deletionTimestamp") is not None:
            return Active(f"is being deleted: {message}".removesuffix(": "))
        case "Active":
            return Active(message)
        case None:
            places = sorted({place for when in kind.standings for place in when.holds})
            shown = ", ".join(f"{place} = {text_at(found, place)!r}" for place in places)
            return Unknown(f"the standings of {kind.kind} must include this state: {shown}")


def _result_of(kind: Kind, found: dict[str, Any]) -> Any:
    if kind.result is None:
        return None
    value = value_at(found, kind.result)
    if kind.result_is_json and isinstance(value, str):
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            return value
    return value


def _handle_of(response: HttpResponse) -> ObjectHandle:
    metadata = value_at(response.body, "metadata")
    keys = ("namespace", "name", "uid")
    if not isinstance(metadata, dict) or not all(isinstance(metadata.get(key), str) for key in keys):
        raise CallError(f"the response must be an object with a UID: {response_text(response)}")
    return ObjectHandle(metadata["namespace"], metadata["name"], metadata["uid"])


def check_stored_ends(kind: Kind, stored: Any, retention: timedelta | None) -> None:
    """Reject a time to live that the cluster adds to the object when it stores it.

    Raises:
        Rejected: the object would be removed before `retention` is over.
    """
    if (early := _early_end(kind, stored, retention)) is not None:
        place, ends = early
        raise Rejected(
            f"the cluster must not set {place} of this object to {json.dumps(ends)}, because the object could be removed"
            " before its end is recorded, and would then be submitted again. Set the adapter's `retention` to how long the"
            f" object certainly exists, or exclude objects with the label {LABEL_TOKEN} from the policy or webhook that sets it"
        )


def _check_ends(kind: Kind, manifest: dict[str, Any], retention: timedelta | None) -> None:
    """Reject a time to live of the manifest, because a later attempt would submit again."""
    if (early := _early_end(kind, manifest, retention)) is not None:
        least = "" if retention is None else f" or be at least {retention.total_seconds():g}"
        raise Rejected(
            f"{early[0]} must be left out{least}, because the adapter requires the object to exist; "
            "or set the adapter's `retention` to how long the object certainly exists"
        )


def _early_end(kind: Kind, found: Any, retention: timedelta | None) -> tuple[str, Any] | None:
    """Return the first field that removes the object before `retention` is over, and its value."""
    for place in kind.ends:
        ends = value_at(found, place)
        if ends is None:
            continue
        is_number = isinstance(ends, int | float)
        if retention is None or (is_number and ends < retention.total_seconds()):
            return place, ends
    return None


def _is_about_credentials(response: HttpResponse) -> bool:
    """Return whether a right or valid credentials are missing. A proxy's 403 has no Status."""
    if response.status != 403:
        return response.status == 401
    found = response.body if isinstance(response.body, dict) else {}
    return found.get("kind") != "Status" or _NO_RIGHT.search(text_at(found, "message")) is not None


def _reason_of(response: HttpResponse) -> str:
    return text_at(response.body, "reason") if isinstance(response.body, dict) else ""


def _is_name(text: str) -> bool:
    return (
        1 <= len(text) <= 253
        and all(char.isascii() and (char.isalnum() or char in "-.") for char in text)
        and set(text) != {"."}
    )
