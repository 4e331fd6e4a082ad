"""Fairness between namespaces: the number of one tenant's TaskRuns does not delay another tenant.

The API server, its ResourceQuota admission and the quota controller are real. `make test` creates
300 TaskRuns, because 5,000 take a minute to create; REATTACH_ALL=1 creates 5,000.
"""

import base64
import json
import os
import signal
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest

from apicalls import Event, call_of
from controlplane import CONTROLLERS, ControlPlane, ControlPlaneError, RunningControlPlane, Setup, running
from operator_process import Cluster, Kubelet, Operator, Operators, condition, fail, kubelet_of, succeed
from reattach.cluster.paths import core, pods
from reattach.pki.ca import new_authority, new_serving, pem_of
from waiting import wait_until

COUNT = 5000 if os.environ.get("REATTACH_ALL") else 300
REQUESTS_MAX = 20
"""Requests about the full namespace that the operator may send before it creates the other pod."""
SLOW = ("--writes-per-second", "10")
"""Options with which the backlog of `COUNT` TaskRuns lasts for minutes, on any machine."""
CREATIONS_MAX = 40
"""Creations in a full namespace within a minute: at most 8 workers at once, then probes."""
RUNS, PLACES = 60, 5
LONGEST_PAUSE = timedelta(seconds=5)
"""Longest time without a new pod while pods end all the time. It is usually below a second."""


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningControlPlane]:
    setup = Setup(controllers=(*CONTROLLERS, "resourcequota-controller"))
    with running(Path(tmp_path_factory.mktemp("control-plane")), setup=setup) as control_plane:
        yield control_plane


@pytest.fixture(scope="module")
def full(control_plane: ControlPlane) -> Cluster:
    """Namespace whose quota allows no pod, with `COUNT` TaskRuns."""
    cluster = Cluster(control_plane, control_plane.create_namespace("a"))
    set_quota(cluster, pods=0)
    create_many(cluster, COUNT)
    return cluster


def set_quota(cluster: Cluster, *, pods: int) -> None:
    """Create a ResourceQuota, and wait until the API server enforces it."""
    path = core("resourcequotas", cluster.namespace)
    body = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": str(pods)}}}
    cluster.control_plane.call("POST", path, body)

    def is_counted() -> bool:
        return "used" in cluster.control_plane.call("GET", f"{path}/few").get("status", {})

    wait_until(is_counted, seconds=30, what="the quota controller has counted the pods")
    if pods == 0:
        wait_until(lambda: is_rejected(cluster), seconds=30, what="the API server enforces the quota")


def is_rejected(cluster: Cluster, message: str = "exceeded quota") -> bool:
    body = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "probe", "image": "probe:1"}]}}
    try:
        cluster.control_plane.call("POST", pods(cluster.namespace), body, dryRun="All")
    except ControlPlaneError as error:
        return message in str(error)
    return False


def create_many(cluster: Cluster, count: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cluster.create(f"load-{number}"), range(count)))


def requests_before_pod(full: Cluster, idle: Cluster, name: str, operator: Operator, mark: int) -> list[str]:
    """Return the operator's requests about `full` until it created the pod of `name` in `idle`."""

    def requests() -> list[Event]:
        found = sorted(full.control_plane.audit(mark, user=operator.user), key=lambda each: str(each["stageTimestamp"]))
        counted = [event for event in found if event["verb"] not in {"watch", "list"} and "objectRef" in event]
        return counted if any(is_creation(event, idle) for event in counted) else []

    wait_until(lambda: idle.pods(name), seconds=60, what=f"the pod of {name} is created")
    # The API server writes the line of a request after its response.
    counted = wait_until(requests, seconds=60, what=f"the audit log has the creation of the pod of {name}")
    [pod] = [each for each in counted if is_creation(each, idle)]
    return [call_of(each) for each in counted[: counted.index(pod)] if namespace_of(each) == full.namespace]


def is_creation(event: Event, cluster: Cluster) -> bool:
    return call_of(event).startswith("create pods") and namespace_of(event) == cluster.namespace


def namespace_of(event: Event) -> str:
    return str(event["objectRef"].get("namespace"))


def test_pod_is_created_soon_during_a_backlog_of_another_namespace(
    control_plane: ControlPlane, operators: Operators, full: Cluster
) -> None:
    idle = Cluster(control_plane, control_plane.create_namespace("b"))
    idle.create("before-start")
    mark = control_plane.audit_mark()
    operator = operators.start(*SLOW, namespaces=[full.namespace, idle.namespace])
    sent = requests_before_pod(full, idle, "before-start", operator, mark)
    assert len(sent) <= REQUESTS_MAX, sent

    mark = control_plane.audit_mark()
    idle.create("after-start")
    sent = requests_before_pod(full, idle, "after-start", operator, mark)
    assert len(sent) <= REQUESTS_MAX, sent
    assert (operator.metric("reattach_queue_depth") or 0) > COUNT / 2, "there was no backlog"
    operator.kill(signal.SIGTERM)


def test_full_namespace_sends_few_creations_and_shows_why_its_taskruns_wait(
    control_plane: ControlPlane, operators: Operators, full: Cluster
) -> None:
    mark = control_plane.audit_mark()
    operator = operators.start(namespaces=[full.namespace])
    last = f"load-{COUNT - 1}"
    status = full.wait_for_reason(last, "QuotaExceeded", seconds=300)
    assert "exceeded quota: few" in condition(status, "Succeeded")["message"]
    found = control_plane.audit(mark, user=operator.user, namespace=full.namespace)
    times = sorted(time_of(event) for event in found if is_creation(event, full))
    assert len([time for time in times if time <= times[0] + timedelta(minutes=1)]) <= CREATIONS_MAX
    operator.kill(signal.SIGTERM)


def time_of(event: Event) -> datetime:
    return datetime.fromisoformat(event["requestReceivedTimestamp"])


@pytest.fixture
def kubelet(control_plane: ControlPlane) -> Iterator[Kubelet]:
    with kubelet_of(control_plane) as kubelet:
        yield kubelet


def test_runs_in_a_full_quota_start_as_pods_end(
    control_plane: ControlPlane, operators: Operators, kubelet: Kubelet
) -> None:
    cluster = Cluster(control_plane, control_plane.create_namespace("full"))
    set_quota(cluster, pods=PLACES)
    kubelet.play(cluster.namespace, lambda _, __: succeed)
    operator = operators.start(namespaces=[cluster.namespace])
    mark = control_plane.audit_mark()
    create_many(cluster, RUNS)

    def have_ended() -> bool:
        return (operator.metric("reattach_taskruns") or 0) == 0

    wait_until(have_ended, seconds=2 * RUNS, what="all TaskRuns have ended", every=0.2)
    found = control_plane.audit(mark, user=operator.user, namespace=cluster.namespace)
    creations = [event for event in found if is_creation(event, cluster)]
    assert len(creations) <= 2 * RUNS + CREATIONS_MAX
    times = sorted(time_of(event) for event in creations if is_success(event))
    assert len(times) == RUNS
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert max(pauses) < LONGEST_PAUSE, max(pauses)
    operator.kill()


def test_kept_pod_makes_room_for_the_next_attempt_and_pods_of_other_runs_stay(
    control_plane: ControlPlane, operators: Operators, kubelet: Kubelet
) -> None:
    cluster = Cluster(control_plane, control_plane.create_namespace("kept"))
    count_pods(cluster, 2)
    kubelet.play(
        cluster.namespace, lambda taskrun, attempt: fail() if taskrun == "retried" and attempt < 3 else succeed
    )
    operator = operators.start(namespaces=[cluster.namespace])
    cluster.create("other")
    assert cluster.wait_for_outcome("other", seconds=60)["outcome"] == "Succeeded"
    mark = control_plane.audit_mark()
    backoff = {"initialSeconds": 0, "jitterPercent": 0}
    cluster.create("retried", retry={"budgets": {"application": 2}, "backoff": backoff})
    status = cluster.wait_for_outcome("retried", seconds=120)
    assert (status["outcome"], status["counts"]["attempts"]) == ("Succeeded", 3)
    assert [pod["metadata"]["labels"]["reattach.dev/attempt"] for pod in cluster.pods("retried")] == ["3"]
    assert len(cluster.pods("other")) == 1
    events = control_plane.call("GET", f"/apis/events.k8s.io/v1/namespaces/{cluster.namespace}/events")["items"]
    notes = sorted(event["note"] for event in events if event["reason"] == "KeptPodDeleted")
    assert ["-1)" in notes[0], "-2)" in notes[1], len(notes)] == [True, True, 2]
    found = control_plane.audit(mark, user=operator.user, namespace=cluster.namespace)
    assert len([event for event in found if is_creation(event, cluster)]) <= 3 + 2 * 10
    operator.kill(signal.SIGTERM)


def count_pods(cluster: Cluster, count: int) -> None:
    """Create a ResourceQuota that counts pods that have ended, too."""
    path = core("resourcequotas", cluster.namespace)
    body = {"metadata": {"name": "objects"}, "spec": {"hard": {"count/pods": str(count)}}}
    cluster.control_plane.call("POST", path, body)

    def is_counted() -> bool:
        return "used" in cluster.control_plane.call("GET", f"{path}/objects").get("status", {})

    wait_until(is_counted, seconds=30, what="the quota controller has counted the pods")


def is_success(event: Event) -> bool:
    return int(event["responseStatus"]["code"]) < 400


class TooManyPods(BaseHTTPRequestHandler):
    """Admission webhook that denies every request with 429, to be repeated in an hour."""

    def do_POST(self) -> None:
        uid = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["request"]["uid"]
        status = {"code": 429, "message": "too many pods", "details": {"retryAfterSeconds": 3600}}
        response = {"uid": uid, "allowed": False, "status": status}
        body = json.dumps({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())


@pytest.fixture
def denying(control_plane: ControlPlane, tmp_path: Path) -> Iterator[Cluster]:
    """Namespace in which a webhook denies pods with 429."""
    cluster = Cluster(control_plane, control_plane.create_namespace("denying"))
    authority = new_authority(datetime.now(UTC), timedelta(days=1))
    serving = new_serving(authority, ("localhost",), datetime.now(UTC), timedelta(days=1))
    (tmp_path / "tls.pem").write_bytes(serving.key_pem() + pem_of(serving.certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "tls.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), TooManyPods)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    webhook = {
        "name": "pods.denying.example.com",
        "clientConfig": {
            "url": f"https://localhost:{server.server_port}/",
            "caBundle": base64.b64encode(pem_of(authority.certificate)).decode(),
        },
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    }
    control_plane.call("POST", path, {"metadata": {"name": "denying"}, "webhooks": [webhook]})
    yield cluster
    control_plane.call("DELETE", f"{path}/denying")
    server.shutdown()
    server.server_close()


def test_429_of_a_webhook_in_one_namespace_does_not_pause_another(
    control_plane: ControlPlane, operators: Operators, denying: Cluster
) -> None:
    wait_until(lambda: is_rejected(denying, "too many pods"), seconds=30, what="the API server calls the webhook")
    other = Cluster(control_plane, control_plane.create_namespace("other"))
    operator = operators.start(namespaces=[denying.namespace, other.namespace])
    denying.create("denied")
    status = denying.wait_for_reason("denied", "PodRefused", seconds=60)
    assert "too many pods" in condition(status, "Succeeded")["message"]
    other.create("load")
    wait_until(lambda: other.pods("load"), seconds=30, what="the pod in the other namespace is created")
    assert operator.metric("reattach_throttled_total") == 0
    operator.kill(signal.SIGTERM)
