"""Exceptions that the SDK raises.

    Exception
      ReattachError
        NotInPod               this process was not started by Reattach
        InvalidKey             empty, or too long                                  (a ValueError)
        InvalidValue           null, NaN, Infinity, not JSON, or invalid retention (a ValueError)
          ValueTooLarge        more than 64 KiB, or a result of more than 4 KiB
        StateFull              all keys together would take more than 512 KiB
        KeyExists              `if_absent`, and the key exists
        VersionMismatch        `if_version`, and the version is another
        AlreadyCompleted       changes after `complete`
        AlreadyEnded           changes after the attempt reported its end
        JobsOpen               an external job is still open, at `complete` or `resubmit`
        JobFailed              an external job ended without success
        JobOver                a handle or an outcome for a job that ended with another outcome
        HandleDiffers          a handle for an external job that has another one
        GroundsRefused         `again`, and the stored state contradicts it
        Rejected               raised by an adapter: the external system made no job
        InvalidCall            any other call that the state API rejects
        PermanentFailure       raised by you: a retry can't succeed
          DigestChanged        another request for an external job that is open or succeeded
          InvalidResult        a result that can't be stored                       (an InvalidValue)
        RetryLater             raised by you: retry, but not before so many seconds
    SystemExit
      AttemptOver              the state is unavailable for good: this attempt must end
        Fenced           79    a later attempt, or another process of this pod, took over
        Closing          80    the TaskRun is being ended or suspended
        StateLost        81    the state was deleted by force; manual resolution required
        Refused          82    the state API no longer accepts this pod
        Unavailable      83    the state API was unavailable for longer than the patience
          CredentialsRefused   an external system refused the credentials for an hour
        ProtocolError    84    the state API does not understand this SDK
        Held             85    an external job waits for a resolution
        CleanupOnly      86    a cleanup attempt, which must not run the task
        PodReleased      87    the attempt ended to wait for an external job without a pod
        Terminated      143    SIGTERM

A mistake in a call raises an `Exception`. A failure to read or write the state raises a
`SystemExit` with the exit code above. `except Exception:` does not catch it, because a task must
not treat the failure as "no job is stored yet" and submit its job again. A `SystemExit` also ends
an `asyncio` program at once. Other exceptions stay in their task until the task is awaited.
"""

from typing import ClassVar

from reattach.api.messages import TaskExitCode


class ReattachError(Exception):
    """Base class of errors in a call, and of errors that your code raises. No change was stored."""


class NotInPod(ReattachError):  # noqa: N818 -- named after the condition
    """Reattach did not start this process: variables or files of a task's container are missing."""


class InvalidKey(ReattachError, ValueError):  # noqa: N818
    """A key must be a string of 1 to 512 characters."""


class InvalidValue(ReattachError, ValueError):  # noqa: N818
    """A value must be JSON without null, NaN or Infinity; a retention must be positive."""


class ValueTooLarge(InvalidValue):
    """A value must have at most 64 KiB as JSON, a result at most 4 KiB."""


class StateFull(ReattachError):  # noqa: N818
    """All keys of a TaskRun together must have at most 512 KiB."""


class KeyExists(ReattachError):  # noqa: N818
    """The call has `if_absent`, and the key exists."""


class VersionMismatch(ReattachError):  # noqa: N818
    """The call has `if_version`, and the key has another version or is absent."""


class AlreadyCompleted(ReattachError):  # noqa: N818
    """The attempt already recorded its completion, so its state is final."""


class AlreadyEnded(ReattachError):  # noqa: N818
    """The attempt already reported how it ends, so its state is final.

    `PermanentFailure`, `RetryLater` and `NotReady` end the attempt, even if your code catches them
    outside the block of `task()`.
    """


class JobsOpen(ReattachError):  # noqa: N818
    """An external job is still open, so the task can't complete, or the job can't be resubmitted.

    Wait for the job, cancel it, or submit it as detached.
    """


class JobFailed(ReattachError):  # noqa: N818
    """An external job ended without success.

    It failed, was cancelled, or never started (`handle` None).

    If your code does not catch this error, the attempt ends and is charged to `application`. The
    next attempt submits the job again, as its next generation.
    """

    def __init__(self, *, key: str, generation: int, handle: str | None, message: str, cancelled: bool = False) -> None:
        what = "was cancelled" if cancelled else "failed"
        who = "" if handle is None else f", {handle}"
        super().__init__(
            f"external job {key!r} (generation {generation}{who}) {what}{': ' if message else ''}{message}"
        )
        self.key = key
        self.generation = generation
        self.handle = handle
        self.message = message
        self.cancelled = cancelled


class JobOver(ReattachError):  # noqa: N818
    """The external job already ended with another outcome, which is final."""


class HandleDiffers(ReattachError):  # noqa: N818
    """The external job has another handle.

    The new handle is stored as a stray, because it may belong to a second job that runs.
    """


class GroundsRefused(ReattachError):  # noqa: N818
    """The grounds in `again` contradict the stored state."""


class InvalidCall(ReattachError):  # noqa: N818
    """The state API rejected the call; the message has the reason."""


class PermanentFailure(ReattachError):  # noqa: N818
    """Raise it to fail the TaskRun at once, even if its budgets allow a retry."""


class DigestChanged(PermanentFailure):
    """The external job under this key is open or succeeded, and has another request or adapter.

    No attempt follows, because the next one would send another request again. If an earlier attempt
    submitted the job and it is open, the SDK raises `Held` instead, so that the job is kept.
    """


class InvalidResult(PermanentFailure, InvalidValue):
    """The result of the task can't be stored: it is not JSON, or has more than 4 KiB.

    No attempt follows, because the next one would return such a result again, after all its work.
    The message names the finished external jobs and how to get their results.
    """


class RetryLater(ReattachError):  # noqa: N818
    """Raise it to end this attempt and start the next one not before `seconds` have passed.

    The attempt is charged to `application`.

    Raises:
        ValueError: `seconds` is negative.
    """

    def __init__(self, seconds: float, message: str = "") -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds must be 0 or more, not {seconds}")
        super().__init__(message or f"retry in {seconds:g} s, as the task requested")
        self.seconds = seconds


class NotReady(ReattachError):  # noqa: N818
    """Raise it if something that the task needs does not exist yet, for example an input.

    It ends this attempt, and the next one starts not before `seconds` have passed. The attempt is
    no failure: it is charged to `notReady` while `spec.retry.budgets.notReady` and
    `spec.deadlines.notReadySeconds` allow it, and then to `application`. External jobs stay as
    they are.

    Raises:
        ValueError: `seconds` is negative.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds must be 0 or more, not {seconds}")
        super().__init__(reason or f"not ready; the next attempt starts in {seconds:g} s, as the task requested")
        self.seconds = seconds


class AttemptOver(SystemExit):
    """The state is unavailable to this attempt for good, so the attempt must end.

    If your code does not catch it, it ends the process with `exit_code` and without a traceback.
    The docstring of this module has the reason for deriving it from `SystemExit`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = self.exit_code


class Fenced(AttemptOver):
    """A later attempt, or another process of this pod, opened the state.

    The process ends within seconds even if your code catches this error.
    """

    exit_code = TaskExitCode.FENCED.value


class Closing(AttemptOver):
    """The TaskRun is being ended or suspended.

    The process ends within seconds even if your code catches this error.
    """

    exit_code = TaskExitCode.CLOSING.value


class StateLost(AttemptOver):
    """The state was deleted by force, and the TaskRun is held for a resolution.

    The process ends within seconds even if your code catches this error.
    """

    exit_code = TaskExitCode.STATE_LOST.value


class Refused(AttemptOver):
    """The state API does not accept this pod.

    For example, the pod was deleted or its token expired. The process ends within seconds even if
    your code catches this error.
    """

    exit_code = TaskExitCode.REFUSED.value


class Unavailable(AttemptOver):
    """The state API was unavailable for `patience` seconds. The change may or may not be stored.

    The SDK also raises it if another process of this attempt may be submitting the same job and
    stores no handle.

    Catch it by name around calls that your task does not depend on, such as writing progress.
    """

    exit_code = TaskExitCode.UNAVAILABLE.value


class CredentialsRefused(Unavailable):
    """An external system refused the credentials of a submission for an hour.

    It made no job. The attempt is charged to `disruption`, and the next one submits the same job.
    It is held instead if the adapter declares neither a name nor a token nor a lookup.
    """


class ProtocolError(AttemptOver):
    """The versions of the state API and this SDK are incompatible.

    The state API does not know the call, or this SDK does not know its response.
    """

    exit_code = TaskExitCode.PROTOCOL_ERROR.value


class Terminated(AttemptOver):
    """The process received SIGTERM, because the pod is being stopped. Clean up, and end.

    The external job keeps running, and the next attempt finds it.
    """

    exit_code = 143


class Held(AttemptOver):
    """An external job may be running, and the SDK can't determine whether it is.

    The TaskRun waits for a resolution and starts no pod until then. The process ends within seconds
    even if your code catches this error.
    """

    exit_code = TaskExitCode.HELD.value


class CleanupOnly(AttemptOver):
    """The attempt cleans up, so the process must not run the task.

    The task registered no adapter and no `on_cleanup` for this process to call, or this process is
    a child of the process that cleans up. The process ends within seconds even if your code catches
    this error.
    """

    exit_code = TaskExitCode.CLEANUP_ONLY.value


class PodReleased(AttemptOver):
    """The attempt ended, so that no pod waits for an external job: `wait(release_pod=True)`.

    The next attempt checks the job. The process ends within seconds even if your code catches
    this error.
    """

    exit_code = TaskExitCode.POD_RELEASED.value
