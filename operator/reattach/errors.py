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
        GroundsRefused         `again`, and what the state API knows speaks against it
        Rejected               raised by an adapter: the other side surely made no job
        InvalidCall            anything else that the state API refuses in a call
        PermanentFailure       raised by you: trying again can't help
        RetryLater             raised by you: try again, but not before so many seconds
    SystemExit
      AttemptOver              the state is out of reach: this attempt must end
        Fenced           79    a later attempt, or another process of this pod, took over
        Closing          80    the TaskRun is being ended or suspended
        StateLost        81    the state was deleted by force; a person must decide
        Refused          82    the state API no longer takes this pod for one of Reattach's
        Unavailable      83    the state API was absent for longer than the patience
        ProtocolError    84    the state API does not understand this SDK
        Held             85    an external job needs a person's decision
        Terminated      143    SIGTERM

What tells of a mistake is an `Exception`. What means "it can't be known what is stored" is a `SystemExit`, with the exit code shown: a task that
took it for "nothing is stored yet" would submit its job again, and `except Exception:` must not make it do so. It passes through
`asyncio` too, where a task would keep any other exception to itself until somebody awaits it.
"""

from typing import ClassVar


class ReattachError(Exception):
    """Something in this call must be put right, or was asked for by raising it. Nothing was changed."""


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
    """Another request, or another adapter, under the key of an external job that is open or succeeded. Another job needs another key."""


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
    """The external job has ended otherwise, and that stays."""


class HandleDiffers(ReattachError):  # noqa: N818
    """The external job has another handle. The one that was given is kept as a stray: it may be a second job that runs."""


class GroundsRefused(ReattachError):  # noqa: N818
    """`again` was asked for on grounds that don't hold by what the state API knows."""


class InvalidCall(ReattachError):  # noqa: N818
    """The state API refuses the call as it is; the message says what must hold."""


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
    """The state was deleted by force; the TaskRun is held until a person decides. The process ends within seconds even if this is caught."""

    exit_code = 81


class Refused(AttemptOver):
    """The state API does not take this pod for one of Reattach's, or no longer: the pod is gone, or its token expired. The process ends
    within seconds even if this is caught.
    """

    exit_code = 82


class Unavailable(AttemptOver):
    """The state API did not answer for as long as the patience lasts. What was asked for may or may not have been stored. Also raised where
    another process of this attempt may be submitting the same job, and does not say what became of it.

    Catch it by name around calls that your task can do without, such as writing progress.
    """

    exit_code = 83


class ProtocolError(AttemptOver):
    """The state API does not know the call, or answers in words that are unknown here: it and this SDK are of versions that don't go
    together.
    """

    exit_code = 84


class Terminated(AttemptOver):
    """SIGTERM: the pod is being stopped. The external job is left alone; the next attempt finds it. Release what you hold, and end."""

    exit_code = 143


class Held(AttemptOver):
    """Nobody can tell whether an external job runs, or where it is: a person must decide. The TaskRun makes no pod until then. The process
    ends within seconds even if this is caught.
    """

    exit_code = 85
