"""What a TaskRun must look like, held against the real API server: the cases are in `manifests/`, each with what the server must say."""

import contextlib
import copy
import json
import re
import secrets
from pathlib import Path
from typing import Any

import pytest
import yaml

from admission import install_admission
from controlplane import CRD, REPOSITORY, ControlPlane, ControlPlaneError, RunningControlPlane
from waiting import wait_until

MANIFESTS = Path(__file__).parent / "manifests"
GOOD: dict[str, Any] = yaml.safe_load((MANIFESTS / "good.yaml").read_text())
EXAMPLES = sorted((REPOSITORY / "examples").glob("**/*.yaml"))
ENDING = {
    "outcome": "Cancelled",
    "reason": "Cancelled",
    "message": "The TaskRun was cancelled.",
    "time": "2026-01-01T00:00:00Z",
    "cleanupDeadline": "2026-01-01T00:15:00Z",
}
Case = dict[str, Any]


def cases(file: str, *, by: str = "schema policy") -> pytest.MarkDecorator:
    """One test for each case of the file that one of these can see, named by its claim."""
    found: list[Case] = yaml.safe_load((MANIFESTS / file).read_text())
    found = [case for case in found if case.get("by", "schema") in by]
    return pytest.mark.parametrize("case", found, ids=[case["claim"] for case in found])


def merged(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7386): null removes."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None and key in result:
            del result[key]
        else:
            result[key] = merged(result.get(key), value)
    return result


class TaskRuns:
    """The TaskRuns of one namespace, as kubectl writes them: fields are checked strictly."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.control_plane = control_plane
        self.path = f"/apis/reattach.dev/v1alpha1/namespaces/{namespace}/taskruns"

    def try_to_create(self, patch: dict[str, Any]) -> None:
        """Everything but storing it."""
        self.control_plane.call("POST", self.path, merged(GOOD, patch), dryRun="All", fieldValidation="Strict")

    def try_to_apply(self, patch: dict[str, Any]) -> None:
        """As `kubectl apply --server-side`, but without storing it."""
        manifest = merged(GOOD, patch)
        response = self.control_plane.client().patch(
            f"{self.path}/{manifest['metadata']['name']}",
            params={"dryRun": "All", "fieldManager": "tests", "fieldValidation": "Strict"},
            content=json.dumps(manifest, ensure_ascii=False).encode(),
            headers={"Content-Type": "application/apply-patch+yaml"},
        )
        assert response.is_success, response.text

    def create(self, patch: dict[str, Any] | None = None) -> str:
        """Create one under a name of its own, and return the name."""
        manifest = merged(copy.deepcopy(GOOD), patch or {})
        manifest["metadata"]["name"] = name = f"case-{secrets.token_hex(4)}"
        self.control_plane.call("POST", self.path, manifest, fieldValidation="Strict")
        return name

    def update(self, name: str, patch: dict[str, Any], subresource: str = "") -> dict[str, Any]:
        """A merge patch."""
        return self.control_plane.call("PATCH", f"{self.path}/{name}{subresource}", patch, fieldValidation="Strict")


@pytest.fixture(scope="module")
def guarded(private_control_plane: RunningControlPlane) -> TaskRuns:
    """TaskRuns behind the schema and the chart's admission policies."""
    install_admission(private_control_plane)
    return TaskRuns(private_control_plane, "default")


@pytest.fixture
def unguarded(control_plane: ControlPlane, namespace: str) -> TaskRuns:
    """TaskRuns behind the schema alone."""
    return TaskRuns(control_plane, namespace)


@cases("accepted.yaml")
def test_accepted(guarded: TaskRuns, case: Case) -> None:
    guarded.try_to_create(case["patch"])


@cases("accepted.yaml")
def test_accepted_by_server_side_apply(guarded: TaskRuns, case: Case) -> None:
    """Helm 4 and GitOps tools send manifests as they are, with nulls."""
    guarded.try_to_apply(case["patch"])


def test_what_kubectl_generates_for_a_job_is_accepted(guarded: TaskRuns) -> None:
    command = ("create", "job", "load", "--image=registry.example/task:1", "--dry-run=client", "--output=yaml")
    manifest = yaml.safe_load(guarded.control_plane.kubectl(*command))
    manifest.update(apiVersion="reattach.dev/v1alpha1", kind="TaskRun")
    for flags in ((), ("--server-side",)):
        guarded.control_plane.kubectl("apply", "--dry-run=server", *flags, "-f", "-", stdin=yaml.safe_dump(manifest))


def without_value(message: str) -> str:
    """Return the message without values, because Kubernetes 1.34 shows their types instead."""
    return re.sub(r'(Invalid value|of type)( int32| integer)?: "[^"]*"', r"\1", message)


@cases("refused.yaml")
def test_refused(guarded: TaskRuns, case: Case) -> None:
    with pytest.raises(ControlPlaneError) as refusal:
        guarded.try_to_create(case["patch"])
    assert without_value(case["says"]) in without_value(str(refusal.value))


def check_update(taskruns: TaskRuns, case: Case) -> None:
    name = taskruns.create(case.get("from"))
    if "status" in case:
        taskruns.update(name, {"status": case["status"]}, "/status")
    if "says" not in case:
        taskruns.update(name, case["to"])
        return
    before = taskruns.control_plane.call("GET", f"{taskruns.path}/{name}")
    with pytest.raises(ControlPlaneError) as refusal:
        taskruns.update(name, case["to"])
    assert without_value(case["says"]) in without_value(str(refusal.value))
    assert taskruns.control_plane.call("GET", f"{taskruns.path}/{name}") == before


@cases("updates.yaml")
def test_updated(guarded: TaskRuns, case: Case) -> None:
    check_update(guarded, case)


@cases("updates.yaml", by="schema")
def test_updated_with_the_schema_alone(unguarded: TaskRuns, case: Case) -> None:
    check_update(unguarded, case)


@cases("statuses.yaml")
def test_status(unguarded: TaskRuns, case: Case) -> None:
    name = unguarded.create()
    if "from" in case:
        unguarded.update(name, {"status": case["from"]}, "/status")
    if "says" not in case:
        unguarded.update(name, {"status": case["to"]}, "/status")
        return
    with pytest.raises(ControlPlaneError) as refusal:
        unguarded.update(name, {"status": case["to"]}, "/status")
    assert without_value(case["says"]) in without_value(str(refusal.value))


@pytest.mark.parametrize(
    "cleanup",
    [{"onCancel": "Orphan"}, {"budget": 0}, {"deadlineSeconds": 3600}, {"adopted": "Cancel"}, None],
    ids=["another policy", "another budget", "more time", "adopted jobs too", "no cleanup"],
)
def test_cleanup_cannot_change_once_the_run_is_ending(unguarded: TaskRuns, cleanup: dict[str, Any] | None) -> None:
    name = unguarded.create({"spec": {"cleanup": {"onCancel": "Cancel"}}})
    unguarded.update(name, {"spec": {"cleanup": {"onFailure": "Orphan"}}})
    unguarded.update(name, {"status": {"ending": ENDING}}, "/status")
    with pytest.raises(ControlPlaneError, match=r"spec.cleanup can't be changed once the TaskRun is ending"):
        unguarded.update(name, {"spec": {"cleanup": cleanup}})


def test_cleanup_cannot_be_added_once_the_run_is_ending(guarded: TaskRuns) -> None:
    name = guarded.create()
    guarded.update(name, {"status": {"ending": ENDING}}, "/status")
    with pytest.raises(ControlPlaneError, match=r"spec.cleanup can't be changed once the TaskRun is ending"):
        guarded.update(name, {"spec": {"cleanup": {"onCancel": "Orphan"}}})


def test_the_rest_of_the_spec_can_change_while_the_run_is_ending(guarded: TaskRuns) -> None:
    name = guarded.create({"spec": {"cleanup": {"onCancel": "Orphan"}}})
    guarded.update(name, {"status": {"ending": ENDING}}, "/status")
    resolution = {"held": "SubmissionUnknown", "key": "load", "generation": 1, "action": "Fail"}
    guarded.update(name, {"spec": {"cancel": True, "deadlines": {"runSeconds": 5}, "resolutions": [resolution]}})
    guarded.update(name, {"status": {"outcome": "Cancelled"}}, "/status")


@pytest.mark.parametrize("path", EXAMPLES, ids=[str(path.relative_to(REPOSITORY)) for path in EXAMPLES])
def test_every_example_is_accepted(guarded: TaskRuns, path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        if manifest and manifest["kind"] == "TaskRun":
            guarded.control_plane.call("POST", guarded.path, manifest, dryRun="All", fieldValidation="Strict")


def test_kubectl_shows_the_sentence(guarded: TaskRuns) -> None:
    manifest = yaml.safe_dump(merged(GOOD, {"spec": {"retrys": {}}}))
    with pytest.raises(ControlPlaneError, match=r'strict decoding error: unknown field "spec.retrys"'):
        guarded.control_plane.kubectl("apply", "-f", "-", stdin=manifest)


def test_kubectl_get_shows_what_people_ask_for(unguarded: TaskRuns) -> None:
    name = unguarded.create()
    condition = {
        "type": "Succeeded",
        "status": "Unknown",
        "reason": "BackingOff",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    jobs = [
        {"key": "load", "generation": 1, "state": "Failed", "handle": "job-1"},
        {"key": "load", "generation": 2, "state": "Active", "handle": "job-2"},
    ]
    status = {"conditions": [condition], "counts": {"attempts": 3}, "externalJobs": jobs, "result": '{"rows": 5}'}
    unguarded.update(name, {"status": status}, "/status")
    namespace = unguarded.path.split("/")[5]
    heading, row = unguarded.control_plane.kubectl("get", "trun", "-n", namespace).splitlines()
    assert heading.split() == ["NAME", "STATUS", "ATTEMPT", "EXTERNAL", "JOB", "RESULT", "AGE"]
    assert row.split()[:-1] == [name, "BackingOff", "3", "job-2", '{"rows":', "5}"]


def test_finished_taskruns_can_be_selected(unguarded: TaskRuns) -> None:
    running, failed = unguarded.create(), unguarded.create()
    unguarded.update(failed, {"status": {"outcome": "Failed"}}, "/status")

    def names(selector: str) -> list[str]:
        found = unguarded.control_plane.call("GET", unguarded.path, fieldSelector=selector)["items"]
        return [item["metadata"]["name"] for item in found]

    assert names("status.outcome=Failed") == [failed]
    assert names("status.outcome=") == [running]
    unguarded.update(failed, {"status": {"orphaned": True}}, "/status")
    assert names("status.orphaned=true") == [failed]


def test_a_generated_name_may_not_be_too_long_either(unguarded: TaskRuns) -> None:
    manifest = merged(GOOD, {"metadata": {"name": None, "generateName": "a" * 44}})
    with pytest.raises(ControlPlaneError, match=r"metadata.name must be a DNS label of at most 48 characters"):
        unguarded.control_plane.call("POST", unguarded.path, manifest, dryRun="All")


def test_a_large_template_costs_no_more_than_rules_may(guarded: TaskRuns) -> None:
    """Near to what one object may hold: 64 containers with 100 variables each, half a megabyte."""
    env = [{"name": f"VARIABLE_{number}", "value": "x" * 40} for number in range(100)]
    large = {
        "spec": {"template": {"spec": {"containers": [{"name": f"c{number}", "env": env} for number in range(64)]}}}
    }
    name = guarded.create(large)
    guarded.update(name, {"spec": {"retry": {"budgets": {"application": 1}}}})
    guarded.update(name, {"spec": {"cleanup": {"budget": 1}}})
    changed: dict[str, Any] = copy.deepcopy(large)
    changed["spec"]["template"]["spec"]["containers"][63]["stdin"] = True
    with pytest.raises(
        ControlPlaneError, match=r"spec.template can't be changed unless the condition Suspended or Held"
    ):
        guarded.update(name, changed)


def test_a_taskrun_stored_before_text_had_to_be_printable_can_end(private_control_plane: RunningControlPlane) -> None:
    """The API server checks a field again only when it changes, so neither status nor finalizers are refused."""
    taskruns = TaskRuns(private_control_plane, "default")
    former = yaml.safe_load(CRD.read_text())
    spec = former["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    adopted = spec["adopt"]["items"]["properties"]
    for field in (adopted["key"], adopted["handle"], spec["submission"]["properties"]["idempotencyKey"]):
        del field["pattern"]
    text = "job\x1b[2J\n\x9b\u202e"
    stored = {
        "metadata": {"finalizers": ["example.org/test"]},
        "spec": {"adopt": [{"key": text, "handle": text}], "submission": {"idempotencyKey": text}},
    }

    def created() -> str | None:
        with contextlib.suppress(ControlPlaneError):  # the API server still checks by the other schema
            return taskruns.create(stored)
        return None

    def is_refused() -> bool:
        try:
            taskruns.try_to_create(stored)
        except ControlPlaneError as error:
            return "spec.adopt[0].handle in body should match" in str(error)
        return False

    private_control_plane.apply(yaml.safe_dump(former))
    name = wait_until(created, seconds=30, what="the former schema accepts it")
    assert name
    private_control_plane.apply_crd()
    wait_until(is_refused, seconds=30, what="the schema refuses it")
    job = {"key": text, "generation": 1, "state": "Active", "handle": text}
    held = {"held": "SubmissionUnknown", "key": text, "generation": 1, "action": "Fail"}
    taskruns.update(name, {"status": {"externalJobs": [job]}}, "/status")
    taskruns.update(name, {"spec": {"resolutions": [held]}})
    taskruns.update(name, {"spec": {"cancel": True}})
    taskruns.update(name, {"status": {"outcome": "Cancelled"}}, "/status")
    taskruns.update(name, {"metadata": {"finalizers": None}})
