"""Everything that the SDK raises.

    Exception
      ReattachError
        NotInPod               this process was not started by Reattach
        InvalidKey             empty, too long                                        (a ValueError)
        InvalidValue           null, NaN, Infinity, not JSON, or a wrong retention    (a ValueError)
          ValueTooLarge        more than 64 KiB, or a result of more than 4 KiB
        StateFull              all keys together would take more than 512 KiB
        KeyExists              `if_absent`, and the key is there
        VersionMismatch        `if_version`, and the version is another
        AlreadyCompleted       changes after `complete`
        DigestChanged          another request under the key of an external job that is open or succeeded
        JobsOpen               an external job is open that must not be: at `complete`, or at `resubmit` of its key
        JobFailed              an external job is over, without success
        JobOver                a handle or an outcome for an external job that has ended otherwise
        HandleDiffers          a handle for an external job that has another one
        GroundsRefused         `again`, and the stored state contradicts it
        Rejected               raised by an adapter: the external system made no job
        InvalidCall            any other call that the state API rejects
        PermanentFailure       raised by you: trying again can't help
        RetryLater             raised by you: try again, but not before so many seconds
    SystemExit
      AttemptOver              the state is out of reach: this attempt must end
        Fenced           79    a later attempt, or another process of this pod, took over
        Closing          80    the TaskRun is being ended or suspended
        StateLost        81    the state was deleted by force; manual resolution required
        Refused          82    the state API no longer accepts this pod
        Unavailable      83    the state API was absent for longer than the patience
        ProtocolError    84    the state API does not understand this SDK
        Held             85    an external job waits for a resolution
        Terminated      143    SIGTERM

A mistake in a call raises an `Exception`. A state that can't be read or written raises a `SystemExit` with the exit code
shown, because `except Exception:` must not make a task treat it as "nothing is stored yet" and submit its job again.
A `SystemExit` also ends an `asyncio` program at once; other exceptions stay in their task until something awaits it.
"""

from typing import ClassVar


class ReattachError(Exception):
    """The call is wrong, or your code raised this on purpose. Nothing was changed."""


class NotInPod(ReattachError):  # noqa: N818 -- says what is the case
    """This process was not started by Reattach: the variables or files that a task's container gets are missing."""


class InvalidKey(ReattachError, ValueError):  # noqa: N818
    """A key must be a string of 1 to 512 characters."""


class InvalidValue(ReattachError, ValueError):  # noqa: N818
    """A value must be JSON without null, NaN and Infinity, also inside; a retention must be positive."""


class ValueTooLarge(InvalidValue):
    """A value must have at most 64 KiB as JSON, a result at most 4 KiB."""


class StateFull(ReattachError):  # noqa: N818
    """All keys of a TaskRun together must have at most 512 KiB."""


class KeyExists(ReattachError):  # noqa: N818
    """`if_absent` was asked for, and the key is there."""


class VersionMismatch(ReattachError):  # noqa: N818
    """`if_version` was asked for, and the key has another version, or is absent."""


class AlreadyCompleted(ReattachError):  # noqa: N818
    """This attempt already recorded its completion: its state is final."""


class DigestChanged(ReattachError):  # noqa: N818
    """The external job under this key is open or succeeded, and has another request or adapter. Use another key."""


class JobsOpen(ReattachError):  # noqa: N818
    """A task is done, or an external job is wanted once more, only when no job that it would leave behind is open: wait for it, cancel
    it, or submit it as detached.
    """


class JobFailed(ReattachError):  # noqa: N818
    """An external job is over, without success: it failed, was cancelled, or was never begun (`handle` None).

    Left alone, it ends the attempt and is charged to `application`; the next attempt submits the job anew, as its next generation.
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
    """The external job has another handle. The new one is stored as a stray, because it may be a second job that runs."""


class GroundsRefused(ReattachError):  # noqa: N818
    """The grounds in `again` contradict the stored state."""


class InvalidCall(ReattachError):  # noqa: N818
    """The state API rejects the call; the message has the reason."""


class PermanentFailure(ReattachError):  # noqa: N818
    """Raise it to fail the TaskRun at once, whatever its budgets say: trying again can't help."""


class RetryLater(ReattachError):  # noqa: N818
    """Raise it to end this attempt and have the next one start no sooner than `seconds` from now. Charged to `application`.

    Raises:
        ValueError: `seconds` is negative.
    """

    def __init__(self, seconds: float, message: str = "") -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds must be 0 or more, not {seconds}")
        super().__init__(message or f"asked to be tried again in {seconds:g} s")
        self.seconds = seconds


class AttemptOver(SystemExit):
    """The state is out of reach for good: this attempt must end, and nothing it does counts any more. See the module for why it is
    no `Exception`. Uncaught, it ends the process with `exit_code` and no traceback.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = self.exit_code


class Fenced(AttemptOver):
    """A later attempt, or another process of this pod, opened the state. The process ends within seconds even if this is caught."""

    exit_code = 79


class Closing(AttemptOver):
    """The TaskRun is being ended or suspended. The process ends within seconds even if this is caught."""

    exit_code = 80


class StateLost(AttemptOver):
    """The state was deleted by force; the TaskRun is held for a resolution. The process ends within seconds even if this is caught."""

    exit_code = 81


class Refused(AttemptOver):
    """The state API does not accept this pod (any more), for example because it is gone or its token expired.

    The process ends within seconds even if this is caught.
    """

    exit_code = 82


class Unavailable(AttemptOver):
    """The state API was unavailable for `patience` seconds. The change may or may not have been stored.

    Also raised if another process of this attempt may be submitting the same job, and stores no handle.

    Catch it by name around calls that your task does not depend on, such as writing progress.
    """

    exit_code = 83


class ProtocolError(AttemptOver):
    """The state API does not know the call, or this SDK does not know its response. Their versions are incompatible."""

    exit_code = 84


class Terminated(AttemptOver):
    """SIGTERM: the pod is being stopped. The external job goes on, and the next attempt finds it. Clean up, and end."""

    exit_code = 143


class Held(AttemptOver):
    """It is unknown whether an external job runs. The TaskRun waits for a resolution and starts no pod until then.

    The process ends within seconds even if this is caught.
    """

    exit_code = 85
