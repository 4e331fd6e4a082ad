"""Task functions of AIP-103 run unchanged."""

import dataclasses
import inspect
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest

import reattach
from fakepod import Pod
from reattach import aip103
from reattach.aip103 import NEVER_EXPIRE


def in_every_way() -> dict[str, Any]:
    def all_of_it(**context: Any) -> Any:
        return [context["task_state"].get("job_id"), context["ti"].try_number]

    def one_context(context: Any) -> Any:
        return [context["task_state"].get("job_id"), context["task_instance"].try_number]

    def by_name(task_state_store: Any = None, ti: Any = None) -> Any:
        return [task_state_store.get("job_id"), ti.try_number]

    def by_the_older_name(task_state: Any, try_number: Any, unrelated: str = "default") -> Any:
        return [task_state.get("job_id"), try_number]

    async def awaited(**context: Any) -> Any:
        return [await context["task_state"].aget("job_id"), context["ti"].try_number]

    async def awaited_by_name(task_state_store: Any = None, ti: Any = None) -> Any:
        return [await task_state_store.aget("job_id"), ti.try_number]

    class Decorated:
        """What Airflow's @task makes of a function."""

        function = staticmethod(by_name)

        def __call__(self) -> Any:
            raise AssertionError("that would build a Dag")

    functions = [all_of_it, one_context, by_name, by_the_older_name, awaited, awaited_by_name]
    return {**{function.__name__: function for function in functions}, "decorated": Decorated()}


@pytest.mark.parametrize("way", in_every_way())
def test_a_function_gets_its_context_in_the_way_it_takes_it(pod: Pod, way: str) -> None:
    pod.api.values = {"job_id": "job-7"}
    function = in_every_way()[way]
    assert aip103.run_in(pod.context(), function) == ["job-7", 2]
    assert pod.api.completed == [["job-7", 2]]


def test_state_of_an_asset_is_refused_when_it_is_used(pod: Pod) -> None:
    def load(asset_state_store: Any = None) -> Any:
        return asset_state_store["orders"].get("watermark")

    with pytest.raises(reattach.PermanentFailure, match=r"asset_state_store is not available.*spec\.stateFrom"):
        aip103.run_in(pod.context(), load)


@pytest.mark.parametrize("way", in_every_way())
def test_a_cleanup_hook_gets_its_context_in_the_way_it_takes_it(pod: Pod, way: str) -> None:
    pod.api.values = {"job_id": "job-7"}
    pod.begin_cleanup()
    seen: list[Any] = []
    handler = aip103.handler_of(in_every_way()[way])

    def on_cleanup(cleanup: reattach.CleanupTask) -> Any:
        result = handler(cleanup)
        if not inspect.isawaitable(result):
            seen.append(result)
            return None

        async def awaited() -> None:
            seen.append(await result)

        return awaited()

    def run_job(**_: Any) -> None:
        raise AssertionError("a cleanup attempt must not call the task function")

    with pytest.raises(SystemExit) as end:
        aip103.run_in(pod.context(on_cleanup=on_cleanup), run_job)
    assert end.value.code == 0
    assert seen == [["job-7", 3]]


def test_a_cleanup_hook_with_other_arguments_is_refused_before_the_state_is_opened() -> None:
    def needs_more(task_state: Any, table: Any) -> None: ...

    with pytest.raises(TypeError, match="may take only"):
        aip103.run(lambda: None, on_cleanup=needs_more)


def test_what_it_returns_is_the_result(pod: Pod) -> None:
    pod.api.values = {"job_id": "job-7"}

    def run_job(**context: Any) -> Any:
        return {"job": context["task_state"].get("job_id"), "try": context["ti"].try_number}

    assert aip103.run_in(pod.context(), run_job) == {"job": "job-7", "try": 2}
    assert pod.api.completed == [{"job": "job-7", "try": 2}]


@pytest.mark.parametrize("takes", [lambda ds: ds, lambda a, b: (a, b), lambda context, other: (context, other)])
def test_what_it_can_not_be_given_is_said_before_the_task_begins(pod: Pod, takes: Any) -> None:
    with pytest.raises(TypeError, match="a task function may take only task_state, task_state_store, ti"):
        aip103.run_in(pod.context(), takes)
    assert pod.api.requests == []


@pytest.mark.parametrize("is_async", [False, True])
def test_airflow_fail_exception_is_permanent(pod: Pod, is_async: bool) -> None:
    class AirflowFailException(Exception):  # noqa: N818 -- Airflow named it
        pass

    class MyFailure(AirflowFailException):
        pass

    def fails(context: Any) -> Any:
        raise MyFailure("no such bucket")

    async def fails_async(context: Any) -> Any:
        raise MyFailure("no such bucket")

    with pytest.raises(reattach.PermanentFailure):
        aip103.run_in(pod.context(), fails_async if is_async else fails)
    assert pod.message() == {"reattach": "v1", "kind": "Permanent", "message": "no such bucket"}
    assert pod.api.bodies("/v1/end") == [{"kind": "Permanent", "message": "no such bucket"}]


@pytest.mark.parametrize("zone", [None, UTC])
@pytest.mark.parametrize("late", [False, True])
def test_airflow_reschedule_exception_is_not_ready_until_its_date(pod: Pod, zone: tzinfo | None, late: bool) -> None:
    class AirflowRescheduleException(Exception):  # noqa: N818 -- Airflow named it
        def __init__(self, reschedule_date: datetime) -> None:
            super().__init__()
            self.reschedule_date = reschedule_date

    date = datetime.now(zone) + timedelta(hours=-1 if late else 1)

    def waits(context: Any) -> Any:
        raise AirflowRescheduleException(date)

    with pytest.raises(reattach.NotReady):
        aip103.run_in(pod.context(), waits)
    message = pod.message()
    assert (message["kind"], message["notReady"]) == ("RetryLater", True)
    assert message["message"] == f"Airflow's task is rescheduled for {date.isoformat()}"
    assert message["retryAfterSeconds"] == 0 if late else 3500 < message["retryAfterSeconds"] <= 3600
    [reported] = pod.api.bodies("/v1/end")
    assert (reported["kind"], reported["retryAfterSeconds"]) == ("NotReady", message["retryAfterSeconds"])


def test_airflow_reschedule_exception_without_a_date_is_an_ordinary_failure(pod: Pod) -> None:
    class AirflowRescheduleException(Exception):  # noqa: N818 -- Airflow named it
        pass

    def waits(context: Any) -> Any:
        raise AirflowRescheduleException

    with pytest.raises(AirflowRescheduleException):
        aip103.run_in(pod.context(), waits)
    assert pod.message()["kind"] == "Failed"


def test_other_exceptions_are_ordinary_failures(pod: Pod) -> None:
    def fails(context: Any) -> Any:
        raise RuntimeError("Simulated failure")

    with pytest.raises(RuntimeError):
        aip103.run_in(pod.context(), fails)
    assert pod.message()["kind"] == "Failed"


class TestAccessor:
    @pytest.fixture
    def task_state(self, pod: Pod) -> aip103.TaskState:
        return aip103.TaskState(pod.state())

    def test_airflow_13_a_missing_key_gives_the_default(self, task_state: aip103.TaskState) -> None:
        assert task_state.get("absent") is None
        assert task_state.get("absent", default="fallback") == "fallback"

    @pytest.mark.parametrize("value", ["text", 7, 1.5, True, False, 0, "", [1, "a"], {"a": {"b": [True]}}])
    def test_airflow_14_every_json_type_comes_back_as_it_was(self, task_state: aip103.TaskState, value: Any) -> None:
        task_state.set("key", value)
        got = task_state.get("key")
        assert got == value
        assert type(got) is type(value)

    def test_airflow_15_a_second_set_overwrites(self, task_state: aip103.TaskState) -> None:
        task_state.set("key", 1)
        task_state.set("key", 2)
        assert task_state.get("key") == 2

    def test_airflow_16_delete_takes_the_named_key_alone_and_an_absent_one_is_fine(
        self, task_state: aip103.TaskState
    ) -> None:
        task_state.set("a", 1)
        task_state.set("b", 2)
        task_state.delete("a")
        task_state.delete("a")
        assert (task_state.get("a"), task_state.get("b")) == (None, 2)

    def test_airflow_17_clear_takes_all_keys_and_an_empty_state_is_fine(self, task_state: aip103.TaskState) -> None:
        task_state.clear()
        task_state.set("a", 1)
        task_state.set("b", 2)
        task_state.clear()
        assert (task_state.get("a"), task_state.get("b")) == (None, None)

    @pytest.mark.parametrize("value", [None, float("nan"), float("inf"), -float("inf"), {"a": [None]}, [float("nan")]])
    def test_airflow_20_null_and_numbers_that_are_none_are_refused_also_inside(
        self, pod: Pod, task_state: aip103.TaskState, value: Any
    ) -> None:
        with pytest.raises(ValueError, match="must"):
            task_state.set("key", value)
        assert pod.api.requests == []

    def test_airflow_21_a_value_over_64_kib_is_refused_and_not_only_warned_about(
        self, pod: Pod, task_state: aip103.TaskState
    ) -> None:
        task_state.set("key", "x" * (65536 - 2))
        with pytest.raises(ValueError, match="65536 bytes"):
            task_state.set("key", "x" * 65536)
        assert len(pod.api.requests) == 1

    def test_airflow_22_keys_may_hold_slashes(self, task_state: aip103.TaskState) -> None:
        task_state.set("jobs/eu/1", "a")
        assert task_state.get("jobs/eu/1") == "a"
        task_state.delete("jobs/eu/1")
        assert task_state.get("jobs/eu/1") is None

    def test_airflow_24_retention_is_a_timedelta_never_or_left_to_the_default(
        self, pod: Pod, task_state: aip103.TaskState
    ) -> None:
        task_state.set("a", 1)
        task_state.set("b", 1, retention=timedelta(days=7))
        task_state.set("c", 1, retention=NEVER_EXPIRE)
        task_state.set("d", 1, retention=None)
        sent = [body["operations"][0].get("retentionSeconds", "default") for body in pod.api.bodies("/v1/state")]
        assert sent == ["default", 7 * 86400, None, "default"]
        with pytest.raises(ValueError, match="more than 0"):
            task_state.set("e", 1, retention=timedelta(days=-1))

    async def test_the_async_twins_do_the_same(self, task_state: aip103.TaskState) -> None:
        await task_state.aset("a", 1, retention=NEVER_EXPIRE)
        assert await task_state.aget("a") == 1
        await task_state.adelete("a")
        await task_state.aclear()
        assert await task_state.aget("a", "default") == "default"


class TestEntry:
    def run(self, tmp_path: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "dag_file.py").write_text(textwrap.dedent(source))
        return subprocess.run(
            [sys.executable, "-m", "reattach.aip103", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def test_what_a_task_function_imports_of_airflow_is_there_without_airflow(self, tmp_path: Path) -> None:
        source = """
        from airflow.exceptions import AirflowFailException, AirflowRescheduleException
        from airflow.sdk import NEVER_EXPIRE
        from airflow.sdk.execution_time.context import NEVER_EXPIRE as SAME
        from datetime import timedelta

        assert NEVER_EXPIRE is SAME is timedelta.max
        assert AirflowRescheduleException(5).reschedule_date == 5
        print("imported")

        def run_job(**context): ...
        """
        # Outside a pod it goes as far as this, and says why no further.
        result = self.run(tmp_path, source, "dag_file:run_job")
        assert result.stdout == "imported\n"
        assert "NotInPod" in result.stderr

    def test_airflow_itself_is_preferred_where_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "airflow").mkdir()
        (tmp_path / "airflow" / "__init__.py").write_text("")
        (tmp_path / "airflow" / "sdk.py").write_text("NEVER_EXPIRE = 'the real one'")
        result = self.run(tmp_path, "from airflow.sdk import NEVER_EXPIRE\nprint(NEVER_EXPIRE)", "dag_file:run_job")
        assert result.stdout == "the real one\n"

    def test_the_cleanup_hook_may_be_in_a_file_beside_the_dag_file(self, tmp_path: Path) -> None:
        (tmp_path / "hooks.py").write_text("print('hooks imported')\ndef cancel_job(**context): ...\n")
        arguments = ["dag_file:run_job", "--on-cleanup=hooks:cancel_job"]
        result = self.run(tmp_path, "def run_job(**context): ...", *arguments)
        assert result.stdout == "hooks imported\n"
        assert "NotInPod" in result.stderr

    @pytest.mark.parametrize("arguments", [[], ["dag_file"], ["a:b", "c:d"], ["a:b", "--on-cleanup=c"]])
    def test_it_says_how_to_call_it(self, tmp_path: Path, arguments: list[str]) -> None:
        result = self.run(tmp_path, "", *arguments)
        assert result.returncode == 1
        assert "usage: python -m reattach.aip103 module:function" in result.stderr


def test_a_task_instance_says_which_task_run_it_is(pod: Pod) -> None:
    with pod.context() as task:
        context = aip103.context_of(task)
    assert dataclasses.asdict(context["ti"]) == {
        "try_number": 2,
        "task_id": "load",
        "run_id": "demo/load",
        "map_index": -1,
    }
