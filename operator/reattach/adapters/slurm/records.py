"""Pure: jobs as Slurm reports them, and what its errors say of a submission. From what squeue, sacct, sdiag and slurmrestd print."""

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
"""States, and flags that come with a state and tell that there is more to come: a job that is requeued has ended once, and runs again."""
FAILED_STATES: Final = frozenset({
    "BOOT_FAIL", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "TIMEOUT",
})  # fmt: skip

SQUEUE_FORMAT: Final = "%A|%T|%r|%j"
SACCT_FORMAT: Final = "JobIDRaw,State,ExitCode,JobName"

_HANDLE: Final = re.compile(r"([1-9][0-9]{0,9})(?:/(\S{1,200}))?")


@dataclass(frozen=True)
class SlurmHandle:
    """A job's id; and its name, unless a person gave the id alone."""

    job_id: int
    name: str | None = None

    def __str__(self) -> str:
        return str(self.job_id) if self.name is None else f"{self.job_id}/{self.name}"


def handle_from(text: str) -> SlurmHandle | None:
    """None: no job ever had this handle."""
    match = _HANDLE.fullmatch(text.strip())
    return None if match is None else SlurmHandle(int(match[1]), match[2])


@dataclass(frozen=True)
class SlurmJob:
    """One job. `states`: its state and flags. `detail`: the reason or the exit code, for people. `live`: the controller itself said so."""

    job_id: int
    name: str
    states: frozenset[str]
    detail: str = ""
    live: bool = True


def status_of(record: SlurmJob) -> JobStatus:
    """How the job stands. The result of one that succeeded is `{"jobId": …}`: Slurm keeps no other."""
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
    """The job of a handle: the id alone may be another job's by now."""
    return next(
        (job for job in records if job.job_id == handle.job_id and handle.name in {None, job.name}),
        None,
    )


def first_of(name: str, records: Iterable[SlurmJob]) -> SlurmJob | None:
    """The job of that name. Should there be several, one that is not over, or succeeded, before others; then the oldest."""
    ranks: dict[type, int] = {Active: 0, Unknown: 1, Succeeded: 2}
    return min(
        (job for job in records if job.name == name),
        key=lambda job: (ranks.get(type(status_of(job)), 3), job.job_id),
        default=None,
    )


def no_such_job(handle: str) -> NotFound:
    return NotFound(f"Slurm knows no job {handle}")


# -- what the commands print -----------------------------------------------------------------------


def records_of_squeue(text: str) -> list[SlurmJob]:
    """Lines of `SQUEUE_FORMAT`. Raises `ValueError`."""
    return [
        SlurmJob(int(job_id), name, frozenset({state}), "" if reason == "None" else reason)
        for job_id, state, reason, name in _fields(text)
    ]


def records_of_sacct(text: str) -> list[SlurmJob]:
    """Lines of `SACCT_FORMAT`; a state may be `CANCELLED by 1000`. Raises `ValueError`."""
    return [
        SlurmJob(int(job_id), name, frozenset({state.split(" ")[0]}), _exit_text(code), live=False)
        for job_id, state, code, name in _fields(text)
    ]


def queue_of_sdiag(text: str) -> int | None:
    """How many messages wait for slurmdbd; None: it does not say."""
    match = re.search(r"^DBD Agent queue size:\s*(\d+)", text, re.MULTILINE)
    return None if match is None else int(match[1])


def job_id_of_sbatch(text: str) -> int | None:
    """What `sbatch --parsable` prints: `17`, or `17;cluster`."""
    match = re.fullmatch(r"([1-9][0-9]*)(;\S+)?", text.strip())
    return None if match is None else int(match[1])


def _fields(text: str) -> list[list[str]]:
    return [line.split("|", 3) for line in text.splitlines() if line.strip()]


def _exit_text(code: str) -> str:
    return "" if code in {"", "0:0"} else f"exit code {code}"


# -- what slurmrestd answers -----------------------------------------------------------------------


def records_of_rest(jobs: Iterable[Mapping[str, Any]], *, live: bool) -> list[SlurmJob]:
    """`jobs` of `/slurm/…/jobs` (live) or `/slurmdb/…/jobs`. Up to v0.0.39 a state is a string, then a list of state and flags.

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
    """The errors in an answer, by number: `error_code` where something was submitted, `error_number` elsewhere and in later versions."""
    found: dict[int, str] = {}
    for error in _errors(body):
        number = error.get("error_number", error.get("error_code"))
        if isinstance(number, int):
            found[number] = str(error.get("error") or error.get("description") or "")
    return found


def shown_errors_of_rest(body: Any) -> str:
    """For people: everything that is said, some of it without a number."""
    fields = ("error_number", "error_code", "error", "description")
    return "; ".join(" ".join(str(error[field]) for field in fields if field in error) for error in _errors(body))


def _errors(body: Any) -> list[dict[str, Any]]:
    errors = body.get("errors") if isinstance(body, dict) else None
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


# -- what an error says of a submission ------------------------------------------------------------


class SlurmRejection(Enum):
    """What is known of a submission that ended in an error."""

    FINAL = "refused for what it asks"
    FOR_NOW = "refused for now"
    UNKNOWN = "nobody knows"


INVALID_JOB_ID: Final = 2017
NOTHING_FOUND: Final = 9003
_NEVER_CONNECTED: Final = 1800
_RATE_LIMITED: Final = frozenset({1804, 1805})
_NOT_PARSED: Final = range(9000, 10000)
"""slurmrestd itself did not understand the request."""
_CONTROLLER: Final = range(2000, 3000)
"""The controller answered with an error instead of a job: then it made none (slurm/slurm_errno.h, `_slurm_rpc_submit_batch_job`)."""
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
    """By number. Everything below 2000 but what is named, and above 5000, happened on the way, before or after the controller took it."""
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
"""What a shell says of a program that it can't run, or that is not there."""


def is_full(text: str) -> bool:
    """Whether a policy refuses the job for how many there are (`QOSMaxSubmitJobPerUserLimit`), which passes; the error is that of a job too large."""
    return "MaxSubmitJob" in text


def refusal_of_sbatch(code: int | None, stderr: str) -> SlurmRejection:
    """By what sbatch printed before it ended with `code`; None: whether it ended is not known.

    It says `Batch job submission failed: …` whenever it asked the controller; of what follows only what the controller itself says proves that
    there is no job. Without that sentence, a message of sbatch's own means that it did not come to asking.
    """
    if code in _NEVER_RAN:
        return SlurmRejection.FINAL
    if code not in {1, 255} or not re.search(r"^sbatch: ", stderr, re.MULTILINE):
        return SlurmRejection.UNKNOWN  # killed, or its way broke
    failures = [line.split(_FAILED, 1)[1] for line in stderr.splitlines() if _FAILED in line]
    if not failures:
        # While it sleeps and asks again, it has asked.
        return SlurmRejection.UNKNOWN if "retrying" in stderr else SlurmRejection.FINAL
    if failures[-1].startswith(_TEXTS_FOR_NOW) or is_full(stderr):
        return SlurmRejection.FOR_NOW
    return SlurmRejection.FINAL if failures[-1].startswith(_TEXTS_FINAL) else SlurmRejection.UNKNOWN
