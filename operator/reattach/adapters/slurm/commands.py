"""Adapter that runs Slurm's commands, locally or through ssh, kubectl exec or a similar program."""

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
_START_SECONDS: Final = 5
"""Additional time for the program that starts the command."""
_REFUSED_OPTIONS: Final = {
    "--array": "it creates several jobs", "-a": "it creates several jobs",
    "--clusters": "one adapter serves one cluster", "-M": "one adapter serves one cluster",
    "--job-name": "Reattach chooses the name, because it identifies the job", "-J": "Reattach chooses the name",
    "--wait": "Reattach waits", "-W": "Reattach waits",
    "--test-only": "it creates no job", "--wrap": "the script defines the commands",
}  # fmt: skip
_BOUNDED: Final = 'timeout -k 1 "$0" "$@"; e=$?; echo "reattach-ended $e" >&2; exit $e'
"""Shell script that bounds the command on the machine that runs it.

Killing the local program (ssh, kubectl exec) would not stop the remote command. The last line marks
the code as the command's own, because ssh and kubectl exec exit with codes of their own if the
connection breaks.
"""
_LAST_LINE: Final = re.compile(r"^reattach-ended (\d+)\r?\n?", re.MULTILINE)
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
"""Prefixes of variables that would hide jobs or change the output."""


@dataclass(frozen=True)
class CommandResult:
    """Output and exit code of a command. The code is None if the connection broke."""

    code: int | None
    stdout: str
    stderr: str

    def __str__(self) -> str:
        code = "the connection broke:" if self.code is None else self.code
        return f"{code} {' '.join((self.stderr or self.stdout).split())[-300:]}".strip()


class SlurmCommands(Slurm):
    r"""Slurm by sbatch, squeue and scancel, and with accounting also sacct and sdiag.

    The machine that runs them must also have `sh` and `timeout`.

    A request is `{"script": "#!/bin/sh\n…", "options": ["--partition=main", …]}`, with each option
    in one string. `via`: the program that starts the commands on another machine, for example
    `("kubectl", "exec", "-i", "login", "--")`. `line`: `via` expects one command line, as ssh does:
    `("ssh", "login.example.org")`. The other arguments are those of `Slurm`.

    The task's own user submits. Batch scripts get the task's environment, unless an option is
    `--export=NONE`.
    """

    # The command may start as late as `via` allows, and `timeout` ends it after its own time.
    request_seconds = 2.0 * (_COMMAND_SECONDS + _START_SECONDS)

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
                "via ssh needs line=True, because ssh joins its arguments and the remote shell splits them again"
            )
        self._via = tuple(via)
        self._line = line

    def submit(self, submission: Submission) -> Submitted:
        script, options = request_of(submission.request)
        if not submission.may_leave():
            raise Rejected(TOO_LATE, retriable=True)
        try:
            # sbatch uses the last one of two --job-name options, which is ours.
            ended = self._run("sbatch", *options, "--parsable", f"--job-name={submission.name}", text=script)
        except FileNotFoundError as error:
            raise Rejected(f"the program must be installed: {error}") from error
        if (job_id := job_id_of_sbatch(ended.stdout)) is not None:  # the exit code does not matter then
            return Submitted(str(SlurmHandle(job_id, submission.name)))
        match refusal_of_sbatch(ended.code, ended.stderr):
            case SlurmRejection.FINAL:
                raise Rejected(f"Slurm refuses the job: {ended}")
            case SlurmRejection.FOR_NOW:
                raise Rejected(f"Slurm refuses the job for now: {ended}", retriable=True)
            case SlurmRejection.UNKNOWN:
                raise SlurmError(f"sbatch's output does not show whether it created the job: {ended}")

    def _queued(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        which = f"--name={name}" if job_id is None else f"--jobs={job_id}"
        ended = self._run("squeue", "--noheader", "--all", "--states=all", which, f"--format={SQUEUE_FORMAT}")
        if ended.code != 0 and _UNKNOWN_JOB in ended.stderr:
            return []
        return records_of_squeue(_output_of("squeue", ended))

    def _accounted(self, *, name: str | None = None, job_id: int | None = None) -> list[SlurmJob]:
        assert self._accounting is not None
        which = [] if name is None else [f"--name={name}"]
        # Without a start time and an id, sacct searches only today's jobs.
        which += [f"--jobs={job_id}"] if job_id else [f"--starttime=now-{int(self._accounting.total_seconds())}seconds"]
        ended = self._run("sacct", "--noheader", "--parsable2", "--allocations", f"--format={SACCT_FORMAT}", *which)
        return records_of_sacct(_output_of("sacct", ended))

    def _waiting_for_accounting(self) -> int | None:
        return queue_of_sdiag(_output_of("sdiag", self._run("sdiag")))

    def _end(self, handle: SlurmHandle) -> None:
        named = () if handle.name is None else (f"--name={handle.name}",)
        ended = self._run("scancel", *named, str(handle.job_id))
        # With a name, scancel reports an error for an unknown or terminal job. Without one, it
        # reports no error for an unknown job.
        if _UNKNOWN_JOB not in ended.stderr:
            _output_of("scancel", ended)

    def _run(self, *command: str, text: str | None = None) -> CommandResult:
        """Run the command within its time. Raises `FileNotFoundError`."""
        bounded = ("sh", "-c", _BOUNDED, str(_COMMAND_SECONDS - 1), *command)
        try:
            done = subprocess.run(  # noqa: S603 -- no local shell; the command is ours and `via` the caller's
                [*self._via, shlex.join(bounded)] if self._line else [*self._via, *bounded],
                input=text or "",
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=_COMMAND_SECONDS + _START_SECONDS,
                env={key: value for key, value in os.environ.items() if not key.startswith(_FILTERS)},
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            stderr = f"{_text_of(error.stderr)}{command[0]} did not end within {error.timeout:g} s"
            return CommandResult(None, _text_of(error.stdout), stderr)
        codes = _LAST_LINE.findall(done.stderr)
        return CommandResult(int(codes[-1]) if codes else None, done.stdout, _LAST_LINE.sub("", done.stderr))


def _text_of(output: bytes | str | None) -> str:
    """Return the output that was read before the timeout, which is bytes despite `encoding`."""
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def _output_of(command: str, ended: CommandResult) -> str:
    if ended.code != 0:
        raise SlurmError(f"{command} failed: {ended}")
    return ended.stdout


def request_of(request: Any) -> tuple[str, list[str]]:
    """Return the script and the options. Raises `Rejected`."""
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
        raise Rejected("a heterogeneous job is several jobs, but submit_once submits one")
    for option in [*options, *(word for line in in_script for word in line.split() if word.startswith("-"))]:
        _check_option(option)
    return request["script"], options


def _check_option(option: str) -> None:
    if not re.match(r"--?[A-Za-z]", option):
        raise Rejected(
            f"each option must be one string that begins with a dash, such as --partition=main, not {option!r}"
        )
    # Long options may be abbreviated, and the value may follow a short option directly.
    given = option.split("=", 1)[0].split(" ", 1)[0] if option.startswith("--") else option[:2]
    for refused, why in _REFUSED_OPTIONS.items():
        if refused == given or (given.startswith("--") and len(given) > len("--x") and refused.startswith(given)):
            raise Rejected(f"{option!r} must not be among the options: {why}")
