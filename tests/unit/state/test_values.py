"""What may be stored."""

import json
import math
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reattach.api.messages import KEY_CHARACTERS_MAX, NESTING_MAX, RESULT_BYTES_MAX, VALUE_BYTES_MAX, ProblemCode
from reattach.state.errors import RequestRejectedError
from reattach.state.values import check_key, from_json, stored_result_of, stored_value_of

PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
JSON = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


@PATIENT
@given(JSON)
def test_a_json_value_is_stored_as_it_is(value: object) -> None:
    assert json.loads(stored_value_of(from_json(json.dumps(value).encode()))) == value


@pytest.mark.parametrize(
    "value",
    [
        None,
        [None],
        {"a": {"b": None}},
        math.nan,
        [math.inf],
        {"a": -math.inf},
        "\ud800",
        {"\udfff": 1},
        nested(NESTING_MAX + 1),
    ],
)
def test_null_nan_infinity_surrogates_and_endless_nesting_are_refused_wherever_they_are(value: object) -> None:
    with pytest.raises(RequestRejectedError) as refused:
        stored_value_of(value)
    assert refused.value.code is ProblemCode.VALUE_INVALID


def test_nesting_up_to_the_bound_is_fine() -> None:
    assert json.loads(stored_value_of(nested(NESTING_MAX))) == nested(NESTING_MAX)


@pytest.mark.parametrize(
    "text, code",
    [
        (b"", ProblemCode.INVALID),
        (b"{", ProblemCode.INVALID),
        (b"{} x", ProblemCode.INVALID),
        (b'"\xff"', ProblemCode.INVALID),
        (b"'a'", ProblemCode.INVALID),
        (b'{"a":1,"a":2}', ProblemCode.INVALID),
        (b'{"b":{"a":1,"a":1}}', ProblemCode.INVALID),
        (b"1" * 5000, ProblemCode.INVALID),
        (b"NaN", ProblemCode.VALUE_INVALID),
        (b'{"a":[-Infinity]}', ProblemCode.VALUE_INVALID),
        (b"1e400", ProblemCode.VALUE_INVALID),
        (b"[" * 100_000, ProblemCode.VALUE_INVALID),
    ],
)
def test_a_body_must_be_json_and_nothing_more(text: bytes, code: ProblemCode) -> None:
    with pytest.raises(RequestRejectedError) as refused:
        from_json(text)
    assert refused.value.code is code


def test_a_name_that_occurs_twice_is_found_in_time_among_as_many_as_a_body_can_have() -> None:
    names = [f"{number:x}" for number in range(80_000)]
    text = ",".join(f'"{name}":1' for name in [*names, names[-1]])
    began = time.process_time()
    with pytest.raises(RequestRejectedError, match="'1387f' is a duplicate"):
        from_json(f"{{{text}}}".encode())
    assert time.process_time() - began < 5  # comparing each with each takes minutes


def test_a_value_may_have_64_kib_to_the_byte() -> None:
    assert len(stored_value_of("x" * (VALUE_BYTES_MAX - 2))) == VALUE_BYTES_MAX
    with pytest.raises(RequestRejectedError, match="at most 65536 bytes as JSON; this one has 65537") as refused:
        stored_value_of("x" * (VALUE_BYTES_MAX - 1))
    assert refused.value.code is ProblemCode.VALUE_TOO_LARGE
    with pytest.raises(RequestRejectedError, match="this one has 65538"):
        stored_value_of("é" * (VALUE_BYTES_MAX // 2))


def test_a_result_may_be_null_and_have_4_kib_to_the_byte() -> None:
    assert stored_result_of({"a": None}) == b'{"a":null}'
    assert len(stored_result_of("x" * (RESULT_BYTES_MAX - 2))) == RESULT_BYTES_MAX
    with pytest.raises(RequestRejectedError, match="the result must have at most 4096 bytes"):
        stored_result_of("x" * (RESULT_BYTES_MAX - 1))
    with pytest.raises(RequestRejectedError, match="finite"):
        stored_result_of([math.nan])


@pytest.mark.parametrize("key", ["a", "a/b", "é" * KEY_CHARACTERS_MAX, "\n", "\0", " ", "..", "x" * KEY_CHARACTERS_MAX])
def test_a_key_is_any_text_of_1_to_512_characters(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize("key", ["", "x" * (KEY_CHARACTERS_MAX + 1), "\ud800"])
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(RequestRejectedError) as refused:
        check_key(key)
    assert refused.value.code is ProblemCode.KEY_INVALID
