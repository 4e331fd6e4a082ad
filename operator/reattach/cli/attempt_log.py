"""Log of one attempt: reconnect, and stop if the attempt has ended and its node is silent."""

import asyncio
import math
import re
import sys
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import timedelta

import msgspec

from reattach.api.objects import Pod
from reattach.api.taskrun import Attempt, TaskRun
from reattach.api.text import one_line
from reattach.cli.connection import ClusterConnection
from reattach.cli.errors import CommandError, NoSuchTaskRunError
from reattach.cli.queries import read_taskrun
from reattach.cli.retry import Say, retry_unavailable, unavailable_sentence
from reattach.cluster import BadRequestError, ClusterError, NotFoundError, TooManyRequestsError, UnavailableError, paths
from reattach.planner.textformat import last_line_first

POLL_SECONDS = 1.0
QUIET_SECONDS = 15.0
"""Silence after which the TaskRun is read, and after which the log of an ended attempt is left."""
_STAMP = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+(Z|[-+][0-9:]+)$")
_OVER = frozenset({"Succeeded", "Failed"})


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Selected part of the logs. `attempt` None: all attempts; `tail` and `since` None: all lines.

    `since`: age of the oldest line when the command started, which was at `started` by the
    monotonic clock.
    """

    follow: bool = False
    attempt: int | None = None
    container: str | None = None
    tail: int | None = None
    since: timedelta | None = None
    timestamps: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def since_seconds(self) -> int | None:
        """Return the age of the oldest line now, in whole seconds; None for all lines.

        The kubelet counts back from the request. Requests that come later must reach further back.
        """
        if not self.since:
            return None
        return math.ceil(self.since.total_seconds() + time.monotonic() - self.started)


@dataclass
class LogOutput:
    """Output of a log: lines go to stdout, messages to stderr, so that a pipe gets only the log.

    `last`: time of the last line, as it was sent. `last_received`: when new bytes came, by the
    clock of this machine.
    """

    say: Say
    timestamps: bool
    last: bytes = b""
    last_received: float = 0.0
    _said: dict[str, bytes] = field(default_factory=dict, repr=False)
    _rest: bytes = field(default=b"", repr=False)
    _is_repeated: bool = False

    def write(self, piece: bytes) -> None:
        """Write a piece of the log, of any size."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            self._write(line + b"\n")
        if not self._is_repeated:
            self.last_received = time.monotonic()

    def say_once(self, about: str, sentence: str) -> None:
        """Print a message, but not again before a new line has come."""
        if self._said.get(about) != self.last:
            self.say(sentence)
            self._said[about] = self.last

    def end(self) -> None:
        """Write the last line, which may have no newline."""
        if self._rest:
            self._write(self._rest + b"\n")
        self._rest = b""

    def start_container(self) -> None:
        """Start the log of another container."""
        self.last = self._rest = b""
        self._is_repeated = False
        self._said.clear()
        self.last_received = time.monotonic()

    def reconnect(self) -> None:
        """Prepare for a new stream, which repeats the last second and a line that was cut."""
        self._rest = b""
        self._is_repeated = bool(self.last)

    def _write(self, line: bytes) -> None:
        stamp, _, text = line.partition(b" ")
        if not _STAMP.match(stamp):
            text = line  # a message of the kubelet about the log
        elif self._is_repeated and stamp <= self.last:
            return
        else:
            self.last, self._is_repeated = stamp, False
        sys.stdout.buffer.write(line if self.timestamps else text)
        sys.stdout.buffer.flush()


@dataclass
class LogSource:
    """A container of an attempt's pod.

    `over_since`: since when the attempt is known to have ended, by the clock of this machine. The
    pod of a lost node is not updated, so only the TaskRun shows that.
    """

    connection: ClusterConnection
    taskrun: TaskRun
    number: int
    pod: Pod
    container: str
    over_since: float | None = None

    @classmethod
    def of(
        cls, connection: ClusterConnection, taskrun: TaskRun, number: int, pods: dict[int, Pod], container: str
    ) -> "LogSource":
        """Return the source for an attempt that has a pod."""
        is_over = is_recorded(taskrun, number) or number < max(pods)
        over_since = time.monotonic() if is_over else None
        return cls(connection, taskrun, number, pods[number], container, over_since)

    @property
    def is_over(self) -> bool:
        """Return whether the attempt is known to have ended."""
        return self.over_since is not None

    def is_done(self, output: LogOutput) -> bool:
        """Return whether the attempt has ended and its log has been silent since."""
        return (
            self.over_since is not None
            and time.monotonic() - max(self.over_since, output.last_received) >= QUIET_SECONDS
        )

    async def refresh(self) -> None:
        """Read the TaskRun, to learn whether the end is recorded.

        Ignore an API server that is away.
        """
        if self.is_over:
            return
        about = self.taskrun.metadata
        try:
            newer = await read_taskrun(self.connection, about.name)
        except (UnavailableError, TooManyRequestsError):
            return
        except NoSuchTaskRunError:
            newer = None
        if newer is not None and newer.metadata.uid == about.uid:
            self.taskrun = newer
            if not is_recorded(newer, self.number):
                return
        self.over_since = time.monotonic()


async def show_log(source: LogSource, options: LogOptions, output: LogOutput) -> str:
    """Print the log of one attempt; if it is followed, until the container has ended.

    Return a sentence if the log could not be read to its end, because the attempt has ended and its
    node does not respond. Raises `CommandError` if there is no such container, and `ClusterError`.
    """
    output.start_container()
    tail = options.tail
    while True:
        try:
            is_whole = await _stream(source, output, options, tail=tail)
        except BadRequestError as error:
            if "is not valid for pod" in error.message:
                raise CommandError(
                    f"The pod {source.pod.metadata.name} has no container {source.container!r}; leave out -c for the task's container."
                ) from None
            # The container has not started yet, or never will if its pod has ended.
            if not options.follow or source.is_over or await _has_ended(source, output.say):
                output.say(f"There is no log: {one_line(error.message)}")
                return ""
        except NotFoundError:
            output.say(f"The pod {source.pod.metadata.name} is gone, and its log with it.")
            return ""
        except (UnavailableError, TooManyRequestsError) as error:
            if incomplete := _unread_after(source, output, error, follow=options.follow):
                return incomplete
        else:
            if not is_whole:
                output.end()
                return _incomplete_message(source, "the node sends nothing any more")
            if not options.follow or source.is_done(output) or await _has_ended(source, output.say):
                output.end()
                return ""
            # The API server also ends the stream this way when it lost the kubelet. A line that was
            # cut is sent again.
            tail = None
        output.reconnect()
        await asyncio.sleep(POLL_SECONDS)
        await source.refresh()


def _unread_after(source: LogSource, output: LogOutput, error: ClusterError, *, follow: bool) -> str:
    """Return a sentence if the log is left; empty: read it again.

    Raises the error if the log is not followed and the attempt is not known to have ended.
    """
    is_away = not error.status  # the API server, not the node
    if not follow and (is_away or isinstance(error, TooManyRequestsError) or not source.is_over):
        raise error
    if is_away:
        output.last_received = time.monotonic()  # no line can come while the API server is away
        output.say_once("the API server", unavailable_sentence(source.connection, error))
        return ""
    why = one_line(error.message).rstrip(".")
    if not follow or source.is_done(output):
        return _incomplete_message(source, why)
    output.say_once("the log", f"The log of attempt {source.number} can't be read now ({why}); trying again.")
    return ""


async def _stream(source: LogSource, output: LogOutput, options: LogOptions, *, tail: int | None) -> bool:
    """Read the stream until the API server ends it. Return False if it was left.

    A node that went silent does not end the connection, so the stream is left if the attempt has
    ended.
    """
    coming = asyncio.create_task(_read_stream(source, output, options, tail=tail))
    try:
        while not (await asyncio.wait({coming}, timeout=QUIET_SECONDS))[0]:
            if source.is_done(output):
                return False
            await source.refresh()
        await coming
        return True
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _read_stream(source: LogSource, output: LogOutput, options: LogOptions, *, tail: int | None) -> None:
    since = output.last.decode(errors="replace")[:19]  # the API server takes no fractions of a second
    pieces = source.connection.cluster.stream(
        f"{paths.pods(source.connection.namespace, source.pod.metadata.name)}/log",
        container=source.container,
        follow="true" if options.follow else None,
        timestamps="true",
        tailLines=None if since else tail,
        sinceSeconds=None if since else options.since_seconds,
        sinceTime=f"{since}Z" if since else None,
    )
    async with aclosing(pieces):
        async for piece in pieces:
            output.write(piece)


async def _has_ended(source: LogSource, say: Say) -> bool:
    """Return whether the pod shows that the container has ended."""
    pod = await _reread_pod(source.connection, source.pod, say)
    if pod is None or pod.status.phase in _OVER:
        return True
    found = (one for one in pod.status.container_statuses if one.name == source.container)
    status = next(found, None)
    return status is not None and status.state.terminated is not None


async def _reread_pod(connection: ClusterConnection, pod: Pod, say: Say) -> Pod | None:
    path = paths.pods(connection.namespace, pod.metadata.name)
    try:
        body = await retry_unavailable(connection, say, lambda: connection.cluster.get(path))
    except NotFoundError:
        return None
    newer = msgspec.json.decode(body, type=Pod)
    return newer if newer.metadata.uid == pod.metadata.uid else None


# -- messages --------------------------------------------------------------------------------------


def missing_log_message(taskrun: TaskRun, number: int) -> str:
    """Return the message for an attempt whose pod is gone."""
    return f"The pod of attempt {number} is gone, and its log with it.{_recorded_message(taskrun, number)}"


def find_attempt(taskrun: TaskRun, number: int) -> Attempt | None:
    """Return the attempt in the status."""
    return next((one for one in taskrun.status.attempts if one.number == number), None)


def is_recorded(taskrun: TaskRun, number: int) -> bool:
    """Return whether the status has the attempt's end, or a later attempt."""
    later = (
        one.number > number or (one.number == number and one.finish_time is not None) for one in taskrun.status.attempts
    )
    return taskrun.status.outcome is not None or any(later)


def _incomplete_message(source: LogSource, why: str) -> str:
    last = _recorded_message(source.taskrun, source.number)
    return f"The log of attempt {source.number}, which has ended, can't be read to its end: {why}.{last}"


def _recorded_message(taskrun: TaskRun, number: int) -> str:
    attempt = find_attempt(taskrun, number)
    if attempt is None or not attempt.message:
        return ""
    return f" The operator recorded: {one_line(last_line_first(attempt.message))}"
