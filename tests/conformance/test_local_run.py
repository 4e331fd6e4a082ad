"""A task on a laptop: `run_locally` runs attempts until the TaskRun ends or is held."""

import re
from typing import Any

import pytest

import reattach
from conformance.jobadapter import CAPABILITIES, JobServerSystem, serving
from controlplane import REPOSITORY
from reattach.task.job_client import Step
from reattach.testing import LocalRun, VirtualClock, run_locally

PAGE = (REPOSITORY / "docs/sdk.md").read_text()
RETRIED: dict[str, Any] = {"retry": {"budgets": {"application": 3}}}


def a_run_with_a_job(served: JobServerSystem, mode: str, **options: Any) -> LocalRun:
    def main(task: reattach.Task) -> Any:
        adapter = served.adapter(CAPABILITIES[mode])
        return task.submit_once("load", adapter, {"seconds": 60, "rows": 7}).wait()

    return run_locally(main, clock=served.clock, **options)


def test_example_of_the_page_runs() -> None:
    [example] = re.findall(r"```python\n(# try a task\n.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {"reattach": reattach}
    exec(example, names)
    assert names["run"].jobs == ()
    assert names["run"].error is None


def test_page_names_every_step_of_a_crash() -> None:
    section = PAGE.partition("## Try a task without a cluster")[2].partition("\n## ")[0]
    assert {step for step in Step if f"`{step}`" in section or f'"{step}"' in section} == set(Step)


@pytest.mark.parametrize("step", ["before-submit", "after-submit", "after-handle", "watching", "after-outcome"])
def test_attempt_that_crashes_is_followed_by_one_that_finds_the_job(step: str) -> None:
    with serving("name") as served:
        run = a_run_with_a_job(served, "name", crash_at=[step])
        assert (run.outcome, run.attempts, served.server.made) == ("Succeeded", 2, 1)
        assert [(job.state, bool(job.handle)) for job in run.jobs] == [("Succeeded", True)]


def test_submission_that_nothing_settles_is_held() -> None:
    with serving("nothing") as served:
        run = a_run_with_a_job(served, "nothing", crash_at=["after-submit"])
        assert (run.outcome, run.result, served.server.made) == (None, None, 1)
        assert "resolve local" in run.message


def test_async_task_runs() -> None:
    async def main(task: reattach.Task) -> int:
        await task.state.aset("rows", 7)
        return int(await task.state.aget("rows"))

    assert run_locally(main, clock=VirtualClock()).result == 7


def test_error_fails_the_run_with_the_budgets_of_a_taskrun() -> None:
    def main(_task: reattach.Task) -> None:
        raise ValueError("no rows")

    run = run_locally(main, clock=VirtualClock())
    assert (run.outcome, run.attempts) == ("Failed", 1)
    assert "no rows" in run.message
    assert isinstance(run.error, ValueError)
    assert run_locally(main, clock=VirtualClock(), spec=RETRIED).attempts == 4


def test_failed_run_cancels_its_job_by_the_registered_adapter() -> None:
    with serving("name") as served:
        adapter = served.adapter(CAPABILITIES["name"])

        def main(task: reattach.Task) -> None:
            task.submit_once("load", adapter, {"seconds": 3600})
            raise reattach.PermanentFailure("wrong input")

        run = run_locally(main, clock=served.clock, adapters=[adapter])
        assert (run.outcome, run.jobs[0].state, served.running()) == ("Failed", "Cancelled", 0)


def test_step_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match=r"crash_at must have steps of before-intent, .*, not 'after-sumbit'"):
        run_locally(lambda _: None, crash_at=["after-sumbit"])


def test_run_that_does_not_end_is_a_timeout() -> None:
    def main(_task: reattach.Task) -> None:
        raise reattach.NotReady(3600, "no rows")

    with pytest.raises(TimeoutError, match="must end within 60 s; 1 attempts began"):
        run_locally(main, clock=VirtualClock(), seconds=60)
