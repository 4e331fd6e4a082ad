"""Compare Reattach with the Job controller on a separate control plane: `make bench`.

Without --scenario, three passes compare the kinds of runs.
Rounds alternate between the kinds: TaskRuns with the operator, Jobs with the Job controller, and
TaskRuns with a bare loop that sends only the indispensable writes. Two more passes follow: a paced
load, for latency without a queue, and a count of API calls.
"""

import argparse
import contextlib
import datetime as dt
import re
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import msgspec

from bench.document import write_document, write_scenario
from bench.installation import Installation, Settings, installed
from bench.kinds import Kind
from bench.plot import plot_of
from bench.report import report_of, scenario_report_of
from bench.results import Machine, Results, ScenarioResult, summaries_of
from bench.rounds import BenchError, count_calls, measure_paced, measure_rounds
from bench.scenarios import SCENARIOS, Parameters, Scenario
from controlplane import REPOSITORY, ControlPlaneError
from reattach.cluster import ClusterError

STARTED = time.monotonic()
OUTPUT = REPOSITORY / "build/bench"
RUNS = 2000
PACED_RUNS = 200
PAGE_RUNS = 400
PAGE_PACED_RUNS = 100
PAGE_SECONDS = 750
"""Time after which `--page` begins no other scenario."""
VERSIONS = REPOSITORY / "hack/versions"


def main(arguments: Sequence[str]) -> int:
    """Measure, print the tables, and write the result files."""
    options = _parse_options(arguments)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    try:
        if options.page or not options.scenario:
            _report(_measure(options), docs=options.docs)
        names = options.scenario
        if options.page:
            names = [each.name for each in SCENARIOS.values() if each.page_runs]
        elif "all" in names:
            names = list(SCENARIOS)
        failed = _measure_scenarios(options, names)
    except (BenchError, ControlPlaneError, AssertionError) as error:
        print(f"The benchmark failed: {error}", file=sys.stderr)
        return 1
    for name, message in failed.items():
        print(f"The scenario {name} failed: {message}", file=sys.stderr)
    say(f"Done. The results are in {OUTPUT.relative_to(REPOSITORY)}.")
    return 1 if failed else 0


def _report(results: Results, *, docs: bool) -> None:
    report = report_of(results)
    (OUTPUT / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    (OUTPUT / "results.md").write_text(report + "\n")
    (OUTPUT / "plot.svg").write_text(plot_of(results))
    if docs:
        write_document(results)
    print(f"\n{report}\n", flush=True)


def _measure_scenarios(options: Any, names: Sequence[str]) -> dict[str, str]:
    """Measure the scenarios, and write each result at once. Return the errors by scenario."""
    results: list[ScenarioResult] = []
    failed: dict[str, str] = {}
    for defaults in (False, True):
        left = deque(SCENARIOS[name] for name in names if SCENARIOS[name].defaults == defaults)
        settings = Settings(defaults=defaults or options.defaults, policies=options.policies)
        while left:
            if _is_over(options):
                message = f"{PAGE_SECONDS} s are over; measure it alone: --scenario"
                failed |= {each.name: f"{message} {each.name}" for each in left}
                break
            with _control_plane(settings, "Metadata") as installation:
                _measure_until_failure(installation, left, options, results, failed)
    return failed


def _measure_until_failure(
    installation: Installation,
    left: deque[Scenario],
    options: Any,
    results: list[ScenarioResult],
    failed: dict[str, str],
) -> None:
    """Measure scenarios until one fails, because the next one must not find its objects.

    `--page` also ends when its time is over.
    """
    while left and not _is_over(options):
        scenario = left.popleft()
        say(f"Scenario {scenario.name}: {scenario.summary}")
        try:
            results.append(_measure_scenario(installation, scenario, options))
        except* (BenchError, ControlPlaneError, ClusterError, AssertionError, OSError, httpx.HTTPError) as group:
            failed[scenario.name] = "; ".join(_messages_of(group))
        if scenario.name in failed:
            return
        _report_scenarios(results, docs=options.docs)


def _is_over(options: Any) -> bool:
    return options.page and time.monotonic() - STARTED > PAGE_SECONDS


def _messages_of(error: BaseException) -> Iterator[str]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _messages_of(each)
    else:
        yield f"{type(error).__name__}: {error}"


def _measure_scenario(installation: Installation, scenario: Scenario, options: Any) -> ScenarioResult:
    size = (scenario.page_runs, scenario.page_seconds) if options.page else (scenario.runs, scenario.seconds)
    runs, seconds = size
    if not options.page:
        runs, seconds = options.runs or runs, seconds if options.seconds is None else options.seconds
    arguments = f"--scenario {scenario.name} --runs {runs}" + (f" --seconds {seconds:g}" if scenario.seconds else "")
    arguments += "" if options.policies else " --no-policies"
    arguments += " --defaults" if options.defaults else ""
    table = scenario.measure(installation, Parameters(runs, seconds, say))
    return ScenarioResult(
        name=scenario.name,
        command=command_of(arguments),
        date=_today(),
        machine=_machine(),
        table=table,
    )


def _report_scenarios(results: Sequence[ScenarioResult], *, docs: bool) -> None:
    (OUTPUT / "scenarios.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    (OUTPUT / "scenarios.md").write_text("\n\n".join(map(scenario_report_of, results)) + "\n")
    if docs:
        write_scenario(results[-1])
    print(f"\n{scenario_report_of(results[-1])}\n", flush=True)


@contextlib.contextmanager
def _control_plane(settings: Settings, audit_level: str) -> Iterator[Installation]:
    say(f"Starting a control plane whose audit log has the level {audit_level}")
    with (
        tempfile.TemporaryDirectory(prefix="reattach-bench-") as directory,
        installed(Path(directory) / "bench", settings, audit_level=audit_level) as installation,
    ):
        yield installation


def _measure(options: Any) -> Results:
    settings = Settings(defaults=options.defaults, policies=options.policies)
    kinds: list[Kind] = list(dict.fromkeys(options.kinds))
    runs = options.runs or (PAGE_RUNS if options.page else RUNS)
    counted = min(options.counted, runs)
    with _control_plane(settings, "Metadata") as installation:
        rounds = measure_rounds(installation, kinds, runs=runs, rounds=options.rounds, say=say)
        paced_runs = min(options.paced_runs or (PAGE_PACED_RUNS if options.page else PACED_RUNS), runs)
        paced = measure_paced(installation, kinds, runs=paced_runs, per_second=options.paced_per_second, say=say)
    with _control_plane(settings, "RequestResponse") as installation:
        calls = count_calls(installation, kinds, runs=counted, say=say)
    return Results(
        command=command_of(" ".join(options.arguments)),
        date=_today(),
        runs=runs,
        rounds=options.rounds,
        paced_per_second=options.paced_per_second,
        counted_runs=counted,
        defaults=options.defaults,
        policies=options.policies,
        machine=_machine(),
        kinds=summaries_of(rounds, paced, calls, kinds),
    )


def command_of(arguments: str) -> str:
    """Return the command with these arguments."""
    return " ".join(["make bench", *([f"BENCH_ARGS={shlex.quote(arguments)}"] if arguments else [])])


def _machine() -> Machine:
    return Machine.current(dict(re.findall(r"^(\w+)=(\S+)", VERSIONS.read_text(), re.MULTILINE)))


def _today() -> str:
    return dt.datetime.now(dt.UTC).date().isoformat()


def _parse_options(arguments: Sequence[str]) -> Any:
    sizes = [
        f"  {each.name:<12} {each.summary} ({each.runs:,} runs{f', {each.seconds:g} s' if each.seconds else ''})"
        for each in SCENARIOS.values()
    ]
    parser = argparse.ArgumentParser(
        prog="make bench BENCH_ARGS=…",
        description=__doc__,
        epilog="\n".join(["scenarios, with their default sizes:", *sizes]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--runs", type=_positive, help=f"objects of each kind in a round (default: {RUNS}; of a scenario: see below)")
    add("--rounds", type=_positive, default=3, help="number of rounds (default: 3)")
    add("--kinds", type=Kind, nargs="+", default=list(Kind), choices=list(Kind), help="kinds to measure (default: all)")
    add("--defaults", action="store_true", help="keep the default request limits of every controller")
    add("--no-policies", dest="policies", action="store_false", help="do not install the chart's admission policies")
    add("--paced-runs", type=_positive, help=f"objects of each kind under the paced load (default: {PACED_RUNS})")
    add(
        "--paced-per-second",
        type=float,
        default=10,
        help="objects created per second under the paced load (default: 10)",
    )
    add("--counted", type=_positive, default=50, help="objects of each kind whose API calls are counted (default: 50)")
    add(
        "--scenario",
        nargs="+",
        default=[],
        choices=[*SCENARIOS, "all"],
        metavar="NAME",
        help="measure these scenarios, or all, in place of the comparison",
    )
    add("--seconds", type=float, help="time that a scenario only observes (default: see below)")
    add(
        "--page",
        action="store_true",
        help=f"measure the comparison with {PAGE_RUNS} runs and most scenarios in a small size, for at most 14 minutes",
    )
    add("--docs", action="store_true", help="write the results to docs/performance.md")
    options = parser.parse_args(arguments)
    options.arguments = [each for each in arguments if each != "--docs"]
    return options


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
