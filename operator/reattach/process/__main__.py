"""Program `reattach-operator`, with the commands `run`, `release` and `test`.

`run` (the default) runs TaskRuns. `release` removes all finalizers before an uninstall. `test`
runs one TaskRun, to see whether the installation works.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from kubernetes.aio.config import ConfigException

from reattach import installation, uninstall
from reattach.logs import set_up_logs
from reattach.planner.decide import decide
from reattach.process import operator
from reattach.process.options import (
    add_common_arguments,
    add_release_arguments,
    add_run_arguments,
    add_test_arguments,
    installation_options_of,
    release_options_of,
    run_options_of,
)
from reattach.runtime.event_loop import loop_factory
from reattach.taskrun.reconciler import Decide

COMMANDS = ("run", "release", "test")


def main(arguments: Sequence[str] | None = None, decide: Decide = decide) -> int:
    """Run the command. Return the exit code of the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in {*COMMANDS, "-h", "--help"}:
        given.insert(0, "run")
    parser = _parser()
    parsed = parser.parse_args(given)
    set_up_logs(parsed.log_format, parsed.log_level)
    try:
        if parsed.command == "release":
            work = uninstall.run(parsed.kubeconfig, release_options_of(parsed))
        elif parsed.command == "test":
            work = installation.run(parsed.kubeconfig, installation_options_of(parsed))
        else:
            work = operator.run(run_options_of(parsed), decide)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            return runner.run(work)
    except (ValueError, ConfigException) as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reattach-operator", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("run", help="watch TaskRuns and run their pods (the default)")
    add_common_arguments(run, os.environ)
    add_run_arguments(run, os.environ)
    release = commands.add_parser("release", help="remove our finalizers from all pods, states and TaskRuns")
    add_common_arguments(release, os.environ)
    add_release_arguments(release)
    test = commands.add_parser("test", help="test the installation with one TaskRun")
    add_common_arguments(test, os.environ)
    add_test_arguments(test)
    return parser


if __name__ == "__main__":
    sys.exit(main())
