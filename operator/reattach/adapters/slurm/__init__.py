"""Slurm batch jobs, by Slurm's commands (`SlurmCommands`) or by slurmrestd (`SlurmRest`).

Handles are the same for both.

    records.py    pure: jobs as Slurm reports them, handles, what its errors mean for a submission
    adapter.py    what both have in common: lookup, status, capabilities
    commands.py   sbatch, squeue, sacct, sdiag, scancel
    rest.py       slurmrestd

**Slurm's guarantees.** Slurm has no token, and accepts any number of jobs with one name. So
Reattach chooses the job's name (`reattach-` and the token), and finds jobs by it. The controller
finds a job from its acceptance until `MinJobAge` after its end (300 s by default).
Accounting (slurmdbd), if the cluster has it, finds the job after that, until it purges the job.
A comment can't replace the name, because accounting keeps comments only if
`AccountingStoreFlags=job_comment` is set. A `job_submit` plugin must not change the name.

A busy or frozen controller may accept a submission long after its client gave up. For example, a
stopped slurmctld created the job when it was continued, 20 s after sbatch had failed. The settling
time covers this. Accounting lags while slurmdbd is down: a job may end, and the controller may
forget it, before slurmdbd has a record of it. A lookup that finds no job therefore checks whether
the controller still keeps messages for slurmdbd, and fails as long as it does.

Ids start again at the first after `MaxJobId`, or when the controller's state is lost. The handle
therefore also holds the name, and a job with another name is a different job.
"""

from reattach.adapters.slurm.adapter import SlurmError
from reattach.adapters.slurm.commands import SlurmCommands
from reattach.adapters.slurm.rest import SlurmRest

__all__ = ["SlurmCommands", "SlurmError", "SlurmRest"]
