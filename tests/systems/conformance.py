"""The cases of the conformance suite against a real system, in real time. `make test` plays some of them, `make test-all` all."""

import os
from collections.abc import Iterator

import pytest

from conformance.tables import keep_outcomes
from reattach.testing import CASES, Case, CaseResult, ExternalSystem, Suite

ALL = bool(os.environ.get("REATTACH_ALL"))
SAMPLE = {"undisturbed", "request left", "answer lost"}
HERE = [case for case in CASES if ALL or case.name in SAMPLE]

Stage = tuple[Suite, list[CaseResult]]


def staged(name: str, side: ExternalSystem) -> Iterator[Stage]:
    """For a fixture: where the cases are played, one after the other. What came of them is kept for the table."""
    outcomes: list[CaseResult] = []
    with Suite(side) as suite:
        yield suite, outcomes
        keep_outcomes(name, outcomes)


def play(stage: Stage, case: Case) -> None:
    """Raises `AssertionError` where it did not end as one job or held."""
    suite, outcomes = stage
    outcome = suite.check(case)
    outcomes.append(outcome)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
