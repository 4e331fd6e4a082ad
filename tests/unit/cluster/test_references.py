"""References in the protobuf of Kubernetes: everything else in a message is skipped, and no bytes do harm."""

from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protobuf import encode_event, encode_field, encode_object, encode_page, encode_status, encode_unknown, reference_to
from reattach.cluster.references import (
    ProtobufError,
    Reference,
    ReferenceEvent,
    ReferencePage,
    decode_event,
    decode_object,
    decode_page,
    decode_status,
)

DEEP = b'{"f:a":' * 9990 + b"{}" + b"}" * 9990
MANAGED_FIELDS = encode_field(17, encode_field(1, "kubectl") + encode_field(7, encode_field(1, DEEP)))
LONG_OWNER = encode_field(13, encode_field(4, "<" * 1_500_000))
RECORDED = bytes.fromhex(
    "6b3873000a0c0a027631120653746174757312400a060a0012001a0012074661696c7572651a21746f6f206f6c64207265736f757263652076"
    "657273696f6e3a2031202832313229220745787069726564309a031a002200"
)
"""A Status that Kubernetes 1.36 sent."""


def frame(kind: str, what: bytes) -> bytes:
    """Without the length."""
    return encode_event(kind, what)[4:]


def test_decode_page_returns_references_and_continue_token() -> None:
    page = encode_page(
        encode_object("first", "801", MANAGED_FIELDS, encode_field(14, "a/b"), encode_field(14, "c/d")),
        encode_object("second", "802", LONG_OWNER),
        version="812",
        more="next",
    )
    expected = (reference_to("first", "801", ("a/b", "c/d")), reference_to("second", "802"))
    assert decode_page(page) == ReferencePage(expected, resource_version="812", continue_token="next")


def test_decode_page_without_items_returns_none() -> None:
    assert decode_page(encode_page(version="812")) == ReferencePage((), "812", "")


def test_decode_object_returns_its_reference() -> None:
    wrapped = encode_unknown("PartialObjectMetadata", encode_object("first", "801", MANAGED_FIELDS))
    assert decode_object(wrapped) == reference_to("first", "801")


def test_decode_event_returns_type_and_reference() -> None:
    event = decode_event(frame("MODIFIED", encode_object("first", "801", MANAGED_FIELDS)))
    assert event == ReferenceEvent("MODIFIED", reference_to("first", "801"), {})


def test_decode_event_of_an_error_returns_its_status() -> None:
    event = decode_event(frame("ERROR", encode_status(410, "Expired", "too old")))
    assert event.reference == Reference("", "", "", "")
    assert (event.status["code"], event.status["reason"], event.status["message"]) == (410, "Expired", "too old")


def test_decode_status_of_kubernetes_1_36_returns_code_reason_and_message() -> None:
    status = decode_status(RECORDED)
    assert status["code"] == 410
    assert status["reason"] == "Expired"
    assert status["message"] == "too old resource version: 1 (212)"


@pytest.mark.parametrize("decode", [decode_object, decode_page, decode_event, decode_status])
@given(body=st.binary(max_size=200) | st.binary(max_size=200).map(lambda rest: b"k8s\x00" + rest))
def test_decode_of_any_bytes_returns_or_raises_protobuf_error(decode: Callable[[bytes], object], body: bytes) -> None:
    with suppress(ProtobufError):
        decode(body)


@pytest.mark.parametrize("cut", range(5, 60, 7))
def test_decode_page_that_is_cut_off_raises_protobuf_error(cut: int) -> None:
    with pytest.raises(ProtobufError):
        decode_page(encode_page(encode_object("first", "801"), version="812")[:-cut])
