"""`rerun`: the TaskRun that it creates, and the jobs beside which it creates none."""

from typing import Any

import pytest

from builders import ATaskRun, a_taskrun
from reattach.api.names import ANNOTATION_CLEANUP_OF, ANNOTATION_RERUN_OF
from reattach.api.objects import Condition, ObjectMeta
from reattach.api.taskrun import ExternalJobStatus
from reattach.cli.errors import CommandError
from reattach.cli.orphans import FoundRecord, OrphanRow
from reattach.cli.rerun import EndedRun, RerunRequest, build_rerun, check_ended, notes_of, user_metadata_of

UID = "0123456789"


def a_row(key: str = "load", **fields: Any) -> OrphanRow:
    defaults = {"namespace": "data", "taskrun": "load", "record": "load-01234-orphans", "uid": UID, "generation": 1}
    return OrphanRow(**{**defaults, "key": key, "handle": "job-7", "adapter": "http", **fields})


def ended(
    *rows: OrphanRow,
    taskrun: ATaskRun | None = None,
    spec: dict[str, Any] | None = None,
    jobs: tuple[ExternalJobStatus, ...] = (),
    conditions: tuple[Condition, ...] = (),
    **metadata: Any,
) -> EndedRun:
    about = {"name": "load", "namespace": "data", **metadata}
    built = (
        (taskrun or a_taskrun())
        .with_metadata(**about)
        .with_status(outcome="Failed", external_jobs=jobs, conditions=conditions)
    )
    body = {"metadata": about, "spec": {"template": {"spec": {}}, **(spec or {})}}
    records = (FoundRecord(ObjectMeta(name="load-01234-orphans"), rows),) if rows else ()
    return EndedRun(body, built.build(), records)


def rerun_of(run: EndedRun, **request: Any) -> dict[str, Any]:
    return build_rerun(run, RerunRequest(source=run.taskrun.metadata.name, **request))


def refusal_of(run: EndedRun, **request: Any) -> tuple[str, tuple[str, ...]]:
    with pytest.raises(CommandError) as refused:
        rerun_of(run, **request)
    return str(refused.value), tuple(refused.value.lines)


class TestManifest:
    def test_spec_is_that_of_the_earlier_run_without_its_key_and_its_decisions(self) -> None:
        spec = {
            "template": {"spec": {"containers": [], "futureField": 1}},
            "retry": {"budgets": {"application": 2}},
            "submission": {"idempotencyKey": "nightly", "onUnknown": "Fail"},
            "cancel": True,
            "suspend": True,
            "resolutions": [{"held": "StateLost", "action": "Fail"}],
            "adopt": [{"key": "load", "handle": "job-1"}],
            "stateFrom": "earlier",
            "ttl": {"succeededSeconds": 60},
        }
        assert rerun_of(ended(spec=spec))["spec"] == {
            "template": spec["template"],
            "retry": spec["retry"],
            "submission": {"onUnknown": "Fail"},
            "ttl": spec["ttl"],
        }
        only_a_key = {"submission": {"idempotencyKey": "nightly"}}
        assert "submission" not in rerun_of(ended(spec=only_a_key))["spec"]

    def test_keep_state_names_the_earlier_run(self) -> None:
        assert rerun_of(ended(), keep_state=True)["spec"]["stateFrom"] == "load"

    @pytest.mark.parametrize(
        "name, root, created",
        [
            ("load", None, "load-2"),
            ("load-2", "load", "load-3"),
            ("load-9", "load", "load-10"),
            ("nightly-2026-11-22", None, "nightly-2026-11-22-2"),
            ("etl-2", None, "etl-2-2"),
            ("other", "load", "other-2"),
            ("load-x", "load", "load-x-2"),
            ("a" * 46, None, "a" * 46 + "-2"),
        ],
    )
    def test_name_has_the_next_number_of_its_series(self, name: str, root: str | None, created: str) -> None:
        annotations = {ANNOTATION_RERUN_OF: root} if root else {}
        metadata = rerun_of(ended(name=name, annotations=annotations))["metadata"]
        assert metadata["name"] == created
        assert metadata["annotations"][ANNOTATION_RERUN_OF] == created.rpartition("-")[0]

    def test_name_that_would_be_too_long_must_be_given(self) -> None:
        long = ended(name="a" * 47)
        assert refusal_of(long)[0].endswith("has more than 48 characters; choose one with --name.")
        assert rerun_of(long, name="b")["metadata"]["name"] == "b"

    def test_labels_and_annotations_are_those_of_users(self) -> None:
        kept = {"team": "a", "example.org/cost": "b", "app.kubernetes.io/name": "c", "notargoproj.io/x": "d"}
        queue = {"kueue.x-k8s.io/queue-name": "q"}
        tools = [
            "reattach.dev/rerun-of",
            "kubectl.kubernetes.io/last-applied-configuration",
            "applyset.kubernetes.io/part-of",
            "kueue.x-k8s.io/multikueue-origin",
            "meta.helm.sh/release-name",
            "helm.sh/chart",
            "app.kubernetes.io/managed-by",
            "app.kubernetes.io/instance",
            "argocd.argoproj.io/tracking-id",
            "kustomize.toolkit.fluxcd.io/name",
            "velero.io/restore-name",
        ]
        entries = {**kept, **queue, **dict.fromkeys(tools, "x")}
        found = user_metadata_of({"labels": entries, "annotations": entries, "uid": "1", "finalizers": ["f"]}, {})
        assert found == {"labels": {**kept, **queue}, "annotations": {**kept, **queue}}
        assert user_metadata_of({"labels": {"helm.sh/chart": "x"}}, {}) == {}


class TestJobs:
    def test_run_that_only_cancelled_the_jobs_of_another_is_refused(self) -> None:
        cleanup = ended(name="load-cleanup", annotations={ANNOTATION_CLEANUP_OF: "load"})
        assert refusal_of(cleanup)[0].startswith("load-cleanup only cancelled jobs of load and ran no task")

    def test_unfinished_run_is_refused(self) -> None:
        with pytest.raises(CommandError, match="load is unfinished, so its external jobs may run; nothing was created"):
            check_ended(a_taskrun().build())
        check_ended(ended().taskrun)

    def test_orphaned_job_is_refused_with_its_handle_and_the_ways_out(self) -> None:
        sentence, lines = refusal_of(ended(a_row(), a_row("train", handle=None, generation=2)))
        assert sentence == (
            "External job job-7 (load) and a job without a known handle (train, generation 2) of load may run; nothing was created."
        )
        assert "kubectl reattach rerun load -n data --adopt" in lines
        assert "kubectl reattach rerun load -n data --cancel-first" in lines
        assert "kubectl reattach orphans -n data --dismiss load" in lines

    def test_adopt_names_each_job_with_its_handle(self) -> None:
        run = ended(a_row(), a_row("train", handle="job-8"), a_row())
        assert [(one["key"], one["handle"]) for one in rerun_of(run, adopt=True)["spec"]["adopt"]] == [
            ("load", "job-7"),
            ("train", "job-8"),
        ]
        notes = notes_of(run, RerunRequest(source="load", adopt=True))
        assert notes[-1] == "Once it watches them, run: kubectl reattach orphans -n data --dismiss load"

    def test_adoption_of_an_object_says_that_it_may_be_deleted_with_its_owner(self) -> None:
        run = ended(a_row(adapter="kubernetes-job"))
        _, warning, dismissal = notes_of(run, RerunRequest(source="load", adopt=True))
        assert warning.startswith("Warning: If the adapter has owned=True, load owns job-7 (load)")
        assert "delete neither load nor its record before the new run has ended" in warning
        assert dismissal.startswith("Once it watches them")

    def test_run_that_multikueue_manages_is_refused_because_it_requires_a_key(self) -> None:
        taskrun = a_taskrun(managedBy="kueue.x-k8s.io/multikueue", submission={"idempotencyKey": "k"})
        assert refusal_of(ended(taskrun=taskrun))[0].startswith("MultiKueue manages load, so another TaskRun needs")

    @pytest.mark.parametrize(
        "rows, says",
        [
            ([], "load left no external job running that could be adopted; leave out --adopt."),
            ([a_row(handle=None)], "a job without a known handle (load) has no handle, so it can't be adopted"),
            ([a_row(), a_row(handle="job-8")], "load left two jobs of the key load, and only one can be adopted"),
            ([a_row(error="no JSON")], "The record load-01234-orphans of jobs that load left can't be read (no JSON)"),
        ],
        ids=["no job", "no handle", "two of one key", "unreadable"],
    )
    def test_jobs_that_can_not_be_adopted_are_refused(self, rows: list[OrphanRow], says: str) -> None:
        assert refusal_of(ended(*rows), adopt=True)[0].startswith(says)

    @pytest.mark.parametrize("adopt", [False, True])
    @pytest.mark.parametrize("state", ["Active", "Unknown", "NotFound", "Intended", "Cancelling", "OfANewerVersion"])
    def test_open_job_in_the_status_is_refused(self, state: str, adopt: bool) -> None:
        job = ExternalJobStatus(key="load", generation=1, state=state, handle="job-7")
        says = f"External job job-7 (load) ({state}) of load may run; nothing was created."
        assert refusal_of(ended(jobs=(job,)), adopt=adopt)[0] == says

    @pytest.mark.parametrize("flags", [{}, {"adopt": True}, {"cancel_first": True}, {"dry_run": True}])
    def test_job_whose_record_could_not_be_stored_is_refused(self, flags: dict[str, bool]) -> None:
        job = ExternalJobStatus(key="load", generation=1, state="Orphaned", handle="job-7", adapter="http")
        shown = Condition(type="Orphaned", status="True", reason="OrphansUnrecorded", message="job-7")
        sentence = refusal_of(ended(jobs=(job,), conditions=(shown,)), **flags)[0]
        assert sentence.startswith(
            "External job job-7 (load) of load may run, and the operator could not store the record"
        )

    def test_record_that_can_not_be_read_is_refused(self) -> None:
        assert refusal_of(ended(a_row(error="no JSON")))[0].startswith("The record load-01234-orphans")

    def test_ended_detached_and_dismissed_jobs_are_no_obstacle(self) -> None:
        states = ["Succeeded", "Failed", "Cancelled", "Detached", "Orphaned"]
        jobs = tuple(ExternalJobStatus(key=state, generation=1, state=state, handle="job-7") for state in states)
        run = ended(jobs=jobs)
        assert "adopt" not in rerun_of(run)["spec"]
        detached, dismissed = notes_of(run, RerunRequest(source="load"))
        assert detached.startswith("Warning: External job job-7 (Detached) was detached by the earlier run")
        assert dismissed.startswith("Warning: External job job-7 (Orphaned) was left running by the earlier run.")
