"""The chart's RBAC against what operator and state API really ask of the API server: none too few, none too many.

Both run with the arguments and under the service accounts that the chart gives them, and under its admission policies. The audit log tells what
they asked for.
"""

import base64
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cli_session import grant
from controlplane import ControlPlane, ControlPlaneError, helm_template
from operator_process import Cluster, Containers, Operator, kubelet_of, succeed
from ports import free_port
from reattach.api.names import ANNOTATION_CA, HEADER_SESSION, LABEL_ORPHANS, LABEL_TASKRUN, TOKEN_AUDIENCE
from stateapi import Task, new_session
from waiting import wait_until

Object = dict[str, Any]
Right = tuple[str, str, str]
"""API group, resource with subresource, verb."""

NOT_ASKED_FOR: dict[str, dict[Right, str]] = {
    "operator": {
        ("reattach.dev", "taskruns/finalizers", "update"): "asked for by an admission plugin, where it is on",
    },
    "server": {
        ("reattach.dev", "taskruns/finalizers", "update"): "asked for by an admission plugin, where it is on",
    },
}


@dataclass
class Installation:
    """Operator and state API of a release in a namespace of its own, and the one namespace that it serves."""

    control_plane: ControlPlane
    namespace: str
    served: str
    directory: Path
    mark: int
    objects: list[Object]

    def granted(self, component: str) -> set[Right]:
        """What the chart's rules for this part allow."""
        return {
            (group, resource, verb)
            for found in self.objects
            if found["kind"] in {"Role", "ClusterRole"}
            and found["metadata"]["labels"].get("app.kubernetes.io/component") == component
            for rule in found["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }

    def requests(self, component: str) -> list[Object]:
        """What it asked of the API server so far; a watch is there once it has ended."""
        user = f"system:serviceaccount:{self.namespace}:reattach-{component}"
        return [event for event in self.control_plane.audit(self.mark, user=user) if "objectRef" in event]

    def command(self, component: str, *more: str) -> list[str]:
        """The command of the chart's Deployment, with other arguments where a test differs from a pod."""
        (found,) = [
            found
            for found in self.objects
            if found["kind"] == "Deployment" and found["metadata"]["name"].endswith(component)
        ]
        (container,) = found["spec"]["template"]["spec"]["containers"]
        given = [argument.replace("$(POD_NAMESPACE)", self.namespace) for argument in container["args"]]
        kubeconfig = self.control_plane.service_account_kubeconfig(self.namespace, f"reattach-{component}")
        module = {"operator": "reattach.process", "server": "reattach.server"}[component]
        return [sys.executable, "-m", module, *given, f"--kubeconfig={kubeconfig}", *more]

    def operator(self) -> Operator:
        """Not yet started."""
        port = free_port()
        flags = ["--metrics-host=127.0.0.1", f"--metrics-port={port}", "--identity=pod-1", "--lease-renew-seconds=0.2"]
        command = self.command("operator", *flags)
        return Operator("", "pod-1", f"http://127.0.0.1:{port}", command, self.directory / "operator.log")

    def start_server(self) -> tuple[subprocess.Popen[bytes], int]:
        """The state API, with the certificate that the operator made, as a volume brings it."""
        path = f"/api/v1/namespaces/{self.namespace}/secrets/reattach-server-tls"

        def made() -> Object | None:  # the operator is ready before it made them: it leads first
            try:
                return self.control_plane.call("GET", path)
            except ControlPlaneError as error:
                if not str(error).startswith("404"):
                    raise
                return None

        secret = wait_until(made, seconds=60, what="the operator made the server's certificate")
        for key in ("tls.crt", "tls.key"):
            (self.directory / key).write_bytes(base64.b64decode(secret["data"][key]))
        port, health_port = free_port(), free_port()
        flags = [f"--port={port}", f"--health-port={health_port}", "--host=127.0.0.1", "--drain=0"]
        flags += [f"--tls-cert={self.directory}/tls.crt", f"--tls-key={self.directory}/tls.key"]
        with (self.directory / "server.log").open("wb") as log:
            process = subprocess.Popen(self.command("server", *flags), stdout=log, stderr=log)

        def ready() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{health_port}/readyz", trust_env=False).is_success
            except httpx.TransportError:
                return False

        wait_until(ready, seconds=30, what="the state API is ready")
        return process, port


@pytest.fixture(scope="module")
def installation(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    namespace = control_plane.create_namespace("rights")
    served = control_plane.create_namespace("served")
    rendered = helm_template(values={"watchNamespaces": [served], "metrics": {"enabled": True}}, namespace=namespace)
    objects = [found for found in yaml.safe_load_all(rendered) if found and found["kind"] != "CustomResourceDefinition"]
    for found in objects:
        if "Role" in found["kind"] or found["kind"] == "ServiceAccount" or "Admission" in found["kind"]:
            if not found["kind"].startswith(("Cluster", "Validating")):
                found["metadata"].setdefault("namespace", namespace)
            control_plane.apply(yaml.safe_dump(found))
    policies = [found for found in objects if "Admission" in found["kind"]]
    try:
        wait_until_policies_act(control_plane, namespace, served)
        directory = tmp_path_factory.mktemp("rights")
        yield Installation(control_plane, namespace, served, directory, control_plane.audit_mark(), objects)
    finally:
        control_plane.kubectl("delete", "--filename=-", stdin=yaml.safe_dump_all(policies))
        control_plane.delete_namespace(served)
        control_plane.delete_namespace(namespace)


def wait_until_policies_act(control_plane: ControlPlane, namespace: str, served: str) -> None:
    """Wait for the policy of the release Job, which is applied last."""
    user = f"system:serviceaccount:{namespace}:reattach-release"

    def acts() -> bool:
        try:
            control_plane.call(
                *("POST", f"/api/v1/namespaces/{served}/configmaps", {"metadata": {"name": "probe"}}),
                user=user,
                groups=("system:masters",),
                dryRun="All",
            )
        except ControlPlaneError as error:
            return "Reattach's release Job may only" in str(error)
        return False

    wait_until(acts, seconds=30, what="the admission policies act", every=0.1)


LIMITED = {
    "spec": {
        "containers": [{"name": "task", "image": "task:1"}],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Mi"}}],
    }
}
RUNS_ON = -1
"""Instead of an exit code: until it is stopped."""


def task_of(host: str, port: int, exit_codes: list[int]) -> Any:
    """A task that opens its state, writes it, submits a job once, and ends with the code of its attempt; with 0 it records completion."""

    def script(containers: Containers) -> None:
        containers.run()
        context = ssl.create_default_context(cadata=containers.pod["metadata"]["annotations"][ANNOTATION_CA])
        session = new_session()
        token = containers.control_plane.token(containers.namespace, audiences=[TOKEN_AUDIENCE], pod=containers.pod)
        headers = {"Authorization": f"Bearer {token}", HEADER_SESSION: session}
        name = {"sni_hostname": host}
        with httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=context, headers=headers, trust_env=False
        ) as client:
            exit_code = exit_codes[containers.attempt - 1]
            intent = {"submitter": session, "adapter": "http", "digest": "d"}
            handle = {"generation": 1, "submitter": session, "handle": "job-1"}
            calls = [
                ("POST", "/v1/open", {"session": session}),
                ("PUT", "/v1/state/job_id", {"value": "job-1"}),
                ("POST", "/v1/jobs/load/intent", intent),
                ("PUT", "/v1/jobs/load/handle", handle),
            ]
            if exit_code == 0:
                calls += [("PUT", "/v1/jobs/load/outcome", {"generation": 1, "state": "Succeeded"})]
                calls += [("POST", "/v1/complete", {})]
            for method, path, body in calls:
                client.request(method, path, json=body, extensions=name).raise_for_status()
        if exit_code != RUNS_ON:
            containers.end(exit_code)

    return script


def never_start(containers: Containers) -> None:
    containers.wait(reason="ImagePullBackOff")


@pytest.fixture(scope="module")
def lived(installation: Installation) -> Installation:
    """Some lives of TaskRuns, of every kind that asks for another right."""
    namespace, control_plane = installation.served, installation.control_plane
    cluster = Cluster(control_plane, namespace)
    # A CA without content: one Secret is to be replaced, the other made.
    secrets = f"/api/v1/namespaces/{installation.namespace}/secrets"
    control_plane.call("POST", secrets, {"metadata": {"name": "reattach-ca"}})
    operator = installation.operator()
    server = None
    try:
        operator.start()
        server, port = installation.start_server()
        host = f"reattach-server.{installation.namespace}.svc"
        scripts = {
            "retried": task_of(host, port, [1, 0]),
            "pending": never_start,
            "deleted": task_of(host, port, [RUNS_ON]),
            "cancelled": task_of(host, port, [RUNS_ON]),
            "expired": succeed,
            "limited": succeed,
        }
        with kubelet_of(control_plane) as kubelet:
            kubelet.play(namespace, lambda taskrun, _: scripts[taskrun])
            backoff = {"initialSeconds": 1, "jitterPercent": 0}
            cluster.create("retried", retry={"budgets": {"application": 1}, "backoff": backoff})
            cluster.create(
                "pending", deadlines={"pendingSeconds": 1}, retry={"budgets": {"neverStarted": 0, "disruption": 0}}
            )
            cluster.create("deleted")
            cluster.create("cancelled")
            cluster.create("expired", ttl={"succeededSeconds": 0})
            cluster.create("invalid", template={"spec": {"containers": [{"name": "task", "imagee": "task:1"}]}})
            cluster.create("limited", template=LIMITED)
            wait_until(
                lambda: cluster.status("cancelled").get("externalJobs"), seconds=60, what="it has submitted a job"
            )
            cancel = {"spec": {"cancel": True}}
            control_plane.call(
                "PATCH", f"/apis/reattach.dev/v1alpha1/namespaces/{namespace}/taskruns/cancelled", cancel
            )
            assert cluster.wait_for_outcome("cancelled", seconds=60)["outcome"] == "Cancelled"
            assert cluster.wait_for_outcome("retried", seconds=60)["outcome"] == "Succeeded"
            assert cluster.wait_for_outcome("pending", seconds=60)["outcome"] == "Failed"
            assert cluster.wait_for_outcome("invalid", seconds=60)["outcome"] == "Failed"
            assert cluster.wait_for_outcome("limited", seconds=60)["outcome"] == "Succeeded"
            wait_until(lambda: cluster.status("deleted").get("externalJobs"), seconds=60, what="the other one has, too")
            wait_until(lambda: cluster.status_if_there("expired") is None, seconds=60, what="its ttl has passed")
            # A pod that is hidden from the watch is asked for by name, and found.
            (pod,) = cluster.pods("deleted")
            path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}"
            control_plane.call("PATCH", path, {"metadata": {"labels": {LABEL_TASKRUN: None}}})
            wait_until(lambda: cluster.pods("deleted"), seconds=60, what="the pod has its label again")
            control_plane.call("DELETE", f"/apis/reattach.dev/v1alpha1/namespaces/{namespace}/taskruns/deleted")
            wait_until(lambda: not cluster.pods("deleted"), seconds=60, what="the pod of a deleted TaskRun is gone")
            cluster.wait_for_release("retried")
        operator.kill(signal.SIGTERM)  # ends its watches, and gives the Lease up
    finally:
        operator.kill()
        if server is not None:
            server.kill()
            server.wait()
    return installation


def asked_for(requests: list[Object]) -> set[Right]:
    found = set()
    for event in requests:
        about = event["objectRef"]
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        found.add((about.get("apiGroup", ""), resource, event["verb"]))
    return found


@pytest.mark.parametrize("component", ["operator", "server"])
def test_nothing_that_it_asked_for_was_refused(lived: Installation, component: str) -> None:
    refused = [event for event in lived.requests(component) if event["responseStatus"]["code"] in {401, 403}]
    assert [(event["verb"], event["requestURI"]) for event in refused] == []


@pytest.mark.parametrize("component", ["operator", "server"])
def test_every_right_was_used(lived: Installation, component: str) -> None:
    unused = lived.granted(component) - asked_for(lived.requests(component))
    assert unused == NOT_ASKED_FOR[component].keys()


def test_the_operator_reads_no_secret_but_its_own(lived: Installation) -> None:
    secrets = {event["objectRef"].get("name") for event in lived.requests("operator") if is_about(event, "secrets")}
    assert secrets == {"reattach-ca", "reattach-server-tls"}


def test_the_state_api_is_told_no_secret_at_all(lived: Installation) -> None:
    assert not [event for event in lived.requests("server") if is_about(event, "secrets")]


def test_user_with_edit_changes_a_state_with_the_cli_and_makes_no_other(lived: Installation) -> None:
    editor = grant(lived.control_plane, lived.served, "edit")
    said = editor("state", "set", "retried", "job_id", '"job-2"')
    assert (said.code, said.err) == (0, "")
    exported = editor("state", "export", "retried").out
    assert json.loads(exported)["entries"][0]["value"] == "job-2"
    said = editor("state", "import", "retried", "-", "--replace", stdin=exported.encode())
    assert (said.code, said.err) == (0, "")

    # A TaskRun of another operator, so no attempt of it starts.
    Task.create(lived.control_plane, lived.served, "unstarted", managedBy="example.org/other")
    said = editor("state", "import", "unstarted", "-", stdin=exported.encode())
    assert (said.code, said.err) == (0, "")
    assert editor("state", "get", "unstarted", "job_id", "--raw").out == "job-2\n"

    forged = {"metadata": {"name": "forged", "labels": {LABEL_TASKRUN: "retried"}}}
    with pytest.raises(ControlPlaneError, match=f"only Reattach may set the label {LABEL_TASKRUN} on a ConfigMap"):
        lived.control_plane.call("POST", f"/api/v1/namespaces/{lived.served}/configmaps", forged, user=editor.user)


def test_user_with_edit_lists_and_dismisses_the_record_of_orphaned_jobs(lived: Installation) -> None:
    editor = grant(lived.control_plane, lived.served, "edit")
    as_editor = {"user": editor.user, "groups": ("system:authenticated",)}
    path = f"/api/v1/namespaces/{lived.served}/configmaps"
    for taskrun in ("deleted", "cancelled"):
        found = lived.control_plane.call("GET", path, labelSelector=f"{LABEL_ORPHANS}={taskrun}", **as_editor)
        (record,) = found["items"]
        assert [job["handle"] for job in json.loads(record["data"]["record"])["jobs"]] == ["job-1"]
        copy = {"metadata": {"name": f"{taskrun}-00000-orphans", "labels": {LABEL_ORPHANS: taskrun}}}
        with pytest.raises(ControlPlaneError, match=f"only Reattach may set the label {LABEL_ORPHANS} on a ConfigMap"):
            lived.control_plane.call("POST", path, copy, **as_editor)
        lived.control_plane.call("DELETE", f"{path}/{record['metadata']['name']}", **as_editor)


def is_about(event: Object, resource: str) -> bool:
    return bool(event["objectRef"]["resource"] == resource)


@pytest.mark.parametrize(
    "component, verb, path",
    [
        ("operator", "PUT", "/apis/reattach.dev/v1alpha1/namespaces/{}/taskruns/retried"),
        ("operator", "DELETE", "/api/v1/namespaces/{}/configmaps/any"),
        ("operator", "GET", "/api/v1/namespaces/{}/secrets"),
        ("operator", "DELETE", "/api/v1/namespaces/{}/podtemplates/any"),
        ("server", "GET", "/api/v1/namespaces/{}/configmaps"),
        ("server", "DELETE", "/api/v1/namespaces/{}/configmaps/any"),
        ("server", "GET", "/api/v1/namespaces/{}/secrets/reattach-server-tls"),
        ("server", "PATCH", "/api/v1/namespaces/{}/pods/any"),
        ("server", "PUT", "/apis/reattach.dev/v1alpha1/namespaces/{}/taskruns/retried"),
        ("server", "DELETE", "/apis/reattach.dev/v1alpha1/namespaces/{}/taskruns/retried"),
    ],
)
def test_what_it_does_not_need_is_refused(lived: Installation, component: str, verb: str, path: str) -> None:
    user = f"system:serviceaccount:{lived.namespace}:reattach-{component}"
    groups = ("system:serviceaccounts", "system:authenticated")
    with pytest.raises(ControlPlaneError, match="403"):
        lived.control_plane.call(verb, path.format(lived.served), {}, user=user, groups=groups)
