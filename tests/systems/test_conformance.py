"""Every case of the conformance suite against real Ray and real Slurm, in real time. `make test` plays some of them, `make test-all` all."""

import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from conformance.tables import keep_outcomes
from reattach.adapters.ray import RayJobs
from reattach.adapters.slurm import SlurmCommands
from reattach.testing import CASES, Case, OtherSide, Outcome, Suite
from systems.rayhead import RayHead
from systems.slurmcluster import SlurmCluster

SAMPLE = {"undisturbed", "request left", "answer lost"}
HERE = [case for case in CASES if os.environ.get("REATTACH_ALL") or case.name in SAMPLE]
SETTLING = timedelta(seconds=5)
"""This controller has nothing else to do."""

Stage = tuple[Suite, list[Outcome]]


def ray_side(head: RayHead) -> OtherSide:
    def made() -> int:
        answer = httpx.get(f"{head.address}/api/jobs/", headers=head.headers(), trust_env=False, timeout=60)
        return len(answer.raise_for_status().json())

    return OtherSide(
        adapter=lambda: RayJobs(head.address, headers=head.headers),
        count_jobs=made,
        request={"entrypoint": "sleep 1"},
        other_request={"entrypoint": "sleep 1.1"},
        lasting_request={"entrypoint": "sleep 900"},
    )


def slurm_side(cluster: SlurmCluster) -> OtherSide:
    def made() -> int:
        """Slurm numbers its jobs."""
        [number] = [
            line.partition("=")[2]
            for line in cluster.root("scontrol", "show", "config").splitlines()
            if line.startswith("NEXT_JOB_ID")
        ]
        return int(number)

    return OtherSide(
        adapter=lambda: SlurmCommands(accounting=timedelta(days=30), via=cluster.via, settling=SETTLING),
        count_jobs=made,
        request={"script": "#!/bin/sh\nsleep 1\n", "options": []},
        other_request={"script": "#!/bin/sh\nsleep 1.1\n", "options": []},
        lasting_request={"script": "#!/bin/sh\nsleep 900\n", "options": []},
    )


SIDES: dict[str, tuple[str, Any]] = {"ray": ("ray_head", ray_side), "slurm": ("slurm", slurm_side)}


@pytest.fixture(scope="module", params=SIDES)
def stage(request: pytest.FixtureRequest) -> Iterator[Stage]:
    fixture, side_of = SIDES[request.param]
    outcomes: list[Outcome] = []
    with Suite(side_of(request.getfixturevalue(fixture))) as suite:
        yield suite, outcomes
        keep_outcomes(request.param, outcomes)


@pytest.mark.parametrize("case", HERE, ids=str)
def test_each_case_ends_as_one_job_or_held(stage: Stage, case: Case) -> None:
    suite, outcomes = stage
    outcome = suite.check(case)
    outcomes.append(outcome)
    if outcome.skipped:
        pytest.skip(outcome.skipped)
