"""A run of a task on a laptop: the real SDK, state API and planner, without a cluster."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from reattach.adapters.base import Adapter
from reattach.api.reasons import ConditionType
from reattach.api.state import JobSummary
from reattach.task import log
from reattach.task.cleanup import CleanupTask
from reattach.task.context import Task
from reattach.task.job_client import Step
from reattach.testing.clocks import Clock, RealClock
from reattach.testing.simulated_cluster import SimulatedCluster, SimulatedRun
from reattach.testing.task_process import TaskProcess

NAME: Final = "local"


@dataclass(frozen=True)
class LocalRun:
    """A finished or held run.

    outcome: `Succeeded` or `Failed`; None if the run is held.
    result: return value of the task, if it succeeded.
    message: message of the condition that explains the outcome or the hold.
    attempts: number of attempts.
    error: exception that ended the last attempt, if one did.
    jobs: the external jobs, with their handles.
    """

    outcome: str | None
    result: Any
    message: str
    attempts: int
    error: BaseException | None
    jobs: tuple[JobSummary, ...]


def run_locally(
    main: Callable[[Task], Any],
    *,
    adapters: Iterable[Adapter] = (),
    on_cleanup: Callable[[CleanupTask], Any] | None = None,
    spec: dict[str, Any] | None = None,
    crash_at: Sequence[str] = (),
    clock: Clock | None = None,
    seconds: float = 3600.0,
) -> LocalRun:
    """Run a task until the TaskRun ends or is held. Requires `pip install reattach[operator]`.

    `main`, `adapters` and `on_cleanup` are those of `reattach.run`. An attempt is a thread of this
    process, with its own `task`. The external systems are the real ones.

    `spec`: fields of the TaskRun, like `retry`. `crash_at`: the step at which each of the first
    attempts is evicted and killed, `after-submit` for example. `clock`: by default the real one.

    Raises:
        ValueError: `crash_at` has an unknown step.
        TimeoutError: the run has not ended within `seconds`.
    """
    unknown = sorted(set(crash_at) - set(Step))
    if unknown:
        raise ValueError(f"crash_at must have steps of {', '.join(Step)}, not {unknown[0]!r}")
    log.configure()

    cluster = SimulatedCluster(clock or RealClock(), report_seconds=0.0)

    def on_step(process: TaskProcess, step: str) -> None:
        if process.attempt <= len(crash_at) and step == crash_at[process.attempt - 1]:
            cluster.evict(process)
            process.kill()

    run = SimulatedRun(
        NAME,
        lambda _process, task: main(task),
        on_step,
        lambda _process: adapters,
        None if on_cleanup is None else lambda _process, cleanup: on_cleanup(cleanup),
    )
    with cluster:
        cluster.create(NAME, {"retry": {}, **(spec or {})})
        if not cluster.run_until(run, lambda: _explanation(cluster) is not None, seconds=seconds):
            raise TimeoutError(f"the run must end within {seconds:g} s; {len(run.processes)} attempts began")
        last = run.processes[-1] if run.processes else None
        status = cluster.taskrun(NAME).status
        return LocalRun(
            outcome=status.outcome,
            result=last.result if last is not None and status.outcome == "Succeeded" else None,
            message=_explanation(cluster) or "",
            attempts=len(run.processes),
            error=None if last is None else last.error,
            jobs=cluster.jobs(NAME),
        )


def _explanation(cluster: SimulatedCluster) -> str | None:
    """Return the message of the outcome or of a hold, or None while the run continues."""
    status = cluster.taskrun(NAME).status
    wanted = ConditionType.HELD if status.outcome is None else ConditionType.SUCCEEDED
    for condition in status.conditions:
        if condition.type == wanted and (status.outcome is not None or condition.status == "True"):
            return condition.message
    return None if status.outcome is None else ""
