"""Decoding of the annotation reattach.dev/summary, which users may change."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from reattach.api.names import ANNOTATION_SUMMARY
from reattach.api.objects import ObjectMeta, PartialObject
from reattach.api.state import JobOrigin, JobState, JobSummary, SealPurpose, Summary
from reattach.state.codec import summary_of
from reattach.taskrun.key_expiry import is_due

NOW = datetime(2026, 11, 30, tzinfo=UTC)

ODD_TIMES = st.sampled_from(
    [
        "2020-01-01T00:00:00",
        "2020-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59.999999-23:59",
        "2016-12-31T23:59:60Z",
        "2020-01-01",
        "",
    ]
)
ODD_NUMBERS = st.integers() | st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400]) | st.floats()
WORDS = st.sampled_from([*JobState, *JobOrigin, *SealPurpose, "", "\x1b[31m", "\ud800", "\u202e"]) | st.text()
SCALARS = st.none() | st.booleans() | ODD_NUMBERS | ODD_TIMES | WORDS
FIELDS = sorted({name for shape in (Summary, JobSummary) for name in shape.__struct_encode_fields__})
FIELDS += ["attempt", "podUID", "throughAttempt", "purpose", "submissions", "reattachments", "duplicatesAverted"]
VALUES: st.SearchStrategy[Any] = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner), max_leaves=12
)
SUMMARIES = st.fixed_dictionaries(
    {},
    optional={
        "epoch": st.fixed_dictionaries({"attempt": ODD_NUMBERS | VALUES, "podUID": WORDS}),
        "completedAttempt": ODD_NUMBERS,
        "seal": st.fixed_dictionaries({"throughAttempt": ODD_NUMBERS, "purpose": WORDS}),
        "jobs": st.lists(
            st.fixed_dictionaries(
                {"key": WORDS, "generation": ODD_NUMBERS, "state": WORDS},
                optional={"submittedTime": ODD_TIMES, "holds": ODD_NUMBERS, "strays": st.lists(WORDS), "handle": WORDS},
            ),
            max_size=2,
        ),
        "counts": st.dictionaries(st.sampled_from(FIELDS), ODD_NUMBERS),
        "nextExpiry": ODD_TIMES,
    },
)


@given(st.one_of(VALUES.map(json.dumps), SUMMARIES.map(json.dumps), st.text()))
@example("[" * 100_000)
@example('{"epoch":' * 20_000)
@example('{"nextExpiry":"2020-01-01T00:00:00"}')
@example("9" * 5_000)
@example('{"epoch":{"attempt":' + "9" * 5_000 + ',"podUID":"x"}}')
def test_any_text_decodes_to_a_summary_or_to_none(text: str) -> None:
    annotations = {ANNOTATION_SUMMARY: text}
    summary = summary_of(annotations)
    is_due(PartialObject(metadata=ObjectMeta(annotations=annotations)), NOW)
    if summary is None:
        return
    encoded = msgspec.json.encode(summary)
    assert msgspec.json.decode(encoded, type=Summary) == summary
