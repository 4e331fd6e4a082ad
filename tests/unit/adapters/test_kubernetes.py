"""The pure parts of the Kubernetes adapter, and responses that a real API server rarely sends."""

import base64
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from reattach.adapter import Active, Cancelled, NotFound, Rejected, Submission, Succeeded, TaskRunOwner, Unknown
from reattach.adapters.http_client import CallError
from reattach.adapters.kubernetes import (
    JOB,
    RAY_JOB,
    SPARK_APPLICATION,
    TASKRUN,
    Access,
    AccessError,
    Kind,
    KubernetesObjects,
    When,
)
from reattach.adapters.kubernetes.kinds import text_at, value_at
from reattach.adapters.kubernetes.objects import ObjectHandle, object_of

MANIFEST = {"apiVersion": "batch/v1", "kind": "Job", "spec": {}}
ACCESS = Access(server="https://kubernetes.invalid", namespace="team", ca=None, token="t")
SUBMISSION = Submission(token="11", request=MANIFEST, key="load", generation=1, namespace="team", taskrun="nightly")
NAME = SUBMISSION.name
OURS = {"metadata": {"namespace": "team", "name": NAME, "uid": "u1", "labels": {"reattach.dev/submission-token": "11"}}}
TAKEN = {"kind": "Status", "reason": "AlreadyExists", "message": "already exists"}
ABSENT = {"kind": "Status", "reason": "NotFound", "details": {"name": NAME}, "message": f'jobs "{NAME}" not found'}

Answers = Callable[[httpx.Request], httpx.Response]

DRY_RUN = (201, OURS)
AMBIGUOUS = [
    (500, {"message": "etcdserver: request timed out"}),
    (502, "bad gateway"),
    (503, "upstream connect error or disconnect/reset before headers"),
    (504, {"reason": "Timeout"}),
    (409, {"reason": "Conflict", "message": "Operation cannot be fulfilled on resourcequotas"}),
    (201, "<html>a captive portal</html>"),
    (200, {}),
    (302, ""),
]


def adapter(*responses: tuple[int, Any]) -> KubernetesObjects:
    """Return an adapter that gets these responses, in this order."""
    left = list(responses)

    def respond(_request: httpx.Request) -> httpx.Response:
        status, body = left.pop(0)
        return httpx.Response(status, **({"text": body} if isinstance(body, str) else {"json": body}))

    return KubernetesObjects(JOB, access=ACCESS, transport=httpx.MockTransport(respond))


class TestOwned:
    OF_POD = replace(ACCESS, is_of_pod=True)
    OWNED = replace(SUBMISSION, owner=TaskRunOwner("run-uid"))

    def jobs(self, seen: list[Any], **how: Any) -> KubernetesObjects:
        def respond(request: httpx.Request) -> httpx.Response:
            seen.append(json.loads(request.content))
            return httpx.Response(201, json=OURS)

        return KubernetesObjects(
            JOB, owned=True, transport=httpx.MockTransport(respond), **{"access": self.OF_POD, **how}
        )

    def test_object_refers_to_the_taskrun_and_does_not_block_its_deletion(self) -> None:
        seen: list[Any] = []
        self.jobs(seen).submit(self.OWNED)
        for body in seen:
            assert body["metadata"]["ownerReferences"] == [
                {
                    "apiVersion": "reattach.dev/v1alpha1",
                    "kind": "TaskRun",
                    "name": "nightly",
                    "uid": "run-uid",
                    "controller": False,
                    "blockOwnerDeletion": False,
                }
            ]

    def test_object_has_no_owner_by_default(self) -> None:
        body = object_of(JOB, self.OWNED, "team", None)
        assert "ownerReferences" not in body["metadata"]

    @pytest.mark.parametrize(
        "submission,namespace,message",
        [
            (SUBMISSION, "team", "requires a state API that reports the owner of a job"),
            (OWNED, "other", "requires the namespace of the TaskRun, 'team'"),
            (
                replace(OWNED, owner=TaskRunOwner("run-uid", "the job is detached")),
                "team",
                "the Job must not be deleted with its TaskRun: the job is detached. Leave `owned` out",
            ),
            (
                replace(OWNED, request={**MANIFEST, "metadata": {"ownerReferences": []}}),
                "team",
                "metadata.ownerReferences must be left out",
            ),
        ],
    )
    def test_job_that_the_taskrun_must_not_own_is_rejected_and_nothing_is_sent(
        self, submission: Submission, namespace: str, message: str
    ) -> None:
        seen: list[Any] = []
        with pytest.raises(Rejected, match=message) as caught:
            self.jobs(seen, namespace=namespace).submit(submission)
        assert not caught.value.retriable
        assert seen == []

    def test_access_to_another_cluster_is_refused(self) -> None:
        with pytest.raises(ValueError, match="owned=True requires the access of the pod"):
            self.jobs([], access=ACCESS)


class TestResponses:
    @pytest.mark.parametrize("status,body", AMBIGUOUS)
    def test_submit_ambiguous_response_is_not_a_rejection(self, status: int, body: Any) -> None:
        with pytest.raises(CallError):
            adapter(DRY_RUN, (status, body)).submit(SUBMISSION)

    @pytest.mark.parametrize("status,body", AMBIGUOUS)
    def test_submit_ambiguous_dry_run_is_retriable_because_it_creates_nothing(self, status: int, body: Any) -> None:
        with pytest.raises(Rejected, match="the dry run of the creation failed") as caught:
            adapter((status, body)).submit(SUBMISSION)
        assert caught.value.retriable

    def test_submit_dry_run_with_lost_response_is_retriable(self) -> None:
        def lost(_request: httpx.Request) -> httpx.Response:
            raise httpx.ReadError("the connection was cut")

        with pytest.raises(Rejected, match="the dry run of the creation failed") as caught:
            KubernetesObjects(JOB, access=ACCESS, transport=httpx.MockTransport(lost)).submit(SUBMISSION)
        assert caught.value.retriable

    def test_submit_first_sends_the_same_object_as_a_dry_run(self) -> None:
        seen: list[httpx.Request] = []

        def respond(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            return httpx.Response(201, json=OURS)

        KubernetesObjects(JOB, access=ACCESS, transport=httpx.MockTransport(respond)).submit(SUBMISSION)
        first, second = seen
        assert first.url.params["dryRun"] == "All"
        assert "dryRun" not in second.url.params
        assert first.url.params["fieldValidation"] == second.url.params["fieldValidation"] == "Strict"
        assert first.content == second.content

    def test_submit_kind_without_a_time_to_live_needs_no_dry_run(self) -> None:
        created = httpx.MockTransport(
            lambda request: httpx.Response(500 if "dryRun" in str(request.url) else 201, json=OURS)
        )
        kind = replace(JOB, ends=())
        assert KubernetesObjects(kind, access=ACCESS, transport=created).submit(SUBMISSION).handle == f"team/{NAME}/u1"

    def test_submit_object_of_an_earlier_attempt_is_found_by_the_dry_run(self) -> None:
        assert adapter((409, TAKEN), (200, OURS)).submit(SUBMISSION).existed

    @pytest.mark.parametrize(
        "kind,added",
        [
            (JOB, {"spec": {"ttlSecondsAfterFinished": 100}}),
            (TASKRUN, {"spec": {"ttl": {"failedSeconds": 0}}}),
            (SPARK_APPLICATION, {"spec": {"timeToLiveSeconds": 60}}),
            (RAY_JOB, {"spec": {"deletionStrategy": {"onSuccess": {"policy": "DeleteSelf"}}}}),
        ],
    )
    def test_submit_time_to_live_that_the_cluster_adds_is_rejected_before_the_creation(
        self, kind: Kind, added: Any
    ) -> None:
        manifest = {"apiVersion": kind.api_version, "kind": kind.kind, "spec": {}}
        stored = httpx.MockTransport(
            lambda request: httpx.Response(201 if "dryRun" in str(request.url) else 500, json={**OURS, **added})
        )
        jobs = KubernetesObjects(kind, access=ACCESS, transport=stored)
        with pytest.raises(Rejected, match=r"the cluster must not set spec.* of this object to") as caught:
            jobs.submit(replace(SUBMISSION, request=manifest))
        assert not caught.value.retriable
        assert "exclude objects with the label reattach.dev/submission-token" in str(caught.value)

    def test_submit_time_to_live_that_the_cluster_adds_may_be_as_long_as_the_retention(self) -> None:
        stored = {**OURS, "spec": {"ttlSecondsAfterFinished": 100}}
        created = httpx.MockTransport(lambda _request: httpx.Response(201, json=stored))
        for seconds, is_accepted in ((100, True), (101, False)):
            jobs = KubernetesObjects(JOB, access=ACCESS, transport=created, retention=timedelta(seconds=seconds))
            with contextlib.nullcontext() if is_accepted else pytest.raises(Rejected):
                jobs.submit(SUBMISSION)

    def test_submit_429_is_retriable(self) -> None:
        with pytest.raises(Rejected) as caught:
            adapter((429, {"message": "slow down"})).submit(SUBMISSION)
        assert caught.value.retriable

    def test_submit_created_object_is_ours_even_without_label(self) -> None:
        bare = {"metadata": {"namespace": "team", "name": NAME, "uid": "u1"}}
        assert adapter(DRY_RUN, (201, bare)).submit(SUBMISSION).handle == f"team/{NAME}/u1"

    def test_submit_object_deleted_meanwhile_leaves_the_outcome_unknown(self) -> None:
        with pytest.raises(CallError, match="existed, but no longer exists"):
            adapter((409, TAKEN), (404, ABSENT)).submit(SUBMISSION)

    def test_submit_existing_object_without_token_is_rejected(self) -> None:
        bare = {"metadata": {"namespace": "team", "name": NAME, "uid": "u1"}}
        with pytest.raises(Rejected, match="was not submitted by this run"):
            adapter((409, TAKEN), (200, bare)).submit(SUBMISSION)

    def test_cancel_requires_the_version_that_was_read(self) -> None:
        seen: list[Any] = []

        def respond(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(200, json={"metadata": {**OURS["metadata"], "resourceVersion": "7"}})
            seen.append((request.method, json.loads(request.content)))
            return httpx.Response(200, json={})

        for kind in (JOB, TASKRUN):
            KubernetesObjects(kind, access=ACCESS, transport=httpx.MockTransport(respond)).cancel(f"team/{NAME}/u1")
        [(deleted, options), (patched, patch)] = seen
        assert (deleted, patched) == ("DELETE", "PATCH")
        assert options["preconditions"] == patch["metadata"] == {"uid": "u1", "resourceVersion": "7"}
        assert options["propagationPolicy"] == "Foreground"

    def test_submit_existing_object_with_two_tokens_is_rejected(self) -> None:
        torn = {"metadata": {**OURS["metadata"], "annotations": {"reattach.dev/submission-token": "12"}}}
        with pytest.raises(Rejected, match="was not submitted by this run"):
            adapter((409, TAKEN), (200, torn)).submit(SUBMISSION)

    @pytest.mark.parametrize(
        "status,body",
        [
            (404, "404 page not found"),
            (404, {"reason": "NotFound", "details": {"name": "other"}}),
            (403, {"reason": "Forbidden"}),
            (200, "<html>"),
            (200, []),
            (500, {}),
        ],
    )
    def test_ambiguous_response_is_never_absence(self, status: int, body: Any) -> None:
        with pytest.raises(CallError):
            adapter((status, body)).look_up(SUBMISSION)
        handle = f"team/{NAME}/u1"
        assert isinstance(adapter((status, body)).status(handle), Unknown)
        with pytest.raises(CallError):
            adapter((status, body)).cancel(handle)

    @pytest.mark.parametrize(
        "status,body,is_about_credentials",
        [
            (401, {"kind": "Status", "reason": "Unauthorized"}, True),
            (
                403,
                {"kind": "Status", "message": 'jobs.batch is forbidden: User "u" cannot create resource "jobs"'},
                True,
            ),
            (403, "<html>", True),
            (403, {"kind": "Status", "message": 'jobs.batch "j" is forbidden: violates PodSecurity'}, False),
            (403, {"kind": "Status", "message": 'admission webhook "w" denied the request: no'}, False),
        ],
    )
    def test_submit_without_a_right_is_tried_again_and_one_that_admission_rejects_is_not(
        self, status: int, body: Any, *, is_about_credentials: bool
    ) -> None:
        with pytest.raises(Rejected) as caught:
            adapter((status, body)).submit(SUBMISSION)
        assert (caught.value.credentials, caught.value.retriable) == (is_about_credentials, is_about_credentials)

    def test_cancel_of_job_that_ends_meanwhile_keeps_its_result(self) -> None:
        handle = f"team/{NAME}/u1"
        ended = {**OURS, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}
        conflict = {"reason": "Conflict", "message": "the ResourceVersion in the precondition does not match"}
        jobs = adapter((200, OURS), (409, conflict), (200, ended), (200, ended))
        jobs.cancel(handle)
        assert jobs.status(handle) == Succeeded()

    def test_status_after_confirmed_deletion_is_cancelled(self) -> None:
        handle = f"team/{NAME}/u1"
        jobs = adapter((200, OURS), (200, {}), (404, ABSENT))
        jobs.cancel(handle)
        assert "by a cancellation" in str(jobs.status(handle))
        assert isinstance(adapter((404, ABSENT)).status(handle), NotFound)

    def test_status_after_deletion_with_lost_response_is_cancelled(self) -> None:
        handle = f"team/{NAME}/u1"
        jobs = adapter((200, OURS), (403, {"reason": "Forbidden"}), (404, ABSENT))
        with pytest.raises(CallError):
            jobs.cancel(handle)
        assert isinstance(jobs.status(handle), NotFound), "the object belongs to another client"

        def lost(request: httpx.Request) -> httpx.Response:
            if request.method == "DELETE":
                raise httpx.ReadError("the connection was cut")
            return responses.pop(0)

        responses = [httpx.Response(200, json=OURS), httpx.Response(404, json=ABSENT)]
        jobs = KubernetesObjects(JOB, access=ACCESS, transport=httpx.MockTransport(lost))
        with pytest.raises(CallError):
            jobs.cancel(handle)
        assert isinstance(jobs.status(handle), Cancelled)

    def test_cancel_of_object_that_keeps_changing_raises(self) -> None:
        turns = [(200, OURS), (409, {"reason": "Conflict"})] * 5
        with pytest.raises(CallError, match="keeps changing"):
            adapter(*turns).cancel(f"team/{NAME}/u1")


class TestKinds:
    def test_kind_place_selects_a_condition(self) -> None:
        found = {"status": {"conditions": [{"type": "A", "status": "True"}, {"type": "B", "n": 3}], "phase": "Done"}}
        assert value_at(found, "status.conditions[A].status") == "True"
        assert text_at(found, "status.conditions[B].n") == "3"
        assert text_at(found, "status.conditions[C].status") == ""
        assert text_at(found, "status.phase.deeper") == ""
        assert text_at(found, "status.phase[A]") == ""
        assert text_at(None, "status") == ""

    @pytest.mark.parametrize(
        "change,message",
        [
            ({"api_version": "batch"}, "api_version must be like"),
            ({"plural": "Jobs"}, "plural must be in small letters"),
            ({"kind": "job"}, "kind must be like Job"),
            ({"standings": (When("Active"),)}, "must define when a job has succeeded"),
            ({"messages": ("status..x",)}, "a place must be like"),
            ({"result": ".status"}, "a place must be like"),
            ({"ends": ("a[b",)}, "a place must be like"),
        ],
    )
    def test_kind_invalid_names_the_requirement(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            replace(JOB, **change)

    def test_when_single_text_instead_of_tuple_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must be compared with a tuple"):
            When("Failed", {"status.phase": "Failed"})  # type: ignore[dict-item]

    def test_kind_path_of_core_group_begins_with_api(self) -> None:
        pod = replace(JOB, api_version="v1", kind="Pod", plural="pods")
        assert pod.path("team", "a") == "/api/v1/namespaces/team/pods/a"
        assert TASKRUN.path("team") == "/apis/reattach.dev/v1alpha1/namespaces/team/taskruns"

    def test_adapter_name_contains_the_kind(self) -> None:
        long = Kind(api_version="a/v1", kind="K" * 80, plural="ks", standings=JOB.standings)
        assert len(KubernetesObjects(long, access=ACCESS).name) == 63


class TestHandles:
    @pytest.mark.parametrize("text", ["", "a", "a/b", "a/b/c/d", "a//c", "a/../c", "a/b?x/c", "a/b c/d", "ä/b/c"])
    def test_handle_that_could_change_the_path_is_refused(self, text: str) -> None:
        assert ObjectHandle.parse(text) is None

    def test_handle_parses_its_own_text(self) -> None:
        assert str(ObjectHandle.parse("team/a.b-c/u1")) == "team/a.b-c/u1"


def kubeconfig(directory: Path, *, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Path:
    file = directory / "config"
    given = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://k8s.invalid/", **(cluster or {})}}],
        "users": [{"name": "u", "user": {"token": "t"} if user is None else user}],
    }
    file.write_text(json.dumps(given))
    return file


class TestAccess:
    def test_access_token_file_is_read_for_each_request(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("first\n")
        access = Access.from_kubeconfig(kubeconfig(tmp_path, user={"tokenFile": "token"}))
        assert (access.server, access.namespace) == ("https://k8s.invalid", "default")
        assert access.headers() == {"Authorization": "Bearer first"}
        (tmp_path / "token").write_text("second\n")
        assert access.headers() == {"Authorization": "Bearer second"}

    @pytest.mark.parametrize(
        "cluster,user,message",
        [
            ({"server": "http://k8s"}, None, "must begin with https://"),
            ({"insecure-skip-tls-verify": True}, None, "insecure-skip-tls-verify is not supported"),
            ({"proxy-url": "http://p"}, None, "proxy-url is not supported"),
            ({"certificate-authority-data": "%"}, None, "certificate-authority must be readable PEM"),
            ({}, {"exec": {"command": "aws"}}, "exec is not supported"),
            ({}, {"username": "a"}, "username is not supported"),
            ({}, {"client-certificate-data": base64.b64encode(b"x").decode()}, "must both be set"),
            ({}, {"client-certificate": "/nowhere"}, "must be readable PEM"),
        ],
    )
    def test_access_unsupported_kubeconfig_is_refused(
        self, tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any] | None, message: str
    ) -> None:
        with pytest.raises(AccessError, match=message):
            Access.from_kubeconfig(kubeconfig(tmp_path, cluster=cluster, user=user))

    def test_access_unknown_context_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(AccessError, match="must have context 'other' among its contexts"):
            Access.from_kubeconfig(kubeconfig(tmp_path), "other")
        with pytest.raises(AccessError, match="must be readable"):
            Access.from_kubeconfig(tmp_path / "none")

    def test_access_ipv6_address_is_bracketed(self, tmp_path: Path) -> None:
        for name in ("token", "namespace", "ca.crt"):
            (tmp_path / name).write_text("x")
        environment = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
        assert Access.from_pod(tmp_path, environment).server == "https://[fd00::1]:6443"

    def test_access_invalid_ca_fails_at_construction(self) -> None:
        with pytest.raises(AccessError, match=r"kubernetes\.invalid must be readable"):
            KubernetesObjects(JOB, access=replace(ACCESS, ca="no PEM"))


def test_status_of_suspended_job_has_its_message() -> None:
    condition = {"type": "Suspended", "status": "True", "message": "Job suspended"}
    status = adapter((200, {**OURS, "status": {"conditions": [condition]}})).status(f"team/{NAME}/u1")
    assert status == Active("Job suspended")
