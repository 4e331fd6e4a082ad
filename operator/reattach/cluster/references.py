"""References to objects, read from the API server's protobuf encoding of their metadata.

The JSON of an object can have any depth, also in its metadata, because `managedFields` repeats the
structure of the object. Python's JSON parsers fail at some depth, and then the whole page or stream
is lost. In protobuf each field carries its length, so this module skips everything except a few
short strings.

Field numbers are those of `k8s.io/apimachinery/pkg/apis/meta/v1/generated.proto` and
`k8s.io/apimachinery/pkg/runtime/generated.proto`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
ACCEPT_OBJECT = f"{MEDIA_TYPE};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
ACCEPT_LIST = f"{MEDIA_TYPE};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

_MAGIC = b"k8s\x00"

_UNKNOWN_RAW = 2
_LIST_METADATA, _LIST_ITEMS = 1, 2
_LISTMETA_RESOURCE_VERSION, _LISTMETA_CONTINUE = 2, 3
_OBJECT_METADATA = 1
_META_NAME, _META_NAMESPACE, _META_UID, _META_RESOURCE_VERSION, _META_FINALIZERS = 1, 3, 5, 6, 14
_EVENT_TYPE, _EVENT_OBJECT = 1, 2
_RAW_EXTENSION_RAW = 1
_STATUS_MESSAGE, _STATUS_REASON, _STATUS_CODE = 3, 4, 6

_VARINT_BITS_MAX = 63
_MORE_BYTES = 0x80


class Reference(NamedTuple):
    """One version of one object."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    finalizers: tuple[str, ...] = ()


class ReferencePage(NamedTuple):
    """One page of a list. `continue_token` is empty on the last page."""

    items: tuple[Reference, ...]
    resource_version: str
    continue_token: str


class ReferenceEvent(NamedTuple):
    """One event of a watch.

    A BOOKMARK has only the resourceVersion; only an ERROR has a `status`.
    """

    type: str
    reference: Reference
    status: dict[str, Any]


class ProtobufError(ValueError):
    """The bytes are not the message that they should be."""


def decode_object(body: bytes) -> Reference:
    """Return the reference in a `PartialObjectMetadata`. Raises `ProtobufError`."""
    return _reference_of(_unwrap(memoryview(body)))


def decode_page(body: bytes) -> ReferencePage:
    """Return the references in a `PartialObjectMetadataList`. Raises `ProtobufError`."""
    page = _unwrap(memoryview(body))
    version, token = _texts(_first(page, _LIST_METADATA), _LISTMETA_RESOURCE_VERSION, _LISTMETA_CONTINUE)
    return ReferencePage(tuple(_reference_of(item) for item in _all(page, _LIST_ITEMS)), version, token)


def decode_event(frame: bytes) -> ReferenceEvent:
    """Return the event in one frame of a watch of `PartialObjectMetadata`.

    Raises `ProtobufError`.
    """
    message = memoryview(frame)
    (kind,) = _texts(message, _EVENT_TYPE)
    wrapped = _first(_first(message, _EVENT_OBJECT), _RAW_EXTENSION_RAW)
    if kind == "ERROR":
        return ReferenceEvent(kind, Reference("", "", "", ""), decode_status(bytes(wrapped)))
    return ReferenceEvent(kind, _reference_of(_unwrap(wrapped)), {})


def decode_status(body: bytes) -> dict[str, Any]:
    """Return `code`, `reason` and `message` of a `Status`, the response to a failed call.

    Raises `ProtobufError`.
    """
    status = _unwrap(memoryview(body))
    message, reason = _texts(status, _STATUS_MESSAGE, _STATUS_REASON)
    code = next((value for number, value in _fields(status) if number == _STATUS_CODE), 0)
    return {"kind": "Status", "apiVersion": "v1", "code": code, "reason": reason, "message": message}


def _reference_of(partial_object: memoryview) -> Reference:
    metadata = _first(partial_object, _OBJECT_METADATA)
    name, namespace, uid, version = _texts(metadata, _META_NAME, _META_NAMESPACE, _META_UID, _META_RESOURCE_VERSION)
    finalizers = tuple(str(found, "utf-8", "replace") for found in _all(metadata, _META_FINALIZERS))
    return Reference(namespace, name, uid, version, finalizers)


def _unwrap(body: memoryview) -> memoryview:
    """Return the message inside a `runtime.Unknown`, which wraps every object."""
    if body[: len(_MAGIC)] != _MAGIC:
        raise ProtobufError("the message does not begin with the magic bytes of Kubernetes")
    return _first(body[len(_MAGIC) :], _UNKNOWN_RAW)


def _texts(message: memoryview, *numbers: int) -> tuple[str, ...]:
    """Return these text fields in this order. A missing field is empty."""
    found = dict.fromkeys(numbers, "")
    for number, value in _fields(message):
        if number in found and isinstance(value, memoryview):
            found[number] = str(value, "utf-8", "replace")
    return tuple(found.values())


def _first(message: memoryview, number: int) -> memoryview:
    return next(_all(message, number), memoryview(b""))


def _all(message: memoryview, number: int) -> Iterator[memoryview]:
    return (value for found, value in _fields(message) if found == number and isinstance(value, memoryview))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field: an int, or a view of the bytes of a text or message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                value, at = _varint(message, at)
                yield tag >> 3, value
                continue
            case 1:
                length = 8
            case 2:
                length, at = _varint(message, at)
            case 5:
                length = 4
            case other:
                raise ProtobufError(f"Kubernetes uses no wire type {other}")
        if at + length > len(message):
            raise ProtobufError("the message ends within a field")
        yield tag >> 3, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at `at`, and where the next byte is."""
    value = shift = 0
    while at < len(message) and shift <= _VARINT_BITS_MAX:
        byte = message[at]
        at += 1
        value |= (byte & ~_MORE_BYTES) << shift
        if byte < _MORE_BYTES:
            return value, at
        shift += 7
    raise ProtobufError("a number is cut off or too long")
