"""The adapter for Slurm against a real cluster, by its commands and by slurmrestd."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest

from conformance.brokenapi import broken_api
from reattach.adapters.base import Active, Cancelled, Failed, JobStatus, NotFound, Rejected, Submission, Succeeded
from reattach.adapters.slurm import SlurmCommands, SlurmError, SlurmRest
from reattach.adapters.slurm.adapter import Slurm
from reattach.adapters.slurm.records import handle_from
from reattach.testing import Case, ExternalSystem
from systems.cleanup import MOMENTS, cancel_run
from systems.conformance import ALL, HERE, Stage, play, staged
from systems.slurmcluster import REST_VERSION, SlurmCluster
from waiting import wait_until

Made = Callable[[Any], Submission]
END_SECONDS = 90
DAYS = timedelta(days=30)
WAYS = ["commands", "line", "rest"]
# What waits for Slurm's own time-outs: `make test-all` plays it, and by every way.
long = pytest.mark.skipif(not ALL, reason="takes long: REATTACH_ALL=1 plays it")
by_few_ways = pytest.mark.parametrize("jobs", WAYS if ALL else WAYS[:1], indirect=True)


def adapter_of(cluster: SlurmCluster, way: str, accounting: timedelta | None = DAYS) -> Slurm:
    """`commands`: each argument by itself. `line`: through a shell, as ssh does it. `rest`: slurmrestd."""
    if way == "rest":
        return SlurmRest(cluster.address, user="task", token=cluster.token, version=REST_VERSION, accounting=accounting)
    if way == "line":
        return SlurmCommands(accounting=accounting, via=(*cluster.via, "sh", "-c"), line=True)
    return SlurmCommands(accounting=accounting, via=cluster.via)


def a_script(adapter: Slurm, command: str, **job: Any) -> dict[str, Any]:
    """The same job for both ways."""
    script = f"#!/bin/sh\n{command}\n"
    if isinstance(adapter, SlurmRest):
        return {
            "script": script,
            "job": {"current_working_directory": "/home/task", "environment": {"PATH": "/usr/bin:/bin"}, **job},
        }
    return {"script": script, "options": [f"--{key}={value}" for key, value in job.items()]}


def end_of(adapter: Slurm, handle: str) -> JobStatus:
    seen: list[JobStatus | None] = []

    def is_over() -> bool:
        seen.append(asked(adapter, handle))
        return isinstance(seen[-1], Succeeded | Failed | Cancelled)

    wait_until(is_over, seconds=END_SECONDS, what=f"{handle} ends", every=0.3)
    assert seen[-1] is not None
    return seen[-1]


def asked(adapter: Slurm, handle: str) -> JobStatus | None:
    """The status; None where it can't be told now."""
    try:
        return adapter.status(handle)
    except SlurmError:
        return None


def id_of(handle: str) -> int:
    parsed = handle_from(handle)
    assert parsed is not None
    return parsed.job_id


@pytest.fixture(params=WAYS)
def jobs(slurm: SlurmCluster, request: pytest.FixtureRequest) -> Slurm:
    return adapter_of(slurm, request.param)


@pytest.fixture
def forgotten(slurm: SlurmCluster) -> Callable[[str], None]:
    """Waits until the controller has forgotten a job."""

    def wait(handle: str) -> None:
        command = ("squeue", "--noheader", "--states=all", "--format=%A")
        number = str(id_of(handle))
        wait_until(
            lambda: number not in slurm.root(*command).split(), seconds=90, what=f"{handle} is forgotten", every=0.5
        )

    return wait


@pytest.fixture
def stopped_controller(slurm: SlurmCluster) -> Iterator[None]:
    slurm.stop("slurmctld")
    yield
    slurm.start_again("slurmctld")


class TestSubmitting:
    def test_a_job_is_found_by_its_name_at_once(
        self, jobs: Slurm, a_submission: Made, record_property: Callable[[str, object], None]
    ) -> None:
        submission = a_submission(a_script(jobs, "sleep 2"))
        handle = jobs.submit(submission).handle
        assert handle.endswith(f"/{submission.name}")
        answered = time.monotonic()
        found = wait_until(lambda: jobs.look_up(submission), seconds=30, what="the job is found", every=0.01)
        record_property("look-up lag", round(time.monotonic() - answered, 3))
        assert (found.handle, found.existed) == (handle, True)

    @pytest.mark.parametrize("way", WAYS)
    def test_a_job_in_a_hidden_partition_is_found(self, slurm: SlurmCluster, a_submission: Made, way: str) -> None:
        jobs = adapter_of(slurm, way, None)
        submission = a_submission(a_script(jobs, "sleep 2", partition="hidden"))
        handle = jobs.submit(submission).handle
        found = jobs.look_up(submission)
        assert found is not None
        assert found.handle == handle
        assert isinstance(jobs.status(handle), Active)

    def test_the_same_name_makes_a_second_job_and_the_first_one_is_found(self, jobs: Slurm, a_submission: Made) -> None:
        submission = a_submission(a_script(jobs, "sleep 2"))
        first, second = jobs.submit(submission), jobs.submit(submission)
        assert first.handle != second.handle, "which is why no name and no token is declared"
        assert not second.existed
        assert jobs.look_up(submission) == type(first)(first.handle, existed=True)

    def test_a_partition_that_is_not_there_is_rejected_for_good(self, jobs: Slurm, a_submission: Made) -> None:
        submission = a_submission(a_script(jobs, "true", partition="nowhere"))
        with pytest.raises(Rejected, match="nvalid partition") as rejected:
            jobs.submit(submission)
        assert not rejected.value.retriable

    def test_what_is_not_understood_is_rejected_for_good(self, jobs: Slurm, a_submission: Made) -> None:
        with pytest.raises(Rejected, match="nope") as rejected:
            jobs.submit(a_submission(a_script(jobs, "true", nope=1)))
        assert not rejected.value.retriable

    def test_a_script_that_is_none_is_rejected_for_good(self, slurm: SlurmCluster, a_submission: Made) -> None:
        with pytest.raises(Rejected, match="batch script") as rejected:
            adapter_of(slurm, "commands").submit(a_submission({"script": "true"}))
        assert not rejected.value.retriable

    @pytest.mark.parametrize("token", ["", "a.b.c"])
    def test_a_wrong_token_leaves_it_unknown(self, slurm: SlurmCluster, a_submission: Made, token: str) -> None:
        jobs = SlurmRest(slurm.address, user="task", token=lambda: token, version=REST_VERSION, accounting=None)
        # The controller hangs up on it, as on anybody while it is stopping.
        with pytest.raises(SlurmError, match="Zero Bytes"):
            jobs.submit(a_submission(a_script(jobs, "true")))

    def test_a_version_that_slurmrestd_has_not_is_rejected_for_good(
        self, slurm: SlurmCluster, a_submission: Made
    ) -> None:
        jobs = SlurmRest(slurm.address, user="task", token=slurm.token, version="v0.0.1", accounting=None)
        with pytest.raises(Rejected, match="404"):
            jobs.submit(a_submission(a_script(jobs, "true")))


class TestStatus:
    def test_a_job_is_active_and_then_succeeded(self, jobs: Slurm, a_submission: Made) -> None:
        handle = jobs.submit(a_submission(a_script(jobs, "sleep 2"))).handle
        assert isinstance(jobs.status(handle), Active)
        assert end_of(jobs, handle) == Succeeded({"jobId": id_of(handle)})

    def test_the_controller_and_accounting_say_the_same_by_each_way(
        self, slurm: SlurmCluster, a_submission: Made, forgotten: Callable[[str], None]
    ) -> None:
        adapters = [adapter_of(slurm, way) for way in WAYS]
        good = [jobs.submit(a_submission(a_script(jobs, "true"))).handle for jobs in adapters]
        bad = [jobs.submit(a_submission(a_script(jobs, "exit 3"))).handle for jobs in adapters]
        for handle in [*good, *bad]:
            by_controller = end_of(adapters[0], handle)
            forgotten(handle)
            for jobs in adapters:
                status = jobs.status(handle)
                assert type(status) is type(by_controller)
                assert isinstance(status, Failed) or status == Succeeded({"jobId": id_of(handle)})
        assert all(isinstance(adapters[0].status(handle), Failed) for handle in bad)

    def test_a_job_that_waits_for_its_partition_is_active(self, jobs: Slurm, a_submission: Made) -> None:
        handle = jobs.submit(a_submission(a_script(jobs, "true", partition="closed"))).handle
        status = wait_until(lambda: jobs.status(handle), seconds=30, what="the reason is known")
        assert isinstance(status, Active)
        jobs.cancel(handle)
        assert isinstance(end_of(jobs, handle), Cancelled)

    @pytest.mark.parametrize("handle", ["4000000", "4000000/reattach-x", "load-17", "0", "9999999999", ""])
    def test_an_unknown_handle_is_not_found(self, jobs: Slurm, handle: str) -> None:
        assert isinstance(jobs.status(handle), NotFound)
        jobs.cancel(handle)

    def test_an_id_alone_is_a_handle_too(self, jobs: Slurm, a_submission: Made) -> None:
        handle = jobs.submit(a_submission(a_script(jobs, "sleep 2"))).handle
        assert isinstance(jobs.status(str(id_of(handle))), Active)


class TestForgetting:
    def test_without_accounting_a_job_is_gone_after_min_job_age(
        self, slurm: SlurmCluster, a_submission: Made, forgotten: Callable[[str], None]
    ) -> None:
        with_it, without = adapter_of(slurm, "commands"), adapter_of(slurm, "commands", None)
        submission = a_submission(a_script(without, "true"))
        handle = without.submit(submission).handle
        assert end_of(with_it, handle) == Succeeded({"jobId": id_of(handle)})
        forgotten(handle)
        for way in WAYS:
            jobs = adapter_of(slurm, way, None)
            assert isinstance(jobs.status(handle), NotFound)
            assert jobs.look_up(submission) is None
            found = adapter_of(slurm, way).look_up(submission)
            assert found is not None
            assert found.handle == handle

    @long
    def test_while_accounting_lags_nobody_can_tell(
        self, slurm: SlurmCluster, a_submission: Made, forgotten: Callable[[str], None]
    ) -> None:
        jobs = adapter_of(slurm, "commands")
        submission = a_submission(a_script(jobs, "true"))
        slurm.stop("slurmdbd")
        try:
            handle = jobs.submit(submission).handle
            forgotten(handle)
            for way in WAYS:
                with pytest.raises(SlurmError):
                    adapter_of(slurm, way).look_up(submission)
        finally:
            slurm.start_again("slurmdbd")

        # From slurmdbd's first answer on: nobody must be told that there is no job.
        for way in WAYS:
            again = adapter_of(slurm, way)
            found = wait_until(
                functools.partial(self.looked_up, again, submission), seconds=60, what="the job is found"
            )
            assert found == handle
            assert asked(again, handle) == Succeeded({"jobId": id_of(handle)})

    @staticmethod
    def looked_up(jobs: Slurm, submission: Submission) -> str | None:
        """The handle; None where it can't be told now."""
        try:
            found = jobs.look_up(submission)
        except SlurmError:
            return None
        assert found is not None, "told that there is no job"
        return found.handle

    @long
    def test_an_id_that_is_given_anew_is_not_taken_for_the_old_job(
        self, slurm: SlurmCluster, a_submission: Made, forgotten: Callable[[str], None]
    ) -> None:
        jobs = adapter_of(slurm, "commands")
        self.lose_state(slurm)
        old = jobs.submit(a_submission(a_script(jobs, "true"))).handle
        assert isinstance(end_of(jobs, old), Succeeded)
        forgotten(old)
        self.lose_state(slurm)
        new = jobs.submit(a_submission(a_script(jobs, "sleep 300", partition="closed"))).handle
        assert id_of(new) == id_of(old)
        for way in WAYS:
            assert isinstance(adapter_of(slurm, way, None).status(old), NotFound)
            assert adapter_of(slurm, way).status(old) == Succeeded({"jobId": id_of(old)}), "accounting has both"
            adapter_of(slurm, way).cancel(old)
            assert isinstance(adapter_of(slurm, way).status(new), Active), "the other job is left alone"
        jobs.cancel(new)

    @staticmethod
    def lose_state(slurm: SlurmCluster) -> None:
        slurm.stop("slurmctld")
        slurm.lose_state()
        slurm.start_again("slurmctld")


class TestCancel:
    def test_a_running_job_is_cancelled_and_cancelling_again_is_fine(self, jobs: Slurm, a_submission: Made) -> None:
        handle = jobs.submit(a_submission(a_script(jobs, "sleep 300"))).handle
        wait_until(lambda: "RUNNING" in str(jobs.status(handle)), seconds=60, what="the job runs")
        jobs.cancel(handle)
        assert isinstance(end_of(jobs, handle), Cancelled)
        jobs.cancel(handle)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", WAYS if ALL else ["commands", "rest"])
def test_cleanup_of_a_cancelled_run_cancels_its_job(slurm: SlurmCluster, way: str, moment: str) -> None:
    adapter = adapter_of(slurm, way)
    job = cancel_run(lambda: adapter_of(slurm, way), a_script(adapter, "sleep 600"), moment)
    assert isinstance(job.status, Cancelled)


class TestTheOtherSideDown:
    @by_few_ways
    @pytest.mark.usefixtures("stopped_controller")
    def test_a_controller_that_is_away_makes_no_job_and_tells_nothing(self, jobs: Slurm, a_submission: Made) -> None:
        submission = a_submission(a_script(jobs, "true"))
        with pytest.raises(Rejected) as rejected:
            jobs.submit(submission)
        assert rejected.value.retriable
        with pytest.raises(SlurmError):
            jobs.status("17")
        with pytest.raises(SlurmError):
            jobs.look_up(submission)

    @by_few_ways
    def test_a_controller_that_is_frozen_makes_the_job_after_its_client_gave_up(
        self, jobs: Slurm, slurm: SlurmCluster, a_submission: Made
    ) -> None:
        submission = a_submission(a_script(jobs, "true"))
        slurm.signal("slurmctld", "STOP")
        try:
            with pytest.raises(SlurmError):
                jobs.submit(submission)
            with pytest.raises(SlurmError):
                jobs.look_up(submission)
        finally:
            slurm.signal("slurmctld", "CONT")
        found = wait_until(lambda: jobs.look_up(submission), seconds=60, what="the late job is found")
        assert isinstance(end_of(jobs, found.handle), Succeeded)

    def test_where_nobody_listens_there_is_no_job(self, a_submission: Made) -> None:
        jobs = SlurmRest("http://127.0.0.1:9", user="task", token=str, version=REST_VERSION, accounting=None)
        with pytest.raises(Rejected) as rejected:
            jobs.submit(a_submission(a_script(jobs, "true")))
        assert rejected.value.retriable

    def test_a_command_that_is_not_installed_made_no_job(self, a_submission: Made) -> None:
        jobs = SlurmCommands(accounting=None, via=("/nowhere/ssh", "login"), line=True)
        with pytest.raises(Rejected, match="must be installed") as rejected:
            jobs.submit(a_submission(a_script(jobs, "true")))
        assert not rejected.value.retriable

    def test_a_way_that_breaks_leaves_it_unknown(self, a_submission: Made) -> None:
        jobs = SlurmCommands(accounting=None, via=("sh", "-c", "echo broken pipe >&2; exit 255"))
        with pytest.raises(SlurmError, match="broken pipe"):
            jobs.submit(a_submission(a_script(jobs, "true")))


def operations_of(method: str, path: str) -> tuple[str, ...]:
    """What the adapter does by this call of slurmrestd."""
    if method == "POST" and path.endswith("/job/submit"):
        return ("submit",)
    # A name is looked for among all jobs; how a job stands is asked by its id.
    return ("look-up",) if path.endswith("/jobs") else ("status",) if "/job/" in path and method == "GET" else ()


@pytest.fixture(scope="module")
def stages(slurm: SlurmCluster) -> Iterator[Callable[[str], Stage]]:
    """Each way has one, made when its first case comes: the cases of a way come one after the other."""

    def made() -> int:
        """Slurm numbers its jobs."""
        [number] = [
            line.partition("=")[2]
            for line in slurm.root("scontrol", "show", "config").splitlines()
            if line.startswith("NEXT_JOB_ID")
        ]
        return int(number)

    def requests_of(adapter: Slurm) -> dict[str, Any]:
        seconds = {"request": 1, "other_request": 1.1, "lasting_request": 900}
        return {name: a_script(adapter, f"sleep {time}") for name, time in seconds.items()}

    # A settling time as short as a controller allows that has nothing else to do.
    how: dict[str, Any] = {"accounting": DAYS, "settling": timedelta(seconds=5)}
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=slurm.address, trust_env=False, timeout=60))
        address, broken = stack.enter_context(broken_api(client, operations_of))

        def by_commands() -> Slurm:
            return SlurmCommands(via=slurm.via, **how)

        def by_rest() -> Slurm:
            return SlurmRest(address, user="task", token=slurm.token, version=REST_VERSION, **how)

        @functools.cache
        def stage_of(way: str) -> Stage:
            adapter, fail = (by_rest, broken.fail) if way == "slurmrestd" else (by_commands, None)
            side = ExternalSystem(adapter=adapter, count_jobs=made, fail=fail, **requests_of(adapter()))
            return stack.enter_context(contextmanager(staged)(f"slurm, {way}", side))

        yield stage_of


@pytest.mark.parametrize("case", HERE, ids=str)
@pytest.mark.parametrize("way", ["commands", "slurmrestd"])
def test_each_case_ends_as_one_job_or_held(stages: Callable[[str], Stage], case: Case, way: str) -> None:
    play(stages(way), case)
