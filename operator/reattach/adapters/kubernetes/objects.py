"""Between the Kubernetes API and Reattach: what object is made, whether one is ours, and what the responses mean. Pure.

An object is ours if it carries the submission token, as a label or as an annotation: the label is for people and `kubectl get -l`; a webhook
that tidies labels up must not make us submit again. One that carries none, or another, is somebody else's, whatever it is called.
"""

import copy
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
from reattach.adapters.kubernetes.kinds import Kind, text_at, value_at

LABEL_TOKEN: Final = "reattach.dev/submission-token"  # noqa: S105 -- the name of a label
ANNOTATION_TASKRUN: Final = "reattach.dev/submitted-by"
ANNOTATION_JOB: Final = "reattach.dev/submitted-as"

_REFUSED: Final = frozenset({400, 403, 404, 405, 413, 415, 422})
"""401 is not among them: an API server that starts, or has changed its keys, does not know good tokens for a while."""
_BUSY: Final = frozenset({401, 429})


@dataclass(frozen=True)
class ObjectHandle:
    """Names one object for ever: another of the same name has another UID."""

    namespace: str
    name: str
    uid: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """From `namespace/name/uid`; None if it is not like that."""
        parts = text.split("/")
        return cls(*parts) if len(parts) == 3 and all(_is_name(part) for part in parts) else None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}/{self.uid}"


def object_of(kind: Kind, submission: Submission, namespace: str, retention: timedelta | None) -> dict[str, Any]:
    """The object to create: the task's manifest with a name of ours, the token, and for whom it is. Raises `Rejected`."""
    manifest = submission.request
    if not isinstance(manifest, dict) or (manifest.get("apiVersion"), manifest.get("kind")) != (
        kind.api_version,
        kind.kind,
    ):
        raise Rejected(f"the request must be the manifest of a {kind.kind} of {kind.api_version}")
    about = manifest.get("metadata") or {}
    if not isinstance(about, dict):
        raise Rejected("metadata must be an object")
    if taken := [name for name in ("name", "generateName", "uid", "resourceVersion") if name in about]:
        raise Rejected(
            f"the manifest must have no metadata.{taken[0]}: the object's name is what finds it again, and Reattach chooses it"
        )
    if about.get("namespace", namespace) != namespace:
        raise Rejected(f"metadata.namespace must be {namespace!r}, which the adapter was made for, or be left out")
    _check_ends(kind, manifest, retention)
    body = copy.deepcopy(manifest)
    body["metadata"] = {
        **copy.deepcopy(about),
        "name": submission.name,
        "namespace": namespace,
        "labels": {**(about.get("labels") or {}), LABEL_TOKEN: submission.token},
        "annotations": {
            **(about.get("annotations") or {}),
            LABEL_TOKEN: submission.token,
            ANNOTATION_TASKRUN: f"{submission.namespace}/{submission.taskrun}",
            ANNOTATION_JOB: f"{submission.key}#{submission.generation}",
        },
    }
    return body


def created_of(response: HttpResponse) -> Submitted | None:
    """The job, by the response to its creation; None: the name has an object already.

    Raises:
        Rejected: there is none by this request.
        CallError: nobody knows.
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
    if response.status in _REFUSED:
        raise Rejected(f"the API server refuses the object: {response_text(response)}")
    if response.status in _BUSY:
        raise Rejected(f"the API server refuses the object for now: {response_text(response)}", retriable=True)
    raise CallError(f"the response does not tell whether the object was created: {response_text(response)}")


def existing_of(response: HttpResponse, submission: Submission) -> Submitted | None:
    """Our object of this name; None: there is none.

    Raises:
        ForeignObjectError: there is one, and it is not ours.
        CallError: the response does not tell.
    """
    if is_absent(response, submission.name):
        return None
    if not response.is_success:
        raise CallError(f"the object was not shown: {response_text(response)}")
    carried = [value_at(response.body, f"metadata.{part}") or {} for part in ("labels", "annotations")]
    handle = _handle_of(response)
    if {of[LABEL_TOKEN] for of in carried if LABEL_TOKEN in of} != {submission.token}:
        raise ForeignObjectError(
            f"{handle.namespace}/{handle.name} is not what was submitted here: it must carry the label "
            f"{LABEL_TOKEN}={submission.token}. See whose it is; delete it, or have it taken over by `spec.adopt`"
        )
    return Submitted(str(handle), existed=True)


class ForeignObjectError(CallError):
    """An object has our name and does not carry our token."""


def status_of(kind: Kind, response: HttpResponse, handle: ObjectHandle) -> JobStatus:
    """How the job stands."""
    if is_absent(response, handle.name):
        return NotFound(response_text(response))
    if not response.is_success or not isinstance(response.body, dict):
        return Unknown(response_text(response))
    found = response.body
    if (uid := text_at(found, "metadata.uid")) != handle.uid:
        return NotFound(f"the {kind.kind} {handle.name} is another one: its UID is {uid}, not {handle.uid}")
    return _standing_of(kind, found)


def is_absent(response: HttpResponse, name: str) -> bool:
    """Whether the API server says that there is no object of this name. A 404 of a proxy, or of a kind that is not served, is none."""
    return (
        response.status == 404 and _reason_of(response) == "NotFound" and text_at(response.body, "details.name") == name
    )


def delete_options_of(preconditions: Mapping[str, str]) -> dict[str, Any]:
    """Foreground, so that the object is there until what it made is gone: NotFound then means that nothing runs."""
    return {
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "preconditions": dict(preconditions),
        "propagationPolicy": "Foreground",
    }


def response_text(response: HttpResponse) -> str:
    """What a Status says."""
    message = text_at(response.body, "message") if isinstance(response.body, dict) else ""
    return f"{response.status} {message}"[:400] if message else str(response)


def _standing_of(kind: Kind, found: dict[str, Any]) -> JobStatus:
    standing = next((when.standing for when in kind.standings if when.matches(found)), None)
    said = ": ".join(text for place in kind.messages if (text := text_at(found, place)))
    match standing:
        case "Succeeded":
            return Succeeded(_result_of(kind, found))
        case "Failed":
            return Failed(said or "it failed")
        case "Cancelled":
            return Cancelled(said)
        case "Active" if value_at(found, "metadata.deletionTimestamp") is not None:
            return Active(f"is being deleted: {said}".removesuffix(": "))
        case "Active":
            return Active(said)
        case None:
            places = sorted({place for when in kind.standings for place in when.holds})
            shown = ", ".join(f"{place} = {text_at(found, place)!r}" for place in places)
            return Unknown(f"the standings of {kind.kind} must say what this means: {shown}")


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
    about = value_at(response.body, "metadata")
    if not isinstance(about, dict) or not all(isinstance(about.get(of), str) for of in ("namespace", "name", "uid")):
        raise CallError(f"an object with a UID must be answered: {response_text(response)}")
    return ObjectHandle(about["namespace"], about["name"], about["uid"])


def _check_ends(kind: Kind, manifest: dict[str, Any], retention: timedelta | None) -> None:
    """An object that goes before `retention` is over would be submitted again by whoever looks then."""
    for place in kind.ends:
        ends = value_at(manifest, place)
        if ends is None:
            continue
        is_number = isinstance(ends, int | float)
        if retention is None or (is_number and ends < retention.total_seconds()):
            least = "" if retention is None else f" or be at least {retention.total_seconds():g}"
            raise Rejected(
                f"{place} must be left out{least}, since the adapter counts on the object being there; "
                "or say in the adapter's `retention` for how long it surely is"
            )


def _reason_of(response: HttpResponse) -> str:
    return text_at(response.body, "reason") if isinstance(response.body, dict) else ""


def _is_name(text: str) -> bool:
    return (
        1 <= len(text) <= 253
        and all(char.isascii() and (char.isalnum() or char in "-.") for char in text)
        and set(text) != {"."}
    )
