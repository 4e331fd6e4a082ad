"""The adapter for Kubernetes objects on a real API server, as a service account that may do no more than the documentation says.

No controller for Jobs runs here: the tests write a Job's status, as they do a TaskRun's. The cases 35 to 39 are those of Airflow's
KubernetesPodOperator that `docs/reference/airflow-cases.md` lists.
"""

import contextlib
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

import reattach
from controlplane import ControlPlane, ControlPlaneError
from reattach.adapter import (
    Active,
    Cancelled,
    Capabilities,
    ClientName,
    Failed,
    Lookup,
    NotFound,
    Rejected,
    Submission,
    Submitted,
    Succeeded,
    TaskRunOwner,
    Unknown,
)
from reattach.adapters.http_client import CallError
from reattach.adapters.kubernetes import JOB, TASKRUN, Access, AccessError, KubernetesObjects
from reattach.api.state import JobOrigin
from stateapi import Servers
from stateapi import Task as Run
from taskpods import Pods, port_of
from tcp_relay import Relay
from waiting import wait_until

CONTAINER = {"name": "main", "image": "localhost/none", "command": ["true"]}
POD = {"containers": [CONTAINER], "restartPolicy": "Never"}
MANIFEST: dict[str, Any] = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"labels": {"team": "data"}},
    "spec": {"template": {"spec": POD}},
}
TASKRUN_MANIFEST: dict[str, Any] = {
    "apiVersion": "reattach.dev/v1alpha1",
    "kind": "TaskRun",
    "spec": {"template": {"spec": {"containers": [CONTAINER]}}},
}
LABEL = "reattach.dev/submission-token"


def submission(request: Any = MANIFEST, token: str | None = None, generation: int = 1) -> Submission:
    token = str(uuid.uuid4()) if token is None else token
    return Submission(
        token=token, request=request, key="load", generation=generation, namespace="ns", taskrun="nightly"
    )


class World:
    """One namespace, and what happens in it that is not the adapter's doing."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self._bind()

    def _bind(self) -> None:
        """The rights that docs/adapters.md asks for, and no more."""
        rules = [
            {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "delete"]},
            {"apiGroups": ["reattach.dev"], "resources": ["taskruns"], "verbs": ["create", "get", "patch"]},
        ]
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{self.namespace}"
        subject = {"kind": "ServiceAccount", "name": "default", "namespace": self.namespace}
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "jobs"}
        self.control_plane.call("POST", f"{path}/roles", {"metadata": {"name": "jobs"}, "rules": rules})
        self.control_plane.call(
            "POST", f"{path}/rolebindings", {"metadata": {"name": "jobs"}, "subjects": [subject], "roleRef": role}
        )

    @property
    def access(self) -> Access:
        return Access.from_kubeconfig(self.control_plane.service_account_kubeconfig(self.namespace, "default"))

    def adapter(self, kind: Any = JOB, **how: Any) -> KubernetesObjects:
        """As each pod would make one."""
        return KubernetesObjects(kind, access=self.access, **how)

    def objects(self, kind: Any = JOB) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self.control_plane.call("GET", kind.path(self.namespace))["items"]
        return items

    def get(self, handle: str, kind: Any = JOB) -> dict[str, Any]:
        namespace, name, _ = handle.split("/")
        return self.control_plane.call("GET", kind.path(namespace, name))

    def patch_status(self, handle: str, status: dict[str, Any], kind: Any = JOB) -> None:
        namespace, name, _ = handle.split("/")
        self.control_plane.call("PATCH", f"{kind.path(namespace, name)}/status", {"status": status})

    def finish(self, handle: str, condition: str) -> None:
        """What the Job controller writes at the end."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        target = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[condition]
        conditions = [
            {"type": kind, "status": "True", "reason": "BackoffLimitExceeded", "message": "it failed too often"}
            for kind in (target, condition)
        ]
        ended = {"completionTime": now} if condition == "Complete" else {}
        self.patch_status(handle, {"startTime": now, "conditions": conditions, **ended})

    def delete(self, handle: str) -> None:
        namespace, name, _ = handle.split("/")
        self.control_plane.call("DELETE", JOB.path(namespace, name), propagationPolicy="Background")
        wait_until(lambda: not self._is_there(handle), seconds=60, what=f"{name} is gone")

    def _is_there(self, handle: str) -> bool:
        try:
            return bool(self.get(handle))
        except ControlPlaneError:
            return False


@pytest.fixture
def world(control_plane: ControlPlane, namespace: str) -> World:
    return World(control_plane, namespace)


@pytest.fixture(scope="module")
def servers(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    servers = Servers(control_plane, tmp_path_factory.mktemp("state-api"))
    yield servers
    servers.stop()


@pytest.fixture
def pods(servers: Servers, world: World, tmp_path: Path) -> Iterator[Pods]:
    """Of a TaskRun that submits anew what is not found."""
    server = servers.start()
    run = Run.create(world.control_plane, world.namespace, submission={"onNotFound": "Resubmit"})
    with Relay(port_of(server)) as relay:
        yield Pods(run, server, relay, tmp_path)


class TestSubmit:
    def test_the_object_carries_our_name_and_token_and_what_the_task_wrote(self, world: World) -> None:
        wanted = submission()
        submitted = world.adapter().submit(wanted)
        made = world.get(submitted.handle)
        about = made["metadata"]
        assert submitted == Submitted(f"{world.namespace}/{wanted.name}/{about['uid']}")
        assert about["labels"]["team"] == "data"
        assert about["labels"][LABEL] == wanted.token
        assert about["annotations"]["reattach.dev/submitted-by"] == "ns/nightly"
        assert about["annotations"]["reattach.dev/submitted-as"] == "load#1"
        assert made["spec"]["template"]["spec"]["containers"][0]["image"] == "localhost/none"
        assert "name" not in MANIFEST["metadata"]

    def test_the_same_token_is_the_same_object(self, world: World) -> None:
        wanted = submission()
        first, second = world.adapter().submit(wanted), world.adapter().submit(wanted)
        assert second == replace(first, existed=True)
        assert len(world.objects()) == 1

    def test_it_is_ours_also_where_somebody_tidied_up_its_labels(self, world: World) -> None:
        wanted = submission()
        handle = world.adapter().submit(wanted).handle
        about = world.get(handle)["metadata"]
        path = JOB.path(world.namespace, about["name"])
        world.control_plane.call("PATCH", path, {"metadata": {"labels": {LABEL: None}}})
        assert world.adapter().submit(wanted).handle == handle

    def test_an_object_of_our_name_without_our_token_is_never_adopted(self, world: World) -> None:
        wanted = submission()
        for labels in ({}, {LABEL: "another"}):
            foreign = {**MANIFEST, "metadata": {"name": wanted.name, "labels": labels}}
            made = world.control_plane.call("POST", JOB.path(world.namespace), foreign)
            adapter = world.adapter()
            with pytest.raises(Rejected, match="was not submitted by this run: it must carry the label") as caught:
                adapter.submit(wanted)
            assert not caught.value.retriable
            with pytest.raises(CallError, match="was not submitted by this run"):
                adapter.look_up(wanted)
            world.delete(f"{world.namespace}/{wanted.name}/{made['metadata']['uid']}")

    @pytest.mark.parametrize(
        "change,message",
        [
            ({"kind": "CronJob"}, "must be the manifest of a Job of batch/v1"),
            ({"metadata": {"name": "mine"}}, "must have no metadata.name"),
            ({"metadata": {"generateName": "mine-"}}, "must have no metadata.generateName"),
            ({"metadata": {"namespace": "other"}}, "metadata.namespace must be"),
            ({"spec": {"template": {"spec": POD}, "paralelism": 2}}, 'unknown field "spec.paralelism"'),
            ({"spec": {"template": {"spec": {**POD, "restartPolicy": "Always"}}}}, "restartPolicy: Required value"),
            ({"spec": {"template": {"spec": POD}, "ttlSecondsAfterFinished": 60}}, "must be left out"),
        ],
    )
    def test_a_wrong_manifest_is_rejected_for_good(self, world: World, change: dict[str, Any], message: str) -> None:
        with pytest.raises(Rejected, match=message) as caught:
            world.adapter().submit(submission({**MANIFEST, **change}))
        assert not caught.value.retriable
        assert world.objects() == []

    def test_a_time_to_live_must_last_as_long_as_the_adapter_says(self, world: World) -> None:
        adapter = world.adapter(retention=timedelta(hours=1))
        assert adapter.capabilities.client_name == ClientName(timedelta(hours=1))
        assert adapter.capabilities.look_up is not None
        assert adapter.capabilities.look_up.retention == timedelta(hours=1)
        short = {**MANIFEST, "spec": {**MANIFEST["spec"], "ttlSecondsAfterFinished": 3599}}
        with pytest.raises(Rejected, match="or be at least 3600"):
            adapter.submit(submission(short))
        adapter.submit(submission({**MANIFEST, "spec": {**MANIFEST["spec"], "ttlSecondsAfterFinished": 3600}}))

    def test_without_the_right_to_it_says_so(self, world: World) -> None:
        other = replace(JOB, api_version="apps/v1", kind="Deployment", plural="deployments")
        manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}}
        with pytest.raises(Rejected, match="cannot create resource") as caught:
            world.adapter(other).submit(submission(manifest))
        assert caught.value.credentials

    def test_a_kind_that_is_not_served_says_so(self, world: World) -> None:
        admin = Access.from_kubeconfig(world.control_plane.kubeconfig(namespace=world.namespace))
        other = replace(JOB, api_version="example.org/v1", kind="Thing", plural="things")
        adapter = KubernetesObjects(other, access=admin)
        wanted = submission({"apiVersion": "example.org/v1", "kind": "Thing"})
        with pytest.raises(Rejected, match="is its CRD installed"):
            adapter.submit(wanted)
        # Its absence says nothing about the objects.
        assert isinstance(adapter.status(f"{world.namespace}/{wanted.name}/uid"), Unknown)
        with pytest.raises(CallError):
            adapter.look_up(wanted)

    def test_a_namespace_that_is_not_there_says_so(self, world: World) -> None:
        admin = Access.from_kubeconfig(world.control_plane.kubeconfig())
        with pytest.raises(Rejected, match='namespaces "nowhere" not found'):
            KubernetesObjects(JOB, access=admin, namespace="nowhere").submit(submission())

    def test_a_full_quota_is_waited_for(self, world: World) -> None:
        path = f"/api/v1/namespaces/{world.namespace}/resourcequotas"
        none = {"hard": {"count/jobs.batch": "0"}}
        world.control_plane.call("POST", path, {"metadata": {"name": "none"}, "spec": none})
        # What the quota controller would write.
        world.control_plane.call(
            "PATCH", f"{path}/none/status", {"status": {**none, "used": {"count/jobs.batch": "0"}}}
        )
        adapter = world.adapter()

        def refused() -> Rejected | None:
            try:
                adapter.submit(submission())
            except Rejected as rejected:
                return rejected
            return None

        # The API server learns of a quota a little after it was made.
        rejected = wait_until(refused, seconds=60, what="the quota is enforced", every=0.5)
        assert "exceeded quota" in str(rejected)
        assert rejected.retriable

    def test_a_token_that_is_not_known_is_tried_again(self, world: World) -> None:
        stranger = replace(world.access, token="no.such.token")
        with pytest.raises(Rejected, match="401") as caught:
            KubernetesObjects(JOB, access=stranger).submit(submission())
        assert caught.value.credentials
        assert isinstance(KubernetesObjects(JOB, access=stranger).status("a/b/c"), Unknown)


@pytest.fixture
def adds_ttl(world: World) -> Iterator[Callable[[int], None]]:
    """Return a function that puts a policy in force, which sets a time to live of Jobs in the namespace."""
    path = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies"
    name = f"ttl-{world.namespace}"

    def add(seconds: int) -> None:
        rules = [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}]
        where = {"matchLabels": {"kubernetes.io/metadata.name": world.namespace}}
        expression = f"Object{{spec: Object.spec{{ttlSecondsAfterFinished: {seconds}}}}}"
        policy = {
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": rules, "namespaceSelector": where},
                "failurePolicy": "Fail",
                "reinvocationPolicy": "Never",
                "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}],
            },
        }
        world.control_plane.call("POST", path, policy)
        binding = {"metadata": {"name": name}, "spec": {"policyName": name}}
        world.control_plane.call("POST", f"{path.removesuffix('policies')}policybindings", binding)

        def is_in_force() -> bool:
            probe = {**MANIFEST, "metadata": {"name": "probe"}}
            made = world.control_plane.call("POST", JOB.path(world.namespace), probe, dryRun="All")
            return made["spec"].get("ttlSecondsAfterFinished") == seconds

        wait_until(is_in_force, seconds=60, what="the policy is in force")

    yield add
    for kind in ("policybindings", "policies"):
        with contextlib.suppress(ControlPlaneError):
            world.control_plane.call("DELETE", f"{path.removesuffix('policies')}{kind}/{name}")


class TestPolicyThatAddsTimeToLive:
    def test_job_is_rejected_and_never_created(self, world: World, adds_ttl: Callable[[int], None]) -> None:
        adds_ttl(100)
        with pytest.raises(
            Rejected, match=r"the cluster must not set spec.ttlSecondsAfterFinished .* to 100"
        ) as caught:
            world.adapter().submit(submission())
        assert not caught.value.retriable
        assert world.objects() == []

    def test_job_that_the_policy_removed_is_not_submitted_again(
        self, world: World, adds_ttl: Callable[[int], None]
    ) -> None:
        """The response to the creation is lost, and the Job has ended and is gone before the next attempt."""
        wanted = submission()
        handle = world.adapter().submit(wanted).handle
        adds_ttl(0)
        world.delete(handle)
        with pytest.raises(Rejected, match="the cluster must not set"):
            world.adapter().submit(wanted)
        assert world.objects() == []

    def test_job_is_created_if_the_adapter_declares_the_time_to_live(
        self, world: World, adds_ttl: Callable[[int], None]
    ) -> None:
        adds_ttl(3600)
        handle = world.adapter(retention=timedelta(hours=1)).submit(submission()).handle
        assert world.get(handle)["spec"]["ttlSecondsAfterFinished"] == 3600


class TestStatus:
    def test_a_job_is_active_until_its_last_condition(self, world: World) -> None:
        adapter = world.adapter()
        handle = adapter.submit(submission()).handle
        assert adapter.status(handle) == Active()
        met = {"type": "SuccessCriteriaMet", "status": "True"}
        world.patch_status(handle, {"startTime": "2026-01-01T00:00:00Z", "conditions": [met]})
        assert adapter.status(handle) == Active()

    def test_a_job_succeeds(self, world: World) -> None:
        adapter = world.adapter()
        handle = adapter.submit(submission()).handle
        world.finish(handle, "Complete")
        assert adapter.status(handle) == Succeeded()

    def test_a_job_fails_and_says_why(self, world: World) -> None:
        adapter = world.adapter()
        handle = adapter.submit(submission()).handle
        world.finish(handle, "Failed")
        assert adapter.status(handle) == Failed("BackoffLimitExceeded: it failed too often")

    def test_a_result_may_be_taken_from_the_object(self, world: World) -> None:
        adapter = world.adapter(replace(JOB, result="status.conditions[Complete].reason"))
        handle = adapter.submit(submission()).handle
        world.finish(handle, "Complete")
        assert adapter.status(handle) == Succeeded("BackoffLimitExceeded")


class TestTaskRun:
    @pytest.mark.parametrize(
        "status,expected",
        [
            ({}, Active()),
            ({"outcome": "Succeeded", "result": '{"rows_written": 4211}'}, Succeeded({"rows_written": 4211})),
            ({"outcome": "Succeeded"}, Succeeded()),
            ({"outcome": "Failed"}, Failed("ApplicationFailed: It failed.")),
            ({"outcome": "Cancelled"}, Cancelled("ApplicationFailed: It failed.")),
        ],
    )
    def test_another_taskrun_ends_by_its_outcome_with_its_result(
        self, world: World, status: dict[str, Any], expected: Any
    ) -> None:
        adapter = world.adapter(TASKRUN)
        handle = adapter.submit(submission(TASKRUN_MANIFEST)).handle
        if "outcome" in status:
            condition = {
                "type": "Succeeded",
                "status": "False",
                "reason": "ApplicationFailed",
                "message": "It failed.",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
            world.patch_status(handle, {**status, "conditions": [condition]}, TASKRUN)
        assert adapter.status(handle) == expected

    def test_it_is_cancelled_by_its_own_field_and_stays(self, world: World) -> None:
        adapter = world.adapter(TASKRUN)
        handle = adapter.submit(submission(TASKRUN_MANIFEST)).handle
        adapter.cancel(handle)
        assert world.get(handle, TASKRUN)["spec"]["cancel"] is True
        assert isinstance(adapter.status(handle), Active)

    def test_it_can_not_be_cancelled_by_the_handle_of_another(self, world: World) -> None:
        adapter = world.adapter(TASKRUN)
        handle = adapter.submit(submission(TASKRUN_MANIFEST)).handle
        adapter.cancel(f"{handle.rpartition('/')[0]}/{uuid.uuid4()}")
        assert "cancel" not in world.get(handle, TASKRUN)["spec"]


class TestCancel:
    def test_the_job_is_there_until_what_it_made_is_gone_and_then_it_is_cancelled(self, world: World) -> None:
        adapter = world.adapter()
        handle = adapter.submit(submission()).handle
        about = world.get(handle)["metadata"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": about["name"], "uid": about["uid"]}
        pod = {
            "metadata": {
                "name": "worker",
                "finalizers": ["example.org/still-busy"],
                "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
            },
            "spec": POD,
        }
        path = f"/api/v1/namespaces/{world.namespace}/pods"
        world.control_plane.call("POST", path, pod)

        adapter.cancel(handle)
        assert adapter.status(handle) == Active("is being deleted")
        adapter.cancel(handle)
        world.control_plane.call("PATCH", f"{path}/worker", {"metadata": {"finalizers": None}})

        gone = wait_until(
            lambda: status if not isinstance(status := adapter.status(handle), Active) else None,
            seconds=60,
            what="the Job is gone",
        )
        assert gone == Cancelled("the object was deleted by a cancellation")
        # Who did not ask for it only sees that it is gone.
        assert isinstance(world.adapter().status(handle), NotFound)
        adapter.cancel(handle)

    def test_a_job_that_is_over_keeps_its_result(self, world: World) -> None:
        adapter = world.adapter()
        handle = adapter.submit(submission()).handle
        world.finish(handle, "Complete")
        adapter.cancel(handle)
        assert adapter.status(handle) == Succeeded()

    def test_another_object_of_the_name_is_left_alone(self, world: World) -> None:
        wanted = submission()
        adapter = world.adapter()
        old = adapter.submit(wanted).handle
        world.delete(old)
        new = adapter.submit(wanted).handle
        adapter.cancel(old)
        assert adapter.status(new) == Active()

    def test_an_api_server_that_refuses_is_no_success(self, world: World) -> None:
        handle = world.adapter().submit(submission()).handle
        stranger = KubernetesObjects(JOB, access=replace(world.access, token="no.such.token"))
        with pytest.raises(CallError, match="was not cancelled: 401"):
            stranger.cancel(handle)


class TestAccess:
    def test_a_pod_calls_by_its_own_service_account_and_follows_a_rotation(self, world: World, tmp_path: Path) -> None:
        (tmp_path / "token").write_text("rotated away")
        (tmp_path / "namespace").write_text(world.namespace)
        (tmp_path / "ca.crt").write_text(world.control_plane.ca_file.read_text())
        host, port = world.control_plane.url.removeprefix("https://").split(":")
        environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        adapter = KubernetesObjects(JOB, access=Access.from_pod(tmp_path, environment))
        with pytest.raises(Rejected, match="401"):
            adapter.submit(submission())
        (tmp_path / "token").write_text(world.control_plane.token(world.namespace) + "\n")
        assert adapter.submit(submission()).handle.startswith(f"{world.namespace}/")

    def test_a_client_certificate_is_enough(self, world: World) -> None:
        admin = Access.from_kubeconfig(world.control_plane.kubeconfig(namespace=world.namespace))
        assert admin.token is None
        assert KubernetesObjects(JOB, access=admin).look_up(submission()) is None

    def test_a_kubeconfig_may_be_json(self, world: World, tmp_path: Path) -> None:
        config = yaml.safe_load(world.control_plane.service_account_kubeconfig(world.namespace, "default").read_text())
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        assert KubernetesObjects(JOB, access=Access.from_kubeconfig(file)).look_up(submission()) is None

    def test_another_ca_is_not_trusted(self, world: World) -> None:
        with pytest.raises(Rejected, match="certificate verify failed") as caught:
            KubernetesObjects(JOB, access=replace(world.access, ca=None)).submit(submission())
        assert caught.value.retriable

    def test_without_a_token_the_adapter_is_not_made(self, tmp_path: Path) -> None:
        with pytest.raises(AccessError, match="must have its service account's token"):
            Access.from_pod(tmp_path, {})


@pytest.fixture
def pod_access(world: World, tmp_path: Path) -> Access:
    """The access of a pod in the namespace, from the files that the kubelet would write."""
    directory = tmp_path / "serviceaccount"
    directory.mkdir()
    (directory / "token").write_text(world.control_plane.token(world.namespace))
    (directory / "namespace").write_text(world.namespace)
    (directory / "ca.crt").write_text(world.control_plane.ca_file.read_text())
    host, port = world.control_plane.url.removeprefix("https://").split(":")
    return Access.from_pod(directory, {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port})


class TestOwnedByTaskRun:
    """The real garbage collector deletes the objects."""

    def test_finished_job_goes_with_its_taskrun_and_other_jobs_stay(
        self, world: World, pods: Pods, pod_access: Access
    ) -> None:
        def main(task: reattach.Task) -> None:
            for key, adapter in {
                "owned": KubernetesObjects(JOB, access=pod_access, owned=True),
                "kept": world.adapter(),
            }.items():
                job = task.submit_once(key, adapter, MANIFEST)
                world.finish(job.handle, "Complete")
                job.wait(0.1)

        pods.start(1).context().run(main)
        run, keys = pods.run, {made["metadata"]["annotations"]["reattach.dev/submitted-as"] for made in world.objects()}
        assert keys == {"owned#1", "kept#1"}
        path = TASKRUN.path(run.namespace, run.name)
        # As the operator does at the end of the run.
        world.control_plane.call("PATCH", path, {"metadata": {"finalizers": None}})
        world.control_plane.call("DELETE", path, propagationPolicy="Background")
        wait_until(lambda: len(world.objects()) == 1, seconds=60, what="the owned Job is collected")
        [left] = world.objects()
        assert left["metadata"]["annotations"]["reattach.dev/submitted-as"] == "kept#1"
        assert "ownerReferences" not in left["metadata"]

    def test_job_that_a_process_submits_after_the_deletion_is_collected(self, world: World, pod_access: Access) -> None:
        run = Run.create(world.control_plane, world.namespace)
        world.control_plane.call("DELETE", TASKRUN.path(run.namespace, run.name))
        late = replace(submission(), namespace=run.namespace, taskrun=run.name, owner=TaskRunOwner(run.uid))
        KubernetesObjects(JOB, access=pod_access, owned=True).submit(late)
        other = world.adapter().submit(submission()).handle
        wait_until(lambda: len(world.objects()) == 1, seconds=60, what="the late Job is collected")
        assert world.get(other)

    def test_job_that_must_outlive_its_taskrun_is_not_submitted(
        self, world: World, servers: Servers, pod_access: Access, tmp_path: Path
    ) -> None:
        adapter = KubernetesObjects(JOB, access=pod_access, owned=True)
        cases: list[tuple[dict[str, Any], bool, str]] = [
            ({"submission": {"idempotencyKey": "load"}}, False, "spec.submission.idempotencyKey is set"),
            ({"cleanup": {"onDelete": "Orphan"}}, False, "spec.cleanup.onDelete is Orphan"),
            ({}, True, "the job is detached"),
        ]
        server = servers.start()
        with Relay(port_of(server)) as relay:
            for number, (spec, detached, why) in enumerate(cases):
                run = Run.create(world.control_plane, world.namespace, name=f"load-{number}", **spec)
                directory = tmp_path / run.name
                directory.mkdir()
                with (
                    Pods(run, server, relay, directory).start(1).context() as task,
                    pytest.raises(reattach.JobFailed) as caught,
                ):
                    task.submit_once("load", adapter, MANIFEST, detached=detached)
                assert f"the Job must not be deleted with its TaskRun: {why}" in str(caught.value)
                assert "Leave `owned` out of the adapter" in str(caught.value)
        assert world.objects() == []


class TestAirflowCases:
    """`submit_once` with this adapter, the real state API, and attempts that die where Airflow's do."""

    def test_35_a_crash_after_create_but_before_persist_is_found_and_not_duplicated(
        self, world: World, pods: Pods
    ) -> None:
        class Dies(KubernetesObjects):
            def submit(self, submission: Submission) -> Submitted:
                super().submit(submission)
                raise KeyboardInterrupt

        def crash(task: reattach.Task) -> None:
            task.submit_once("load", Dies(JOB, access=world.access), MANIFEST)

        def watch(task: reattach.Task) -> str:
            job = task.submit_once("load", world.adapter(), MANIFEST)
            assert task.jobs.get("load").origin == JobOrigin.EXISTED  # type: ignore[union-attr]
            world.finish(job.handle, "Complete")
            job.wait(0.1)
            return job.handle

        with pytest.raises(KeyboardInterrupt):
            pods.start(1).context().run(crash)
        [made] = world.objects()
        handle = pods.start(2).context().run(watch)
        assert handle.endswith(made["metadata"]["uid"])
        assert len(world.objects()) == 1

    def test_36_an_object_that_is_gone_is_looked_for_and_then_made_anew_as_another_generation(
        self, world: World, pods: Pods
    ) -> None:
        class Settled(KubernetesObjects):
            """Does not wait for what an API server may still be working on."""

            @property
            def capabilities(self) -> Capabilities:
                return replace(super().capabilities, look_up=Lookup(timedelta(seconds=0.1)))

        handles: list[str] = []

        def finish_the_second() -> None:
            wait_until(world.objects, seconds=120, what="it was made anew")
            [made] = world.objects()
            about = made["metadata"]
            world.finish(f"{world.namespace}/{about['name']}/{about['uid']}", "Complete")

        def main(task: reattach.Task) -> int:
            adapter = Settled(JOB, access=world.access)
            job = task.submit_once("load", adapter, MANIFEST)
            handles.append(job.handle)
            world.delete(job.handle)
            assert isinstance(adapter.status(job.handle), NotFound)
            assert adapter.look_up(submission(token=job.token)) is None
            other = threading.Thread(target=finish_the_second)
            other.start()
            job.wait(0.1)
            other.join()
            handles.append(job.handle)
            return job.generation

        assert pods.start(1).context().run(main) == 2
        assert handles[0] != handles[1]
        assert len(world.objects()) == 1

    def test_37_a_malformed_handle_is_not_found_and_nothing_is_adopted_or_deleted(self, world: World) -> None:
        adapter = world.adapter()
        wanted = submission()
        handle = adapter.submit(wanted).handle
        for malformed in ("", "garbage", handle.rpartition("/")[0], f"{handle}/x", "a/../b", f"/{wanted.name}/"):
            status = adapter.status(malformed)
            assert isinstance(status, NotFound)
            assert "must be namespace/name/uid" in status.message
            adapter.cancel(malformed)
        # The search finds what the handle does not name.
        assert adapter.look_up(wanted) == Submitted(handle, existed=True)

    def test_38_the_same_name_with_another_uid_is_not_adopted(self, world: World) -> None:
        adapter = world.adapter()
        wanted = submission()
        old = adapter.submit(wanted).handle
        world.delete(old)
        new = adapter.submit(wanted).handle
        assert old.rpartition("/")[0] == new.rpartition("/")[0]
        status = adapter.status(old)
        assert isinstance(status, NotFound)
        assert "is another object" in status.message

    def test_39_what_an_earlier_attempt_failed_with_is_not_taken_for_the_next_ones(
        self, world: World, pods: Pods
    ) -> None:
        handles: list[str] = []

        def fail(task: reattach.Task) -> None:
            job = task.submit_once("load", world.adapter(), MANIFEST)
            handles.append(job.handle)
            world.finish(job.handle, "Failed")
            job.wait(0.1)

        def succeed(task: reattach.Task) -> int:
            job = task.submit_once("load", world.adapter(), MANIFEST)
            handles.append(job.handle)
            assert job.status() == Active()
            world.finish(job.handle, "Complete")
            job.wait(0.1)
            return job.generation

        with pytest.raises(reattach.JobFailed, match="it failed too often"):
            pods.start(1).context().run(fail)
        # What the operator writes of it.
        ended = {"number": 1, "end": "Reported", "cause": "Application", "chargedTo": "application"}
        run = TASKRUN.path(world.namespace, pods.run.name)
        world.control_plane.call("PATCH", f"{run}/status", {"status": {"attempts": [ended]}})
        assert pods.start(2).context().run(succeed) == 2
        assert handles[0] != handles[1]
        assert len(world.objects()) == 2
