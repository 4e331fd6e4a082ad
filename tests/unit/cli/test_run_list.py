"""`list`: pages, rows and selectors, against a cluster that serves prepared pages."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from typing_extensions import override

from cli_command import run_command
from reattach.cli.pages import PAGE
from reattach.cluster import BadRequestError, GoneError, NotFoundError, ResponseTooLargeError
from reattach.testing.memory_api import InMemoryCluster

NOW = datetime.now(UTC)


def a_run(name: str, reason: str = "Running", **status: Any) -> dict[str, Any]:
    created = (NOW - timedelta(hours=15, minutes=5)).isoformat()
    conditions = [{"type": "Succeeded", "status": "Unknown", "reason": reason}, *status.pop("conditions", ())]
    return {
        "metadata": {"name": name, "namespace": "data", "uid": f"uid-{name}", "creationTimestamp": created},
        "spec": {"template": {}},
        "status": {"conditions": conditions, "counts": {"attempts": 1}, **status},
    }


NESTED = "a template of 9,000 levels, as the API server accepts it"
HELD = {"type": "Held", "status": "True", "reason": "SubmissionUnknown"}


class PagedCluster(InMemoryCluster):
    """Serves these runs in pages of at most `fits`, as the API server does."""

    host = "https://cluster.example"

    def __init__(self, runs: list[dict[str, Any]], *, fits: int = PAGE, error: Exception | None = None) -> None:
        super().__init__(lambda: NOW)
        self.runs, self.fits, self.error = runs, fits, error
        self.queries: list[dict[str, Any]] = []

    @override
    async def list(self, path: str, *, metadata_only: bool = False, **query: Any) -> bytes:
        self.queries.append({"path": path, **query})
        if self.error is not None:
            raise self.error
        if query["limit"] > self.fits:
            raise ResponseTooLargeError(0, "AnswerTooLarge", "too large")
        start = int(query.get("continue") or 0)
        end = start + query["limit"]
        token = str(end) if end < len(self.runs) else ""
        page = json.dumps({"metadata": {"continue": token}, "items": self.runs[start:end]})
        return page.replace(f'"{NESTED}"', "[" * 9_000 + "]" * 9_000).encode()


def listed(cluster: InMemoryCluster, *flags: str) -> tuple[int, str, str]:
    return run_command(cluster, "data", ["list", *flags])


def test_list_prints_a_row_for_each_taskrun() -> None:
    runs = [
        a_run("etl", externalJobs=[{"handle": "job-1"}, {"handle": "job-2"}]),
        a_run("nightly", "SubmissionUnknown", conditions=[HELD], counts={"attempts": 12}),
        {"metadata": {**a_run("new")["metadata"]}, "spec": {}},
    ]
    code, out, err = listed(PagedCluster(runs))
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "NAME      STATUS              ATTEMPTS   JOB     AGE",
        "etl       Running             1          job-2   15h",
        "nightly   SubmissionUnknown   12         -       15h",
        "new       -                   0          -       15h",
    ]


ARN = "arn:aws:batch:eu-central-1:123456789012:job/1f0d5c3e-5a0c-4a7e-9d43-0b6c1e2f3a4b"


def test_list_shows_a_long_handle_without_its_middle_and_whole_with_wide() -> None:
    cluster = PagedCluster([a_run("etl", externalJobs=[{"handle": ARN}])])
    _, out, _ = listed(cluster)
    assert out.splitlines()[1].split() == ["etl", "Running", "1", "arn:aws:…" + ARN[-23:], "15h"]
    code, wide, err = listed(cluster, "-o", "wide")
    assert (code, err) == (0, "")
    assert wide.splitlines()[1].split() == ["etl", "Running", "1", ARN, "15h"]
    assert json.loads(listed(cluster, "-o", "json")[1])[0]["job"] == ARN


def test_list_of_all_namespaces_has_the_namespace_first() -> None:
    cluster = PagedCluster([a_run("etl")])
    _, out, _ = listed(cluster, "-A")
    assert out.splitlines()[1].split() == ["data", "etl", "Running", "1", "-", "15h"]
    assert cluster.queries[0]["path"] == "/apis/reattach.dev/v1alpha1/taskruns"


def test_list_prints_all_pages_as_one_table_whose_columns_only_widen() -> None:
    runs = [a_run(f"run-{number:04}") for number in range(PAGE)] + [a_run("x")] * PAGE + [a_run("a-very-long-name")]
    cluster = PagedCluster(runs)
    _, out, _ = listed(cluster)
    lines = out.splitlines()
    assert len(lines) == 1 + len(runs)
    assert lines[PAGE + 1].startswith("x          Running")
    assert lines[-1].startswith("a-very-long-name   Running")
    assert [query.get("continue") for query in cluster.queries] == [None, str(PAGE), str(2 * PAGE)]


@pytest.mark.parametrize("output, load", [("json", json.loads), ("yaml", yaml.safe_load)])
@pytest.mark.parametrize("size", [0, 1, PAGE + 1])
def test_list_as_json_or_yaml_is_one_list_over_all_pages(output: str, load: Any, size: int) -> None:
    runs = [a_run(f"run-{number}", conditions=[HELD]) for number in range(size)]
    code, out, err = listed(PagedCluster(runs), "-o", output)
    assert (code, err) == (0, "")
    values = load(out)
    assert [value["name"] for value in values] == [f"run-{number}" for number in range(size)]
    if values:
        assert values[0] == {
            "name": "run-0", "namespace": "data", "uid": "uid-run-0", "status": "Running", "outcome": None,
            "attempts": 1, "job": None, "created": values[0]["created"], "held": True, "orphaned": False,
        }  # fmt: skip


def test_page_that_is_too_large_is_requested_with_a_smaller_limit() -> None:
    cluster = PagedCluster([a_run(f"run-{number:02}") for number in range(25)], fits=10)
    _, out, _ = listed(cluster)
    assert [query["limit"] for query in cluster.queries] == [PAGE, PAGE // 10, PAGE // 10, PAGE // 10]
    assert all(query["bytes_max"] == 16 * 1024 * 1024 for query in cluster.queries)
    assert len(out.splitlines()) == 26


def test_page_is_printed_before_the_next_one_is_read() -> None:
    class BrokenCluster(PagedCluster):
        @override
        async def list(self, path: str, *, metadata_only: bool = False, **query: Any) -> bytes:
            if query.get("continue"):
                raise GoneError(410, "Expired", "too old")
            return await super().list(path, metadata_only=metadata_only, **query)

    code, out, err = listed(BrokenCluster([a_run(f"run-{number:03}") for number in range(PAGE + 1)]))
    assert (code, len(out.splitlines())) == (1, PAGE + 1)
    assert err.startswith("error: The list expired while it was read")


def test_list_of_held_runs_leaves_out_others_and_finished_ones() -> None:
    cluster = PagedCluster([a_run("etl"), a_run("nightly", conditions=[HELD])])
    _, out, _ = listed(cluster, "--held", "-l", "app=etl")
    assert [line.split()[0] for line in out.splitlines()] == ["NAME", "nightly"]
    assert cluster.queries[0]["fieldSelector"] == "status.outcome="
    assert cluster.queries[0]["labelSelector"] == "app=etl"


def test_list_of_orphaned_runs_selects_by_the_field() -> None:
    cluster = PagedCluster([a_run("etl", orphaned=True)])
    assert listed(cluster, "--orphaned", "-o", "json")[1].count('"orphaned": true') == 1
    assert cluster.queries[0]["fieldSelector"] == "status.orphaned=true"


def test_list_of_orphaned_runs_needs_a_crd_with_the_field() -> None:
    error = BadRequestError(400, "BadRequest", "field label not supported: status.orphaned")
    code, out, err = listed(PagedCluster([], error=error), "--orphaned")
    assert (code, out) == (1, "")
    assert err == (
        "error: This cluster's TaskRuns can't be selected by status.orphaned=true; upgrade the CRD of Reattach's chart.\n"
    )


@pytest.mark.parametrize(
    "error, says",
    [
        (NotFoundError(404, "NotFound", "the server could not find the resource"), "This cluster has no TaskRuns;"),
        (GoneError(410, "Expired", "too old"), "The list expired while it was read"),
        (BadRequestError(400, "BadRequest", "unable to parse requirement"), "unable to parse requirement"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_list_error_says_what_to_do(error: Exception, says: str) -> None:
    code, _, err = listed(PagedCluster([], error=error))
    assert code == 1
    assert says in err


@pytest.mark.parametrize(
    "flags, says",
    [
        ([], "No TaskRuns found in namespace data.\n"),
        (["--held"], "No held TaskRuns found in namespace data.\n"),
        (["-A", "--orphaned"], "No orphaned TaskRuns found.\n"),
    ],
)
def test_empty_list_says_what_was_not_found(flags: list[str], says: str) -> None:
    assert listed(PagedCluster([]), *flags) == (0, "", says)


def test_taskrun_that_can_not_be_decoded_keeps_its_row() -> None:
    broken = a_run("broken", counts={"attempts": "many"})
    nested = a_run("nested")
    nested["spec"]["template"] = NESTED
    _, out, _ = listed(PagedCluster([broken, nested, a_run("etl")]))
    rows = [line.split()[:2] for line in out.splitlines()[1:]]
    assert rows == [["broken", "Unreadable"], ["nested", "Running"], ["etl", "Running"]]
