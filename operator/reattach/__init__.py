"""Reattach: Kubernetes tasks that outlive their pods. This is what a task imports:

    import reattach

    def main(task):
        job_id = task.state.get("job_id")
        if job_id is None:
            job_id = submit()
            task.state.set("job_id", job_id, retention=reattach.NEVER_EXPIRE)
        return {"rows_written": wait_for(job_id)}

    if __name__ == "__main__":
        reattach.run(main)

or, where the other side has an adapter, without a gap between submitting and storing the id:

    def main(task):
        job = task.submit_once("load", Ray("http://ray-head:8265"), {"entrypoint": "python load.py"})
        return job.wait()

The package, from the bottom up:

    api         names and shapes that every part shares
    cluster     the one seam to the Kubernetes API
    planner     decides what happens to a TaskRun: pure
    state       a TaskRun's durable state: format, operations, compare-and-set
    task        the SDK behind the names below
    adapter     what an adapter is made of
    adapters    one for each kind of external system
    controller  the operator: watches, records, acts
    server      the state API, which task pods call
    aip103      runs task functions that were written for Airflow's AIP-103
"""

from reattach.errors import (
    AlreadyCompleted,
    AttemptOver,
    Closing,
    DigestChanged,
    Fenced,
    GroundsRefused,
    HandleDiffers,
    Held,
    InvalidCall,
    InvalidKey,
    InvalidValue,
    JobFailed,
    JobOver,
    JobsOpen,
    KeyExists,
    NotInPod,
    PermanentFailure,
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
from reattach.task.context import Task, run, task
from reattach.task.external_job import ExternalJob
from reattach.task.state import Batch, State
from reattach.task.value_checks import NEVER_EXPIRE

__all__ = [
    "NEVER_EXPIRE",
    "AlreadyCompleted",
    "AttemptOver",
    "Batch",
    "Closing",
    "DigestChanged",
    "ExternalJob",
    "Fenced",
    "GroundsRefused",
    "HandleDiffers",
    "Held",
    "InvalidCall",
    "InvalidKey",
    "InvalidValue",
    "JobFailed",
    "JobOver",
    "JobsOpen",
    "KeyExists",
    "NotInPod",
    "PermanentFailure",
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
