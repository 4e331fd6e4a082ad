"""Hostile text in each string that a command reads: output is printable and has the same lines."""

import itertools
import json
import os
from collections.abc import AsyncGenerator, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import yaml
from typing_extensions import override

from builders import NAME, NAMESPACE, UID, a_pod, a_taskrun, at
from cli_command import run_command
from hostile_text import HARMLESS, HOSTILE, copies
from reattach.api.names import (
    API_VERSION,
    KIND,
    LABEL_ATTEMPT,
    LABEL_ORPHANS,
    LABEL_TASKRUN,
    orphans_name,
    pod_name,
    state_name,
)
from reattach.api.objects import Condition, Pod
from reattach.api.orphans import RECORD, OrphanedJob, OrphanRecord
from reattach.api.reasons import Reason
from reattach.api.state import JobOrigin, JobState
from reattach.api.taskrun import Ending, ExternalJobStatus, FoldedAttempts, StateReference, TaskRun
from reattach.api.text import is_plain_word
from reattach.cli import completion, connection
from reattach.cli.commands import cli
from reattach.cli.connection import ClusterConnection
from reattach.cli.queries import _EventBody
from reattach.cluster import paths
from reattach.state.codec import DurableState, Opening, StateEntry, to_data
from reattach.state.job_record import JobRecord, Submitter
from reattach.testing.memory_api import InMemoryCluster

COMMANDS: dict[str, list[list[str]]] = {
    "list": [["list", "-A"], ["list", "--held", "-o", "json"], ["list", "-o", "yaml"]],
    "cancel": [["cancel", NAME], ["cancel", NAME, "-o", "json"], ["cancel", "-l", "app=etl"]],
    "suspend": [["suspend", NAME], ["suspend", NAME, "-o", "json"]],
    "resume": [["resume", NAME]],
    "wake": [["wake", NAME], ["wake", NAME, "-o", "json"]],
    "rerun": [
        ["rerun", NAME],
        ["rerun", NAME, "--adopt"],
        ["rerun", NAME, "--cancel-first"],
        ["rerun", NAME, "--dry-run", "-o", "yaml"],
    ],
    "orphans": [
        ["orphans", "-A"],
        ["orphans", NAME, "-o", "json"],
        ["orphans", "-o", "yaml"],
        ["orphans", NAME, "--dismiss"],
        ["orphans", NAME, "--dismiss", "--yes"],
        ["orphans", NAME, "--cancel"],
    ],
    "explain": [["explain", NAME], ["explain", NAME, "-o", "json"], ["explain", NAME, "-o", "yaml"]],
    "resolve": [
        ["resolve", NAME, "--resubmit"],
        ["resolve", NAME, "--continue"],
        ["resolve", NAME, "--key", "other", "--fail"],
        ["resolve", NAME, "--key", "load", "--generation", "1", "--adopt", "job-7", "-o", "yaml"],
        ["resolve", NAME, "--key", "load", "--generation", "1", "--adopt", "job-8"],
        ["resolve", "-l", "app=etl", "--resubmit"],
        ["resolve", "-l", "app=etl", "--fail", "-o", "json"],
        ["resolve", "-l", "app=etl", "--fail", "--yes"],
    ],
    "wait": [
        ["wait", NAME, "--timeout", "0s"],
        ["wait", NAME, "--for", "outcome", "--timeout", "0s", "-o", "json"],
    ],
    "logs": [["logs", NAME], ["logs", NAME, "--attempt", "1"], ["logs", NAME, "--attempt", "2"]],
    "release": [["release", NAME], ["release", NAME, "--yes"], ["release", NAME, "--yes", "-o", "json"]],
    "version": [["version"]],
    "completion": [["completion", "bash"]],
    "state ls": [["state", "ls", NAME], ["state", "ls", NAME, "-o", "json"], ["state", "ls", NAME, "-o", "yaml"]],
    "state get": [["state", "get", NAME, "rows"], ["state", "get", NAME, "rows", "-o", "yaml"]],
    "state set": [["state", "set", NAME, "rows", "1", "--force"], ["state", "set", NAME, "rows", "1"]],
    "state rm": [["state", "rm", NAME, "rows", "--force"], ["state", "rm", NAME, "absent", "--force"]],
    "state export": [["state", "export", NAME]],
    "state import": [["state", "import", NAME, "-", "--force"]],
}
SHARE = 1 if os.environ.get("REATTACH_ALL") else 16
"""One in this many commands is run for each string; every command with REATTACH_ALL."""


OWNER = {"apiVersion": API_VERSION, "kind": KIND, "name": NAME, "uid": UID, "controller": True}
REFUSED = {
    ("wake", NAME): "does not wait",
    ("wake", NAME, "-o", "json"): "does not wait",
    ("cancel", "-l", "app=etl"): "To cancel 1 TaskRun, repeat",
    ("rerun", NAME): "is unfinished",
    ("rerun", NAME, "--adopt"): "is unfinished",
    ("rerun", NAME, "--cancel-first"): "is unfinished",
    ("orphans", NAME, "--cancel"): "is unfinished",
    ("rerun", NAME, "--dry-run", "-o", "yaml"): "is unfinished",
    ("orphans", NAME, "--dismiss"): "To delete 1 record, and so forget 2 jobs, run:",
    ("resolve", "-l", "app=etl", "--resubmit"): "To store 2 resolutions, run:",
    ("resolve", "-l", "app=etl", "--fail", "-o", "json"): "To store 2 resolutions, run:",
    ("resolve", NAME, "--resubmit"): "is held for 2 reasons",
    ("resolve", NAME, "--continue"): "is held for 2 reasons",
    ("resolve", NAME, "--key", "other", "--fail"): "is not held for that",
    ("release", NAME): "repeat with --yes",
    ("state", "set", NAME, "rows", "1"): "is running",
    ("state", "rm", NAME, "absent", "--force"): "Nothing is stored",
    ("wait", NAME, "--timeout", "0s"): "is held for",
    ("wait", NAME, "--for", "outcome", "--timeout", "0s", "-o", "json"): "",
    ("logs", NAME, "--attempt", "1"): "is gone",
}
"""Commands that do not succeed, and a part of what they print."""


class FakeCluster(InMemoryCluster):
    """Objects in memory, the user's name, and a log of one line."""

    host = "https://cluster.example"

    @override
    async def create(self, path: str, body: Any, **query: Any) -> bytes:
        metadata = body.get("metadata", {})
        return msgspec.json.encode({"metadata": metadata, "status": {"userInfo": {"username": "ann"}}})

    @override
    async def date(self) -> datetime | None:
        return at(600)

    @override
    async def stream(self, path: str, **query: Any) -> AsyncGenerator[bytes, None]:
        yield b"2026-03-01T12:00:00Z a line of the log\n"

    @classmethod
    def of(cls, objects: dict[str, Any]) -> "FakeCluster":
        cluster = cls(lambda: datetime.now(UTC))
        for path, found in objects.items():
            found["metadata"]["resourceVersion"] = "1"  # the API server writes it
            cluster._objects[path] = json.loads(msgspec.json.encode(found))
        return cluster


def a_record(key: str, **fields: Any) -> JobRecord:
    submitter = Submitter(id="p", attempt=1, pod_uid="pod-1", session="s", time=at(2))
    given = {
        "generation": 1, "adapter": "ray", "token": "t", "digest": "d", "state": JobState.INTENDED, "intended_at": at(2),
        "intended_by_attempt": 1, "submitters": (submitter,), "held": True, "holds": 1, "message": "no response",
    }  # fmt: skip
    return JobRecord(key=key, **{**given, **fields})


def a_state() -> DurableState:
    active = {
        "state": JobState.ACTIVE, "handle": "raysubmit_7", "url": "http://ray/7", "held": False, "holds": 0,
        "origin": JobOrigin.SUBMITTED, "recorded_at": at(3), "submitted_by_attempt": 1, "strays": ("raysubmit_8",),
    }  # fmt: skip
    jobs = [a_record("load"), a_record("clean"), a_record("train", **active)]
    entry = StateEntry(
        key="rows", value=msgspec.Raw(b'"a"'), version=1, attempt=1, pod_uid="pod-1", updated_at=at(2), expires_at=None
    )
    epoch = Opening(attempt=1, pod_uid="pod-1", session="s", time=at(1), first_attempt=1)
    return DurableState(
        epoch=epoch, last_version=1, records={"rows": entry}, jobs={record.name: record for record in jobs}
    )


def a_held_taskrun() -> TaskRun:
    conditions = (
        Condition(type="Succeeded", status="Unknown", reason=Reason.SUBMISSION_UNKNOWN, message="Unknown."),
        Condition(
            type="Held",
            status="True",
            reason=Reason.SUBMISSION_UNKNOWN,
            message="Unknown.",
            last_transition_time=at(5),
        ),
    )
    job = ExternalJobStatus(
        key="train", generation=1, state="Active", adapter="ray", handle="raysubmit_7", url="http://r"
    )
    tried = a_taskrun().with_metadata(labels={"app": "etl"}).with_failed_attempt(1)
    built = tried.with_attempt(2, node="node-1").with_finalizer().build()
    state = StateReference(config_map=state_name(NAME, UID), uid="state-uid")
    folded = (FoldedAttempts(cause="NotReady", first_number=1, last_number=1, count=1),)
    status = msgspec.structs.replace(
        built.status, conditions=conditions, external_jobs=(job,), state=state, result='{"rows": 1}', orphaned=True
    )
    counts = msgspec.structs.replace(status.counts, attempts=3)
    status = msgspec.structs.replace(status, folded_attempts=folded, counts=counts)
    return msgspec.structs.replace(built, status=status)


def an_ending_taskrun() -> TaskRun:
    held = a_held_taskrun()
    ending = Ending(outcome="Failed", reason="Failed", message="Why.", time=at(500), cleanup_deadline=at(1400))
    spec = msgspec.structs.replace(held.spec, cancel=True)
    return msgspec.structs.replace(held, spec=spec, status=msgspec.structs.replace(held.status, ending=ending))


def an_ended_taskrun() -> TaskRun:
    held = a_held_taskrun()
    jobs = [
        ExternalJobStatus(key=f"{state}-{number}", generation=1, state=state, handle="raysubmit_7", adapter="ray")
        for state in ("Active", "Detached", "Orphaned")
        for number in range(2)
    ]
    status = msgspec.structs.replace(held.status, outcome="Failed", external_jobs=tuple(jobs))
    return msgspec.structs.replace(held, status=status)


def with_jobs(taskrun: TaskRun, *states: str) -> TaskRun:
    """Return the TaskRun with only its jobs in these states."""
    jobs = tuple(job for job in taskrun.status.external_jobs if job.state in states)
    return msgspec.structs.replace(taskrun, status=msgspec.structs.replace(taskrun.status, external_jobs=jobs))


def a_running_pod() -> Pod:
    pod = a_pod(2).running().build()
    body = builtins_of(pod)
    body["metadata"] |= {
        "name": pod_name(NAME, UID, 2), "namespace": NAMESPACE, "ownerReferences": [OWNER],
        "labels": {LABEL_TASKRUN: NAME, LABEL_ATTEMPT: "2"},
    }  # fmt: skip
    return msgspec.convert(body, Pod)


def an_event() -> _EventBody:
    body = {"metadata": {"name": "e", "namespace": NAMESPACE}, "type": "Warning", "reason": "Held", "message": "Why."}
    return msgspec.convert(body, _EventBody)


def a_record_of_orphans() -> OrphanRecord:
    job = OrphanedJob(
        key="load", generation=2, why="No adapter.", adapter="ray", handle="raysubmit_7", url="http://ray/7",
        cancel_requested_time=at(500),
    )  # fmt: skip
    left = OrphanedJob(key="clean", generation=1, why="The policy.")
    return OrphanRecord(taskrun=NAME, uid=UID, reason="Cancelled", time=at(500), jobs=(job, left))


def builtins_of(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def objects_of(
    taskrun: TaskRun | None = None,
    state: DurableState | None = None,
    pod: Pod | None = None,
    event: Any = None,
    orphans: OrphanRecord | None = None,
) -> dict[str, Any]:
    """Return the objects of the namespace by path, under the names by which they are read."""
    configmap = {
        "metadata": {
            "name": state_name(NAME, UID), "namespace": NAMESPACE, "uid": "state-uid", "labels": {LABEL_TASKRUN: NAME},
            "ownerReferences": [OWNER], "finalizers": ["reattach.dev/state"],
        },
        "data": to_data(state or a_state()),
    }  # fmt: skip
    record = {
        "metadata": {
            "name": orphans_name(NAME, UID), "namespace": NAMESPACE, "uid": "orphans-uid",
            "labels": {LABEL_ORPHANS: NAME}, "creationTimestamp": at(500).isoformat(),
        },
        "data": {RECORD: msgspec.json.encode(orphans or a_record_of_orphans()).decode()},
    }  # fmt: skip
    described = builtins_of(taskrun or a_held_taskrun())
    described["metadata"]["managedFields"] = [
        {"manager": described["metadata"]["labels"].get("app", ""), "fieldsV1": {"f:spec": {"f:cancel": {}}}}
    ]
    return {
        paths.taskruns(NAMESPACE, NAME): described,
        paths.configmaps(NAMESPACE, orphans_name(NAME, UID)): record,
        paths.configmaps(NAMESPACE, state_name(NAME, UID)): configmap,
        paths.pods(NAMESPACE, pod_name(NAME, UID, 2)): builtins_of(pod or a_running_pod()),
        paths.core("events", NAMESPACE, "e"): builtins_of(event or an_event()),
    }


def variants(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each string that a command can read, and the objects with `text` in it."""
    for path, taskrun in copies(a_held_taskrun(), TaskRun, text, "taskrun"):
        yield path, objects_of(taskrun=taskrun)
    for path, taskrun in copies(an_ending_taskrun(), TaskRun, text, "ending"):
        if ".ending" in path or "labels" in path:  # the others are those of the first loop
            yield path, objects_of(taskrun=taskrun)
    for path, taskrun in copies(an_ended_taskrun(), TaskRun, text, "ended"):
        if ".external_jobs" in path or "annotations" in path:
            yield path, objects_of(taskrun=taskrun)
    for path, pod in copies(a_running_pod(), Pod, text, "pod"):
        yield path, objects_of(pod=pod)
    for path, event in copies(an_event(), _EventBody, text, "event"):
        yield path, objects_of(event=event)
    for path, orphans in copies(a_record_of_orphans(), OrphanRecord, text, "orphans"):
        yield path, objects_of(orphans=orphans)
        yield path, objects_of(orphans=orphans, taskrun=with_jobs(an_ended_taskrun(), "Detached", "Orphaned"))
    state = a_state()
    for number, record in enumerate(state.jobs.values()):
        for path, job in copies(record, JobRecord, text, f"job{number}"):
            jobs = {one.name: one for one in (*itertools.islice(state.jobs.values(), number), job)}
            jobs |= {one.name: one for one in itertools.islice(state.jobs.values(), number + 1, None)}
            yield path, objects_of(state=msgspec.structs.replace(state, jobs=jobs))
    for path, entry in copies(state.records["rows"], StateEntry, text, "entry"):
        yield path, objects_of(state=msgspec.structs.replace(state, records={entry.key: entry}))


def run(arguments: list[str], objects: dict[str, Any]) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of a command."""
    about = {
        "format": "reattach-state/v1",
        "namespace": NAMESPACE,
        "taskrun": NAME,
        "exportedAt": "2026-03-01T00:00:00Z",
    }
    exported = json.dumps({**about, "entries": []})
    return run_command(FakeCluster.of(objects), NAMESPACE, arguments, exported.encode())


def is_printable(output: str) -> bool:
    return all(line.isprintable() for line in output.split("\n"))


def test_table_has_every_command() -> None:
    names = {name for name in cli.commands if name != "state"} | {
        f"state {name}" for name in cli.commands["state"].commands
    }  # type: ignore[attr-defined]
    assert set(COMMANDS) == names


ALL = [arguments for group in COMMANDS.values() for arguments in group]


@pytest.mark.parametrize("arguments", ALL, ids=" ".join)
def test_command_succeeds_or_refuses_without_hostile_text(arguments: list[str]) -> None:
    code, out, err = run(arguments, objects_of())
    refusal = REFUSED.get(tuple(arguments))
    assert (code == 0) == (refusal is None), err
    assert (refusal or "") in err
    assert out or err
    assert is_printable(out + err)
    if "json" in arguments or "yaml" in arguments:
        yaml.safe_load(out)


def test_output_of_hostile_text_is_printable_and_adds_no_line() -> None:
    pairs = list(zip(variants(HOSTILE), variants(HARMLESS), strict=True))
    assert len(pairs) > 150
    for number, ((path, hostile), (_, harmless)) in enumerate(pairs):
        for arguments in ALL[number % SHARE :: SHARE]:
            code, out, err = run(arguments, hostile)
            expected = run(arguments, harmless)
            about = (path, arguments, out, err, expected)
            assert is_printable(out + err), about
            assert code == expected[0], about
            if "yaml" in arguments:
                yaml.safe_load(out)  # which folds long text
            else:
                lines = (out.count("\n"), err.count("\n"))
                assert lines == (expected[1].count("\n"), expected[2].count("\n")), about


@pytest.mark.parametrize("words", [["resolve", NAME, "--key", ""], ["state", "get", NAME, ""]], ids=" ".join)
def test_completion_offers_only_words_that_no_shell_changes(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(_target: Any) -> ClusterConnection:
        return ClusterConnection(FakeCluster.of(objects), NAMESPACE)

    state = a_state()
    keys = [HOSTILE, "$(id)", "a b", "-x", "plain"]
    entry = state.records["rows"]
    records = {key: msgspec.structs.replace(entry, key=key) for key in keys}
    jobs = {record.name: record for record in (a_record(key) for key in keys)}
    objects = objects_of(state=msgspec.structs.replace(state, records=records, jobs=jobs))
    monkeypatch.setattr(connection, "connect", connect)
    *offers, directive = completion.for_kubectl(cli, words).split("\n")
    assert (offers, directive) == (["plain"], ":4")
    assert all(is_plain_word(offer) for offer in offers)


@pytest.mark.parametrize("command", ["explain", "cancel", "orphans"])
def test_completion_offers_the_taskruns_of_the_namespace(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect(_target: Any) -> ClusterConnection:
        return ClusterConnection(FakeCluster.of(objects_of()), NAMESPACE)

    monkeypatch.setattr(connection, "connect", connect)
    assert completion.for_kubectl(cli, [command, ""]).split("\n") == [NAME, ":4"]
