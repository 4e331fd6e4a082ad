"""Compare Reattach with the Job controller on a separate control plane: `make bench`.

Rounds alternate between the kinds: TaskRuns with the operator, Jobs with the Job controller, and
TaskRuns with a bare loop that sends only the indispensable writes. Two more passes follow: a paced
load, for latency without a queue, and a count of API calls.
"""

import argparse
import datetime as dt
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.document import write_document
from bench.installation import Settings, installed
from bench.kinds import Kind
from bench.plot import plot_of
from bench.report import report_of
from bench.results import Machine, Results, summaries_of
from bench.rounds import BenchError, count_calls, measure_paced, measure_rounds
from controlplane import REPOSITORY, ControlPlaneError

STARTED = time.monotonic()
OUTPUT = REPOSITORY / "build/bench"
VERSIONS = REPOSITORY / "hack/versions"


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, and write the result files."""
    options = _parse_options(arguments)
    try:
        results = _measure(options, arguments)
    except (BenchError, ControlPlaneError, AssertionError) as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        return 1
    OUTPUT.mkdir(parents=True, exist_ok=True)
    report = report_of(results)
    (OUTPUT / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    (OUTPUT / "results.md").write_text(report + "\n")
    (OUTPUT / "plot.svg").write_text(plot_of(results))
    if options.docs:
        write_document(results)
    print(f"\n{report}\n")
    say(f"Done. {OUTPUT.relative_to(REPOSITORY)} has results.json, results.md and plot.svg.")
    return 0


def _measure(options: Any, arguments: Sequence[str]) -> Results:
    settings = Settings(defaults=options.defaults, policies=options.policies)
    kinds: list[Kind] = list(dict.fromkeys(options.kinds))
    counted = min(options.counted, options.runs)
    with tempfile.TemporaryDirectory(prefix="reattach-bench-") as directory:
        say("Starting the control plane")
        with installed(Path(directory) / "timed", settings, audit_level="Metadata") as installation:
            rounds = measure_rounds(installation, kinds, runs=options.runs, rounds=options.rounds, say=say)
            runs = min(options.paced_runs, options.runs)
            paced = measure_paced(installation, kinds, runs=runs, per_second=options.paced_per_second, say=say)
        say("Starting another control plane, whose audit log includes all bodies")
        with installed(Path(directory) / "counted", settings, audit_level="RequestResponse") as installation:
            calls = count_calls(installation, kinds, runs=counted, say=say)
    return Results(
        command=" ".join(["make bench", *([f"BENCH_ARGS={shlex.quote(' '.join(arguments))}"] if arguments else [])]),
        date=dt.datetime.now(dt.UTC).date().isoformat(),
        runs=options.runs,
        rounds=options.rounds,
        paced_per_second=options.paced_per_second,
        counted_runs=counted,
        defaults=options.defaults,
        policies=options.policies,
        machine=Machine.current(dict(re.findall(r"^(\w+)=(\S+)", VERSIONS.read_text(), re.MULTILINE))),
        kinds=summaries_of(rounds, paced, calls, kinds),
    )


def _parse_options(arguments: Sequence[str]) -> Any:
    parser = argparse.ArgumentParser(prog="make bench BENCH_ARGS=…", description=__doc__)
    add = parser.add_argument
    add("--runs", type=_positive, default=2000, help="objects of each kind in a round (default: 2000)")
    add("--rounds", type=_positive, default=3, help="number of rounds (default: 3)")
    add("--kinds", type=Kind, nargs="+", default=list(Kind), choices=list(Kind), help="kinds to measure (default: all)")
    add("--defaults", action="store_true", help="keep the default request limits of every controller")
    add("--no-policies", dest="policies", action="store_false", help="do not install the chart's admission policies")
    add("--paced-runs", type=_positive, default=200, help="objects of each kind under the paced load (default: 200)")
    add(
        "--paced-per-second",
        type=float,
        default=10,
        help="objects created per second under the paced load (default: 10)",
    )
    add("--counted", type=_positive, default=50, help="objects of each kind whose API calls are counted (default: 50)")
    add("--docs", action="store_true", help="write the results to docs/performance.md")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def say(line: str) -> None:
    """Report progress."""
    print(f"{time.monotonic() - STARTED:4.0f}s {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
