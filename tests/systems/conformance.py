"""The cases of the conformance suite against a real system, in real time.

`make test` runs a sample, and `make test-all` all of them.
"""

import os
from collections.abc import Iterator

import pytest

from conformance.tables import keep_outcomes
from reattach.testing import CASES, Case, CaseResult, ExternalSystem, Suite

ALL = bool(os.environ.get("REATTACH_ALL"))
SAMPLE = {"undisturbed", "request left", "response lost"}
HERE = [case for case in CASES if ALL or case.name in SAMPLE]

Stage = tuple[Suite, list[CaseResult]]


def staged(name: str, side: ExternalSystem) -> Iterator[Stage]:
    """Yield the suite of a system, and keep its results for the table. For a fixture."""
    results: list[CaseResult] = []
    with Suite(side) as suite:
        yield suite, results
        keep_outcomes(name, results)


def play(stage: Stage, case: Case) -> None:
    """Run a case. Raises `AssertionError` unless it ends as one job or held."""
    suite, results = stage
    result = suite.check(case)
    results.append(result)
    if result.skipped:
        pytest.skip(result.skipped)
