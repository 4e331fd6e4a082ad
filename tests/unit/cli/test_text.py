"""Tables, times, colours, and the sentences that errors become."""

from datetime import timedelta

import pytest

from builders import a_taskrun
from reattach.api.objects import Condition
from reattach.cli.error_messages import describe_error
from reattach.cli.errors import ExitCode
from reattach.cli.logs_and_wait import WaitTarget, attempt_heading, container_of, wait_result_of
from reattach.cli.text import Cell, Styler, duration, is_coloured, listed, one_line, parse_duration, table
from reattach.cluster.errors import ClusterError, error_of

FORBIDDEN = 'configmaps "load-01234-state" is forbidden: User "ann" cannot update resource "configmaps" in API group "" in the namespace "data"'
NO_TASKRUNS = 'taskruns.reattach.dev is forbidden: User "ann" cannot list resource "taskruns" in API group "reattach.dev" in the namespace "data"'


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0s"),
        (-5, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (3600, "60m"),
        (7200, "2h"),
        (9000, "2h30m"),
        (90000, "25h"),
        (700000, "8d"),
    ],
)
def test_times_are_told_as_kubectl_tells_them(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    "text, seconds", [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("7d", 604800), ("1.5h", 5400)]
)
def test_durations_are_read_as_kubectl_reads_them(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "-5", "x", "5x", "h", "m5", "1h5", "1 h"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["99999999999999999", "99999999999d", "36501d"])
def test_a_duration_that_leaves_the_calendar_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be at most 36500d"):
        parse_duration(text)


def test_columns_are_aligned_also_with_wide_characters_and_colours() -> None:
    assert table([("a", "b"), ("表", "c"), ("long", "d")]) == ["a      b", "表     c", "long   d"]
    [line, _] = table([(Cell("a", "red"), "b"), ("long", "c")], Styler(on=True))
    assert line == "\x1b[31ma\x1b[0m      b"


def test_what_others_wrote_can_not_move_the_cursor() -> None:
    assert one_line("a\n  b\x1b[2Jc\r\n") == "a b�[2Jc"
    assert one_line("abcdef", 4) == "abc…"


def test_colours_are_for_terminals_that_want_them() -> None:
    assert is_coloured(terminal=True, no_color=None, term="xterm")
    assert not is_coloured(terminal=False, no_color=None, term="xterm")
    assert not is_coloured(terminal=True, no_color="1", term="xterm")
    assert is_coloured(terminal=True, no_color="", term="xterm")
    assert not is_coloured(terminal=True, no_color=None, term="dumb")


def test_names_are_listed_as_in_a_sentence() -> None:
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    "status, message, sentence",
    [
        (
            403,
            FORBIDDEN,
            'ann lacks the right to update configmaps in namespace data; the ClusterRole "edit" has it, ask who administers the namespace.',
        ),
        (
            403,
            NO_TASKRUNS,
            'ann lacks the right to list taskruns.reattach.dev in namespace data; the ClusterRole "view" has it, ask who administers the namespace.',
        ),
        (403, "admission webhook says no", "The API server refuses: admission webhook says no."),
        (
            401,
            "Unauthorized",
            "https://example does not accept your credentials; log in again, or name another --context.",
        ),
        (
            503,
            "etcd is away",
            "https://example can't be reached or did not answer in time (etcd is away); check --context and your network.",
        ),
        (429, "too many", "https://example is too busy; try again."),
        (409, "changed", "Somebody else changed it at the same time (changed); try again."),
        (404, "gone", "It is not there: gone."),
        (422, "wrong.", "The API server refuses: wrong."),
        (400, "bad", "The API server does not take that: bad."),
    ],
)
def test_errors_become_one_sentence_that_says_what_to_do(status: int, message: str, sentence: str) -> None:
    error: ClusterError = error_of(status, {"message": message}, None)
    assert describe_error(error, "https://example") == sentence


def ended(outcome: str) -> tuple[ExitCode | None, ExitCode | None]:
    taskrun = a_taskrun().with_status(outcome=outcome).build()
    return _codes(wait_result_of(taskrun, "load", WaitTarget.SUCCEEDED)), _codes(
        wait_result_of(taskrun, "load", WaitTarget.OUTCOME)
    )


def _codes(waited: object) -> ExitCode | None:
    return getattr(waited, "exit_code", None)


def test_waiting_ends_with_a_code_for_each_end() -> None:
    assert ended("Succeeded") == (ExitCode.OK, ExitCode.OK)
    assert ended("Failed") == (ExitCode.FAILED, ExitCode.OK)
    assert ended("Cancelled") == (ExitCode.CANCELLED, ExitCode.OK)
    assert _codes(wait_result_of(None, "load", WaitTarget.OUTCOME)) is ExitCode.DELETED
    assert wait_result_of(a_taskrun().build(), "load", WaitTarget.SUCCEEDED) is None


def test_waiting_for_success_does_not_wait_for_a_person() -> None:
    held = a_taskrun().with_status(conditions=(Condition(type="Held", status="True", reason="StateLost"),)).build()
    assert _codes(wait_result_of(held, "load", WaitTarget.SUCCEEDED)) is ExitCode.HELD
    assert wait_result_of(held, "load", WaitTarget.OUTCOME) is None


def test_the_log_is_that_of_the_container_whose_end_counts() -> None:
    template = {"spec": {"containers": [{"name": "first"}, {"name": "second"}]}}
    assert container_of(a_taskrun(template=template).build()) == "first"
    assert container_of(a_taskrun(template=template, container="second").build()) == "second"


def test_each_attempt_has_a_heading() -> None:
    taskrun = a_taskrun().with_failed_attempt(1).build()
    assert attempt_heading(taskrun, 1, None) == "==> attempt 1, ended by Application (pod load-01234-1)"
