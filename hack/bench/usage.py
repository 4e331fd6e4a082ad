"""CPU time and peak memory of processes, read from /proc."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12  # indexes of utime and stime after the name of the command
_RESET_PEAK = "5"


def cpu_seconds(process_id: int) -> float:
    """Return the CPU time of all threads of a process, in seconds."""
    return _cpu_seconds_in(Path(f"/proc/{process_id}/stat"))


def cpu_seconds_by_thread(process_id: int) -> dict[int, float]:
    """Return the CPU time of each thread by its ID, in seconds.

    The ID of the main thread is the process ID.
    """
    found = {}
    for path in Path(f"/proc/{process_id}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            found[int(path.name)] = _cpu_seconds_in(path / "stat")
    return found


def _cpu_seconds_in(path: Path) -> float:
    text = path.read_text()
    # The name of the command is in parentheses and may contain spaces.
    fields = text.rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS


def cpu_seconds_of(processes: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU time of each process by name, in seconds."""
    return {name: cpu_seconds(process_id) for name, process_id in processes.items()}


def reset_peak(process_id: int) -> None:
    """Reset the peak memory of a process to its current memory, if the kernel permits it."""
    with contextlib.suppress(PermissionError):
        Path(f"/proc/{process_id}/clear_refs").write_text(_RESET_PEAK)


def peak_megabytes(process_id: int) -> float:
    """Return the peak resident memory of a process since `reset_peak`, in MiB."""
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
