"""The operator's flags and log lines."""

import argparse
import json
import logging

import pytest

from reattach.logs import JsonFormatter
from reattach.process.__main__ import main
from reattach.process.options import RunOptions, add_common_arguments, add_run_arguments, run_options_of

URL = "https://reattach-server.reattach.svc:8443"


def options_of(*flags: str, **environment: str) -> RunOptions:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser, environment)
    add_run_arguments(parser, environment)
    return run_options_of(
        parser.parse_args(["--state-api-url", URL, "--dns-names", "reattach-server.reattach.svc", *flags])
    )


def test_the_lease_is_held_under_the_uid_of_the_pod() -> None:
    assert options_of(POD_UID="u-1").lease.holder == "u-1"


def test_outside_of_a_pod_two_processes_never_hold_it_under_one_name() -> None:
    assert options_of().lease.holder != options_of().lease.holder


def test_a_leader_stops_before_another_may_start() -> None:
    lease = options_of("--lease-seconds", "15").lease
    assert lease.every_seconds < lease.deadline_seconds < lease.seconds


def test_namespaces_are_separated_by_commas_and_none_means_all() -> None:
    assert options_of().watch_namespaces == ()
    assert options_of("--watch-namespaces", "a, b,").watch_namespaces == ("a", "b")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--state-api-url", "http://a"], "https"),
        (["--lease-seconds", "1", "--lease-deadline-seconds", "2"], "renewal deadline < duration"),
        (["--workers", "0"], "above 0"),
        (["--writes-per-second", "0"], "above 0"),
        (["--sweep-seconds", "-1"], "above 0"),
    ],
)
def test_what_can_not_work_is_refused_with_what_must_hold(flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        options_of(*flags)


def test_a_wrong_flag_ends_the_process_with_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--state-api-url", "http://insecure"])
    assert ended.value.code == 2
    assert "must be an https URL" in capsys.readouterr().err


def test_a_json_line_is_one_object_with_its_exception_inside() -> None:
    error = KeyError("lost")
    record = logging.LogRecord("reattach", logging.ERROR, "", 0, "TaskRun %s", ("a/b",), (KeyError, error, None))
    line = JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "TaskRun a/b"
    assert "KeyError: 'lost'" in json.loads(line)["exception"]
