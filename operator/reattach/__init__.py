"""Kubernetes tasks whose state outlives their pods. A task imports this package.

    import reattach

    def main(task):
        job_id = task.state.get("job_id")
        if job_id is None:
            job_id = submit()
            task.state.set("job_id", job_id, retention=reattach.NEVER_EXPIRE)
        return {"rows_written": wait_for(job_id)}

    if __name__ == "__main__":
        reattach.run(main)

If an adapter exists for the external system, `submit_once` leaves no gap between submitting
the job and storing its id:

    def main(task):
        ray = Ray("http://ray-head:8265")
        job = task.submit_once("load", ray, {"entrypoint": "python load.py"})
        return job.wait()

    reattach.run(main, adapters=[Ray("http://ray-head:8265")])  # cancelled if the TaskRun is

The package, from the bottom up:

    api         names and data types that all parts share
    errors      exceptions that the SDK raises
    cluster     the only access to the Kubernetes API
    adapters    one adapter for each kind of external system; `adapter` has its public names
    planner     decides what happens to a TaskRun: pure
    state       the durable state of a TaskRun: format, operations, compare-and-set
    task        the SDK, whose public names are below
    runtime     reflector, work queue, rate limiter, events: for any kind
    taskrun     the TaskRun controller: observes, records, acts
    pki         the CA and the certificates of the state API
    uninstall   the Job that runs before the chart is removed
    server      the state API, which task pods call
    process     the operator process
    cli         `kubectl reattach`
    aip103      runs task functions that were written for Airflow's AIP-103
    testing     the conformance suite for adapters
"""

from reattach.errors import (
    AlreadyCompleted,
    AlreadyEnded,
    AttemptOver,
    CleanupOnly,
    Closing,
    CredentialsRefused,
    DigestChanged,
    Fenced,
    GroundsRefused,
    HandleDiffers,
    Held,
    InvalidCall,
    InvalidKey,
    InvalidResult,
    InvalidValue,
    JobFailed,
    JobOver,
    JobsOpen,
    KeyExists,
    NotInPod,
    NotReady,
    PermanentFailure,
    PodReleased,
    ProtocolError,
    ReattachError,
    Refused,
    RetryLater,
    StateFull,
    StateLost,
    Terminated,
    Unavailable,
    ValueTooLarge,
    VersionMismatch,
)
from reattach.task.cleanup import CleanupResult, CleanupTask
from reattach.task.context import Task, run, task
from reattach.task.external_job import ExternalJob
from reattach.task.state import Batch, State
from reattach.task.value_checks import NEVER_EXPIRE

__all__ = [
    "NEVER_EXPIRE",
    "AlreadyCompleted",
    "AlreadyEnded",
    "AttemptOver",
    "Batch",
    "CleanupOnly",
    "CleanupResult",
    "CleanupTask",
    "Closing",
    "CredentialsRefused",
    "DigestChanged",
    "ExternalJob",
    "Fenced",
    "GroundsRefused",
    "HandleDiffers",
    "Held",
    "InvalidCall",
    "InvalidKey",
    "InvalidResult",
    "InvalidValue",
    "JobFailed",
    "JobOver",
    "JobsOpen",
    "KeyExists",
    "NotInPod",
    "NotReady",
    "PermanentFailure",
    "PodReleased",
    "ProtocolError",
    "ReattachError",
    "Refused",
    "RetryLater",
    "State",
    "StateFull",
    "StateLost",
    "Task",
    "Terminated",
    "Unavailable",
    "ValueTooLarge",
    "VersionMismatch",
    "run",
    "task",
]
