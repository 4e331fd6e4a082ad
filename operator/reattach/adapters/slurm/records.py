"""Parsers for the output of Slurm's commands and slurmrestd, and for their errors. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from reattach.adapters.base import Active, Cancelled, Failed, JobStatus, NotFound, Succeeded, Unknown

ACTIVE_STATES: Final = frozenset({
    "COMPLETING", "CONFIGURING", "EXPEDITING", "PENDING", "POWER_UP_NODE", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING",
    "RESV_DEL_HOLD", "RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "SUSPENDED", "UPDATE_DB",
})  # fmt: skip
"""States of active jobs, and flags that mark any state as not final.

For example, a requeued job has ended once and will run again.
"""
FAILED_STATES: Final = frozenset({
    "BOOT_FAIL", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "TIMEOUT",
})  # fmt: skip

SQUEUE_FORMAT: Final = "%A|%T|%r|%j"
SACCT_FORMAT: Final = "JobIDRaw,State,ExitCode,JobName"

_HANDLE: Final = re.compile(r"([1-9][0-9]{0,9})(?:/(\S{1,200}))?")


@dataclass(frozen=True)
class SlurmHandle:
    """A job's id, and its name unless a user gave only the id."""

    job_id: int
    name: str | None = None

    def __str__(self) -> str:
        return str(self.job_id) if self.name is None else f"{self.job_id}/{self.name}"


def handle_from(text: str) -> SlurmHandle | None:
    """Parse a handle. Return None if no job can have this handle."""
    match = _HANDLE.fullmatch(text.strip())
    return None if match is None else SlurmHandle(int(match[1]), match[2])


@dataclass(frozen=True)
class SlurmJob:
    """One job.

    `states`: its state and flags. `detail`: the reason or the exit code, for messages. `live`: the
    record comes from the controller, not from accounting.
    """

    job_id: int
    name: str
    states: frozenset[str]
    detail: str = ""
    live: bool = True


def status_of(record: SlurmJob) -> JobStatus:
    """Return the status of the job.

    A success has the result `{"jobId": …}`, because Slurm keeps no other result.
    """
    states = record.states
    shown = ", ".join([*sorted(states), record.detail] if record.detail else sorted(states))
    if states & ACTIVE_STATES:
        if not record.live:
            return Unknown(
                f"accounting reports {shown}, and the controller does not know the job: sacctmgr show runawayjobs"
            )
        return Active(shown)
    if "COMPLETED" in states:
        return Succeeded({"jobId": record.job_id})
    if "CANCELLED" in states:
        return Cancelled(shown)
    if states & FAILED_STATES:
        return Failed(shown)
    return Unknown(f"Slurm reports a state that this adapter does not know: {shown}")


def of_handle(handle: SlurmHandle, records: Iterable[SlurmJob]) -> SlurmJob | None:
    """Return the job of a handle. The name must match too, because Slurm reuses ids."""
    return next(
        (job for job in records if job.job_id == handle.job_id and handle.name in {None, job.name}),
        None,
    )


def first_of(name: str, records: Iterable[SlurmJob]) -> SlurmJob | None:
    """Return the job of that name.

    If there are several, prefer active ones, then unknown ones, then succeeded ones; then the
    oldest.
    """
    ranks: dict[type, int] = {Active: 0, Unknown: 1, Succeeded: 2}
    return min(
        (job for job in records if job.name == name),
        key=lambda job: (ranks.get(type(status_of(job)), 3), job.job_id),
        default=None,
    )


def no_such_job(handle: str) -> NotFound:
    return NotFound(f"Slurm knows no job {handle}")


# -- output of the commands ------------------------------------------------------------------------


def records_of_squeue(text: str) -> list[SlurmJob]:
    """Parse lines of `SQUEUE_FORMAT`. Raises `ValueError`."""
    return [
        SlurmJob(int(job_id), name, frozenset({state}), "" if reason == "None" else reason)
        for job_id, state, reason, name in _fields(text)
    ]


def records_of_sacct(text: str) -> list[SlurmJob]:
    """Parse lines of `SACCT_FORMAT`; a state may be `CANCELLED by 1000`. Raises `ValueError`."""
    return [
        SlurmJob(int(job_id), name, frozenset({state.split(" ")[0]}), _exit_text(code), live=False)
        for job_id, state, code, name in _fields(text)
    ]


def queue_of_sdiag(text: str) -> int | None:
    """Return how many messages wait for slurmdbd, or None if the output has no such line."""
    match = re.search(r"^DBD Agent queue size:\s*(\d+)", text, re.MULTILINE)
    return None if match is None else int(match[1])


def job_id_of_sbatch(text: str) -> int | None:
    """Parse the output of `sbatch --parsable`: `17` or `17;cluster`."""
    match = re.fullmatch(r"([1-9][0-9]*)(;\S+)?", text.strip())
    return None if match is None else int(match[1])


def _fields(text: str) -> list[list[str]]:
    return [line.split("|", 3) for line in text.splitlines() if line.strip()]


def _exit_text(code: str) -> str:
    return "" if code in {"", "0:0"} else f"exit code {code}"


# -- responses of slurmrestd -----------------------------------------------------------------------


def records_of_rest(jobs: Iterable[Mapping[str, Any]], *, live: bool) -> list[SlurmJob]:
    """Parse `jobs` of `/slurm/…/jobs` (live) or `/slurmdb/…/jobs`.

    Up to v0.0.39, a state is a string; in later versions, it is a list of the state and its flags.
    Raises `KeyError`, `TypeError`, `ValueError`.
    """
    return [_record_of_rest(job, live=live) for job in jobs]


def _record_of_rest(job: Mapping[str, Any], *, live: bool) -> SlurmJob:
    state = job["job_state"] if live else job["state"]["current"]
    reason = job.get("state_reason") if live else job["state"].get("reason")
    states = frozenset([state] if isinstance(state, str) else state)
    return SlurmJob(
        int(job["job_id"]), job["name"] or "", states, "" if reason in {None, "None"} else str(reason), live=live
    )


def errors_of_rest(body: Any) -> dict[int, str]:
    """Return the errors in a response by number.

    The number is in `error_code` after a submission, and in `error_number` elsewhere and in later
    versions.
    """
    found: dict[int, str] = {}
    for error in _errors(body):
        number = error.get("error_number", error.get("error_code"))
        if isinstance(number, int):
            found[number] = str(error.get("error") or error.get("description") or "")
    return found


def shown_errors_of_rest(body: Any) -> str:
    """Return the text of all errors for messages, including errors without a number."""
    fields = ("error_number", "error_code", "error", "description")
    return "; ".join(" ".join(str(error[field]) for field in fields if field in error) for error in _errors(body))


def _errors(body: Any) -> list[dict[str, Any]]:
    errors = body.get("errors") if isinstance(body, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


# -- meaning of errors for a submission ------------------------------------------------------------


class SlurmRejection(Enum):
    """Outcome of a submission that ended in an error."""

    FINAL = "refused because of its content"
    FOR_NOW = "refused for now"
    UNKNOWN = "unknown"


INVALID_JOB_ID: Final = 2017
NOTHING_FOUND: Final = 9003
_NEVER_CONNECTED: Final = 1800
_RATE_LIMITED: Final = frozenset({1804, 1805})
_NOT_PARSED: Final = range(9000, 10000)
"""Errors of slurmrestd itself: it could not parse the request."""
_CONTROLLER: Final = range(2000, 3000)
"""Errors that the controller returns instead of a job, so it created no job.

From slurm/slurm_errno.h and `_slurm_rpc_submit_batch_job`.
"""
_FOR_NOW: Final = frozenset({
    2007,  # MaxJobCount limit reached
    2016,  # Requested nodes are busy
    2019,  # I/O error writing script/environment to file
    2027,  # Slurm backup controller in standby mode
    2059,  # Required ports are in use
    2070,  # Required partition not available (inactive or drain)
    2101,  # Partition in DOWN state
    2105,  # System submissions disabled
    2131,  # Controller is in standby mode, try a different controller
})  # fmt: skip


def refusal_of(number: int) -> SlurmRejection:
    """Return the outcome for an error number.

    Other numbers below 2000 and those above 5000 are errors of the transport. They may occur before
    or after the controller accepted the job.
    """
    if number == _NEVER_CONNECTED or number in _RATE_LIMITED or number in _FOR_NOW:
        return SlurmRejection.FOR_NOW
    if number in _CONTROLLER or number in _NOT_PARSED:
        return SlurmRejection.FINAL
    return SlurmRejection.UNKNOWN


_TEXTS_FOR_NOW: Final = (
    "MaxJobCount limit reached",
    "I/O error writing script/environment to file",
    "Partition in DOWN state",
    "Rate limit exceeded",
    "Required partition not available",
    "Slurm backup controller in standby mode",
    "Controller is in standby mode",
    "System submissions disabled",
    "Unable to contact slurm controller (connect failure)",
)
_TEXTS_FINAL: Final = (
    "Access denied to requested reservation",
    "Access/permission denied",
    "Burst Buffer permission denied",
    "Burst Buffer request invalid",
    "Burst Buffer resource limit exceeded",
    "CPU count specification invalid",
    "Cannot request more threads per core",
    "Circular job dependency",
    "Core count for reservation",
    "Duplicate generic resource",
    "Environment is missing in job",
    "Invalid GRES",
    "Invalid Trackable RESource",
    "Invalid account or account/partition combination",
    "Invalid burst buffer",
    "Invalid extra constraints",
    "Invalid feature specification",
    "Invalid generic resource",
    "Invalid job array specification",
    "Invalid license specification",
    "Invalid mcs_label",
    "Invalid nice value",
    "Invalid node name specified",
    "Invalid or unknown association",
    "Invalid partition name specified",
    "Invalid preferred feature specification",
    "Invalid qos specification",
    "Invalid time ",
    "Invalid user id",
    "Invalid group id",
    "Invalid wckey specification",
    "Job batch option is invalid",
    "Job cannot be submitted without the current working directory",
    "Job dependency problem",
    "Job script not specified",
    "Job size specification needs to be provided",
    "Job violates accounting/QOS policy",
    "Memory required by task is not available",
    "More processors requested than permitted",
    "Multiple partition job request not supported",
    "No partition specified or system default partition",
    "Node count specification invalid",
    "Only batch jobs are accepted",
    "Pathname of a file, directory or other parameter too long",
    "Requested GRES option unsupported",
    "Requested account has breached",
    "Requested node configuration is not available",
    "Requested nodes not in this partition",
    "Requested operation is presently disabled",
    "Requested operation not supported on this system",
    "Requested partition configuration not available",
    "Requested reservation",
    "Requested time limit is invalid",
    "Requested topology configuration is not available",
    "Task count specification invalid",
    "Task distribution specification invalid",
    "User's group not permitted",
)
_FAILED: Final = "Batch job submission failed: "
_NEVER_RAN: Final = frozenset({126, 127})
"""Exit codes of a shell for a program that it can't execute or find."""


def is_full(text: str) -> bool:
    """Return whether a limit on the number of jobs refuses the job (`QOSMaxSubmitJobPerUserLimit`).

    Such a limit passes, but its error number is the same as for a job that is too large.
    """
    return "MaxSubmitJob" in text


def refusal_of_sbatch(code: int | None, stderr: str) -> SlurmRejection:
    """Return the outcome for sbatch's exit code and error output. `code` is None if it is unknown.

    sbatch prints `Batch job submission failed: …` whenever it has sent the job to the controller.
    Only texts of the controller itself then prove that there is no job. Without that
    sentence, a message of sbatch itself means that sbatch sent no request.
    """
    if code in _NEVER_RAN:
        return SlurmRejection.FINAL
    if code not in {1, 255} or not re.search(r"^sbatch: ", stderr, re.MULTILINE):
        return SlurmRejection.UNKNOWN  # killed, or the connection broke
    failures = [line.split(_FAILED, 1)[1] for line in stderr.splitlines() if _FAILED in line]
    if not failures:
        # A retry means that sbatch has already sent the request.
        return SlurmRejection.UNKNOWN if "retrying" in stderr else SlurmRejection.FINAL
    if failures[-1].startswith(_TEXTS_FOR_NOW) or is_full(stderr):
        return SlurmRejection.FOR_NOW
    return SlurmRejection.FINAL if failures[-1].startswith(_TEXTS_FINAL) else SlurmRejection.UNKNOWN
