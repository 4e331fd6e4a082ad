"""Tables, times, colours, and the sentences that errors become."""

from datetime import timedelta

import pytest
import yaml

from builders import a_taskrun
from reattach.api.objects import Condition
from reattach.cli.error_messages import describe_error
from reattach.cli.errors import ExitCode
from reattach.cli.logs_and_wait import WaitTarget, attempt_heading, wait_result_of
from reattach.cli.text import PLAIN, Cell, Styler, duration, escape_line, is_coloured, listed, parse_duration, table
from reattach.cli.yaml_output import to_yaml
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
def test_duration_has_the_format_of_kubectl(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    "text, seconds",
    [("90", 90), ("90s", 90), ("5m", 300), ("1h30m", 5400), ("7d", 604800), ("1.5h", 5400), ("1m500ms", 60.5)],
)
def test_parse_duration_accepts_the_format_of_kubectl(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "-5", "x", "5x", "h", "m5", "1h5", "1 h"])
def test_parse_duration_refuses_other_texts(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["99999999999999999", "99999999999d", "36501d"])
def test_parse_duration_refuses_more_than_a_hundred_years(text: str) -> None:
    with pytest.raises(ValueError, match="must be at most 36500d"):
        parse_duration(text)


def test_table_aligns_wide_characters_and_colours() -> None:
    assert table([("a", "b"), ("表", "c"), ("long", "d")]) == ["a      b", "表     c", "long   d"]
    [line, _] = table([(Cell("a", "red"), "b"), ("long", "c")], Styler(on=True))
    assert line == "\x1b[31ma\x1b[0m      b"


def test_escape_line_keeps_only_the_colours_of_the_style() -> None:
    style = Styler(on=True)
    line = style("red", "a\x1b[2J") + "\x1b[2Jb\x9b\u202e"
    assert escape_line(line, style) == "\x1b[31ma\\x1b[2J\x1b[0m\\x1b[2Jb\\x9b\\u202e"
    assert escape_line("\x1b[31ma", PLAIN) == "\\x1b[31ma"


def test_table_aligns_escaped_text() -> None:
    assert table([("a\nb", "c"), ("long text", "d")]) == ["a\\nb        c", "long text   d"]


@pytest.mark.parametrize(
    "text", ["a\x1b[2Jb", "a\nb", "\x9b", "\u202e", "\x85", "\ufeff", "é", "yes", "1", "\U000e0041", "a: b #"]
)
def test_yaml_output_has_the_value_in_printable_lines(text: str) -> None:
    shown = to_yaml({"key": text, text: [text]})
    assert yaml.safe_load(shown) == {"key": text, text: [text]}
    assert all(line.isprintable() for line in shown.split("\n"))


def test_colours_are_off_without_a_terminal_or_with_no_color() -> None:
    assert is_coloured(terminal=True, no_color=None, term="xterm")
    assert not is_coloured(terminal=False, no_color=None, term="xterm")
    assert not is_coloured(terminal=True, no_color="1", term="xterm")
    assert is_coloured(terminal=True, no_color="", term="xterm")
    assert not is_coloured(terminal=True, no_color=None, term="dumb")


def test_listed_joins_names_for_a_sentence() -> None:
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    "status, message, sentence",
    [
        (
            403,
            FORBIDDEN,
            'ann lacks the right to update configmaps in namespace data; the ClusterRole "edit" has it; ask the administrator of the namespace.',
        ),
        (
            403,
            NO_TASKRUNS,
            'ann lacks the right to list taskruns.reattach.dev in namespace data; the ClusterRole "view" has it; ask the administrator of the namespace.',
        ),
        (403, "admission webhook says no", "The API server denies the request: admission webhook says no."),
        (
            401,
            "Unauthorized",
            "https://example does not accept your credentials; log in again, or use another --context.",
        ),
        (
            503,
            "etcd is away",
            "https://example can't be reached or did not respond in time (etcd is away); check --context and your network.",
        ),
        (429, "too many", "https://example is too busy; try again."),
        (409, "changed", "Another client changed the object at the same time (changed); try again."),
        (404, "gone", "The API server does not have the object: gone."),
        (422, "wrong.", "The API server rejects the request: wrong."),
        (400, "bad", "The API server rejects the request: bad."),
    ],
)
def test_describe_error_returns_one_sentence_with_the_next_step(status: int, message: str, sentence: str) -> None:
    error: ClusterError = error_of(status, {"message": message}, None)
    assert describe_error(error, "https://example") == sentence


def ended(outcome: str) -> tuple[ExitCode | None, ExitCode | None]:
    taskrun = a_taskrun().with_status(outcome=outcome).build()
    return _codes(wait_result_of(taskrun, "load", WaitTarget.SUCCEEDED)), _codes(
        wait_result_of(taskrun, "load", WaitTarget.OUTCOME)
    )


def _codes(waited: object) -> ExitCode | None:
    return getattr(waited, "exit_code", None)


def test_wait_for_success_returns_an_exit_code_for_each_outcome() -> None:
    assert ended("Succeeded") == (ExitCode.OK, ExitCode.OK)
    assert ended("Failed") == (ExitCode.FAILED, ExitCode.OK)
    assert ended("Cancelled") == (ExitCode.CANCELLED, ExitCode.OK)
    assert _codes(wait_result_of(None, "load", WaitTarget.OUTCOME)) is ExitCode.DELETED
    assert wait_result_of(a_taskrun().build(), "load", WaitTarget.SUCCEEDED) is None


def test_wait_for_success_ends_when_the_taskrun_is_held() -> None:
    held = a_taskrun().with_status(conditions=(Condition(type="Held", status="True", reason="StateLost"),)).build()
    assert _codes(wait_result_of(held, "load", WaitTarget.SUCCEEDED)) is ExitCode.HELD
    assert wait_result_of(held, "load", WaitTarget.OUTCOME) is None


def test_attempt_heading_names_cause_and_pod() -> None:
    taskrun = a_taskrun().with_failed_attempt(1).build()
    assert attempt_heading(taskrun, 1, None) == "==> attempt 1, ended by Application (pod load-01234-1)"
