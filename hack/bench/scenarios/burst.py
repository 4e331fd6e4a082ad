"""Scenario of a burst in one namespace beside a trickle of runs in another one."""

import asyncio
import contextlib

from bench.client import Timeline, observed
from bench.installation import Installation
from bench.kinds import Kind
from bench.measures import differences_of, percentile
from bench.scenarios.base import Parameters, Table, Trial, run_trial, wait_for
from reattach.cluster import Cluster

_PERCENTILES = (50, 99)
_PAUSE_SECONDS = 0.5


def measure_burst(installation: Installation, parameters: Parameters) -> Table:
    """Create a burst of runs, and two runs each second in another namespace meanwhile."""
    rows = [_measure(installation, kind, parameters) for kind in (Kind.TASKRUN, Kind.JOB)]
    head = ["kind", "runs in the burst", "burst runs/min", "other runs"]
    head += [f"other, create → pod p{percent} (ms)" for percent in _PERCENTILES]
    head += [f"other, end → outcome p{percent} (ms)" for percent in _PERCENTILES]
    return Table(head, rows)


def _measure(installation: Installation, kind: Kind, parameters: Parameters) -> list[str]:
    other = installation.create_namespace()
    kubeconfig = str(installation.control_plane.kubeconfig())

    async def body(trial: Trial) -> list[str]:
        timeline = Timeline(runs=0)
        async with await Cluster.connect(kubeconfig) as cluster, observed(cluster, kind, other, timeline):
            quiet = Trial(installation, kind, other, cluster, timeline)
            trickle = asyncio.create_task(_trickle(quiet, trial.timeline))
            await trial.create(parameters.runs)
            await trial.complete()
            await trickle
            quiet.check()
        waits = [
            differences_of(timeline.sent, timeline.pod_created),
            differences_of(timeline.pod_ended, timeline.outcome),
        ]
        shown = [f"{percentile(each, percent) * 1000:,.0f}" for each in waits for percent in _PERCENTILES]
        speed = parameters.runs / trial.timeline.seconds * 60
        return [kind.label, f"{parameters.runs:,}", f"{speed:,.0f}", str(len(timeline.sent)), *shown]

    with installation.controller_of(kind, other):
        installation.wait_until_idle()
        row = run_trial(installation, kind, parameters.runs, body, say=parameters.say, title="burst")
    installation.clear(kind, other)
    return row


async def _trickle(quiet: Trial, burst: Timeline) -> None:
    """Create runs until the burst is over, and wait until all of them are complete."""
    number = 0
    while not burst.complete.is_set():
        name = f"other-{number:05}"
        quiet.timeline.record_create(name)
        await quiet.cluster.create(quiet.kind.path(quiet.namespace), quiet.kind.build_object(name))
        number += 1
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(burst.complete.wait(), _PAUSE_SECONDS)
    await wait_for(lambda: quiet.timeline.finished == number, "the other runs are complete")
