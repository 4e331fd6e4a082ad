"""`orphans`: rows, unreadable records and dismissals, against a cluster in memory."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typing_extensions import override

from cli_command import run_command
from reattach.cluster import ConflictError
from reattach.testing.memory_api import InMemoryCluster

NOW = datetime.now(UTC)
LEFT = {
    "key": "load",
    "generation": 1,
    "adapter": "ray",
    "handle": "raysubmit_7",
    "why": "spec.cleanup.onCancel is Orphan.",
}
ASKED = {
    "key": "train",
    "generation": 2,
    "why": "Its end is not known.",
    "cancelRequestedTime": (NOW - timedelta(hours=16, minutes=5)).isoformat(),
}


def a_record(taskrun: str, *jobs: dict[str, Any], **fields: Any) -> str:
    about = {"taskrun": taskrun, "uid": "uid-1", "reason": "Cancelled", "time": NOW.isoformat(), "formatVersion": 1}
    return json.dumps({**about, "jobs": jobs, **fields})


class Cluster(InMemoryCluster):
    """Records by name of the TaskRun, in the namespace `data`."""

    host = "https://cluster.example"

    def __init__(self, **records: str | None) -> None:
        super().__init__(lambda: NOW)
        for taskrun, record in records.items():
            self.add("data", taskrun, record)

    def add(self, namespace: str, taskrun: str, record: str | None) -> None:
        name = f"{taskrun}-01234-orphans"
        metadata = {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{taskrun}",
            "resourceVersion": "7",
            "labels": {"reattach.dev/orphans": taskrun},
            "creationTimestamp": (NOW - timedelta(hours=15, minutes=5)).isoformat(),
        }
        found = {"metadata": metadata, "data": None if record is None else {"record": record}}
        self._objects[f"/api/v1/namespaces/{namespace}/configmaps/{name}"] = found

    @property
    def names(self) -> list[str]:
        return [found["metadata"]["labels"]["reattach.dev/orphans"] for found in self._objects.values()]


def orphans(cluster: InMemoryCluster, *words: str) -> tuple[int, str, str]:
    return run_command(cluster, "data", ["orphans", *words])


def test_orphans_prints_a_row_for_each_job() -> None:
    code, out, err = orphans(Cluster(etl=a_record("etl", LEFT, ASKED), nightly=a_record("nightly", LEFT)))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "TASKRUN   KEY                    HANDLE        ADAPTER   CANCEL REQUESTED   AGE   WHY",
        "etl       load                   raysubmit_7   ray       -                  15h   spec.cleanup.onCancel is Orphan.",
        "etl       train (generation 2)   -             -         16h ago            15h   Its end is not known.",
        "nightly   load                   raysubmit_7   ray       -                  15h   spec.cleanup.onCancel is Orphan.",
    ]


def test_orphans_of_all_namespaces_has_the_namespace_first() -> None:
    cluster = Cluster(etl=a_record("etl", LEFT))
    cluster.add("other", "report", a_record("report", LEFT))
    _, out, _ = orphans(cluster, "-A")
    assert [line.split()[:2] for line in out.splitlines()] == [
        ["NAMESPACE", "TASKRUN"],
        ["data", "etl"],
        ["other", "report"],
    ]


def test_orphans_of_one_taskrun_leaves_out_others_and_says_if_it_has_none() -> None:
    cluster = Cluster(etl=a_record("etl", LEFT), nightly=a_record("nightly", LEFT))
    _, out, _ = orphans(cluster, "etl")
    assert [line.split()[0] for line in out.splitlines()] == ["TASKRUN", "etl"]
    assert orphans(cluster, "absent") == (
        0,
        "",
        "TaskRun absent has no record of orphaned jobs in namespace data.\n",
    )
    assert orphans(Cluster()) == (0, "", "No records of orphaned jobs found in namespace data.\n")


def test_orphans_as_json_has_all_fields_of_the_record() -> None:
    _, out, _ = orphans(Cluster(etl=a_record("etl", ASKED)), "-o", "json")
    [row] = json.loads(out)
    wanted = {"namespace": "data", "taskrun": "etl", "record": "etl-01234-orphans", "reason": "Cancelled"}
    assert {name: row[name] for name in wanted} == wanted
    assert (row["key"], row["generation"], row["handle"], row["error"]) == ("train", 2, None, None)


@pytest.mark.parametrize(
    "record, says",
    [
        (None, "can't be read"),
        ("", "can't be read"),
        ("no JSON", "malformed"),
        ('{"x": ' + "[" * 100_000, "can't be read: its JSON is nested too deeply"),
        ('{"taskrun": 1}', "Expected `str`"),
        (a_record("etl", LEFT, formatVersion=2), "newer version wrote it (formatVersion 2)"),
        (a_record("etl"), "it lists no job"),
    ],
    ids=["no-data", "empty", "no-json", "nested", "wrong-type", "newer", "no-job"],
)
def test_record_that_can_not_be_read_is_a_row_and_can_be_dismissed(record: str | None, says: str) -> None:
    cluster = Cluster(etl=record, nightly=a_record("nightly", LEFT))
    code, out, err = orphans(cluster)
    assert (code, err) == (0, "")
    [first, second] = out.splitlines()[1:]
    assert first.split()[:5] == ["etl", "-", "-", "-", "-"]
    assert "The record etl-01234-orphans can't be read: " in first
    assert says in first
    assert second.split()[0] == "nightly"
    _, _, err = orphans(cluster, "etl", "--dismiss")
    assert err.startswith("Nothing was changed. To delete 1 record, and so forget 1 record that can't be read, run:")
    assert orphans(cluster, "etl", "--dismiss", "--yes")[0] == 0
    assert cluster.names == ["nightly"]


def test_dismissal_without_yes_lists_what_it_forgets_and_changes_nothing() -> None:
    cluster = Cluster(etl=a_record("etl", LEFT, ASKED), nightly=a_record("nightly", LEFT))
    code, out, err = orphans(cluster, "etl", "--dismiss")
    assert code == 1
    assert [line.split()[:2] for line in out.splitlines()] == [["TASKRUN", "KEY"], ["etl", "load"], ["etl", "train"]]
    assert err.splitlines() == [
        "Nothing was changed. To delete 1 record, and so forget 2 jobs, run:",
        "kubectl reattach orphans -n data --dismiss etl --yes",
    ]
    assert cluster.names == ["etl", "nightly"]


def test_dismissal_deletes_the_record_and_says_what_it_forgot() -> None:
    cluster = Cluster(etl=a_record("etl", LEFT, ASKED), nightly=a_record("nightly", LEFT))
    code, out, err = orphans(cluster, "etl", "--dismiss", "--yes")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "configmap/etl-01234-orphans was dismissed. Forgotten: 2 jobs",
        "  load: raysubmit_7",
        "  train, generation 2: handle not known",
    ]
    assert cluster.names == ["nightly"]


def test_dismissal_of_an_unknown_name_changes_nothing() -> None:
    cluster = Cluster(etl=a_record("etl", LEFT))
    code, out, err = orphans(cluster, "nightly", "--dismiss", "--yes")
    assert (code, out) == (1, "")
    assert "TaskRun nightly has no record of orphaned jobs in namespace data. Nothing was changed" in err
    assert cluster.names == ["etl"]


def test_dismissal_has_preconditions_on_uid_and_version() -> None:
    class ChangedCluster(Cluster):
        @override
        async def delete(self, path: str, **options: Any) -> bytes:
            assert (options["uid"], options["resource_version"]) == ("uid-etl", "7")
            raise ConflictError(409, "Conflict", "Precondition failed")

    code, out, err = orphans(ChangedCluster(etl=a_record("etl", LEFT)), "etl", "--dismiss", "--yes")
    assert (code, out) == (1, "")
    assert "configmap/etl-01234-orphans changed after it was read, so it was not dismissed" in err


@pytest.mark.parametrize(
    "words",
    [
        ["--dismiss"],
        ["--dismiss", "-A", "etl"],
        ["--yes"],
        ["--cancel"],
        ["--cancel", "-A", "etl"],
        ["--cancel", "etl", "nightly"],
        ["--cancel", "--dismiss", "etl"],
        ["--cancel", "--yes", "etl"],
    ],
)
def test_wrong_usage_changes_nothing(words: list[str]) -> None:
    cluster = Cluster(etl=a_record("etl", LEFT))
    assert orphans(cluster, *words)[0] == 2
    assert cluster.names == ["etl"]
