"""Slurm batch jobs, by its commands (`SlurmCommands`) or by slurmrestd (`SlurmRest`). Handles are the same for both.

    records.py    pure: jobs as Slurm reports them, handles, what its errors say of a submission
    adapter.py    what both have in common: looking up, asking, capabilities
    commands.py   sbatch, squeue, sacct, sdiag, scancel
    rest.py       slurmrestd

**What Slurm promises.** It has no token, and takes any number of jobs of one name. So a job's name is ours (`reattach-` and the token), and jobs
are found by it: the controller finds a job from the moment that it accepts it until `MinJobAge` after its end (300 s, unless slurm.conf says
otherwise); accounting (slurmdbd), where there is one, after that until it purges it. A comment would not do: accounting keeps it only where
`AccountingStoreFlags=job_comment` is set. Neither would a name that a `job_submit` plugin changes.

A controller that is busy, or frozen, may take a submission long after its client gave up: seen with a stopped slurmctld, which made the job as
soon as it went on, 20 s after sbatch had failed. Hence the settling time. And accounting lags while slurmdbd is away: a job may have ended and
been forgotten by the controller before slurmdbd knows it. A look-up that finds nothing therefore asks the controller whether it still keeps
messages for slurmdbd, and says that it can't tell as long as it does.

Ids start anew after `MaxJobId`, or when the controller's state is lost; the handle holds the name too, and a job of another name is not ours.
"""

from reattach.adapters.slurm.adapter import SlurmError
from reattach.adapters.slurm.commands import SlurmCommands
from reattach.adapters.slurm.rest import SlurmRest

__all__ = ["SlurmCommands", "SlurmError", "SlurmRest"]
