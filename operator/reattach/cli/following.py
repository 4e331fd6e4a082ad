"""`logs`, over all attempts of a run, and `wait`, until it has ended."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

import msgspec

from reattach.api.names import LABEL_ATTEMPT, pod_name
from reattach.api.objects import Pod
from reattach.api.reasons import Outcome
from reattach.api.taskrun import Attempt, TaskRun
from reattach.cli.connection import Connection
from reattach.cli.errors import CommandError, ExitCode, NoSuchTaskRunError
from reattach.cli.holds import held_condition_of
from reattach.cli.looking import pods_of, taskrun_of, versions_of
from reattach.cli.patience import Say, patiently, sentence_of_absence
from reattach.cli.text import listed, one_line
from reattach.cluster import BadRequestError, NotFoundError, TooManyRequestsError, UnavailableError, paths

_LOOK_AGAIN_SECONDS = 1.0
_STAMP = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[-+][0-9:]+)$")
_OVER = frozenset({"Succeeded", "Failed"})


# -- wait -----------------------------------------------------------------------------------------------------------


class Goal(StrEnum):
    """What `wait` waits for."""

    SUCCEEDED = "Succeeded"
    """Success; ends early, with another exit code, when that can't come without a person."""
    OUTCOME = "outcome"
    """Any end; goes on while a person must decide."""


@dataclass(frozen=True)
class Waited:
    """How the waiting ended."""

    exit_code: ExitCode
    sentence: str
    taskrun: TaskRun | None = None


async def wait_for(connection: Connection, name: str, goal: Goal, timeout: timedelta | None, say: Say) -> Waited:  # noqa: ASYNC109 -- what the person asked for
    """Until the goal is reached, or can't be. Raises `CommandError` if there is no such TaskRun, and `ClusterError`."""
    first = await taskrun_of(connection, name)
    if (waited := verdict_of(first, name, goal)) is not None:  # however short the timeout is
        return waited
    told = _tell_hold(first, "", say)
    late = Waited(ExitCode.TIMEOUT, f"{name} has not ended within the time; it goes on.")
    if timeout == timedelta():
        return late
    try:
        async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
            async with aclosing(versions_of(connection, first, say)) as versions:
                async for taskrun in versions:
                    if (waited := verdict_of(taskrun, name, goal)) is not None:
                        return waited
                    told = _tell_hold(taskrun, told, say)
    except TimeoutError:
        pass
    return late


def verdict_of(taskrun: TaskRun | None, name: str, goal: Goal) -> Waited | None:
    """How the waiting ends with what is seen; None: it goes on. Pure."""
    if taskrun is None:
        return Waited(ExitCode.DELETED, f"{name} was deleted.")
    outcome, said = taskrun.status.outcome, _progress(taskrun)
    if outcome is not None:
        sentence = f"{name} ended as {outcome}{said}"
        if goal is Goal.OUTCOME or outcome == Outcome.SUCCEEDED:
            return Waited(ExitCode.OK, sentence, taskrun)
        code = ExitCode.CANCELLED if outcome == Outcome.CANCELLED else ExitCode.FAILED
        return Waited(code, sentence, taskrun)
    held = held_condition_of(taskrun.status)
    if held is not None and goal is Goal.SUCCEEDED:
        sentence = f"{name} is held for {held.reason}; kubectl reattach explain {name} tells how to resolve it."
        return Waited(ExitCode.HELD, sentence, taskrun)
    return None


def _progress(taskrun: TaskRun) -> str:
    found = next((one for one in taskrun.status.conditions if one.type == "Succeeded"), None)
    return f" ({found.reason}): {one_line(found.message)}" if found else "."


def _tell_hold(taskrun: TaskRun | None, told: str, say: Say) -> str:
    """Say once that a person is needed; the answer is what has been said."""
    held = held_condition_of(taskrun.status) if taskrun else None
    if taskrun is None or held is None:
        return ""
    if held.reason != told:
        name = taskrun.metadata.name
        say(f"{name} is held for {held.reason}; kubectl reattach explain {name} tells how to resolve it.")
    return held.reason


# -- logs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """What of the logs is wanted. `attempt` None: all; `tail` None: everything that is kept."""

    follow: bool = False
    attempt: int | None = None
    container: str | None = None
    tail: int | None = None
    timestamps: bool = False


@dataclass
class _Output:
    """Where lines go: the log itself to stdout, what is said about it to stderr, so that a pipe has the log alone."""

    say: Say
    timestamps: bool
    last: bytes = b""
    _rest: bytes = field(default=b"", repr=False)
    _is_repeated: bool = False

    def take(self, piece: bytes) -> None:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._write(line + b"\n")

    def end(self) -> None:
        if self._rest:
            self._write(self._rest + b"\n")
        self._rest = b""

    def begin(self) -> None:
        """Another container: what was seen of the last one doesn't count any more."""
        self.last = self._rest = b""
        self._is_repeated = False

    def reconnect(self) -> None:
        """What was sent within the last second comes again, and so does a line that was cut."""
        self._rest = b""
        self._is_repeated = True

    def _write(self, line: bytes) -> None:
        stamp, _, text = line.partition(b" ")
        if not _STAMP.match(stamp):
            text = line  # what the kubelet itself says about the log
        elif self._is_repeated and stamp <= self.last:
            return
        else:
            self.last, self._is_repeated = stamp, False
        sys.stdout.buffer.write(line if self.timestamps else text)
        sys.stdout.buffer.flush()


async def show_logs(connection: Connection, name: str, options: LogOptions, say: Say) -> ExitCode:
    """Raises `CommandError` if there is no such TaskRun or attempt, and `ClusterError`."""
    taskrun = await taskrun_of(connection, name)
    container = options.container or container_of(taskrun)
    output = _Output(say, options.timestamps)
    if options.attempt is not None:
        await _show_one(connection, taskrun, options, output, container)
        return ExitCode.OK
    shown = 0
    told = ""
    async for version in _versions(connection, taskrun, say, follow=options.follow):
        if version is None:
            say(f"{name} was deleted.")
            return ExitCode.DELETED
        told = _tell_hold(version, told, say)
        pods = await _pods_of_version(connection, version, say, follow=options.follow)
        for number in sorted(n for n in {*pods, *(one.number for one in version.status.attempts)} if n > shown):
            shown = number
            say(heading_of(version, number, pods.get(number)))
            if (pod := pods.get(number)) is not None:
                await _show(connection, pod, container, options, output)
            else:
                say(_gone(version, number))
        if version.status.outcome is not None:
            say(f"==> {name} ended as {version.status.outcome}{_progress(version)}")
            return ExitCode.OK
    if not shown:
        say(f"{name} has made no attempt yet; kubectl reattach explain {name} tells why.")
    return ExitCode.OK


async def _versions(
    connection: Connection, taskrun: TaskRun, say: Say, *, follow: bool
) -> AsyncIterator[TaskRun | None]:
    if not follow:
        yield taskrun
        return
    # While a log is followed, versions pass by unseen, or the watch gets too old: each is looked at anew, and when nothing comes the next
    # attempt's pod may be there all the same, since the status names an attempt two seconds after it has begun to run.
    name, uid = taskrun.metadata.name, taskrun.metadata.uid
    while True:
        try:
            newer = await patiently(connection, say, lambda: taskrun_of(connection, name))
        except NoSuchTaskRunError:
            yield None
            return
        yield newer if newer.metadata.uid == uid else None
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def _pods_of_version(connection: Connection, version: TaskRun, say: Say, *, follow: bool) -> dict[int, Pod]:
    if not follow:
        return await _pods_by_attempt(connection, version)
    return await patiently(connection, say, lambda: _pods_by_attempt(connection, version))


async def _show_one(
    connection: Connection, taskrun: TaskRun, options: LogOptions, output: _Output, container: str
) -> None:
    number = options.attempt or 0
    pods = await _pods_by_attempt(connection, taskrun)
    if (pod := pods.get(number)) is not None:
        await _show(connection, pod, container, options, output)
        return
    known = sorted({*pods, *(one.number for one in taskrun.status.attempts)})
    if number not in known:
        which = listed([str(one) for one in known]) or "none so far"
        raise CommandError(f"{taskrun.metadata.name} has no attempt {number}; there is {which}.")
    raise CommandError(_gone(taskrun, number))


async def _show(connection: Connection, pod: Pod, container: str, options: LogOptions, output: _Output) -> None:
    """The log of one pod; if it is followed, until the container has ended."""
    output.begin()
    tail = options.tail
    told: bytes | None = None
    while True:
        try:
            await _stream(connection, pod, container, output, follow=options.follow, tail=tail)
        except BadRequestError as error:
            if "is not valid for pod" in error.message:
                raise CommandError(
                    f"The pod {pod.metadata.name} has no container {container!r}; without -c it is the task's."
                ) from None
            # It has not started yet; or never will, once its pod is over.
            if not options.follow or _is_over(await _newer(connection, pod, output.say), container):
                output.say(f"There is no log: {one_line(error.message)}")
                return
        except NotFoundError:
            output.say(f"The pod {pod.metadata.name} is gone, and its log with it.")
            return
        except (UnavailableError, TooManyRequestsError) as error:
            if not options.follow:
                raise
            if told != output.last:  # as long as nothing comes, once is enough
                output.say(sentence_of_absence(connection, error))
                told = output.last
        else:
            if not options.follow or _is_over(await _newer(connection, pod, output.say), container):
                output.end()
                return
            # The API server ends the stream in the same way when it lost the kubelet: what it sent of a line is sent again.
            tail = None
        output.reconnect()
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


async def _stream(
    connection: Connection, pod: Pod, container: str, output: _Output, *, follow: bool, tail: int | None
) -> None:
    since = output.last.decode(errors="replace")[:19]  # seconds are as exact as the API server takes it
    pieces = connection.cluster.stream(
        f"{paths.pods(connection.namespace, pod.metadata.name)}/log",
        container=container,
        follow="true" if follow else None,
        timestamps="true",
        tailLines=None if since else tail,
        sinceTime=f"{since}Z" if since else None,
    )
    async with aclosing(pieces):
        async for piece in pieces:
            output.take(piece)


async def _newer(connection: Connection, pod: Pod, say: Say) -> Pod | None:
    path = paths.pods(connection.namespace, pod.metadata.name)
    try:
        body = await patiently(connection, say, lambda: connection.cluster.get(path))
    except NotFoundError:
        return None
    newer = msgspec.json.decode(body, type=Pod)
    return newer if newer.metadata.uid == pod.metadata.uid else None


def _is_over(pod: Pod | None, container: str) -> bool:
    if pod is None or pod.status.phase in _OVER:
        return True
    found = (one for one in pod.status.container_statuses if one.name == container)
    status = next(found, None)
    return status is not None and status.state.terminated is not None


async def _pods_by_attempt(connection: Connection, taskrun: TaskRun) -> dict[int, Pod]:
    about, pods = taskrun.metadata, {}
    for pod in await pods_of(connection, taskrun):
        number = pod.metadata.labels.get(LABEL_ATTEMPT, "")
        if number.isdigit() and pod.metadata.name == pod_name(about.name, about.uid, int(number)):
            pods[int(number)] = pod
    return pods


def container_of(taskrun: TaskRun) -> str:
    """The task's container, whose end is the attempt's end."""
    containers = taskrun.spec.template.get("spec", {}).get("containers") or [{}]
    return taskrun.spec.container or str(containers[0].get("name", ""))


def heading_of(taskrun: TaskRun, number: int, pod: Pod | None) -> str:
    """What is said before the log of an attempt."""
    attempt = _attempt_of(taskrun, number)
    name = pod.metadata.name if pod else (attempt.pod_name if attempt else "")
    ended = f", ended by {attempt.cause}" if attempt and attempt.cause else ""
    return f"==> attempt {number}{ended} (pod {name})"


def _gone(taskrun: TaskRun, number: int) -> str:
    attempt = _attempt_of(taskrun, number)
    last = f" It said at the end: {one_line(attempt.message)}" if attempt and attempt.message else ""
    return f"The pod of attempt {number} is gone, and its log with it.{last}"


def _attempt_of(taskrun: TaskRun, number: int) -> Attempt | None:
    return next((one for one in taskrun.status.attempts if one.number == number), None)
