"""How a task begins, and what each way to end it leaves behind."""

import asyncio
import contextlib
import dataclasses
import json
import math
import os
import signal
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import httpx
import pytest

import reattach
from fakepod import Pod, a_problem
from reattach.api.names import ENV_SESSION, HEADER_SESSION
from reattach.task import termination
from reattach.task.settings import from_environment

REFUSED = httpx.ConnectError("connection refused")


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(termination, "END_SECONDS", 0.01)
    yield
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    wait_for_the_watchdog()


def wait_for_the_watchdog() -> None:
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)


class TestBeginning:
    def test_the_state_is_opened_on_entering(self, pod: Pod) -> None:
        with pod.context() as task:
            assert pod.api.paths() == ["POST /v1/open"]
            assert (task.namespace, task.name, task.attempt) == ("demo", "load", 2)

    def test_one_session_goes_with_every_call_and_to_children(self, pod: Pod) -> None:
        with pod.context() as task:
            session = pod.environment[ENV_SESSION]
            task.state.get("a")
        assert pod.api.bodies("/v1/open") == [{"session": session}]
        assert {request.headers[HEADER_SESSION] for request in pod.api.requests} == {session}
        assert ENV_SESSION not in pod.environment

    def test_each_process_has_a_session_of_its_own(self, pod: Pod) -> None:
        for _ in range(2):
            with pod.context():
                pass
        first, second = pod.api.bodies("/v1/open")
        assert first != second

    def test_opening_waits_for_the_state_api_under_one_session(self, pod: Pod) -> None:
        pod.api.script = [REFUSED, httpx.ReadTimeout("lost")]
        with pod.context():
            pass
        assert len(pod.api.bodies("/v1/open")) == 3
        assert len({json.dumps(body) for body in pod.api.bodies("/v1/open")}) == 1

    def test_a_child_joins_the_session_of_its_parent_and_leaves_the_end_to_it(self, pod: Pod) -> None:
        child = dataclasses.replace(pod.settings, session="parents-session")
        with pod.context(child) as task:
            task.state.set("progress", 1)
        assert pod.context(child).run(lambda _: "result of the child") == "result of the child"
        assert pod.api.paths() == ["POST /v1/state"]
        assert pod.api.requests[0].headers[HEADER_SESSION] == "parents-session"

    @pytest.mark.parametrize("error", [ValueError("of a part"), reattach.PermanentFailure("of a part"), SystemExit(0)])
    def test_what_ends_a_child_is_not_told_as_the_end_of_the_attempt(self, pod: Pod, error: BaseException) -> None:
        with pytest.raises(type(error)), pod.context(dataclasses.replace(pod.settings, session="parents-session")):
            raise error
        assert pod.termination_log.read_bytes() == b""

    def test_but_that_the_attempt_must_end_a_child_tells_too(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> None:
            pod.api.down = a_problem(409, "fenced", "attempt 3 took over")
            task.state.get("job_id")

        with pytest.raises(reattach.Fenced):
            pod.context(dataclasses.replace(pod.settings, session="parents-session")).run(main)
        assert pod.message()["kind"] == "Fenced"

    def test_a_child_may_complete_the_task_if_it_says_so(self, pod: Pod) -> None:
        with pod.context(dataclasses.replace(pod.settings, session="parents-session")) as task:
            task.complete(1)
        assert pod.api.completed == [1]

    def test_an_attempt_that_may_not_open_never_runs(self, pod: Pod) -> None:
        pod.api.script = [a_problem(409, "fenced", "attempt 3 took over")]
        ran: list[reattach.Task] = []
        with pytest.raises(reattach.Fenced):
            pod.context().run(ran.append)
        assert ran == []
        assert pod.message()["kind"] == "Fenced"


@dataclasses.dataclass(repr=False)
class Unprintable:
    def __repr__(self) -> str:
        raise OSError("no text")


class TestEndingWell:
    def test_what_main_returns_is_the_result(self, pod: Pod) -> None:
        assert pod.context().run(lambda task: {"rows_written": task.attempt}) == {"rows_written": 2}
        assert pod.api.completed == [{"rows_written": 2}]
        assert pod.termination_log.read_bytes() == b""

    def test_main_may_be_async(self, pod: Pod) -> None:
        async def main(task: reattach.Task) -> int:
            await task.state.aset("a", 1)
            return await task.state.aget("a")

        assert pod.context().run(main) == 1
        assert pod.api.completed == [1]

    def test_without_a_result_completion_is_recorded_all_the_same(self, pod: Pod) -> None:
        pod.context().run(lambda _: None)
        with pod.context():
            pass
        assert pod.api.bodies("/v1/complete") == [{}, {}]

    @pytest.mark.parametrize("falsy", [0, "", False, [], {}])
    def test_a_falsy_result_is_a_result(self, pod: Pod, falsy: Any) -> None:
        pod.context().run(lambda _: falsy)
        assert pod.api.bodies("/v1/complete") == [{"result": falsy}]

    def test_completion_is_recorded_once(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> str:
            task.complete("early")
            return "late"

        pod.context().run(main)
        with pod.context() as task:
            task.complete("in the block")
        assert pod.api.completed == ["early", "in the block"]

    async def test_async_with_completes_too(self, pod: Pod) -> None:
        async with pod.context() as task:
            await task.acomplete(7)
        async with pod.context():
            pass
        assert pod.api.completed == [7, None]

    def test_completing_waits_for_the_state_api(self, pod: Pod) -> None:
        def main(_: reattach.Task) -> str:
            pod.api.down = REFUSED
            pod.time.at(60, lambda: setattr(pod.api, "down", None))
            return "done"

        pod.context().run(main)
        assert pod.api.completed == ["done"]


class TestResultThatCannotBeStored:
    @pytest.mark.parametrize(
        "result, why",
        [
            (
                {"when": datetime(2026, 1, 1, tzinfo=UTC)},
                r"result\['when'\] must be JSON .*; store value.isoformat\(\)",
            ),
            ({"sum": [Decimal("1.5")]}, r"result\['sum'\]\[0\] must be JSON .*not Decimal; store str\(value\)"),
            ({"mse": math.nan}, r"result\['mse'\] must be a finite number, not nan"),
            ({1: "a"}, "result must have strings as names, not int"),
            ("x" * 5000, "at most 4096 bytes as JSON; this one has 5002"),
            (b"bytes", "not bytes; store it as text"),
            (Unprintable(), "not Unprintable; store dataclasses.asdict"),
        ],
    )
    def test_it_fails_the_run_at_once_and_the_log_keeps_the_value(
        self, pod: Pod, result: Any, why: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with pytest.raises(reattach.InvalidResult, match=why) as raised:
            pod.context().run(lambda _: result)
        assert isinstance(raised.value, reattach.InvalidValue)
        assert (pod.api.completed, pod.message()["kind"]) == ([], "Permanent")
        assert "another attempt would, too, so no attempt follows" in pod.message()["message"]
        shown = "a Unprintable, whose repr() raised OSError" if isinstance(result, Unprintable) else repr(result)
        assert f"This result can't be stored: {shown}" in caplog.text

    async def test_a_block_that_completes_with_it_may_complete_with_another(self, pod: Pod) -> None:
        async with pod.context() as task:
            with pytest.raises(reattach.InvalidResult):
                await task.acomplete({1, 2})
            await task.acomplete([1, 2])
        assert pod.api.completed == [[1, 2]]

    def test_tuples_are_stored_as_arrays(self, pod: Pod) -> None:
        pod.context().run(lambda _: {"rows": (1, ("a", None))})
        assert pod.api.completed == [{"rows": [1, ["a", None]]}]


class TestEndingBadly:
    @pytest.mark.parametrize(
        "error,message",
        [
            (ValueError("no such table"), {"kind": "Failed", "message": "ValueError: no such table"}),
            (KeyError("a"), {"kind": "Failed", "message": "KeyError: 'a'"}),
            (RuntimeError(), {"kind": "Failed", "message": "RuntimeError"}),
            (reattach.PermanentFailure("wrong query"), {"kind": "Permanent", "message": "wrong query"}),
            (
                reattach.RetryLater(29.5, "quota"),
                {"kind": "RetryLater", "message": "quota", "retryAfterSeconds": 30},
            ),
            (
                reattach.RetryLater(60),
                {"kind": "RetryLater", "message": "retry in 60 s, as the task requested", "retryAfterSeconds": 60},
            ),
            (
                reattach.NotReady(29.5, "no partition"),
                {"kind": "RetryLater", "message": "no partition", "retryAfterSeconds": 30, "notReady": True},
            ),
            (
                ExceptionGroup("g", [reattach.NotReady(1, "a"), reattach.NotReady(9, "b")]),
                {"kind": "RetryLater", "message": "b", "retryAfterSeconds": 9, "notReady": True},
            ),
            (
                ExceptionGroup("g", [reattach.NotReady(9, "a"), reattach.RetryLater(1, "b")]),
                {"kind": "RetryLater", "message": "b", "retryAfterSeconds": 1},
            ),
            (
                ExceptionGroup("g", [reattach.NotReady(9, "a"), ValueError("b")]),
                {"kind": "Failed", "message": "ExceptionGroup: g (2 sub-exceptions)"},
            ),
            (KeyboardInterrupt(), {"kind": "Failed", "message": "KeyboardInterrupt"}),
            (SystemExit(3), {"kind": "Failed", "message": "SystemExit: 3"}),
            (SystemExit("no input"), {"kind": "Failed", "message": "SystemExit: no input"}),
            (asyncio.CancelledError(), {"kind": "Failed", "message": "CancelledError"}),
            (
                ExceptionGroup("g", [ValueError("x"), reattach.PermanentFailure("p")]),
                {"kind": "Permanent", "message": "p"},
            ),
            (
                ExceptionGroup("g", [reattach.RetryLater(1, "a"), ExceptionGroup("h", [reattach.RetryLater(9, "b")])]),
                {"kind": "RetryLater", "message": "b", "retryAfterSeconds": 9},
            ),
        ],
    )
    def test_an_exception_is_told_to_the_operator_and_goes_on(
        self, pod: Pod, error: Any, message: dict[str, Any]
    ) -> None:
        def main(_: reattach.Task) -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            pod.context().run(main)

        assert raised.value is error
        assert pod.message() == {"reattach": "v1", **message}
        assert pod.api.completed == []

    @pytest.mark.parametrize("code", [0, None])
    def test_sys_exit_0_is_not_success(self, pod: Pod, code: Any) -> None:
        with pytest.raises(SystemExit), pod.context():
            raise SystemExit(code)
        assert pod.api.completed == []
        assert "called sys.exit() before it returned" in pod.message()["message"]

    def test_an_async_main_fails_the_same_way(self, pod: Pod) -> None:
        async def main(_: reattach.Task) -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())

        async def fail() -> None:
            raise reattach.PermanentFailure("wrong query")

        with pytest.raises(ExceptionGroup):
            pod.context().run(main)
        assert pod.message()["kind"] == "Permanent"

    def test_a_state_that_was_lost_is_held_for_a_person(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> None:
            pod.api.script = [a_problem(409, "state-lost", "deleted by force")]
            task.state.get("job_id")

        with pytest.raises(reattach.StateLost):
            pod.context().run(main)
        assert pod.message() == {"reattach": "v1", "kind": "Held", "message": "StateLost: deleted by force"}

    def test_an_absent_state_api_may_be_caught_by_name_for_what_the_task_can_do_without(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> str:
            pod.api.down = REFUSED
            try:
                task.state.set("progress", 0.5)
            except reattach.Unavailable:
                pod.api.down = None
            return "done"

        assert pod.context().run(main) == "done"
        assert pod.api.completed == ["done"]

    def test_a_message_fits_into_4096_bytes_and_keeps_both_ends(self, pod: Pod) -> None:
        for text in ("x" * 50_000, 'é"\n\x00' * 9_000, "\ud800" * 5_000, "x" * 4030):
            with pytest.raises(ValueError), pod.context():
                raise ValueError(f"begin {text} end")
            raw = pod.termination_log.read_bytes()
            assert len(raw) <= 4096
            assert pod.message()["message"].startswith("ValueError: begin")
            assert pod.message()["message"].endswith("end")

    def test_a_short_message_replaces_a_long_one(self, pod: Pod) -> None:
        for text in ("x" * 3000, "short"):
            with pytest.raises(ValueError), pod.context():
                raise ValueError(text)
        assert pod.message()["message"] == "ValueError: short"

    def test_without_a_termination_log_the_log_has_the_message(
        self, pod: Pod, caplog: pytest.LogCaptureFixture
    ) -> None:
        pod.termination_log.unlink()
        with pytest.raises(ValueError), pod.context():
            raise ValueError("no such table")
        assert "no such table" in caplog.text
        assert not pod.termination_log.exists()

    def test_retry_later_takes_no_negative_seconds(self) -> None:
        with pytest.raises(ValueError, match="0 or more"):
            reattach.RetryLater(-1)

    def test_not_ready_rejects_negative_seconds(self) -> None:
        with pytest.raises(ValueError, match="0 or more"):
            reattach.NotReady(-1)


class TestBeingFenced:
    def fence(self, pod: Pod) -> None:
        pod.api.down = a_problem(409, "fenced", "attempt 3 took over")

    def test_the_exit_code_is_its_own_and_the_operator_is_told(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> None:
            self.fence(pod)
            task.state.get("job_id")

        with pytest.raises(reattach.Fenced) as raised:
            pod.context().run(main)

        assert raised.value.code == 79
        assert pod.message() == {"reattach": "v1", "kind": "Fenced", "message": "Fenced: attempt 3 took over"}

    def test_catching_everything_does_not_make_it_a_success(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> str:
            self.fence(pod)
            try:
                task.state.get("job_id")
            except BaseException:  # noqa: BLE001
                pod.api.down = None
            return "as if nothing had happened"

        with pytest.raises(reattach.Fenced):
            pod.context().run(main)
        assert pod.api.completed == []

    def test_a_process_that_goes_on_is_ended(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> None:
            self.fence(pod)

            def in_a_thread() -> None:
                with contextlib.suppress(reattach.Fenced):
                    task.state.get("job_id")

            thread = threading.Thread(target=in_a_thread)
            thread.start()
            thread.join()
            wait_for_the_watchdog()
            assert pod.ended == [79]
            assert pod.message()["kind"] == "Fenced"

        with pytest.raises(reattach.Fenced):
            pod.context().run(main)

    def test_it_leaves_an_event_loop_from_any_of_its_tasks(self, pod: Pod) -> None:
        async def main(task: reattach.Task) -> str:
            self.fence(pod)
            background = asyncio.create_task(task.state.aget("job_id"))
            await asyncio.sleep(30)
            return f"as if nothing had happened to {background}"

        with pytest.raises(reattach.Fenced):
            pod.context().run(main)
        assert pod.message()["kind"] == "Fenced"
        assert pod.api.completed == []

    def test_what_breaks_on_the_way_out_does_not_hide_it(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> None:
            self.fence(pod)
            try:
                task.state.get("job_id")
            finally:
                raise reattach.PermanentFailure("broken cleanup")

        with pytest.raises(reattach.PermanentFailure):
            pod.context().run(main)
        assert pod.message()["kind"] == "Fenced"

    def test_an_absent_state_api_ends_no_process(self, pod: Pod, caplog: pytest.LogCaptureFixture) -> None:
        pod.api.down = REFUSED
        with pytest.raises(reattach.Unavailable):
            pod.context().run(lambda _: None)
        [last] = [
            record.getMessage() for record in caplog.records if (record.name, record.levelname) == ("reattach", "ERROR")
        ]
        assert last.startswith("Unavailable: the state API was unavailable for 3600 s")
        assert not any(isinstance(thread, threading.Timer) for thread in threading.enumerate())
        assert pod.message()["kind"] == "Unavailable"


class TestSigterm:
    def test_it_is_never_success_even_if_it_is_caught(self, pod: Pod) -> None:
        def main(_: reattach.Task) -> str:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:  # noqa: BLE001
                return "as if nothing had happened"
            return "not reached"

        with pytest.raises(reattach.Terminated) as raised:
            pod.context().run(main)
        assert raised.value.code == 143
        assert pod.api.completed == []

    def test_the_log_has_one_line_about_it(self, pod: Pod, caplog: pytest.LogCaptureFixture) -> None:
        with pytest.raises(reattach.Terminated):
            pod.context().run(lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert [(record.levelname, record.getMessage()) for record in caplog.records if record.name == "reattach"] == [
            ("WARNING", "SIGTERM: this pod is being stopped. External jobs keep running.")
        ]

    def test_it_ends_waiting_for_the_state_api(self, pod: Pod) -> None:
        def main(task: reattach.Task) -> None:
            pod.api.down = REFUSED
            pod.time.at(20, lambda: os.kill(os.getpid(), signal.SIGTERM))
            task.state.get("job_id")

        with pytest.raises(reattach.Terminated):
            pod.context().run(main)
        assert sum(pod.time.waited) < 40

    def test_it_lets_the_task_release_what_it_holds_once(self, pod: Pod) -> None:
        released = []

        def main(_: reattach.Task) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # a second one does not break this
                released.append(True)

        with pytest.raises(reattach.Terminated):
            pod.context().run(main)
        assert released == [True]
        assert pod.message()["message"] == "Terminated: SIGTERM: the pod is being stopped"

    def test_a_handler_of_the_task_stays(self, pod: Pod) -> None:
        seen = []
        signal.signal(signal.SIGTERM, lambda *_: seen.append(True))
        try:
            pod.context().run(lambda _: os.kill(os.getpid(), signal.SIGTERM))
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert seen == [True]

    def test_another_thread_may_run_a_task_without_it(self, pod: Pod) -> None:
        thread = threading.Thread(target=lambda: pod.context().run(lambda _: "done"))
        thread.start()
        thread.join()
        assert pod.api.completed == ["done"]


class TestEnvironment:
    @pytest.fixture
    def environment(self, pod: Pod) -> dict[str, str]:
        return {
            "REATTACH_URL": "https://state.test/",
            "REATTACH_NAMESPACE": "demo",
            "REATTACH_TASKRUN": "load",
            "REATTACH_ATTEMPT": "3",
            "REATTACH_DIRECTORY": str(pod.settings.directory),
            "REATTACH_TERMINATION_LOG": str(pod.settings.termination_log),
        }

    def test_it_says_all_that_is_needed(self, pod: Pod, environment: dict[str, str]) -> None:
        settings = from_environment(environment)
        assert settings == dataclasses.replace(pod.settings, attempt=3)
        assert from_environment({**environment, "REATTACH_SESSION": "s-1"}).session == "s-1"
        assert from_environment({**environment, "REATTACH_ADDRESS": "10.0.0.1"}).address == "10.0.0.1"
        phases = {phase: from_environment({**environment, "REATTACH_PHASE": phase}) for phase in ("", "run", "cleanup")}
        assert {phase: one.is_cleanup for phase, one in phases.items()} == {"": False, "run": False, "cleanup": True}

    @pytest.mark.parametrize(
        "name,value,why",
        [
            ("REATTACH_URL", "", "Reattach did not start this process, .*pass a fake `task`"),
            ("REATTACH_URL", "http://state.test", "must start with https://"),
            ("REATTACH_NAMESPACE", "", "REATTACH_NAMESPACE must also be set"),
            ("REATTACH_TASKRUN", "", "REATTACH_TASKRUN must also be set"),
            ("REATTACH_ATTEMPT", "two", "must be a number, not 'two'"),
            ("REATTACH_PHASE", "suspend", "REATTACH_PHASE must be run or cleanup, not 'suspend'"),
            ("REATTACH_DIRECTORY", "/nowhere", "/nowhere/token is missing. Only the task's container"),
        ],
    )
    def test_what_is_missing_is_named_and_what_to_do(
        self, environment: dict[str, str], name: str, value: Any, why: str
    ) -> None:
        with pytest.raises(reattach.NotInPod, match=f"(?s){why}"):
            from_environment({**environment, name: value})

    def test_outside_a_pod_there_is_no_task(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("REATTACH_URL", raising=False)
        with pytest.raises(reattach.NotInPod):
            reattach.task()
        with pytest.raises(reattach.NotInPod):
            reattach.run(lambda _: None)

    @pytest.mark.parametrize("patience", [0, -1, float("nan")])
    def test_patience_is_positive(self, pod: Pod, patience: float) -> None:
        with pytest.raises(ValueError, match="patience must be more than 0"):
            pod.settings.with_patience(patience)
