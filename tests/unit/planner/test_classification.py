"""Why an attempt ended: a row of the table for each thing that can be seen, and which of two rows comes first."""

import json
from typing import Any

import pytest

from builders import (
    SETTINGS,
    APod,
    a_job,
    a_pod,
    a_state,
    a_taskrun,
    an_end,
    at,
    decision_of,
    last_attempt_of,
    observed,
    plan_of,
    status_of,
)
from reattach.api.messages import TaskExitCode
from reattach.errors import AttemptOver
from reattach.planner.decide import decide
from reattach.planner.plan import AbsentState, Plan, ReadEvictions, ReadState

DISK = "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 900Mi."
OWN_DISK = 'Container task exceeded its local ephemeral storage limit "1Gi". '
POD_DISK = "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. "
EMPTY_DIR = 'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '


def said(kind: str, **fields: Any) -> str:
    return json.dumps({"reattach": "v1", "kind": kind, **fields})


def lost_track(pod: APod, reason: str = "ContainerStatusUnknown", **more: Any) -> APod:
    unknown = {"exitCode": 137, "reason": reason, **more}
    return pod.scheduled().with_container("task", terminated=unknown).with_status(phase="Failed")


def with_deadline(seconds: int) -> APod:
    return a_pod().with_spec(activeDeadlineSeconds=seconds).with_status(startTime="2026-03-01T12:00:00Z")


NEVER, DISRUPTION, APPLICATION = (
    ("NeverStarted", "neverStarted"),
    ("Disruption", "disruption"),
    ("Application", "application"),
)
SUCCEEDED, RESOURCE, DEADLINE = ("Succeeded", None), ("Resource", "application"), ("Deadline", "application")
FENCED, PERMANENT = ("Fenced", "disruption"), ("Permanent", None)

ROWS: dict[str, tuple[APod, tuple[str, str | None], str]] = {
    # never had a running container and never opened its state
    "refused by the node's admission": (a_pod().scheduled().failed("UnexpectedAdmissionError", "no GPU"), NEVER, "UnexpectedAdmissionError"),
    "node was shutting down": (a_pod().scheduled().failed("NodeShutdown"), NEVER, "NodeShutdown"),
    "node's labels changed": (a_pod().scheduled().failed("NodeAffinity"), NEVER, "NodeAffinity"),
    "deleted before it was scheduled": (a_pod().deleted(), NEVER, "Deleted"),
    "deleted while its image was pulled": (a_pod().waiting("ContainerCreating").deleted().failed(""), NEVER, "Deleted"),
    "deleted while no image could be pulled": (a_pod().waiting("ErrImagePull", "404").deleted().failed(""), NEVER, "ErrImagePull"),
    "deleted while pending, by a kubelet that says unknown": (lost_track(a_pod().deleted()), NEVER, "Deleted"),
    "evicted while its init container ran": (
        a_pod().with_init().exited(143, 5, container="x").with_status(containerStatuses=[]).disrupted("TerminationByKubelet")
        .with_container("prepare", init=True, terminated={"exitCode": 143, "finishedAt": "2026-03-01T12:00:05Z"}),
        NEVER, "TerminationByKubelet",
    ),
    "its program does not exist": (a_pod().exited(128, reason="StartError", message="exec: no such file"), NEVER, "StartError"),
    "failed without a word": (a_pod().scheduled().failed(""), NEVER, "NotStarted"),
    "deadline passed while its image was pulled": (a_pod().waiting("ImagePullBackOff").failed("DeadlineExceeded"), NEVER, "ImagePullBackOff"),
    # disruption
    "evicted by the API": (a_pod().running().disrupted().deleted().exited(143), DISRUPTION, "EvictionByEvictionAPI"),
    "evicted, and it exited with 0": (a_pod().disrupted().deleted().exited(0), DISRUPTION, "EvictionByEvictionAPI"),
    "evicted in the second in which it ended": (a_pod().disrupted(seconds=5).exited(1, 5), DISRUPTION, "EvictionByEvictionAPI"),
    "evicted, and nobody says when": (a_pod().disrupted(seconds=None).exited(1), DISRUPTION, "EvictionByEvictionAPI"),
    "preempted": (a_pod().disrupted("PreemptionByScheduler").exited(137), DISRUPTION, "PreemptionByScheduler"),
    "collected with its node": (a_pod().running().disrupted("DeletionByPodGC").failed(""), DISRUPTION, "DeletionByPodGC"),
    "evicted for node pressure": (a_pod().disrupted("TerminationByKubelet").exited(137).failed("Evicted", DISK), DISRUPTION, "TerminationByKubelet"),
    "evicted for node pressure, by an old kubelet": (a_pod().exited(137).failed("Evicted", DISK), DISRUPTION, "Evicted"),
    "ended by the node's shutdown": (a_pod().exited(0).failed("Terminated"), DISRUPTION, "Terminated"),
    "stopped by the kubelet, with exit code 0 long before it reported the stop": (
        a_pod().disrupted("TerminationByKubelet", seconds=400).exited(0, 5), DISRUPTION, "TerminationByKubelet"
    ),
    "stopped by the kubelet, with exit code 1 long before it reported the stop": (
        a_pod().disrupted("TerminationByKubelet", seconds=400).exited(1, 5).failed("Terminated"), DISRUPTION, "TerminationByKubelet"
    ),
    "had succeeded when its node was shut down": (
        a_pod().disrupted("TerminationByKubelet", seconds=400).exited(0, 5).with_status(reason="Terminated"), SUCCEEDED, "Completed"
    ),
    "stopped for a reason that is unknown": (a_pod().disrupted("DeletionByNewController").exited(0), DISRUPTION, "DeletionByNewController"),
    "stopped by Kueue": (
        a_pod().deleted().exited(0).with_condition("TerminationTarget", "True", "WorkloadEvicted", "Preempted", 4), DISRUPTION, "WorkloadEvicted"
    ),
    "stopped by Kueue before it started": (
        a_pod().waiting("ContainerCreating").deleted().failed("").with_condition("TerminationTarget", "True", "WorkloadEvicted", seconds=4),
        NEVER, "WorkloadEvicted",
    ),
    "exited by itself before Kueue stopped it": (
        a_pod().exited(1, 3).deleted(24).with_condition("TerminationTarget", "True", "WorkloadEvicted", seconds=24), APPLICATION, "Error"
    ),
    "deleted by someone": (a_pod().deleted(4).exited(143, 5), DISRUPTION, "Deleted"),
    "deleted by someone, and it exited with 0": (a_pod().deleted(4).exited(0, 5), DISRUPTION, "Deleted"),
    "deleted in the second in which it ended": (a_pod().deleted(5).exited(0, 5), DISRUPTION, "Deleted"),
    "its container vanished with the node's restart": (lost_track(a_pod(), startedAt="2026-03-01T12:00:01Z"), DISRUPTION, "EndUnknown"),
    "its runtime forgot it": (lost_track(a_pod(), "Unknown", startedAt="2026-03-01T12:00:01Z", finishedAt="0001-01-01T00:00:00Z"), DISRUPTION, "EndUnknown"),
    "failed while its container is still said to run": (a_pod().running().failed(""), DISRUPTION, "EndUnknown"),
    # what the task said
    "said permanent": (a_pod().exited(1, message=said("Permanent", message="bad input")), PERMANENT, "PermanentFailure"),
    "said retry later": (a_pod().exited(1, message=said("RetryLater", retryAfterSeconds=7)), APPLICATION, "RetryLater"),
    "said permanent while it was evicted": (a_pod().disrupted().exited(1, message=said("Permanent")), DISRUPTION, "EvictionByEvictionAPI"),
    "said unavailable": (a_pod().exited(83, message=said("Unavailable", message="no answer")), DISRUPTION, "StateApiUnavailable"),
    "said unavailable, and it exited with 0": (a_pod().exited(0, message=said("Unavailable")), SUCCEEDED, "Completed"),
    # resources, deadline
    "out of memory": (a_pod().exited(137, reason="OOMKilled"), RESOURCE, "OOMKilled"),
    "out of memory, and it exited with 0": (a_pod().exited(0, reason="OOMKilled"), RESOURCE, "OOMKilled"),
    "over its own disk limit": (a_pod().exited(137).failed("Evicted", OWN_DISK), RESOURCE, "Evicted"),
    "over its pod's disk limit": (a_pod().exited(137).failed("Evicted", POD_DISK), RESOURCE, "Evicted"),
    "over its volume's limit": (a_pod().exited(137).failed("Evicted", EMPTY_DIR), RESOURCE, "Evicted"),
    "past its deadline": (a_pod().exited(143).failed("DeadlineExceeded"), DEADLINE, "DeadlineExceeded"),
    "past its deadline, and it exited with 0": (a_pod().exited(0).failed("DeadlineExceeded"), DEADLINE, "DeadlineExceeded"),
    "past its deadline, and it exited with 0 then": (with_deadline(5).exited(0, 5).failed("DeadlineExceeded"), DEADLINE, "DeadlineExceeded"),
    "past its deadline, without the time of its end": (
        with_deadline(6).exited(0, 5).with_container("task", terminated={"exitCode": 0}).failed("DeadlineExceeded"), DEADLINE, "DeadlineExceeded"
    ),
    "past its deadline, before which it had exited with 0": (with_deadline(6).exited(0, 5).failed("DeadlineExceeded"), SUCCEEDED, "Completed"),
    "past its deadline, before which it had exited with 1": (with_deadline(6).exited(1, 5).failed("DeadlineExceeded"), APPLICATION, "Error"),
    # exit codes
    "exited with 0": (a_pod().exited(0), SUCCEEDED, "Completed"),
    "exited with 0, without a word of its containers": (a_pod().scheduled().with_status(phase="Succeeded"), SUCCEEDED, "Completed"),
    "exited with 1": (a_pod().exited(1), APPLICATION, "Error"),
    "exited with 1, no reason given": (a_pod().exited(1, reason=""), APPLICATION, "Error"),
    "stopped by a deletion, after the kubelet's own": (a_pod().exited(0, 5).deleted(7, 0), DISRUPTION, "Deleted"),
    "exited by itself before it was deleted": (a_pod().exited(1, 3).deleted(24), APPLICATION, "Error"),
    "exited by itself long before it was deleted, after the kubelet's own": (a_pod().exited(1, 3).deleted(54, 0), APPLICATION, "Error"),
    "stopped by a deletion that its kubelet knew of": (
        a_pod().with_metadata(generation=2).exited(0, 5).deleted(7, 0).with_status(observedGeneration=2), DISRUPTION, "Deleted"
    ),
    "exited by itself before a deletion that its kubelet did not know of": (
        a_pod().with_metadata(generation=2).exited(1, 5).deleted(7, 0).with_status(observedGeneration=1), APPLICATION, "Error"
    ),
    "deleted while it goes on, which its kubelet does not know yet": (
        a_pod().with_metadata(generation=2).running().deleted(-400, 0).with_status(observedGeneration=1), DISRUPTION, "NodeLost"
    ),
    "exited by itself before it was deleted, by a pod with little grace": (
        a_pod().with_spec(terminationGracePeriodSeconds=2).exited(1, 3).deleted(27, 0), APPLICATION, "Error"
    ),
    "exited by itself before it was evicted": (a_pod().exited(1, 3).disrupted(seconds=24).deleted(24), APPLICATION, "Error"),
    "evicted, from a node whose clock is behind": (
        a_pod().disrupted(seconds=8).deleted(8).exited(143, 5), DISRUPTION, "EvictionByEvictionAPI"
    ),
    "evicted, from a node whose clock is behind, and it exited with 0": (
        a_pod().disrupted(seconds=8).deleted(8).exited(0, 5), DISRUPTION, "EvictionByEvictionAPI"
    ),
    "its init container failed": (
        a_pod().with_init().waiting("PodInitializing").with_status(phase="Failed")
        .with_container("prepare", init=True, terminated={"exitCode": 2, "reason": "Error", "message": "no data"}),
        APPLICATION, "Error",
    ),
    "its init container ran out of memory": (
        a_pod().with_init().waiting("PodInitializing").with_status(phase="Failed")
        .with_container("prepare", init=True, terminated={"exitCode": 137, "reason": "OOMKilled"}),
        RESOURCE, "OOMKilled",
    ),
    "an init container before the one that failed had done its work": (
        a_pod().with_init("first").with_init().waiting("PodInitializing").with_status(phase="Failed")
        .with_container("first", init=True, terminated={"exitCode": 0})
        .with_container("prepare", init=True, terminated={"exitCode": 2, "reason": "Error"}),
        APPLICATION, "Error",
    ),
    "a sidecar among the init containers failed": (
        a_pod().with_init("proxy", "Always").waiting("PodInitializing").failed("NodeShutdown")
        .with_container("proxy", init=True, terminated={"exitCode": 2, "reason": "Error"}),
        NEVER, "NodeShutdown",
    ),
}  # fmt: skip


@pytest.mark.parametrize("seen", ROWS)
def test_the_cause_is_what_was_seen(seen: str) -> None:
    pod, (cause, charged_to), reason = ROWS[seen]
    attempt = last_attempt_of(plan_of(a_taskrun(), pod))
    assert (attempt.cause, attempt.charged_to, attempt.reason) == (cause, charged_to, reason)
    assert attempt.finish_time is not None


def test_the_state_is_read_once_before_an_end_is_judged() -> None:
    assert decision_of(a_taskrun().with_state(), a_pod().exited(0), state=None) == ReadState()


# -- evictions that only an event shows ------------------------------------------------------------

LIMITS = {
    "ephemeral storage of the task": {"containers": [{"name": "task", "resources": {"limits": {"ephemeral-storage": "1Gi"}}}]},
    "ephemeral storage of a sidecar": {"initContainers": [{"name": "proxy", "resources": {"limits": {"ephemeral-storage": "1Gi"}}}]},
    "an emptyDir": {"volumes": [{"name": "token"}, {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}]},
}  # fmt: skip
LIMITED = a_pod().with_spec(**LIMITS["an emptyDir"]).exited(0)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("message", [OWN_DISK, POD_DISK, EMPTY_DIR])
@pytest.mark.parametrize("completion", ["Auto", "Recorded", "ExitCode"])
def test_classify_exit_code_0_after_an_eviction_for_own_limits_is_resource(
    limit: str, message: str, completion: str
) -> None:
    pod = a_pod().with_spec(**LIMITS[limit]).exited(0)
    attempt = last_attempt_of(plan_of(a_taskrun(completion=completion), pod, evictions={"pod-1": message}))
    assert (attempt.cause, attempt.reason, attempt.message) == ("Resource", "Evicted", message.strip())


def test_classify_exit_code_0_after_an_eviction_for_node_pressure_is_disruption() -> None:
    attempt = last_attempt_of(plan_of(a_taskrun(), LIMITED, evictions={"pod-1": DISK}))
    assert (attempt.cause, attempt.reason) == ("Disruption", "Evicted")


def test_classify_exit_code_0_without_an_eviction_is_succeeded() -> None:
    assert last_attempt_of(plan_of(a_taskrun(), LIMITED)).cause == "Succeeded"


@pytest.mark.parametrize(
    "pod",
    [
        a_pod().exited(0),
        a_pod().with_spec(volumes=[{"name": "scratch", "emptyDir": {}}]).exited(0),
        a_pod().with_spec(**LIMITS["an emptyDir"]).exited(1),
        a_pod().with_spec(**LIMITS["an emptyDir"]).with_sidecar().exited(0),
        LIMITED.deleted(),
        LIMITED.disrupted(),
        LIMITED.failed("DeadlineExceeded"),
    ],
)
def test_decide_pod_whose_end_is_known_needs_no_event(pod: APod) -> None:
    assert isinstance(decide(observed(a_taskrun(), pod, state=AbsentState()), SETTINGS, at(10)), Plan)


def test_decide_recorded_completion_needs_no_event() -> None:
    seen = observed(a_taskrun(), LIMITED, state=a_state(1, completed_by=1))
    assert isinstance(decide(seen, SETTINGS, at(10)), Plan)


def test_decide_missing_completion_needs_the_event_because_the_limit_may_be_the_cause() -> None:
    seen = observed(a_taskrun(), LIMITED, state=a_state(1))
    assert decide(seen, SETTINGS, at(10)) == ReadEvictions(("pod-1",))


# -- the completion record -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pod", [a_pod().exited(1), a_pod().disrupted().deleted().exited(137), a_pod().exited(137, reason="OOMKilled")]
)
@pytest.mark.parametrize("completion", ["Auto", "Recorded"])
def test_once_completion_is_recorded_nothing_that_happens_to_the_pod_matters(pod: APod, completion: str) -> None:
    plan = plan_of(a_taskrun(completion=completion), pod, state=a_state(1, completed_by=1, result='{"rows":3}'))
    status = status_of(plan)
    assert (status.attempts[-1].cause, status.outcome, status.result) == ("Succeeded", "Succeeded", '{"rows":3}')


def test_by_exit_code_a_record_does_not_make_a_failure_good() -> None:
    plan = plan_of(a_taskrun(completion="ExitCode"), a_pod().exited(1), state=a_state(1, completed_by=1))
    assert last_attempt_of(plan).cause == "Application"


def test_by_exit_code_a_record_gives_the_result() -> None:
    plan = plan_of(a_taskrun(completion="ExitCode"), a_pod().exited(0), state=a_state(1, completed_by=1, result="5"))
    assert (status_of(plan).outcome, status_of(plan).result) == ("Succeeded", "5")


def test_by_exit_code_an_opened_state_needs_no_record() -> None:
    plan = plan_of(a_taskrun(completion="ExitCode"), a_pod().exited(0), state=a_state(1))
    assert (status_of(plan).outcome, status_of(plan).result) == ("Succeeded", None)


def test_an_attempt_that_opened_its_state_must_record_completion() -> None:
    attempt = last_attempt_of(plan_of(a_taskrun(), a_pod().exited(0), state=a_state(1)))
    assert (attempt.cause, attempt.reason, attempt.exit_code) == ("Application", "NoCompletionRecord", 0)


def test_an_attempt_that_did_not_open_a_state_opened_before_is_judged_by_its_exit_code() -> None:
    taskrun = a_taskrun().with_budgets(application=1).with_failed_attempt(1)
    assert status_of(plan_of(taskrun, a_pod(2).exited(0), state=a_state(1))).outcome == "Succeeded"


def test_where_records_are_asked_for_exit_code_0_is_not_enough() -> None:
    attempt = last_attempt_of(plan_of(a_taskrun(completion="Recorded"), a_pod().exited(0)))
    assert (attempt.cause, attempt.reason) == ("Application", "NoCompletionRecord")


@pytest.mark.parametrize("state", [a_state(2, completed_by=1), a_state(1, completed_by=1, pod_uid="another")])
def test_the_record_of_another_attempt_or_pod_is_not_this_ones(state: Any) -> None:
    taskrun = a_taskrun().with_budgets(application=1).with_failed_attempt(1)
    assert last_attempt_of(plan_of(taskrun, a_pod(2).exited(1), state=state)).cause == "Application"
    assert (
        last_attempt_of(
            plan_of(a_taskrun(), a_pod(1).exited(1), state=a_state(1, completed_by=1, pod_uid="another"))
        ).cause
        == "Application"
    )


def test_an_attempt_that_opened_its_state_has_started_whatever_its_node_says() -> None:
    pod = lost_track(a_pod().deleted())
    assert last_attempt_of(plan_of(a_taskrun(), pod, state=a_state(1))).cause == "Disruption"


def test_an_attempt_that_was_shown_running_has_started_whatever_its_node_says() -> None:
    running = status_of(plan_of(a_taskrun(), a_pod().running(1)))
    attempt = last_attempt_of(plan_of(a_taskrun().with_status(running), lost_track(a_pod().deleted())))
    assert (attempt.cause, attempt.reason) == ("Disruption", "Deleted")


# -- what the task says is believed where it can be ------------------------------------------------


@pytest.mark.parametrize("state", [a_state(2), a_state(1, pod_uid="another")])
def test_fenced_is_believed_if_another_pod_opened_the_state(state: Any) -> None:
    attempt = status_of(plan_of(a_taskrun(), a_pod().exited(1, message=said("Fenced")), state=state)).attempts[0]
    assert (attempt.cause, attempt.charged_to) == FENCED


@pytest.mark.parametrize("state", [a_state(1), a_state(None), AbsentState()])
def test_fenced_is_not_believed_if_the_state_knows_nothing_of_it(state: Any) -> None:
    attempt = last_attempt_of(
        plan_of(a_taskrun(), a_pod().exited(1, message=said("Fenced", message="409")), state=state)
    )
    assert (attempt.cause, attempt.message) == ("Application", "409")


def test_held_is_not_believed_if_the_state_is_there() -> None:
    plan = plan_of(a_taskrun().with_state(), a_pod().exited(1, message=said("Held")), state=a_state(1))
    assert (last_attempt_of(plan).cause, status_of(plan).outcome) == ("Application", "Failed")


@pytest.mark.parametrize(
    "message",
    [
        "",
        "boom",
        "Permanent",
        '{"kind": "Permanent"}',
        '{"reattach": "v2", "kind": "Permanent"}',
        '{"reattach": "v1", "kind": "Forever"}',
        'INFO {"reattach": "v1", "kind": "Permanent"}',
        '{"reattach": "v1", "kind": "Permanent"}\nTraceback (most recent call last)',
        '{"reattach": "v1", "kind": "Permanent"',
        '[{"reattach": "v1", "kind": "Permanent"}]',
        '{"reattach": "v1", "kind": "RetryLater", "retryAfterSeconds": "soon"}',
        "[" * 5000,
    ],
)
def test_the_tail_of_a_log_that_looks_like_a_message_is_none(message: str) -> None:
    attempt = last_attempt_of(plan_of(a_taskrun(), a_pod().exited(1, message=message)))
    assert (attempt.cause, attempt.reason) == ("Application", "Error")


# -- the end that the task reported to the state API ----------------------------------------------


@pytest.mark.parametrize(
    "end, cause, seconds",
    [
        (an_end("Permanent", "no table"), PERMANENT, None),
        (an_end("RetryLater", "no slot", 90), APPLICATION, 95),
        (an_end("NotReady", "no input", 90), ("NotReady", "notReady"), 95),
        (an_end("RetryLater", "no slot"), APPLICATION, 15),
        (an_end("Unheard", "of"), APPLICATION, 15),
    ],
)
@pytest.mark.parametrize("message", ["", "the end of a log", said("Failed"), said("RetryLater", retryAfterSeconds=7)])
def test_recorded_end_replaces_the_termination_message(
    end: Any, cause: tuple[str, str | None], seconds: float | None, message: str
) -> None:
    taskrun = a_taskrun(retry={"backoff": {"initialSeconds": 10, "jitterPercent": 0}}).with_budgets(application=3)
    status = status_of(plan_of(taskrun, a_pod().exited(1, message=message), state=a_state(1, end=end)))
    attempt = status.attempts[0]
    assert (attempt.cause, attempt.charged_to, attempt.message) == (*cause, end.message)
    assert status.next_attempt_time == (None if seconds is None else at(seconds))


@pytest.mark.parametrize("end", [an_end("Permanent", attempt=2), an_end("Permanent", pod_uid="another")])
def test_recorded_end_of_another_attempt_or_pod_is_ignored(end: Any) -> None:
    attempt = last_attempt_of(plan_of(a_taskrun(), a_pod().exited(1, message="boom"), state=a_state(1, end=end)))
    assert (attempt.cause, attempt.message) == ("Application", "boom")


@pytest.mark.parametrize(
    "pod, cause",
    [
        (a_pod().disrupted().deleted().exited(1), "Disruption"),
        (a_pod().running().deleted(-400, 0), "Disruption"),
        (a_pod().exited(1, message=said("Fenced")), "Fenced"),
        (a_pod().exited(137, reason="OOMKilled"), "Permanent"),
        (a_pod().exited(0), "Permanent"),
    ],
)
def test_recorded_end_has_the_place_of_the_message_among_the_checks(pod: APod, cause: str) -> None:
    state = a_state(2 if cause == "Fenced" else 1, end=an_end("Permanent"))
    assert status_of(plan_of(a_taskrun(), pod, state=state)).attempts[0].cause == cause


def test_recorded_end_does_not_end_a_run_whose_attempt_was_held() -> None:
    state = a_state(1, end=an_end("Permanent"), jobs=[a_job(None, held=True, holds=1)])
    plan = plan_of(a_taskrun(), a_pod().exited(85, message=said("Held", message="one job?")), state=state)
    assert (status_of(plan).outcome, last_attempt_of(plan).cause) == (None, "Held")


def test_completion_wins_over_a_recorded_end() -> None:
    state = a_state(1, completed_by=1, end=an_end("Permanent"))
    assert status_of(plan_of(a_taskrun(), a_pod().exited(1), state=state)).outcome == "Succeeded"


# -- the exit codes of the SDK, where no message arrived ------------------------------------------


@pytest.mark.parametrize(
    "code, cause", [(80, APPLICATION), (82, DISRUPTION), (83, DISRUPTION), (84, APPLICATION), (1, APPLICATION)]
)
@pytest.mark.parametrize("log", ["", "starting\nno answer"])
def test_exit_code_of_the_sdk_counts_if_the_attempt_opened_its_state(
    code: int, cause: tuple[str, str | None], log: str
) -> None:
    taskrun = a_taskrun().with_budgets(application=1)
    attempt = last_attempt_of(plan_of(taskrun, a_pod().exited(code, message=log), state=a_state(1)))
    assert (attempt.cause, attempt.charged_to) == cause
    if log:
        assert (attempt.message or "").startswith("no answer")
    elif cause == DISRUPTION:
        assert (attempt.message or "").startswith(f"Exit code {code}: the state API")


@pytest.mark.parametrize("code", [79, 82, 83, 85])
def test_exit_code_of_another_program_means_nothing(code: int) -> None:
    attempt = last_attempt_of(plan_of(a_taskrun(), a_pod().exited(code), state=AbsentState()))
    assert (attempt.cause, attempt.message) == ("Application", "")


def test_message_of_the_sdk_wins_over_its_exit_code() -> None:
    pod = a_pod().exited(83, message=said("Permanent", message="no table"))
    assert last_attempt_of(plan_of(a_taskrun(), pod, state=a_state(1))).cause == "Permanent"


def test_exit_code_of_a_fenced_attempt_counts_if_another_pod_opened_the_state() -> None:
    attempt = status_of(plan_of(a_taskrun(), a_pod().exited(79), state=a_state(2))).attempts[0]
    assert (attempt.cause, attempt.charged_to) == FENCED
    assert last_attempt_of(plan_of(a_taskrun(), a_pod().exited(79), state=a_state(1))).cause == "Application"


def test_exit_code_of_a_held_attempt_counts_if_its_submission_is_held() -> None:
    held = a_state(1, jobs=[a_job(None, held=True, holds=1)])
    plan = plan_of(a_taskrun(), a_pod().exited(85), state=held)
    assert (last_attempt_of(plan).cause, status_of(plan).outcome) == ("Held", None)
    assert last_attempt_of(plan_of(a_taskrun(), a_pod().exited(85), state=a_state(1))).cause == "Application"


def test_exit_codes_are_those_of_the_sdk() -> None:
    codes = {error.exit_code for error in AttemptOver.__subclasses__()}
    assert codes - {143} == {code.value for code in TaskExitCode}


def test_an_init_container_does_not_speak_for_the_task() -> None:
    pod = a_pod().with_init().waiting("PodInitializing").with_status(phase="Failed")
    pod = pod.with_container("prepare", init=True, terminated={"exitCode": 2, "message": said("Permanent")})
    attempt = last_attempt_of(plan_of(a_taskrun(), pod))
    assert attempt.cause == "Application"
    assert (attempt.message or "").startswith("Init container prepare failed.")


# -- how the end is known, and when it was ---------------------------------------------------------


@pytest.mark.parametrize(
    "pod, end",
    [
        (a_pod().exited(1), "Reported"),
        (a_pod().deleted(), "Reported"),
        (a_pod().scheduled().failed("NodeAffinity"), "Reported"),
        (a_pod().running().disrupted("DeletionByPodGC").failed(""), "Presumed"),
        (a_pod().scheduled().disrupted("DeletionByPodGC").failed(""), "Presumed"),
        (a_pod().exited(143).disrupted("DeletionByPodGC"), "Reported"),
        (a_pod().running().failed(""), "Presumed"),
        (a_pod().running().deleted(-400, 0), "Presumed"),
        (a_pod().waiting("ContainerCreating").deleted(-400, 0), "Presumed"),
        (lost_track(a_pod()), "Presumed"),
        (lost_track(a_pod(), startedAt="2026-03-01T12:00:01Z"), "Presumed"),
        (lost_track(a_pod(), "Unknown", startedAt="2026-03-01T12:00:01Z"), "Presumed"),
        (lost_track(a_pod().deleted()), "Presumed"),
    ],
)
def test_an_end_is_presumed_unless_those_who_must_know_reported_it(pod: APod, end: str) -> None:
    assert last_attempt_of(plan_of(a_taskrun(), pod)).end == end


@pytest.mark.parametrize("reported, recorded", [(5, 5), (9999, 10), (-9999, 0)])
def test_an_attempt_ended_neither_before_it_began_nor_after_now_whatever_its_nodes_clock(
    reported: float, recorded: float
) -> None:
    assert last_attempt_of(plan_of(a_taskrun(), a_pod().exited(1, reported))).finish_time == at(recorded)


def test_a_nodes_clock_that_is_behind_does_not_shorten_how_long_the_attempt_took() -> None:
    behind = {"exitCode": 1, "startedAt": "2026-03-01T11:00:01Z", "finishedAt": "2026-03-01T11:00:08Z"}
    pod = a_pod().scheduled().with_container("task", terminated=behind).failed("")
    assert last_attempt_of(plan_of(a_taskrun(), pod)).finish_time == at(7)


@pytest.mark.parametrize("time", [None, "0001-01-01T00:00:00Z", "1970-01-01T00:00:00Z"])
def test_an_end_without_a_time_is_taken_as_now(time: str | None) -> None:
    pod = a_pod().scheduled().with_container("task", terminated={"exitCode": 1, "finishedAt": time}).failed("")
    assert last_attempt_of(plan_of(a_taskrun(), pod)).finish_time == at(10)


def test_message_of_an_init_container_that_ran_out_of_memory_names_it() -> None:
    pod, *_ = ROWS["its init container ran out of memory"]
    message = "Init container prepare used more memory than its limit."
    assert last_attempt_of(plan_of(a_taskrun(), pod)).message == message


def test_an_exit_code_that_nobody_reported_is_not_recorded() -> None:
    assert last_attempt_of(plan_of(a_taskrun(), lost_track(a_pod()))).exit_code is None


def test_an_end_is_recorded_with_all_that_is_known_of_it() -> None:
    attempt = last_attempt_of(plan_of(a_taskrun(), a_pod().exited(3, message="no such table")))
    assert (attempt.number, attempt.pod_name, attempt.pod_uid, attempt.node) == (1, "load-01234-1", "pod-1", "node-1")
    assert (attempt.start_time, attempt.finish_time, attempt.exit_code) == (at(0), at(5), 3)
    assert attempt.message == "no such table"


def test_message_of_an_attempt_that_logged_a_traceback_starts_with_its_last_line() -> None:
    log = 'Traceback (most recent call last):\n  File "/program/load.py", line 32, in <module>\nImportError: no DAG\n'
    plan = plan_of(a_taskrun(), a_pod().exited(1, message=log))
    assert last_attempt_of(plan).message.startswith("ImportError: no DAG (after: Traceback")
    progress = next(one for one in status_of(plan).conditions if one.type == "Succeeded")
    assert "(Error, exit code 1): ImportError: no DAG (after:" in progress.message
