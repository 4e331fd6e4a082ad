"""Properties of the classification, over thousands of generated pod statuses."""

import json
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

import msgspec

from builders import NAME, START, UID, a_job, a_state, an_end, stamp
from reattach.api.names import pod_name
from reattach.api.objects import Pod
from reattach.api.reasons import Cause
from reattach.api.state import JobReference
from reattach.planner import podstatus
from reattach.planner.classification import Classification, EndedAttempt, classify, finish_time_of

ENDS = 4000
TIMES = [None, "0001-01-01T00:00:00Z", *(stamp(seconds) for seconds in (0, 1, 5, 6, 19, 20, 21, 40, 400))]
OWN_LIMITS = [
    'Container task exceeded its local ephemeral storage limit "1Gi". ',
    "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
    'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ',
]
KINDS = ["Failed", "Permanent", "RetryLater", "Unavailable", "Fenced", "Held", "Forever"]
MESSAGES = ["", "", "", "line 1\nline 2\n", "[" * 2000, "{}"]
MESSAGES += [json.dumps({"reattach": "v1", "kind": kind, "message": "m", "retryAfterSeconds": 7}) for kind in KINDS]
ENDED = ["Completed", "Error", "OOMKilled", "StartError", "ContainerStatusUnknown", "Unknown", ""]
TARGETS = ["EvictionByEvictionAPI", "TerminationByKubelet", "DeletionByPodGC", "WorkloadEvicted", "New"]
REASONS = ["", "", "", "", "Evicted", "Terminated", "Preempting", "DeadlineExceeded", "NodeLost", "Later"]
PHASES = ["Pending", "Running", "Succeeded", "Succeeded", "Failed", "Failed", "Unknown"]
INITS = [[], [], [{"name": "prepare"}], [{"name": "prepare", "restartPolicy": "Always"}]]
REPORTS = [an_end(kind) for kind in ("NotReady", "Permanent")]
WAITS = msgspec.structs.replace(an_end("Waiting", "load runs", 600), job=JobReference(key="load", generation=1))
WAITING = a_state(1, end=WAITS, jobs=[a_job()])
STATES = [None, a_state(None), a_state(1), a_state(2), a_state(1, completed_by=1), WAITING]
STATES += [a_state(1, end=end) for end in REPORTS]
STOP = ("Cancelled", "The TaskRun was cancelled.")


@dataclass(frozen=True)
class End:
    """A generated attempt with its classification. `number`: seed that generates it again."""

    number: int
    ended: EndedAttempt
    found: Classification

    @property
    def is_completed(self) -> bool:
        return self.ended.recorded_completion and self.ended.completion != "ExitCode"

    @property
    def is_stopped(self) -> bool:
        """True if something stopped the pod before its container exited."""
        pod, end = self.ended.pod, self.ended.terminated
        if pod is None:
            return True
        targets = [one for one in pod.status.conditions if one.type != "Ready" and one.status == "True"]
        if not targets and pod.metadata.deletion_timestamp is None:
            return False
        return end is None or not podstatus.exited_before_deletion(pod, end)


def a_state_of_a_container(random: Random) -> dict[str, Any]:
    ended = {
        "exitCode": random.choice([0, 0, 0, 1, 137, 143]),
        "reason": random.choice(ENDED),
        "message": random.choice(MESSAGES),
        "startedAt": random.choice(TIMES),
        "finishedAt": random.choice(TIMES),
    }
    waiting = {"waiting": {"reason": random.choice(["ContainerCreating", "ErrImagePull"])}}
    running = {"running": {"startedAt": random.choice(TIMES)}}
    return random.choices([{"terminated": ended}, waiting, running, {}], [6, 1, 1, 1])[0]


def a_generated_pod(random: Random) -> Pod:
    metadata: dict[str, Any] = {"name": pod_name(NAME, UID, 1), "uid": "pod-1", "creationTimestamp": stamp(0)}
    if random.random() < 0.3:
        metadata["deletionTimestamp"] = random.choice(TIMES[2:])
        metadata["deletionGracePeriodSeconds"] = random.choice([None, 0, 30, 2**62])
        metadata["generation"] = random.choice([0, 1, 2])
    spec = {
        "nodeName": random.choice(["", "node-1", "node-1"]),
        "activeDeadlineSeconds": random.choice([None, 6, 30]),
        "terminationGracePeriodSeconds": random.choice([0, 30, 2**62]),
        "initContainers": random.choice(INITS),
        "containers": [{"name": "task"}],
        "volumes": random.choice([[], [{"emptyDir": {}}], [{"emptyDir": {"sizeLimit": "1Gi"}}]]),
    }
    conditions = [
        {
            "type": kind,
            "status": random.choice(["True", "False", "Unknown"]),
            "reason": random.choice(TARGETS),
            "lastTransitionTime": random.choice(TIMES),
        }
        for kind in ("DisruptionTarget", "TerminationTarget", "Ready")
        if random.random() < 0.3
    ]
    status = {
        "phase": random.choice(PHASES),
        "reason": random.choice(REASONS),
        "message": random.choice(["", "The node was low on resource: memory.", *OWN_LIMITS]),
        "startTime": random.choice([None, stamp(0)]),
        "observedGeneration": random.choice([0, 1, 2]),
        "conditions": conditions,
        "initContainerStatuses": [{"name": one["name"], "state": a_state_of_a_container(random)} for one in spec["initContainers"]],
        "containerStatuses": [{"name": "task", "state": a_state_of_a_container(random)}] if random.random() < 0.9 else [],
    }  # fmt: skip
    return msgspec.json.decode(msgspec.json.encode({"metadata": metadata, "spec": spec, "status": status}), type=Pod)


def a_generated_end(number: int) -> End:
    random = Random(number)
    stopped = random.choice([None, None, None, STOP])
    ended = EndedAttempt(
        number=1,
        pod_uid="pod-1",
        pod=None if random.random() < 0.03 else a_generated_pod(random),
        container="task",
        completion=random.choice(["Auto", "Recorded", "ExitCode"]),
        state=random.choice(STATES),
        state_lost=random.random() < 0.1,
        presumed=random.random() < 0.2,
        replaced=random.random() < 0.2,
        expected=random.choice([None, None, None, ("PendingTooLong", "It was pending.")]),
        shown_running=random.random() < 0.5,
        stopped=stopped,
        suspended=stopped is not None and random.random() < 0.5,
        evicted=random.choice([None, None, *OWN_LIMITS]),
    )
    return End(number, ended, classify(ended))


@cache
def ends() -> tuple[End, ...]:
    return tuple(a_generated_end(number) for number in range(ENDS))


def test_classify_returns_a_cause_and_a_reason_for_every_end() -> None:
    for end in ends():
        assert end.found.reason, end
        assert finish_time_of(end.ended, START) <= START, end
    assert {end.found.cause for end in ends()} == set(Cause), "every cause is generated"


def test_classify_recorded_completion_is_succeeded_whatever_happens_to_the_pod() -> None:
    completed = [end for end in ends() if end.is_completed]
    assert len(completed) > ENDS / 20
    assert {end.found.cause for end in completed} == {Cause.SUCCEEDED}


def test_classify_succeeded_needs_a_completion_or_exit_code_0_without_a_stop() -> None:
    succeeded = [end for end in ends() if end.found.cause is Cause.SUCCEEDED and not end.is_completed]
    assert len(succeeded) > ENDS / 400
    for end in succeeded:
        pod, terminated = end.ended.pod, end.ended.terminated
        assert pod is not None, end
        assert (end.ended.exit_code, end.is_stopped) == (0, False), end
        reason, _ = end.ended.stopped_by_kubelet
        if reason == "DeadlineExceeded":
            assert terminated is not None, end
            assert podstatus.exited_before_deadline(pod, terminated), end
        elif reason:
            targets = [one for one in pod.status.conditions if one.type != "Ready" and one.status == "True"]
            assert targets, f"stopped by the kubelet: {end}"


def test_classify_permanent_needs_a_report_and_no_stop_before() -> None:
    permanent = [end for end in ends() if end.found.cause is Cause.PERMANENT]
    assert permanent
    for end in permanent:
        message = end.ended.report
        assert message is not None, end
        assert (message.kind, end.is_stopped) == ("Permanent", False), end


def test_classify_own_storage_limit_is_charged_to_the_task_unless_the_pod_was_stopped() -> None:
    count = 0
    for end in ends():
        reason, message = end.ended.stopped_by_kubelet
        if reason != "Evicted" or message not in OWN_LIMITS or end.ended.pod is None:
            continue
        assert end.found.cause is not Cause.NEVER_STARTED, end
        if end.found.cause is Cause.SUCCEEDED or end.is_stopped or end.ended.report is not None:
            continue
        count += 1
        assert end.found.cause in {Cause.RESOURCE, Cause.STOPPED, Cause.HELD}, end
    assert count > ENDS / 100
