"""Scenario that shows where the CPU time goes: kopf's thread, and the main thread by part.

CPU time comes from /proc, by thread. A second pass samples the operator with py-spy, and the
samples divide the time of each thread among its parts. A sample counts a thread only while it
holds the GIL, because py-spy takes a waiting thread for a running one otherwise.
"""

import contextlib
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import kinds
from bench.installation import Installation
from bench.kinds import Kind
from bench.rounds import BenchError, Load, measure
from bench.scenarios.base import Parameters, Table
from bench.usage import cpu_seconds_by_thread

KOPF = "kopf's thread"
MAIN = "main thread"
SAMPLES_PER_SECOND = 400
_KOPF_ENTRY = "run_in_thread (reattach/runtime/kopf_watch.py"
"""Frame at the root of kopf's thread."""
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")
_PARTS: Mapping[str, str] = {
    "reattach/planner/": "reattach: planner",
    "reattach/taskrun/": "reattach: TaskRun controller",
    "reattach/runtime/": "reattach: runtime (reflector, queue, writer)",
    "reattach/cluster/": "reattach: client",
    "reattach/": "reattach: other",
    "kopf/": "kopf",
    "aiohttp/": "aiohttp",
    "yarl/": "aiohttp",
    "multidict/": "aiohttp",
    "kubernetes/": "kubernetes",
    "prometheus_client/": "metrics",
    "json/": "json",
    "logging/": "logging",
    "asyncio/": "event loop (uvloop, asyncio, TLS)",
    "selectors.py": "event loop (uvloop, asyncio, TLS)",
    "ssl.py": "event loop (uvloop, asyncio, TLS)",
    "uvloop/": "event loop (uvloop, asyncio, TLS)",
}
"""Part of a frame, by the first prefix of its file that matches."""
_OTHER = "other"


@dataclass
class Samples:
    """Samples of one program: the number on each thread, and the number of each part there.

    `own`: the innermost frame belongs to the part. `total`: any frame does.
    """

    threads: Counter[str] = field(default_factory=Counter)
    own: Counter[tuple[str, str]] = field(default_factory=Counter)
    total: Counter[tuple[str, str]] = field(default_factory=Counter)


def samples_of(lines: Iterable[str]) -> Samples:
    """Return the samples in collapsed stacks: frames from the outermost one, and a count."""
    samples = Samples()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        if not stack:
            continue
        frames, number = stack.split(";"), int(count)
        thread = KOPF if any(frame.startswith(_entry_names()) for frame in frames) else MAIN
        parts = [part_of(frame) for frame in frames]
        samples.threads[thread] += number
        samples.own[thread, parts[-1]] += number
        for part in set(parts):
            samples.total[thread, part] += number
    return samples


def _entry_names() -> tuple[str, ...]:
    # Python 3.11 and later write the qualified name of a nested function.
    return (_KOPF_ENTRY, f"watch.<locals>.{_KOPF_ENTRY}")


def part_of(frame: str) -> str:
    """Return the part of the operator to which a frame belongs."""
    found = _FRAME.match(frame)
    path = found["file"] if found else ""
    return next((part for prefix, part in _PARTS.items() if path.startswith(prefix)), _OTHER)


def measure_profile(installation: Installation, parameters: Parameters) -> Table:
    """Measure the operator's CPU time by thread, and then its parts."""
    cpu: dict[str, float] = {}
    load, say = Load(parameters.runs), parameters.say

    @contextlib.contextmanager
    def timed(processes: Mapping[str, int]) -> Iterator[None]:
        operator = processes[kinds.OPERATOR]
        before = cpu_seconds_by_thread(operator)
        yield
        after = cpu_seconds_by_thread(operator)
        spent = {thread: seconds - before.get(thread, 0.0) for thread, seconds in after.items()}
        cpu[MAIN] = spent.pop(operator) / parameters.runs * 1000
        cpu[KOPF] = sum(spent.values()) / parameters.runs * 1000

    measure(installation, Kind.TASKRUN, load, say=say, title="CPU by thread", observe=timed)
    with tempfile.TemporaryDirectory(prefix="reattach-profile-") as directory:
        stacks = Path(directory) / "stacks"

        @contextlib.contextmanager
        def sampled(processes: Mapping[str, int]) -> Iterator[None]:
            with _sampling(processes[kinds.OPERATOR], stacks):
                yield

        measure(installation, Kind.TASKRUN, load, say=say, title="samples", observe=sampled)
        return table_of(samples_of(stacks.read_text().splitlines()), cpu)


@contextlib.contextmanager
def _sampling(process_id: int, stacks: Path) -> Iterator[None]:
    program = Path(sys.executable).with_name("py-spy")
    command = [str(program), "record", "--gil", "--format", "raw", "--rate", str(SAMPLES_PER_SECOND)]
    command += ["--duration", "86400", "--output", str(stacks), "--pid", str(process_id)]
    sampler = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        sampler.send_signal(signal.SIGINT)  # py-spy then writes its file
        output, _ = sampler.communicate(timeout=60)
    if not stacks.exists():
        raise BenchError(f"py-spy could not sample the operator; run as root: {output.decode()[-500:]}")


def table_of(samples: Samples, cpu: Mapping[str, float]) -> Table:
    """Return the CPU time of each thread, and of its parts, in milliseconds for each run."""
    whole = sum(cpu.values())
    rows = [["operator", "all", f"{whole:.2f}", "", f"{1:.0%}"]]
    for thread in (MAIN, KOPF):
        rows.append([thread, "all", f"{cpu[thread]:.2f}", "", f"{cpu[thread] / whole:.0%}"])
        for (found, part), own in samples.own.most_common():
            if found == thread:
                share = cpu[thread] / samples.threads[thread]
                total = samples.total[thread, part] * share
                rows.append([thread, part, f"{own * share:.2f}", f"{total:.2f}", f"{own * share / whole:.0%}"])
    return Table(["thread", "part", "own time (ms/run)", "with callees (ms/run)", "share"], rows)
