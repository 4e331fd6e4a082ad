"""`logs` of all attempts of a run, and `wait` for its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from reattach.api.names import LABEL_ATTEMPT, pod_name
from reattach.api.objects import Pod
from reattach.api.reasons import Outcome
from reattach.api.taskrun import TaskRun
from reattach.api.text import one_line
from reattach.cli.attempt_log import (
    POLL_SECONDS,
    LogOptions,
    LogOutput,
    LogSource,
    find_attempt,
    missing_log_message,
    show_log,
)
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError, ExitCode, NoSuchTaskRunError
from reattach.cli.hold_options import find_held_condition
from reattach.cli.queries import read_pods, read_taskrun, watch_taskrun
from reattach.cli.retry import Say, retry_unavailable
from reattach.cli.text import listed
from reattach.planner.conditions import progress_condition
from reattach.planner.pods import task_container

# -- wait ------------------------------------------------------------------------------------------


class WaitTarget(StrEnum):
    """Event that `wait` waits for."""

    SUCCEEDED = "Succeeded"
    """Success; ends early, with another exit code, if the run failed or is held."""
    OUTCOME = "outcome"
    """Any outcome; continues to wait while the run is held."""


@dataclass(frozen=True)
class WaitResult:
    """Result of `wait`."""

    exit_code: ExitCode
    sentence: str
    taskrun: TaskRun | None = None


async def wait_for(
    connection: ClusterConnection,
    name: str,
    goal: WaitTarget,
    timeout: timedelta | None,  # noqa: ASYNC109 -- what the person asked for
    say: Say,
) -> WaitResult:
    """Wait for the goal, or until it can't be reached. Raises `CommandError` and `ClusterError`."""
    first = await read_taskrun(connection, name)
    if (result := wait_result_of(first, name, goal)) is not None:  # however short the timeout is
        return result
    reported = _report_hold(first, "", say)
    timed_out = WaitResult(ExitCode.TIMEOUT, f"{name} has not ended within --timeout; it continues.")
    if timeout == timedelta():
        return timed_out
    try:
        async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
            async with aclosing(watch_taskrun(connection, first, say)) as versions:
                async for taskrun in versions:
                    if (result := wait_result_of(taskrun, name, goal)) is not None:
                        return result
                    reported = _report_hold(taskrun, reported, say)
    except TimeoutError:
        pass
    return timed_out


def wait_result_of(taskrun: TaskRun | None, name: str, goal: WaitTarget) -> WaitResult | None:
    """Return the result for this version of the TaskRun; None: continue to wait. Pure."""
    if taskrun is None:
        return WaitResult(ExitCode.DELETED, f"{name} was deleted.")
    outcome, text = taskrun.status.outcome, _progress(taskrun)
    if outcome is not None:
        sentence = f"{name} ended as {outcome}{text}"
        if goal is WaitTarget.OUTCOME or outcome == Outcome.SUCCEEDED:
            return WaitResult(ExitCode.OK, sentence, taskrun)
        code = ExitCode.CANCELLED if outcome == Outcome.CANCELLED else ExitCode.FAILED
        return WaitResult(code, sentence, taskrun)
    held = find_held_condition(taskrun.status)
    if held is not None and goal is WaitTarget.SUCCEEDED:
        sentence = f"{name} is held for {held.reason}; kubectl reattach explain {name} shows how to resolve it."
        return WaitResult(ExitCode.HELD, sentence, taskrun)
    return None


def _progress(taskrun: TaskRun) -> str:
    found = progress_condition(taskrun.status)
    return f" ({found.reason}): {one_line(found.message)}" if found else "."


def _report_hold(taskrun: TaskRun | None, reported: str, say: Say) -> str:
    """Print a new hold once. Return the reason of the hold that was printed."""
    held = find_held_condition(taskrun.status) if taskrun else None
    if taskrun is None or held is None:
        return ""
    if held.reason != reported:
        name = taskrun.metadata.name
        say(f"{name} is held for {held.reason}; kubectl reattach explain {name} shows how to resolve it.")
    return held.reason


# -- logs ------------------------------------------------------------------------------------------


async def show_logs(connection: ClusterConnection, name: str, options: LogOptions, say: Say) -> ExitCode:
    """Print the logs.

    Raises `CommandError` if there is no such TaskRun or attempt, and `ClusterError`.
    """
    taskrun = await read_taskrun(connection, name)
    container = options.container or task_container(taskrun)
    output = LogOutput(say, options.timestamps)
    if options.attempt is not None:
        await _show_one(connection, taskrun, options, output, container)
        return ExitCode.OK
    shown = 0
    reported = ""
    async for version in _versions(connection, taskrun, say, follow=options.follow):
        if version is None:
            say(f"{name} was deleted.")
            return ExitCode.DELETED
        reported = _report_hold(version, reported, say)
        pods = await _pods_of_version(connection, version, say, follow=options.follow)
        for number in sorted(n for n in {*pods, *(one.number for one in version.status.attempts)} if n > shown):
            shown = number
            say(attempt_heading(version, number, pods.get(number)))
            if number not in pods:
                say(missing_log_message(version, number))
            elif unread := await show_log(LogSource.of(connection, version, number, pods, container), options, output):
                say(unread)
        if version.status.outcome is not None:
            say(f"==> {name} ended as {version.status.outcome}{_progress(version)}")
            return ExitCode.OK
    if not shown:
        say(f"{name} has no attempt yet; kubectl reattach explain {name} shows why.")
    return ExitCode.OK


async def _versions(
    connection: ClusterConnection, taskrun: TaskRun, say: Say, *, follow: bool
) -> AsyncIterator[TaskRun | None]:
    if not follow:
        yield taskrun
        return
    # Read the TaskRun each time instead of watching it: while a log is followed, a watch would
    # become too old. The next attempt's pod may exist although no version comes, because the status
    # lists an attempt two seconds after it started to run.
    name, uid = taskrun.metadata.name, taskrun.metadata.uid
    while True:
        try:
            newer = await retry_unavailable(connection, say, lambda: read_taskrun(connection, name))
        except NoSuchTaskRunError:
            yield None
            return
        yield newer if newer.metadata.uid == uid else None
        await asyncio.sleep(POLL_SECONDS)


async def _pods_of_version(
    connection: ClusterConnection, version: TaskRun, say: Say, *, follow: bool
) -> dict[int, Pod]:
    if not follow:
        return await _pods_by_attempt(connection, version)
    return await retry_unavailable(connection, say, lambda: _pods_by_attempt(connection, version))


async def _show_one(
    connection: ClusterConnection, taskrun: TaskRun, options: LogOptions, output: LogOutput, container: str
) -> None:
    number = options.attempt or 0
    pods = await _pods_by_attempt(connection, taskrun)
    if number in pods:
        if unread := await show_log(LogSource.of(connection, taskrun, number, pods, container), options, output):
            raise CommandError(unread)
        return
    known = sorted({*pods, *(one.number for one in taskrun.status.attempts)})
    if number not in known:
        which = listed([str(one) for one in known]) or "no attempt yet"
        raise CommandError(f"{taskrun.metadata.name} has no attempt {number}; there is {which}.")
    raise CommandError(missing_log_message(taskrun, number))


async def _pods_by_attempt(connection: ClusterConnection, taskrun: TaskRun) -> dict[int, Pod]:
    about, pods = taskrun.metadata, {}
    for pod in await read_pods(connection, taskrun):
        number = pod.metadata.labels.get(LABEL_ATTEMPT, "")
        if number.isdigit() and pod.metadata.name == pod_name(about.name, about.uid, int(number)):
            pods[int(number)] = pod
    return pods


def attempt_heading(taskrun: TaskRun, number: int, pod: Pod | None) -> str:
    """Return the line that is printed before the log of an attempt."""
    attempt = find_attempt(taskrun, number)
    name = pod.metadata.name if pod else (attempt.pod_name if attempt else "")
    ended = f", ended by {attempt.cause}" if attempt and attempt.cause else ""
    return f"==> attempt {number}{ended} (pod {name})"
