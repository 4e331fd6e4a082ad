"""Encodes metadata in protobuf as the API server does, for tests."""

from reattach.cluster.references import Reference


def encode_field(number: int, value: bytes | str | int) -> bytes:
    """Return a field: a number, or a text or message with its length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    value = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def encode_unknown(kind: str, message: bytes) -> bytes:
    """Return a `runtime.Unknown`, which wraps each object."""
    type_meta = encode_field(1, "meta.k8s.io/v1") + encode_field(2, kind)
    return (
        b"k8s\x00" + encode_field(1, type_meta) + encode_field(2, message) + encode_field(3, "") + encode_field(4, "")
    )


def encode_object(name: str, version: str, *more: bytes) -> bytes:
    """Return a PartialObjectMetadata of namespace team-a, with further fields of its ObjectMeta."""
    about = (
        encode_field(1, name),
        encode_field(3, "team-a"),
        encode_field(5, f"uid-{name}"),
        encode_field(6, version),
        encode_field(7, 3),
        *more,
    )
    return encode_field(1, b"".join(about))


def reference_to(name: str, version: str, finalizers: tuple[str, ...] = ()) -> Reference:
    """Return the decoded result of `encode_object`."""
    return Reference("team-a", name, f"uid-{name}", version, finalizers)


def encode_page(*objects: bytes, version: str, more: str = "") -> bytes:
    """Return a PartialObjectMetadataList."""
    meta = encode_field(2, version) + encode_field(3, more)
    items = b"".join(encode_field(2, each) for each in objects)
    return encode_unknown("PartialObjectMetadataList", encode_field(1, meta) + items)


def encode_status(code: int, reason: str, message: str) -> bytes:
    """Return a wrapped Status."""
    fields = encode_field(2, "Failure") + encode_field(3, message) + encode_field(4, reason) + encode_field(6, code)
    return encode_unknown("Status", encode_field(1, b"") + fields)


def encode_event(kind: str, what: bytes) -> bytes:
    """Return a frame of a watch. `what` is an object, or a Status for an ERROR."""
    wrapped = what if kind == "ERROR" else encode_unknown("PartialObjectMetadata", what)
    event = encode_field(1, kind) + encode_field(2, encode_field(1, wrapped))
    return len(event).to_bytes(4, "big") + event


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
