"""The SDK and the real state API, in fair weather and foul."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import reattach
from reattach import NEVER_EXPIRE, aip103
from reattach.task.client import Timing
from reattach.task.connection import StateApiConnection, StateApiRequest, UnreachableError
from stateapi import Server, Servers
from taskpods import Pod, Pods, port_of
from tcp_relay import Relay
from waiting import read_until, wait_until

KEYS = [
    "job_id",
    "a/b",
    "a/../b",
    "..",
    ".",
    "a//b",
    "/",
    " ",
    "50%",
    "%2F",
    "ключ",
    "a?b#c",
    "a+b;c=d",
    "x" * 512,
    "\x00",
]
VALUES: list[Any] = ["", "text é✓", 0, -7, 2**70, 1.5, True, False, [], {}, [1, {"a": [False, "b"]}], {"": {"": 0}}]


def data_of(pods: Pods) -> dict[str, str]:
    data: dict[str, str] = pods.run.configmap()["data"]
    return data


def fails_after(pod: Pod, work: Callable[[reattach.Task], object]) -> None:
    """An attempt that does this and then fails."""

    def main(task: reattach.Task) -> None:
        work(task)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        pod.context().run(main)


class TestFairWeather:
    def test_what_is_set_is_there_for_the_next_attempt_under_any_key(self, pods: Pods) -> None:
        fails_after(pods.start(1), lambda task: [task.state.set(key, key) for key in KEYS])
        with pods.start(2).context() as task:
            assert [task.state.get(key) for key in KEYS] == KEYS
            assert task.state.list() == sorted(KEYS)
            assert [task.state.delete(key) for key in KEYS] == [True] * len(KEYS)
            assert task.state.clear() == 0

    def test_every_json_type_comes_back_as_it_was(self, pod: Pod) -> None:
        with pod.context() as task:
            for value in VALUES:
                task.state.set("key", value)
                got = task.state.get("key")
                assert got == value
                assert type(got) is type(value)

    async def test_async_code_does_the_same(self, pod: Pod) -> None:
        async with pod.context() as task:
            version = await task.state.aset("a", 1, retention=NEVER_EXPIRE)
            assert await task.state.aget("a") == 1
            with pytest.raises(reattach.VersionMismatch):
                await task.state.aset("a", 2, if_version=version + 1)
            assert await task.state.alist() == ["a"]
            assert await task.state.adelete("a", if_version=version) is True
            await task.acomplete({"rows": 1})

    def test_conditions_hold(self, pod: Pod) -> None:
        with pod.context() as task:
            first = task.state.set("lock", "mine", if_absent=True)
            with pytest.raises(reattach.KeyExists):
                task.state.set("lock", "yours", if_absent=True)
            second = task.state.set("lock", "still mine", if_version=first)
            assert second > first
            with pytest.raises(reattach.VersionMismatch):
                task.state.set("lock", "yours", if_version=first)
            with pytest.raises(reattach.VersionMismatch):
                task.state.delete("lock", if_version=first)
            assert task.state.get("lock") == "still mine"

    def test_a_batch_happens_whole_or_not_at_all(self, pod: Pod) -> None:
        with pod.context() as task:
            task.state.set("old", 1)
            with task.state.batch() as batch:
                batch.set("a", 1)
                batch.delete("old")
            assert task.state.list() == ["a"]
            half = task.state.batch()
            half.set("b", 2)
            half.set("a", 2, if_absent=True)
            with pytest.raises(reattach.KeyExists):
                half.__exit__(None, None, None)
            assert task.state.list() == ["a"]

    def test_an_entry_tells_who_wrote_it_and_how_long_it_stays(self, pods: Pods) -> None:
        pod = pods.start(1)
        fails_after(pod, lambda task: (task.state.set("kept", 1, retention=NEVER_EXPIRE), task.state.set("default", 1)))
        with pods.start(2).context() as task:
            kept, default = task.state.get_entry("kept"), task.state.get_entry("default")
            assert kept is not None
            assert default is not None
            assert (kept.attempt, kept.pod_uid, kept.expires_at) == (1, pod.body["metadata"]["uid"], None)
            assert default.expires_at is not None
            assert round((default.expires_at - default.updated_at).total_seconds()) == 30 * 86400

    def test_a_full_state_and_a_large_value_are_refused_and_change_nothing(self, pod: Pod) -> None:
        with pod.context() as task:
            with pytest.raises(reattach.ValueTooLarge):
                task.state.set("key", "x" * 65536)
            large = "x" * 60_000
            parts = [f"part-{number}" for number in range(8)]
            for part in parts:
                task.state.set(part, large)
            with pytest.raises(reattach.StateFull):
                task.state.set("one more", large)
            assert task.state.list() == parts

    def test_the_result_is_recorded_and_then_the_state_is_final(self, pods: Pods) -> None:
        with pods.start().context() as task:
            task.complete({"rows_written": 4211})
            with pytest.raises(reattach.AlreadyCompleted):
                task.state.set("late", 1)
            with pytest.raises(reattach.AlreadyCompleted):
                task.complete("another result")
            task.complete({"rows_written": 4211})
            assert task.state.get("late") is None
        assert '"rows_written\\":4211' in data_of(pods)["completion"]

    def test_a_result_may_be_null_inside_and_is_absent_if_none(self, pods: Pods) -> None:
        pods.start(1).context().run(lambda _: {"error": None})
        assert '{\\"error\\":null}' in data_of(pods)["completion"]

    def test_an_attempt_that_fails_records_nothing(self, pods: Pods) -> None:
        pod = pods.start()
        with pytest.raises(SystemExit), pod.context():
            raise SystemExit(0)
        assert "completion" not in data_of(pods)
        assert pod.message().kind == "Failed"


class TestLostAnswers:
    @pytest.fixture
    def lose(self, monkeypatch: pytest.MonkeyPatch) -> list[None]:
        """For each entry, the state API does what it is asked, and its answer does not arrive."""
        losing: list[None] = []
        send, asend = StateApiConnection.send, StateApiConnection.asend

        def sent(connection: StateApiConnection, request: StateApiRequest) -> httpx.Response:
            response = send(connection, request)
            if losing:
                losing.pop()
                raise UnreachableError("lost")
            return response

        async def asent(connection: StateApiConnection, request: StateApiRequest) -> httpx.Response:
            response = await asend(connection, request)
            if losing:
                losing.pop()
                raise UnreachableError("lost")
            return response

        monkeypatch.setattr(StateApiConnection, "send", sent)
        monkeypatch.setattr(StateApiConnection, "asend", asent)
        return losing

    def test_a_set_whose_answer_is_lost_is_stored_once(self, pods: Pods, lose: list[None]) -> None:
        with pods.start().context() as task:
            lose += [None] * 3
            assert task.state.set("job_id", "job-7", if_absent=True) == 1  # stored twice, it would be refused
            assert lose == []
            assert data_of(pods)["lastVersion"] == "1"

    def test_a_delete_whose_answer_is_lost_tells_what_it_did(self, pods: Pods, lose: list[None]) -> None:
        with pods.start().context() as task:
            task.state.set("job_id", "job-7")
            lose.append(None)
            assert task.state.delete("job_id") is True

    def test_open_and_complete_survive_it_too(self, pods: Pods, lose: list[None]) -> None:
        lose.append(None)
        with pods.start().context() as task:
            assert lose == []
            lose += [None, None]
            task.complete("done")
        assert lose == []
        assert "done" in data_of(pods)["completion"]

    async def test_async_calls_survive_it(self, pods: Pods, lose: list[None]) -> None:
        async with pods.start().context() as task:
            lose.append(None)
            assert await task.state.aset("job_id", "job-7", if_absent=True) == 1
            assert lose == []


class TestFencing:
    def test_a_second_process_of_the_pod_fences_the_first(self, pod: Pod) -> None:
        def first_and_second(first: reattach.Task) -> None:
            first.state.set("job_id", "job-7")
            with pod.context() as second:
                assert second.state.get("job_id") == "job-7"
                first.state.get("job_id")

        with pytest.raises(reattach.Fenced):
            pod.context().run(first_and_second)
        assert pod.message().kind == "Fenced"

    def test_a_later_attempt_fences_the_earlier_one_for_reading_and_writing(self, pods: Pods) -> None:
        earlier, later = pods.start(1), pods.start(2)

        def wakes_up(zombie: reattach.Task) -> None:
            later.context().run(lambda task: task.state.set("job_id", "job-8"))
            for call in (
                lambda: zombie.state.get("job_id"),
                lambda: zombie.state.set("job_id", "job-9"),
                zombie.complete,
            ):
                with pytest.raises(reattach.Fenced):
                    call()

        with pytest.raises(reattach.Fenced):  # although all of it was caught
            earlier.context().run(wakes_up)
        assert '\\"job-8\\"' not in data_of(pods)["key.job_id"]
        assert "job-8" in data_of(pods)["key.job_id"]

    def test_a_child_process_works_under_its_parents_session(self, pod: Pod) -> None:
        environment: dict[str, str] = {}
        program = "import reattach\nwith reattach.task() as task: task.state.set('from', 'the child')"
        with pod.context(environment=environment) as task:
            with pod.start("-c", program, **environment) as child:
                output, _ = child.communicate(timeout=60)
            assert child.returncode == 0, output
            assert task.state.get("from") == "the child"

    def test_state_that_was_deleted_by_force_is_lost_and_not_empty(self, pods: Pods) -> None:
        pod = pods.start()

        def main(task: reattach.Task) -> None:
            task.state.set("job_id", "job-7")
            pods.run.force_away_configmap()
            task.state.get("job_id", "none yet")

        with pytest.raises(reattach.StateLost):
            pod.context().run(main)
        assert pod.message().kind == "Held"
        with pytest.raises(reattach.StateLost):
            pods.start(2).context().run(lambda _: pytest.fail("it must not begin"))


class TestFoulWeather:
    def test_a_task_waits_for_an_absent_state_api_and_submits_nothing_twice(
        self, pods: Pods, relay: Relay, server: Server, tmp_path: Path
    ) -> None:
        pod = pods.start()
        submissions = tmp_path / "submissions"
        program = f"""
            import time, reattach

            def main(task):
                task.state.set("step", 1)
                print("away", flush=True)
                input()
                if task.state.get("job_id") is None:
                    open({str(submissions)!r}, "a").write("job-7\\n")
                    task.state.set("job_id", "job-7")
                return task.state.get("job_id")

            reattach.run(main)
        """
        task = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            env={**os.environ, **pod.environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert task.stdin is not None
        with task:
            read_until(task, task.stdout, "away")
            relay.lead_to(None)
            before = relay.connections
            task.stdin.write("\n")
            task.stdin.flush()
            read_until(task, task.stderr, "The state API has been unavailable for")
            wait_until(lambda: relay.connections > before + 5, seconds=60, what="the task keeps asking")
            assert not submissions.exists()
            assert task.poll() is None
            relay.lead_to(port_of(server))
            read_until(task, task.stderr, "The state API is available again, after")
            assert task.wait(60) == 0
        assert submissions.read_text() == "job-7\n"
        assert "job-7" in data_of(pods)["completion"]

    def test_a_replica_that_dies_is_replaced_by_another(self, pods: Pods, relay: Relay, servers: Servers) -> None:
        pod = pods.start()
        doomed = servers.start()
        relay.lead_to(port_of(doomed))
        pod.trust(doomed)
        with pod.context() as task:
            task.state.set("a", 1)
            doomed.kill()
            relay.lead_to(port_of(pods.server))
            pod.trust(pods.server)
            assert task.state.get("a") == 1
            task.state.set("a", 2)

    def test_the_ca_may_be_replaced_under_a_running_task(
        self, pods: Pods, relay: Relay, servers: Servers, caplog: pytest.LogCaptureFixture
    ) -> None:
        pod = pods.start()
        renewed = servers.start()  # it has a CA of its own
        slept: list[float] = []

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 4:
                pod.trust(renewed)

        with pod.context(timing=Timing(clock=lambda: sum(slept) * 10, sleep=sleep)) as task:
            task.state.set("a", 1)
            relay.lead_to(port_of(renewed))
            assert task.state.get("a") == 1
            assert len(slept) >= 4  # until then, nobody was trusted who could not be known
        assert "certificate verify failed" in caplog.text

    async def test_the_ca_may_be_replaced_under_a_running_async_task(
        self, pods: Pods, relay: Relay, servers: Servers
    ) -> None:
        pod = pods.start()
        renewed = servers.start()
        async with pod.context() as task:
            await task.state.aset("a", 1)
            relay.lead_to(port_of(renewed))
            pod.trust(renewed)
            assert await task.state.aget("a") == 1

    def test_the_token_may_be_replaced_under_a_running_task(self, pod: Pod) -> None:
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            pod.rotate_token()

        with pod.context(timing=Timing(sleep=sleep)) as task:
            task.state.set("a", 1)
            (pod.directory / "token").write_text("expired")
            assert task.state.get("a") == 1
            assert len(waited) == 1

    def test_a_token_for_somebody_else_ends_the_attempt(self, pods: Pods) -> None:
        pod = pods.start()
        (pod.directory / "token").write_text(pods.run.token(pod.body, audience="somebody-else"))
        now = [0.0]
        timing = Timing(clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
        with pytest.raises(reattach.Refused):
            pod.context(timing=timing).run(lambda _: pytest.fail("it must not begin"))

    def test_a_task_in_a_hurry_is_slowed_down_and_loses_nothing(
        self, pods: Pods, relay: Relay, servers: Servers
    ) -> None:
        strict = servers.start("--taskrun-rate", "10:5")
        relay.lead_to(port_of(strict))
        pod = pods.start()
        pod.trust(strict)
        with pod.context() as task:
            for number in range(15):
                task.state.set(f"key-{number}", number)
            assert len(task.state.list()) == 15


class TestAip103:
    """Airflow's acceptance cases, through `context["task_state"]`, on the real state API."""

    def test_airflow_13_to_17_and_22(self, pod: Pod) -> None:
        def run_job(**context: Any) -> str:
            task_state = context["task_state"]
            assert task_state.get("absent") is None
            assert task_state.get("absent", "default") == "default"
            for key in ("plain", "with/slashes/in it"):
                for value in VALUES:
                    task_state.set(key, value)
                    assert task_state.get(key) == value
            task_state.delete("plain")
            task_state.delete("plain")
            assert task_state.get("plain") is None
            assert task_state.get("with/slashes/in it") == VALUES[-1]
            task_state.clear()
            task_state.clear()
            assert task_state.get("with/slashes/in it") is None
            return "done"

        assert aip103.run_in(pod.context(), run_job) == "done"

    def test_airflow_18_another_taskrun_sees_nothing_of_it(self, pods: Pods, tmp_path: Path) -> None:
        other = Pods(
            type(pods.run).create(pods.run.control_plane, pods.run.namespace, "other"),
            pods.server,
            pods.relay,
            tmp_path / "other",
        )
        other.directory.mkdir()
        with pods.start().context() as task, other.start().context() as neighbour:
            task.state.set("key", "mine")
            neighbour.state.clear()
            assert neighbour.state.get("key") is None
            assert task.state.get("key") == "mine"

    def test_airflow_24_retention_counts_from_the_servers_clock(self, pod: Pod) -> None:
        with pod.context() as task:
            task_state = aip103.TaskState(task.state)
            task_state.set("week", 1, retention=timedelta(days=7))
            task_state.set("never", 1, retention=NEVER_EXPIRE)
            task_state.set("replaced", 1, retention=NEVER_EXPIRE)
            task_state.set("replaced", 1)
            entries = {entry.key: entry for entry in task.state.entries()}
        ages = {
            key: None if entry.expires_at is None else round((entry.expires_at - entry.updated_at).total_seconds())
            for key, entry in entries.items()
        }
        assert ages == {"week": 7 * 86400, "never": None, "replaced": 30 * 86400}
