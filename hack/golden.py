"""Record how Kubernetes reports the ends of pods, for tests/unit/planner/test_golden.py.

`make golden` runs this on the local cluster. Each case is a pod as the operator would create it.
The result is a file in tests/unit/planner/golden. Files whose source begins with `built` are not
recorded: no local cluster can produce them without harm to its other pods.
"""

import calendar
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from reattach.api.names import VOLUME_NAME
from reattach.api.taskrun import TaskRun
from reattach.planner.plan import PodDefaults
from reattach.planner.pods import build_pod

GOLDEN = Path(__file__).parent.parent / "tests/unit/planner/golden"
IMAGE = "localhost/reattach:dev"
WORKER = "reattach-worker"
FINALIZER = "example.org/golden"
SLOT = "example.org/golden"
"""Extended resource of which the worker has one, so that one pod can preempt another."""
SECONDS_MAX = 240
JSON = dict[str, Any]

STOPS = (
    "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\nprint('up', flush=True)\n"
)
WAITS = STOPS.format(code=143) + "time.sleep(600)\n"
WAITS_ZERO = STOPS.format(code=0) + "time.sleep(600)\n"
WRITES = "open('/scratch/f', 'wb').write(b'x' * 40_000_000)\ntime.sleep(600)\n"
REPORTS = """
import sys, msgspec
from reattach.api.messages import TerminationMessage
message = TerminationMessage(reattach="v1", {fields})
open("/dev/termination-log", "wb").write(msgspec.json.encode(message))
sys.exit({code})
"""
"""Program that ends as the SDK does, without a state API."""
ALLOCATES = "data = [b'x' * 10_000_000 for _ in range(30)]\nprint('all allocated')\n"


@dataclass(frozen=True)
class Case:
    """A pod, what is done to it once it runs, and the row that its end belongs to.

    `container`: more fields of the task's container. `act`: called with the name of the pod once
    `starts` says that it runs. `given`: what else the classification needs.
    """

    row: str
    code: str = "print('done')"
    container: JSON = field(default_factory=dict)
    pod: JSON = field(default_factory=dict)
    act: Callable[["Recorder", str], None] | None = None
    ends: str = "phase"
    given: JSON = field(default_factory=dict)

    def template(self) -> JSON:
        task = {"name": "task", "image": IMAGE, "command": ["python", "-uc", self.code], **self.container}
        others = self.pod.get("containers", [])
        return {"spec": {"terminationGracePeriodSeconds": 5, **self.pod, "containers": [task, *others]}}


def helper(name: str, code: str, **more: Any) -> JSON:
    """Return another container of a pod."""
    return {"name": name, "image": IMAGE, "command": ["python", "-uc", code], **more}


def reports(code: int, fields: str) -> str:
    """Return a program that exits with this code and this termination message."""
    return REPORTS.format(code=code, fields=fields)


def limited_directory(size: str = "10Mi") -> JSON:
    """Return the parts of a pod with a directory that is too small for what its task writes."""
    return {"volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": size}}]}


SCRATCH: JSON = {"volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}]}
CASES = {
    "exit-0": Case("the task exits with 0"),
    "exit-1": Case("the task exits with another code", "print('reading')\nraise ValueError('row 17 has no date')"),
    "permanent": Case("the task raises `PermanentFailure`", reports(1, "kind='Permanent', message='no such table'")),
    "retry-later": Case(
        "the task raises `RetryLater`",
        reports(1, "kind='RetryLater', message='quota is used up', retry_after_seconds=60"),
    ),
    "not-ready": Case(
        "the task raises `NotReady`",
        reports(1, "kind='RetryLater', message='no partition yet', retry_after_seconds=60, not_ready=True"),
    ),
    "oom": Case("it uses more memory than its limit", ALLOCATES, {"resources": {"limits": {"memory": "64Mi"}}}),
    "oom-init": Case(
        "an init container uses more memory than its limit",
        pod={"initContainers": [helper("prepare", ALLOCATES, resources={"limits": {"memory": "64Mi"}})]},
    ),
    "init-fails": Case(
        "an init container fails",
        pod={"initContainers": [helper("prepare", "print('fetching')\nraise SystemExit('no credentials: 400')")]},
    ),
    "emptydir": Case(
        "it stores more than an `emptyDir` with a `sizeLimit` may hold",
        "import time\n" + WRITES,
        SCRATCH,
        limited_directory(),
    ),
    "emptydir-0": Case(
        "it does, and exits with 0 on SIGTERM", STOPS.format(code=0) + WRITES, SCRATCH, limited_directory()
    ),
    "ephemeral": Case(
        "it stores more than its limit of `ephemeral-storage`",
        "import time\nopen('/tmp/f', 'wb').write(b'x' * 40_000_000)\ntime.sleep(600)\n",
        {"resources": {"limits": {"ephemeral-storage": "10Mi"}}},
    ),
    "limits-unused": Case(
        "it exits with 0 within its limits of storage", "print('done')", SCRATCH, limited_directory()
    ),
    "deadline": Case(
        "it runs longer than `deadlines.attemptSeconds`", WAITS, given={"spec": {"deadlines": {"attemptSeconds": 8}}}
    ),
    "deadline-0": Case(
        "it does, and exits with 0 on that SIGTERM", WAITS_ZERO, given={"spec": {"deadlines": {"attemptSeconds": 8}}}
    ),
    "deadline-after-0": Case(
        "it exits with 0 before that deadline stops another container",
        pod={"containers": [helper("proxy", WAITS)]},
        given={"spec": {"deadlines": {"attemptSeconds": 20}}},
    ),
    "deleted": Case("someone deletes the pod", WAITS, act=lambda recorder, name: recorder.delete(name)),
    "deleted-0": Case(
        "someone deletes the pod, and the task exits with 0 on SIGTERM",
        WAITS_ZERO,
        act=lambda recorder, name: recorder.delete(name),
    ),
    "evicted": Case(
        "the pod is drained or evicted by the API, also with exit code 0",
        WAITS_ZERO,
        act=lambda recorder, name: recorder.evict(name),
    ),
    "kueue": Case(
        "Kueue stops the pod, also with exit code 0",
        WAITS_ZERO,
        act=lambda recorder, name: recorder.stop_by_kueue(name),
    ),
    "preempted": Case(
        "the scheduler preempts the pod, also with exit code 0",
        WAITS_ZERO,
        {"resources": {"limits": {SLOT: 1}}},
        act=lambda recorder, name: recorder.preempt(name),
    ),
    "liveness": Case(
        "a liveness probe fails",
        "import time\ntime.sleep(600)\n",
        {"livenessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}},
        {"terminationGracePeriodSeconds": 1},
    ),
    "liveness-0": Case(
        "a liveness probe fails, and the task exits with 0 on SIGTERM",
        WAITS_ZERO,
        {
            "livenessProbe": {
                "exec": {"command": ["false"]},
                "initialDelaySeconds": 3,
                "periodSeconds": 1,
                "failureThreshold": 1,
            }
        },
    ),
    "no-program": Case("its program does not exist", container={"command": ["/no/such/program"]}),
    "no-image": Case(
        "its image can't be pulled within `deadlines.pendingSeconds`",
        container={"image": "localhost/no-such-image:1", "imagePullPolicy": "Never"},
        act=lambda recorder, name: recorder.delete(name),
        ends="waiting",
    ),
    "no-node": Case(
        "no node takes the pod within `deadlines.pendingSeconds`",
        pod={"nodeSelector": {"example.org/none": "yes"}},
        act=lambda recorder, name: recorder.delete(name),
        ends="unschedulable",
    ),
    "node-refuses": Case(
        "the kubelet refuses the pod, for example for want of memory",
        container={"resources": {"requests": {"memory": "900Gi"}}},
        pod={"nodeName": WORKER},
    ),
    "sidecar-fails": Case(
        "the task exits with 0 beside a native sidecar that fails",
        "import time\ntime.sleep(5)\nprint('done')",
        pod={"initContainers": [helper("proxy", "raise SystemExit(3)", restartPolicy="Always")]},
    ),
}


def kubectl(*arguments: str, stdin: str = "") -> str:
    """Return what kubectl prints."""
    command = ("kubectl", *arguments)
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout


class Recorder:
    """Creates the pods in a namespace of their own, and writes the files."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.before: dict[str, JSON] = {}

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return kubectl("--namespace", self.namespace, *arguments, stdin=stdin)

    def get(self, name: str) -> JSON:
        found: JSON = json.loads(self.kubectl("get", "pod", name, "--output", "json"))
        return found

    def create(self, name: str, case: Case) -> None:
        spec = {"template": case.template(), **case.given.get("spec", {})}
        about = {"name": name, "namespace": self.namespace, "uid": "0123456789"}
        taskrun = msgspec.json.decode(json.dumps({"metadata": about, "spec": spec}), type=TaskRun)
        pod = build_pod(taskrun, 1, PodDefaults(url="https://reattach.invalid", ca="no certificate"))
        # Only the operator may set its labels and finalizers, and use its tokens.
        pod["metadata"] = {"name": name, "finalizers": [FINALIZER]}
        spec = pod["spec"]
        spec["volumes"] = [volume for volume in spec["volumes"] if volume["name"] != VOLUME_NAME]
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            container.setdefault("imagePullPolicy", "IfNotPresent")
            mounts = container.get("volumeMounts", ())
            container["volumeMounts"] = [mount for mount in mounts if mount["name"] != VOLUME_NAME]
        self.kubectl("create", "--filename=-", stdin=json.dumps(pod))

    def delete(self, name: str) -> None:
        self.kubectl("delete", "pod", name, "--wait=false")

    def evict(self, name: str) -> None:
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": self.namespace}}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/eviction"
        self.kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(body))

    def stop_by_kueue(self, name: str) -> None:
        """Do what `Pod.Stop` of Kueue v0.17.0 does (pkg/controller/jobs/pod/pod_controller.go)."""
        target = {
            "type": "TerminationTarget",
            "status": "True",
            "reason": "WorkloadEvicted",
            "message": "Preempted to accommodate a higher priority Workload",
            "lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        patch = json.dumps({"status": {"conditions": [target]}})
        self.kubectl("patch", "pod", name, "--subresource=status", "--type=strategic", "--patch", patch)
        self.delete(name)

    def preempt(self, name: str) -> None:
        """Create a pod of a higher priority that needs the same slot."""
        task = {"name": "task", "image": IMAGE, "command": ["true"], "resources": {"limits": {SLOT: 1}}}
        spec = {"priorityClassName": self.namespace, "restartPolicy": "Never", "containers": [task]}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"above-{name}"}, "spec": spec}
        self.kubectl("create", "--filename=-", stdin=json.dumps(body))

    def record(self, cases: Mapping[str, Case]) -> None:
        """Play the cases at once, and write the file of each that ends."""
        waiting = dict(cases)
        for name, case in cases.items():
            self.create(name, case)
        acted: set[str] = set()
        until = time.monotonic() + SECONDS_MAX
        while waiting and time.monotonic() < until:
            for name, case in tuple(waiting.items()):
                pod = self.get(name)
                if case.act is not None and name not in acted and _is_ready(pod, case.ends):
                    self.before[name] = pod
                    case.act(self, name)
                    acted.add(name)
                elif _has_ended(pod, case) and (case.act is None or name in acted):
                    self.write(name, case, pod)
                    del waiting[name]
            time.sleep(1)
        if waiting:
            sys.exit(f"These pods have not ended within {SECONDS_MAX} s: {', '.join(waiting)}")

    def write(self, name: str, case: Case, pod: JSON) -> None:
        version = json.loads(self.kubectl("get", "--raw", "/version"))["gitVersion"]
        content: JSON = {"row": case.row, "source": f"recorded on Kubernetes {version}", **case.given}
        if case.ends != "phase":
            content["before"] = reduce(self.before[name])
        if event := self.eviction(name):
            content["event"] = event
        content["pod"] = reduce(pod)
        (GOLDEN / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        print(f"{name}: {pod['status']['phase']}", flush=True)

    def eviction(self, name: str) -> str:
        selector = f"reason=Evicted,involvedObject.name={name}"
        found = json.loads(self.kubectl("get", "events", "--field-selector", selector, "--output", "json"))["items"]
        return str(found[0]["message"]) if found else ""


def _is_ready(pod: JSON, ends: str) -> bool:
    """Return whether the pod is in the state in which its case acts."""
    statuses = pod["status"].get("containerStatuses", [])
    if ends == "waiting":
        reasons = {one["state"].get("waiting", {}).get("reason") for one in statuses}
        return bool(reasons - {None, "ContainerCreating", "PodInitializing"})
    if ends == "unschedulable":
        return any(one.get("reason") == "Unschedulable" for one in pod["status"].get("conditions", []))
    # The handler of SIGTERM needs a moment, and a stop within the clock skew is ambiguous.
    started = [one["state"]["running"]["startedAt"] for one in statuses if "running" in one["state"]]
    return bool(started) and time.time() - _seconds(started[0]) > 3


def _has_ended(pod: JSON, case: Case) -> bool:
    is_deleted = "deletionTimestamp" in pod["metadata"]
    return pod["status"]["phase"] in {"Succeeded", "Failed"} or (is_deleted and case.ends == "unschedulable")


def _seconds(stamp: str) -> float:
    return float(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))


_METADATA = ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation")
_SPEC = ("nodeName", "restartPolicy", "terminationGracePeriodSeconds", "activeDeadlineSeconds")
_CONTAINER = ("name", "restartPolicy", "resources", "terminationMessagePolicy", "terminationMessagePath")
_STATUS = ("observedGeneration", "phase", "reason", "message", "startTime", "conditions")


def reduce(pod: JSON) -> JSON:
    """Return the parts of the pod that tell how it ended, without addresses and identifiers."""
    spec = pod["spec"]
    kept = {key: spec[key] for key in _SPEC if key in spec}
    for kind in ("initContainers", "containers"):
        if kind in spec:
            kept[kind] = [{key: one[key] for key in _CONTAINER if key in one} for one in spec[kind]]
    kept["volumes"] = [volume for volume in spec["volumes"] if "emptyDir" in volume]
    status = {key: pod["status"][key] for key in _STATUS if key in pod["status"]}
    for kind in ("initContainerStatuses", "containerStatuses"):
        statuses = pod["status"].get(kind, [])
        if statuses:
            status[kind] = [{"name": one["name"], "state": _without_id(one["state"])} for one in statuses]
    metadata = {key: pod["metadata"][key] for key in _METADATA if key in pod["metadata"]}
    return {"metadata": metadata, "spec": kept, "status": status}


def _without_id(state: JSON) -> JSON:
    return {kind: {key: value for key, value in one.items() if key != "containerID"} for kind, one in state.items()}


@contextmanager
def prepared() -> Iterator[Recorder]:
    """Create a namespace, a priority class and a slot on the worker, and remove them at the end."""
    recorder = Recorder(f"golden-{secrets.token_hex(3)}")
    name = recorder.namespace
    capacity = f"/status/capacity/{SLOT.replace('/', '~1')}"

    def patch_worker(*operations: JSON) -> None:
        text = json.dumps(operations)
        kubectl("patch", "node", WORKER, "--subresource=status", "--type=json", "--patch", text)

    kubectl("create", "namespace", name)
    try:
        recorder.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=30s")
        kubectl("create", "priorityclass", name, "--value=1000", "--description=for make golden")
        patch_worker({"op": "add", "path": capacity, "value": "1"})
        yield recorder
    finally:
        kubectl("delete", "priorityclass", name, "--ignore-not-found")
        patch_worker({"op": "add", "path": capacity, "value": "0"}, {"op": "remove", "path": capacity})
        for pod in json.loads(recorder.kubectl("get", "pods", "--output", "json"))["items"]:
            clear = json.dumps({"metadata": {"finalizers": None}})
            recorder.kubectl("patch", "pod", pod["metadata"]["name"], "--type=merge", "--patch", clear)
        kubectl("delete", "namespace", name, "--wait=false")


def main() -> None:
    """Record the cases with these names, or all."""
    names = sys.argv[1:] or list(CASES)
    with prepared() as recorder:
        recorder.record({name: CASES[name] for name in names})


if __name__ == "__main__":
    main()
