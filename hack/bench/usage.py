"""CPU time and peak memory of processes, from /proc."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12  # fields utime and stime, counted after the command's name
_RESET_PEAK = "5"


def cpu_seconds(process_id: int) -> float:
    """Return the CPU time that all threads of a process have used."""
    text = Path(f"/proc/{process_id}/stat").read_text()
    # The command's name is in parentheses and may itself hold spaces.
    fields = text.rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def cpu_seconds_of(processes: Mapping[str, int]) -> dict[str, float]:
    """Return the same for each process of a table of names."""
    return {name: cpu_seconds(process_id) for name, process_id in processes.items()}


def reset_peak(process_id: int) -> None:
    """Let the peak of a process start again from the memory that it has now, where the kernel permits that."""
    with contextlib.suppress(PermissionError):
        Path(f"/proc/{process_id}/clear_refs").write_text(_RESET_PEAK)


def peak_megabytes(process_id: int) -> float:
    """Return the most resident memory of a process since `reset_peak`, in MiB."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
