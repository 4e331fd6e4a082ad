"""Slurm by its commands, run here or, through ssh and the like, where they are installed."""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from reattach.adapters.base import Rejected, Submission, Submitted
from reattach.adapters.http_client import TOO_LATE
from reattach.adapters.slurm.adapter import MIN_JOB_AGE, SETTLING, Slurm, SlurmError
from reattach.adapters.slurm.records import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    SlurmHandle,
    SlurmJob,
    SlurmRejection,
    job_id_of_sbatch,
    queue_of_sdiag,
    records_of_sacct,
    records_of_squeue,
    refusal_of_sbatch,
)

_COMMAND_SECONDS: Final = 20
_WAY_SECONDS: Final = 5
"""For whatever starts the command, on top."""
_NOT_OURS: Final = {
    "--array": "it makes many jobs of one", "-a": "it makes many jobs of one",
    "--clusters": "one adapter serves one cluster", "-M": "one adapter serves one cluster",
    "--job-name": "the name is what finds the job again, and Reattach chooses it", "-J": "the name is what finds the job again",
    "--wait": "Reattach waits", "-W": "Reattach waits",
    "--test-only": "it makes no job", "--wrap": "the script says what to run",
}  # fmt: skip
_BOUNDED: Final = 'timeout -k 1 "$0" "$@"; e=$?; echo "reattach-ended $e" >&2; exit $e'
"""Killing what starts a command here would let it go on there. The last word says that it is the command's own end: ssh and kubectl exec end
with codes of their own where the connection breaks."""
_LAST_WORD: Final = re.compile(r"^reattach-ended (\d+)\r?\n?", re.MULTILINE)
_UNKNOWN_JOB: Final = "Invalid job id specified"
_FILTERS: Final = (
    "SQUEUE_",
    "SACCT_",
    "SCANCEL_",
    "SLURM_CLUSTERS",
    "SBATCH_ARRAY_INX",
    "SBATCH_CLUSTERS",
    "SBATCH_WAIT",
)
"""Variables that would hide jobs, or change what comes out."""


@dataclass(frozen=True)
class CommandResult:
    """What a command printed, and how it ended; None: its way broke, and nobody knows."""

    code: int | None
    stdout: str
    stderr: str

    def __str__(self) -> str:
        code = "the way there broke:" if self.code is None else self.code
        return f"{code} {' '.join((self.stderr or self.stdout).split())[-300:]}".strip()


class SlurmCommands(Slurm):
    r"""By sbatch, squeue, scancel; sacct and sdiag where there is accounting. `sh` and `timeout` must be there too.

    A request is `{"script": "#!/bin/sh\n…", "options": ["--partition=main", …]}`, each option in one string. `via`: what starts the commands
    elsewhere: `("kubectl", "exec", "-i", "login", "--")`. `line`: it takes one command line, as ssh does: `("ssh", "login.example.org")`.
    The other arguments as in `Slurm`. Who runs this task submits: batch scripts get its environment, unless an option is `--export=NONE`.
    """

    # The command may begin as late as the way there lasts, and is ended there after its own time.
    request_seconds = 2.0 * (_COMMAND_SECONDS + _WAY_SECONDS)

    def __init__(
        self,
        *,
        accounting: timedelta | None,
        min_job_age: timedelta = MIN_JOB_AGE,
        settling: timedelta = SETTLING,
        via: Sequence[str] = (),
        line: bool = False,
    ) -> None:
        super().__init__(accounting=accounting, min_job_age=min_job_age, settling=settling)
        if via and Path(via[0]).name == "ssh" and not line:
            raise ValueError(
                "via ssh needs line=True: it joins what it is given, and the shell over there takes it apart anew"
            )
        self._via = tuple(via)
        self._line = line

    def submit(self, submission: Submission) -> Submitted:
        script, options = request_of(submission.request)
        if not submission.may_leave():
            raise Rejected(TOO_LATE, retriable=True)
        try:
            # The last one of two counts: ours.
            ended = self._run("sbatch", *options, "--parsable", f"--job-name={submission.name}", text=script)
        except FileNotFoundError as error:
            raise Rejected(f"the program must be there: {error}") from error
        if (job_id := job_id_of_sbatch(ended.stdout)) is not None:  # however it ended after that
            return Submitted(str(SlurmHandle(job_id, submission.name)))
        match refusal_of_sbatch(ended.code, ended.stderr):
            case SlurmRejection.FINAL:
                raise Rejected(f"Slurm refuses the job: {ended}")
            case SlurmRejection.FOR_NOW:
                raise Rejected(f"Slurm refuses the job for now: {ended}", retriable=True)
            case SlurmRejection.UNKNOWN:
                raise SlurmError(f"sbatch did not say whether there is a job: {ended}")

    def _queued(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        which = f"--name={name}" if job_id is None else f"--jobs={job_id}"
        ended = self._run("squeue", "--noheader", "--all", "--states=all", which, f"--format={SQUEUE_FORMAT}")
        if ended.code != 0 and _UNKNOWN_JOB in ended.stderr:
            return []
        return records_of_squeue(_output_of("squeue", ended))

    def _accounted(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        assert self._accounting is not None
        which = [] if name is None else [f"--name={name}"]
        # Without a start and an id, only today's jobs are looked through.
        which += [f"--jobs={job_id}"] if job_id else [f"--starttime=now-{int(self._accounting.total_seconds())}seconds"]
        ended = self._run("sacct", "--noheader", "--parsable2", "--allocations", f"--format={SACCT_FORMAT}", *which)
        return records_of_sacct(_output_of("sacct", ended))

    def _waiting_for_accounting(self) -> int | None:
        return queue_of_sdiag(_output_of("sdiag", self._run("sdiag")))

    def _end(self, handle: SlurmHandle) -> None:
        named = () if handle.name is None else (f"--name={handle.name}",)
        ended = self._run("scancel", *named, str(handle.job_id))
        # Without a name it says nothing of a job that it does not know; with one it does, and of one that is over.
        if _UNKNOWN_JOB not in ended.stderr:
            _output_of("scancel", ended)

    def _run(self, *command: str, text: str | None = None) -> CommandResult:
        """Raises `FileNotFoundError`."""
        bounded = ("sh", "-c", _BOUNDED, str(_COMMAND_SECONDS - 1), *command)
        try:
            done = subprocess.run(  # noqa: S603 -- no shell here, and what is run is ours and the caller's
                [*self._via, shlex.join(bounded)] if self._line else [*self._via, *bounded],
                input=text or "",
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_COMMAND_SECONDS + _WAY_SECONDS,
                env={key: value for key, value in os.environ.items() if not key.startswith(_FILTERS)},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            said = f"{_text_of(error.stderr)}{command[0]} did not end within {error.timeout:g} s"
            return CommandResult(None, _text_of(error.stdout), said)
        codes = _LAST_WORD.findall(done.stderr)
        return CommandResult(int(codes[-1]) if codes else None, done.stdout, _LAST_WORD.sub("", done.stderr))


def _text_of(output: bytes | str | None) -> str:
    """What was read until the time was over; it is bytes, whatever was asked for."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _output_of(command: str, ended: CommandResult) -> str:
    if ended.code != 0:
        raise SlurmError(f"{command} failed: {ended}")
    return ended.stdout


def request_of(request: Any) -> tuple[str, list[str]]:
    """Script and options. Raises `Rejected`."""
    if (
        not isinstance(request, dict)
        or not isinstance(request.get("script"), str)
        or set(request) - {"script", "options"}
    ):
        raise Rejected('a request to Slurm must be {"script": "#!/bin/sh …", "options": ["--partition=main", …]}')
    options = request.get("options") or []
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise Rejected("options must be a list of strings")
    in_script = re.findall(r"^#SBATCH\s+(.*)$", request["script"], re.MULTILINE)
    if any(re.match(r"(het|pack)job\b", line) for line in in_script):
        raise Rejected("a heterogeneous job is several jobs; submit_once takes one")
    for option in [*options, *(word for line in in_script for word in line.split() if word.startswith("-"))]:
        _check_option(option)
    return request["script"], options


def _check_option(option: str) -> None:
    if not re.match(r"--?[A-Za-z]", option):
        raise Rejected(
            f"each option must be one string that begins with a dash, such as --partition=main; {option!r} is none"
        )
    # Long options may be shortened, and short ones may be followed by their value.
    given = option.split("=", 1)[0].split(" ", 1)[0] if option.startswith("--") else option[:2]
    for refused, why in _NOT_OURS.items():
        if refused == given or (given.startswith("--") and len(given) > len("--x") and refused.startswith(given)):
            raise Rejected(f"{option!r} must not be among the options: {why}")
