"""Checks of a session that wants to open the state, which also depend on the TaskRun. Pure."""

from reattach.api.messages import ProblemCode
from reattach.state.codec import DurableState
from reattach.state.errors import RequestRejectedError
from reattach.state.operations import Session
from reattach.state.owner import Owner


def check_may_open(owner: Owner, session: Session) -> None:
    """Reject a session whose attempt may not begin, by the TaskRun.

    An attempt that runs the task may not begin once the run ends. A cleanup attempt may begin only
    then, also while the TaskRun is being deleted.
    """
    entry = owner.attempt(session.attempt)
    if entry is not None and entry.purpose is not session.purpose:
        raise RequestRejectedError(
            ProblemCode.NOT_A_TASK_POD,
            f"the pod of attempt {session.attempt} must have the purpose {entry.purpose} of status.attempts; its label"
            f" says {session.purpose}",
        )
    if session.cleans_up and owner.status.outcome is None:
        return
    if owner.is_over or owner.status.ending is not None:
        raise RequestRejectedError(
            ProblemCode.CLOSING, "the TaskRun is over, ending or being deleted; no attempt may begin"
        )


def check_needs_cleanup(owner: Owner, state: DurableState | None) -> None:
    """Reject a cleanup session if the run is not ending, or if its task has completed.

    `state`: None if there never was one. Then only `status.ending` shows that the run ends. An
    existing state shows it by its seal.

    A completion that was recorded before the cleanup began makes the run succeed, and a success is
    never cleaned up.
    """
    if state is None:
        if owner.status.ending is None:
            raise RequestRejectedError(
                ProblemCode.CLOSING, "a cleanup attempt may open the state only after status.ending is set"
            )
        return
    completion, epoch = state.completion, state.epoch
    if completion is None or epoch is None or owner.spec.completion == "ExitCode":
        return
    if completion.attempt == epoch.attempt:
        raise RequestRejectedError(
            ProblemCode.COMPLETED,
            f"attempt {completion.attempt} recorded the completion of the task, so a cleanup attempt must not begin",
        )
