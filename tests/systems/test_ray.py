"""The adapter for Ray against a real head."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from conformance.brokenapi import broken_api
from reattach.adapters.base import (
    Active,
    Cancelled,
    ClientName,
    Failed,
    JobStatus,
    NotFound,
    Rejected,
    Submission,
    Succeeded,
)
from reattach.adapters.http_client import CallError
from reattach.adapters.ray import RayJobs
from reattach.api.messages import Grounds, Job
from reattach.api.state import JobState
from reattach.task.resolution import TimeBounds, still_holds
from reattach.testing import Case, ExternalSystem
from systems.cleanup import MOMENTS, cancel_run
from systems.conformance import ALL, HERE, Stage, play, staged
from systems.rayhead import RayHead
from systems.released_pods import run_without_pod
from waiting import wait_until

Made = Callable[[Any], Submission]
END_SECONDS = 120


class QuickRayJobs(RayJobs):
    """Gives up sooner."""

    request_seconds = 6.0


@pytest.fixture
def jobs(ray_head: RayHead) -> RayJobs:
    return RayJobs(ray_head.address, headers=ray_head.headers)


@pytest.fixture
def quick(ray_head: RayHead) -> RayJobs:
    return QuickRayJobs(ray_head.address, headers=ray_head.headers)


def a_command(command: str) -> dict[str, Any]:
    return {"entrypoint": command}


def end_of(jobs: RayJobs, handle: str) -> JobStatus:
    seen: list[JobStatus] = []

    def is_over() -> bool:
        seen.append(jobs.status(handle))
        return not isinstance(seen[-1], Active)

    wait_until(is_over, seconds=END_SECONDS, what=f"{handle} ends", every=0.3)
    return seen[-1]


def may_submit_again(jobs: RayJobs, intended: datetime) -> bool:
    """What the ladder says of an intent of that time, whose name is submitted again."""
    now = datetime.now(UTC)
    job = Job(
        key="load",
        generation=1,
        adapter="ray",
        token="t",
        digest="d",
        state=JobState.INTENDED,
        detached=False,
        intended_at=intended,
    )
    request = timedelta(seconds=jobs.request_seconds)
    return still_holds(Grounds.CLIENT_NAME, job, jobs.capabilities, request, TimeBounds(now, now))


class TestSubmitting:
    def test_a_second_submission_finds_the_first_ones_job(self, jobs: RayJobs, a_submission: Made) -> None:
        submission = a_submission(a_command("sleep 1"))
        first, second = jobs.submit(submission), jobs.submit(submission)
        assert not first.existed
        assert second.existed
        assert first.handle == second.handle == submission.name
        assert isinstance(end_of(jobs, first.handle), Succeeded)
        assert jobs.submit(submission).existed, "also when the job is over"

    def test_of_many_at_once_one_makes_the_job(self, jobs: RayJobs, a_submission: Made, tmp_path: Any) -> None:
        submission = a_submission(a_command(f"echo ran >> {tmp_path}/runs"))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: jobs.submit(submission), range(8)))
        assert [answer.existed for answer in answers].count(False) == 1
        assert isinstance(end_of(jobs, submission.name), Succeeded)
        assert (tmp_path / "runs").read_text() == "ran\n"

    def test_what_ray_does_not_understand_is_rejected_for_good(self, jobs: RayJobs, a_submission: Made) -> None:
        with pytest.raises(Rejected, match="unexpected keyword argument") as rejected:
            jobs.submit(a_submission({"entrypoint": "true", "cpus": 1}))
        assert not rejected.value.retriable

    def test_submit_with_a_wrong_token_is_tried_again(self, ray_head: RayHead, a_submission: Made) -> None:
        stranger = RayJobs(ray_head.address, headers=lambda: {"Authorization": f"Bearer {'0' * 64}"})
        with pytest.raises(Rejected, match=r"40[13]") as rejected:
            stranger.submit(a_submission(a_command("true")))
        assert rejected.value.credentials

    def test_people_see_whose_job_it_is(self, jobs: RayJobs, ray_head: RayHead, a_submission: Made) -> None:
        handle = jobs.submit(a_submission({"entrypoint": "true", "metadata": {"team": "data"}})).handle
        details = httpx.get(f"{ray_head.address}/api/jobs/{handle}", headers=ray_head.headers(), trust_env=False).json()
        assert details["metadata"] == {
            "reattach.dev/taskrun": "default/nightly", "reattach.dev/key": "load", "team": "data"
        }  # fmt: skip


class TestStatus:
    def test_a_job_is_active_and_then_has_the_same_result_for_everybody(
        self, jobs: RayJobs, a_submission: Made
    ) -> None:
        handle = jobs.submit(a_submission(a_command("sleep 2"))).handle
        assert isinstance(jobs.status(handle), Active)
        assert end_of(jobs, handle) == jobs.status(handle) == Succeeded({"submissionId": handle})

    def test_a_failed_job_says_why(self, jobs: RayJobs, a_submission: Made) -> None:
        status = end_of(jobs, jobs.submit(a_submission(a_command("exit 3"))).handle)
        assert isinstance(status, Failed)
        assert "exit code 3" in status.message

    def test_a_job_that_could_not_be_set_up_has_failed(self, jobs: RayJobs, a_submission: Made) -> None:
        request = {"entrypoint": "true", "runtime_env": {"pip": ["x"], "conda": {"name": "x"}}}
        assert isinstance(end_of(jobs, jobs.submit(a_submission(request)).handle), Failed)

    def test_an_unknown_handle_is_not_found(self, jobs: RayJobs) -> None:
        assert isinstance(jobs.status("never-there"), NotFound)

    def test_a_job_that_somebody_deletes_is_not_found_and_its_name_is_free(
        self, jobs: RayJobs, ray_head: RayHead, a_submission: Made
    ) -> None:
        submission = a_submission(a_command("true"))
        handle = jobs.submit(submission).handle
        end_of(jobs, handle)
        httpx.delete(
            f"{ray_head.address}/api/jobs/{handle}", headers=ray_head.headers(), trust_env=False
        ).raise_for_status()
        assert isinstance(jobs.status(handle), NotFound)
        assert not jobs.submit(submission).existed, "which is why the module's docstring warns of it"


class TestLookUp:
    def test_a_job_is_found_at_once(
        self, jobs: RayJobs, a_submission: Made, record_property: Callable[[str, object], None]
    ) -> None:
        submission = a_submission(a_command("true"))
        assert jobs.look_up(submission) is None
        handle = jobs.submit(submission).handle
        answered = time.monotonic()
        found = wait_until(lambda: jobs.look_up(submission), seconds=30, what="the job is found", every=0.01)
        record_property("look-up lag", round(time.monotonic() - answered, 3))
        assert found.handle == handle


class TestCancel:
    @pytest.mark.parametrize("started", [False, True])
    def test_a_job_is_cancelled(self, jobs: RayJobs, a_submission: Made, tmp_path: Any, *, started: bool) -> None:
        mark = tmp_path / "started"
        handle = jobs.submit(a_submission(a_command(f"touch {mark}; sleep 600"))).handle
        if started:
            wait_until(mark.exists, seconds=60, what="the job starts")
        cancel = self.cancelling(jobs, handle)
        wait_until(cancel, seconds=60, what="Ray takes the request to stop")
        assert isinstance(end_of(jobs, handle), Cancelled)
        jobs.cancel(handle)

    @staticmethod
    def cancelling(jobs: RayJobs, handle: str) -> Callable[[], bool]:
        def cancel() -> bool:
            try:
                jobs.cancel(handle)
            except Exception as error:
                if "ask again" not in str(error):
                    raise
                return False
            return True

        return cancel

    def test_what_is_over_or_absent_needs_no_cancelling(self, jobs: RayJobs, a_submission: Made) -> None:
        handle = jobs.submit(a_submission(a_command("true"))).handle
        end_of(jobs, handle)
        jobs.cancel(handle)
        jobs.cancel("never-there")
        assert isinstance(jobs.status(handle), Succeeded)


@pytest.mark.parametrize("moment", MOMENTS)
def test_cleanup_of_a_cancelled_run_cancels_its_job(ray_head: RayHead, moment: str) -> None:
    job = cancel_run(lambda: RayJobs(ray_head.address, headers=ray_head.headers), a_command("sleep 600"), moment)
    assert isinstance(job.status, Cancelled)


def test_run_waits_for_its_job_without_a_pod(ray_head: RayHead) -> None:
    result = run_without_pod(lambda: RayJobs(ray_head.address, headers=ray_head.headers), a_command("sleep 10"))
    assert list(result) == ["submissionId"]


class TestTheOtherSideDown:
    def test_a_head_that_is_frozen_leaves_it_unknown_and_has_the_job_once_it_goes_on(
        self, quick: RayJobs, ray_head: RayHead, a_submission: Made
    ) -> None:
        submission = a_submission(a_command("true"))
        ray_head.freeze()
        try:
            with pytest.raises(CallError):
                quick.submit(submission)
            with pytest.raises(CallError):
                quick.look_up(submission)
            with pytest.raises(CallError):
                may_submit_again(quick, datetime.now(UTC))
        finally:
            ray_head.go_on()
        wait_until(lambda: self.looked_up(quick, submission), seconds=60, what="the late job is found")
        assert quick.submit(submission).existed

    @staticmethod
    def looked_up(jobs: RayJobs, submission: Submission) -> bool:
        try:
            return jobs.look_up(submission) is not None
        except CallError:
            return False

    def test_a_head_that_restarts_forgets_and_says_since_when_it_remembers(
        self, jobs: RayJobs, quick: RayJobs, ray_head: RayHead, a_submission: Made
    ) -> None:
        submission = a_submission(a_command("sleep 600"))
        handle = jobs.submit(submission).handle
        before = datetime.now(UTC)
        assert may_submit_again(jobs, before)
        ray_head.kill()

        with pytest.raises(Rejected) as rejected:
            quick.submit(a_submission(a_command("true")))
        assert rejected.value.retriable, "no connection, no job"
        with pytest.raises(CallError):
            quick.status(handle)
        with pytest.raises(CallError):
            _ = quick.capabilities

        ray_head.start()
        assert isinstance(jobs.status(handle), NotFound)
        assert jobs.look_up(submission) is None
        assert not may_submit_again(jobs, before), "the job may have run to its end"
        # The margin of the head's memory passes, then what is intended from now on can be submitted again.
        wait_until(lambda: may_submit_again(jobs, datetime.now(UTC)), seconds=60, what="the head is trusted again")
        assert RayJobs(ray_head.address, durable=True).capabilities.client_name == ClientName(None)


def memory_of(head: RayHead) -> timedelta | None:
    """For how long it remembers jobs."""
    look_up = RayJobs(head.address, headers=head.headers).capabilities.look_up
    return look_up and look_up.retention


def operations_of(method: str, path: str) -> tuple[str, ...]:
    """What the adapter does by this call of the dashboard."""
    if (method, path) == ("POST", "/api/jobs/"):
        return ("submit",)
    # By its id a job is looked up, and asked how it stands.
    return ("look-up", "status") if method == "GET" and path.startswith("/api/jobs/") else ()


@pytest.fixture(scope="module")
def stage(ray_head: RayHead) -> Iterator[Stage]:
    # What must come of a case follows from what is declared when the suite begins, and the head's memory grows with its age: it must reach
    # back further by then than to any intent that a case asks about.
    oldest = timedelta(seconds=60 if ALL else 15)

    def remembers() -> bool:
        memory = memory_of(ray_head)
        return memory is not None and memory > oldest

    wait_until(remembers, seconds=120, what=f"the head remembers for {oldest}", every=0.5)

    def made() -> int:
        answer = httpx.get(f"{ray_head.address}/api/jobs/", headers=ray_head.headers(), trust_env=False, timeout=60)
        return len(answer.raise_for_status().json())

    with (
        httpx.Client(base_url=ray_head.address, trust_env=False, timeout=60) as client,
        broken_api(client, operations_of) as (address, broken),
    ):
        side = ExternalSystem(
            adapter=lambda: RayJobs(address, headers=ray_head.headers),
            count_jobs=made,
            request={"entrypoint": "sleep 1"},
            other_request={"entrypoint": "sleep 1.1"},
            lasting_request={"entrypoint": "sleep 900"},
            fail=broken.fail,
        )
        yield from staged("ray", side)


@pytest.mark.parametrize("case", HERE, ids=str)
def test_each_case_ends_as_one_job_or_held(stage: Stage, case: Case) -> None:
    play(stage, case)
