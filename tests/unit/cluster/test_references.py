"""References in the protobuf of Kubernetes: everything else in a message is skipped, and no bytes do harm."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reattach.cluster.references import (
    ProtobufError,
    Reference,
    ReferencePage,
    decode_event,
    decode_page,
    decode_status,
)

DEEP = b'{"f:a":' * 9990 + b"{}" + b"}" * 9990


def field(number: int, value: bytes | str | int) -> bytes:
    """One field, with its number and length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def partial_object(name: str, version: str, *more: bytes) -> bytes:
    """A PartialObjectMetadata; `more` are further fields of its ObjectMeta."""
    about = (field(1, name), field(3, "team-a"), field(5, f"uid-{name}"), field(6, version), field(7, 3), *more)
    return field(1, b"".join(about))


def unknown(kind: str, message: bytes) -> bytes:
    """A runtime.Unknown, as every object is sent."""
    type_meta = field(1, "meta.k8s.io/v1") + field(2, kind)
    return b"k8s\x00" + field(1, type_meta) + field(2, message) + field(3, "") + field(4, "")


MANAGED_FIELDS = field(17, field(1, "kubectl") + field(7, field(1, DEEP)))


def test_a_page_has_its_references_and_where_the_list_goes_on() -> None:
    message = (
        field(1, field(2, "812") + field(3, "next"))
        + field(2, partial_object("first", "801", MANAGED_FIELDS))
        + field(2, partial_object("second", "802", field(13, field(4, "<" * 1_500_000))))
    )
    assert decode_page(unknown("PartialObjectMetadataList", message)) == ReferencePage(
        items=(Reference("team-a", "first", "uid-first", "801"), Reference("team-a", "second", "uid-second", "802")),
        resource_version="812",
        continue_token="next",
    )


def test_an_empty_page_has_no_references() -> None:
    assert decode_page(unknown("PartialObjectMetadataList", field(1, field(2, "812")))) == ReferencePage((), "812", "")


def test_an_event_has_its_type_and_the_reference_of_its_object() -> None:
    wrapped = unknown("PartialObjectMetadata", partial_object("first", "801", MANAGED_FIELDS))
    event = decode_event(field(1, "MODIFIED") + field(2, field(1, wrapped)))
    assert (event.type, event.reference, event.status) == (
        "MODIFIED",
        Reference("team-a", "first", "uid-first", "801"),
        {},
    )


def test_an_error_event_has_the_status_that_the_api_server_sent() -> None:
    # Recorded from a watch whose resourceVersion was too old.
    status = field(2, "Failure") + field(3, "too old resource version: 1 (212)") + field(4, "Expired") + field(6, 410)
    event = decode_event(field(1, "ERROR") + field(2, field(1, unknown("Status", field(1, b"") + status))))
    assert event.type == "ERROR"
    assert event.status["code"] == 410
    assert event.status["reason"] == "Expired"
    assert event.status["message"] == "too old resource version: 1 (212)"


@pytest.mark.parametrize("decode", [decode_page, decode_event, decode_status])
@given(body=st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"k8s\x00" + rest))
def test_any_bytes_are_decoded_or_refused(decode: object, body: bytes) -> None:
    with suppress(ProtobufError):
        decode(body)  # type: ignore[operator]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_message_that_is_cut_off_is_refused(cut: int) -> None:
    whole = unknown("PartialObjectMetadataList", field(2, partial_object("first", "801")))
    with pytest.raises(ProtobufError):
        decode_page(whole[: -(cut + len(field(3, "") + field(4, "")))])
