"""The cases of the conformance suite with objects of a real API server, in real time.

`make test` runs a sample, and `make test-all` all of them.
"""

import os
from collections.abc import Iterator

import pytest

from conformance.kubejobs import KINDS, objects
from conformance.tables import keep_outcomes
from controlplane import ControlPlane
from reattach.testing import CASES, Case, CaseResult, Suite

SAMPLE = {
    "undisturbed",
    "intent stored",
    "request left",
    "response lost",
    "at once",
    "handle on its way",
    "job ended",
    "during cancel",
    "forgotten",
    "frozen in submit",
    "500, made",
    "cut, made",
}
HERE = [case for case in CASES if os.environ.get("REATTACH_ALL") or case.name in SAMPLE]

Stage = tuple[Suite, list[CaseResult]]


# A kind's cases share a namespace, and so a worker.
@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in KINDS])
def stage(request: pytest.FixtureRequest, control_plane: ControlPlane) -> Iterator[Stage]:
    namespace = control_plane.create_namespace("conformance")
    results: list[CaseResult] = []
    with objects(control_plane, namespace, request.param) as found, Suite(found.external_system()) as suite:
        yield suite, results
        keep_outcomes(f"kubernetes, {request.param}", results)
    control_plane.delete_namespace(namespace)


@pytest.mark.parametrize("case", HERE, ids=str)
def test_each_case_ends_as_one_object_or_held(stage: Stage, case: Case) -> None:
    suite, results = stage
    result = suite.check(case)
    results.append(result)
    if result.skipped:
        pytest.skip(result.skipped)
