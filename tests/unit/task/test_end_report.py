"""Reports about the end of an attempt, which the SDK sends before the process ends."""

import asyncio
import os
import signal
import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

import reattach
from fakepod import Pod, a_problem
from reattach.api.messages import END_MESSAGE_BYTES_MAX, RETRY_AFTER_SECONDS_MAX
from reattach.task import end_report

REFUSED = httpx.ConnectError("connection refused")
NO_SLOT = reattach.RetryLater(29.5, "no slot")
PERMANENT = {"kind": "Permanent", "message": "no table"}

ENDS: list[tuple[BaseException, dict[str, Any] | None]] = [
    (reattach.PermanentFailure("no table"), PERMANENT),
    (NO_SLOT, {"kind": "RetryLater", "message": "no slot", "retryAfterSeconds": 30}),
    (reattach.NotReady(7, "no input"), {"kind": "NotReady", "message": "no input", "retryAfterSeconds": 7}),
    (
        reattach.RetryLater(float("inf"), "never"),
        {"kind": "RetryLater", "message": "never", "retryAfterSeconds": RETRY_AFTER_SECONDS_MAX},
    ),
    (
        BaseExceptionGroup("g", [ValueError(), BaseExceptionGroup("h", [reattach.PermanentFailure("no table")])]),
        PERMANENT,
    ),
    (
        ExceptionGroup("g", [reattach.RetryLater(1, "a"), reattach.RetryLater(9, "b"), reattach.NotReady(99)]),
        {"kind": "RetryLater", "message": "b", "retryAfterSeconds": 9},
    ),
    (
        ExceptionGroup("g", [reattach.NotReady(1, "a"), reattach.NotReady(9, "b")]),
        {"kind": "NotReady", "message": "b", "retryAfterSeconds": 9},
    ),
    (ExceptionGroup("g", [reattach.NotReady(9, "a"), ValueError("b")]), None),
    (ValueError("no such table"), None),
    (SystemExit(3), None),
    (KeyboardInterrupt(), None),
]


def run(pod: Pod, error: BaseException, *, is_async: bool = False, **more: Any) -> None:
    """Run a task that raises the error."""

    def main(_: reattach.Task) -> None:
        raise error

    async def amain() -> None:
        async with pod.context(**more):
            raise error

    with pytest.raises(type(error)) as raised:
        asyncio.run(amain()) if is_async else pod.context(**more).run(main)
    assert raised.value is error


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("error, report", ENDS)
def test_end_is_reported_before_the_termination_message(
    pod: Pod, error: BaseException, report: dict[str, Any] | None, is_async: bool
) -> None:
    seen: list[str] = []
    pod.api.on_end = lambda: seen.append(pod.termination_log.read_text())
    run(pod, error, is_async=is_async)
    assert pod.api.bodies("/v1/end") == ([] if report is None else [report])
    assert seen == ([] if report is None else [""])
    assert pod.message()["reattach"] == "v1"


def test_report_of_an_async_main_is_sent(pod: Pod) -> None:
    async def main(_: reattach.Task) -> None:
        raise reattach.PermanentFailure("no table")

    with pytest.raises(reattach.PermanentFailure):
        pod.context().run(main)
    assert pod.api.bodies("/v1/end") == [PERMANENT]


def test_success_reports_no_end(pod: Pod) -> None:
    pod.context().run(lambda _: 1)
    assert pod.api.paths() == ["POST /v1/open", "POST /v1/complete"]


def test_attempt_that_could_not_open_its_state_reports_no_end(pod: Pod) -> None:
    pod.api.script = [a_problem(403, "not-a-task-pod")]
    with pytest.raises(reattach.Refused):
        pod.context().run(lambda _: 1)
    assert pod.api.paths() == ["POST /v1/open"]


def test_child_reports_no_end(pod: Pod) -> None:
    with pod.context():
        pod.settings = replace(pod.settings, session="s")
        run(pod, NO_SLOT)
    assert pod.api.bodies("/v1/end") == []


@pytest.mark.parametrize("is_async", [False, True])
def test_cleanup_attempt_reports_its_end(pod: Pod, is_async: bool) -> None:
    def on_cleanup(_: Any) -> None:
        raise NO_SLOT

    pod.begin_cleanup()
    run(pod, NO_SLOT, is_async=is_async, on_cleanup=on_cleanup)
    assert [body["kind"] for body in pod.api.bodies("/v1/end")] == ["RetryLater"]


@pytest.mark.parametrize("text", ["x" * 50_000, '"\n\x00' * 9_000, "\ud800" * 5_000])
def test_long_message_keeps_both_ends(pod: Pod, text: str) -> None:
    run(pod, reattach.PermanentFailure(f"begin {text} end"))
    [body] = pod.api.bodies("/v1/end")
    assert body["message"].startswith("begin ")
    assert body["message"].endswith(" end")
    assert len(body["message"].encode()) <= END_MESSAGE_BYTES_MAX


# -- what goes wrong -------------------------------------------------------------------------------


def test_lost_response_is_requested_again_under_the_same_id(pod: Pod) -> None:
    pod.api.on_end = lambda: setattr(pod.api, "lost", 1 if len(pod.api.bodies("/v1/end")) == 1 else 0)
    run(pod, NO_SLOT)
    sent = [request for request in pod.api.requests if request.url.path == "/v1/end"]
    assert len(sent) == 2
    assert len({request.headers["Reattach-Request-Id"] for request in sent}) == 1


@pytest.mark.parametrize(
    "response",
    [
        REFUSED,
        a_problem(503, "unavailable", **{"Retry-After": "60"}),
        a_problem(404, "route-unknown"),
        a_problem(501, "not-implemented"),
        a_problem(403, "not-a-task-pod"),
        a_problem(400, "invalid"),
        a_problem(409, "ended"),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
def test_report_that_is_not_recorded_leaves_message_and_error(
    pod: Pod, response: Any, is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    pod.api.script, pod.api.down = [None], response
    run(pod, reattach.PermanentFailure("no table"), is_async=is_async)
    assert pod.message() == {"reattach": "v1", **PERMANENT}
    assert pod.ended == []
    assert "did not record how this attempt ends" in caplog.text
    assert pod.time.now - pod.time.start <= end_report.REPORT_SECONDS


@pytest.mark.parametrize(
    "code, kind, is_over", [("fenced", "Fenced", True), ("state-lost", "Held", True), ("completed", "Permanent", False)]
)
def test_attempt_that_ended_otherwise_says_so(pod: Pod, code: str, kind: str, is_over: bool) -> None:
    pod.api.script, pod.api.down = [None], a_problem(409, code)
    context = pod.context()
    with pytest.raises(reattach.PermanentFailure), context:
        raise reattach.PermanentFailure("no table")
    assert pod.message()["kind"] == kind
    assert (context._termination.over is not None) is is_over


def test_error_that_ended_the_attempt_before_counts(pod: Pod) -> None:
    def main(task: reattach.Task) -> None:
        pod.api.script = [a_problem(409, "fenced")]
        try:
            task.state.get("k")
        except reattach.Fenced as fenced:
            raise reattach.PermanentFailure("no table") from fenced

    with pytest.raises(reattach.PermanentFailure):
        pod.context().run(main)
    assert pod.api.bodies("/v1/end") == []
    assert pod.message()["kind"] == "Fenced"


@pytest.fixture
def hung(pod: Pod) -> Any:
    """Return an event that is set once the report is sent, to which no response comes."""
    sent, release = threading.Event(), threading.Event()

    def hang() -> None:
        sent.set()
        release.wait(60)

    pod.api.on_end = hang
    yield sent
    release.set()


@pytest.mark.parametrize("is_async", [False, True])
def test_state_api_that_hangs_keeps_the_process_for_seconds_only(
    pod: Pod, hung: threading.Event, is_async: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(end_report, "REPORT_SECONDS", 0.2)
    run(pod, reattach.PermanentFailure("no table"), is_async=is_async)
    assert hung.is_set()
    assert pod.message() == {"reattach": "v1", **PERMANENT}


def test_other_tasks_of_the_event_loop_run_while_the_report_is_sent(pod: Pod) -> None:
    ticked = threading.Event()
    pod.api.on_end = lambda: ticked.wait(30) or pytest.fail("the event loop is blocked")

    async def main() -> None:
        async with pod.context():
            asyncio.get_running_loop().call_later(0.05, ticked.set)
            raise NO_SLOT

    with pytest.raises(reattach.RetryLater):
        asyncio.run(main())
    assert pod.message()["kind"] == "RetryLater"


def test_sigterm_ends_the_wait_for_the_report(pod: Pod, hung: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_report, "REPORT_SECONDS", 300.0)

    def stop() -> None:
        hung.wait(60)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    started = time.monotonic()
    run(pod, reattach.PermanentFailure("no table"))
    thread.join()
    assert time.monotonic() - started < 200
    assert pod.termination_log.read_bytes()


def test_process_without_room_for_a_thread_ends_all_the_same(pod: Pod, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    run(pod, reattach.PermanentFailure("no table"))
    assert pod.message() == {"reattach": "v1", **PERMANENT}
