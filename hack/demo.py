"""Run examples/10-submit-once.yaml on the local cluster, print its progress, and check the result.

`make demo` runs this script after it has prepared the cluster, the image and the chart. kubectl and
its kubeconfig are in the cluster's cache.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parent.parent
CACHE = Path(os.environ.get("REATTACH_CACHE") or Path.home() / ".cache/reattach-cluster")
NAME = "submit-once"
EXAMPLE = f"examples/10-{NAME}.yaml"
TIMEOUT = 120.0
"""Seconds for the TaskRun to end (usually about 20), and for the job server to respond."""
STARTED = time.monotonic()


class DemoError(Exception):
    """The demo can't continue, or its result is not the expected one."""


def main() -> int:
    try:
        check(follow(*prepare()))
    except DemoError as error:
        say(f"FAILED: {error}")
        print_diagnostics()
        return 1
    return 0


def prepare() -> tuple[str, int]:
    """Start the job server, delete the TaskRun of an earlier demo, and apply the example.

    Returns:
        The TaskRun's UID, and the number of submissions that the job server had already received.
    """
    say("Starting the external system: a job server that counts submissions")
    kubectl("apply", "-k", "examples/jobserver")
    kubectl("rollout", "status", "deployment/jobserver", "--timeout=90s")
    wait_for_service()
    kubectl("delete", "-f", EXAMPLE, "--ignore-not-found", "--timeout=60s")
    before = submissions()
    say(f"kubectl apply -f {EXAMPLE}")
    kubectl("apply", "-f", EXAMPLE)
    return str(get("trun", NAME)["metadata"]["uid"]), before


def wait_for_service() -> None:
    """Wait until the Service responds on the node, which happens shortly after its pod is ready."""
    program = "import urllib.request; urllib.request.urlopen('http://jobserver:8000/healthz', timeout=5)"
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            kubectl("exec", "deployment/jobserver", "--", "python", "-c", program)
        except DemoError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def follow(uid: str, before: int) -> tuple[dict[str, Any], dict[int, str], int]:
    """Print the progress of the TaskRun until it has an outcome.

    Returns:
        The final status, the log of each attempt, and the number of submissions since `before`.
    """
    deadline = time.monotonic() + TIMEOUT
    printed: list[str] = []
    while True:
        taskrun = get("trun", NAME)
        if taskrun["metadata"]["uid"] != uid:
            raise DemoError(f"the TaskRun {NAME} was replaced during the demo")
        status = taskrun.get("status", {})
        logs = attempt_logs(uid)
        for line in progress(status, logs):
            if line not in printed:
                printed.append(line)
                say(line)
        if "outcome" in status:
            return status, logs, submissions() - before
        if time.monotonic() > deadline:
            raise DemoError(f"the TaskRun has no outcome after {TIMEOUT:g} s; its status is {json.dumps(status)}")
        time.sleep(0.3)


def progress(status: dict[str, Any], logs: dict[int, str]) -> list[str]:
    """Return one line for each event so far, oldest first.

    A line does not change once it is returned.
    """
    lines = []
    ended = {attempt["number"]: attempt for attempt in status.get("attempts", []) if "cause" in attempt}
    for number in sorted({*logs, *ended}):
        if number > 1 and number - 1 not in ended:
            break  # the logs are newer than the status; the next call returns the end of the previous attempt first
        lines.append(f"Attempt {number} runs")
        lines += [f"  its log | {line}" for line in without_noise(logs.get(number, ""))]
        if attempt := ended.get(number):
            code = f", exit code {attempt['exitCode']}" if "exitCode" in attempt else ""
            lines.append(f"Attempt {number} ended: {attempt['cause']}{code}")
    lines += [
        f"status.externalJobs: {job['key']} is {job['state']}, {job.get('handle', 'handle unknown')}"
        for job in status.get("externalJobs", [])
    ]
    if "nextAttemptTime" in status and "outcome" not in status:
        lines.append(f"The next attempt starts at {status['nextAttemptTime']}")
    if "outcome" in status:
        lines.append(f"The TaskRun ended: {status['outcome']}")
    return lines


def without_noise(log: str) -> list[str]:
    """Return the lines of a log without their times, which `say` prints, and without tracebacks."""
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \S+ ", "", line) for line in log.splitlines()]
    return [line for line in lines if not line.startswith((" ", "Traceback"))]


def check(seen: tuple[dict[str, Any], dict[int, str], int]) -> None:
    """Check the result of the demo, and print what to try next."""
    status, logs, submitted = seen
    table = kubectl("get", "trun", NAME)
    row = table.splitlines()[-1]
    attempts = [attempt["number"] for attempt in status.get("attempts", [])]
    jobs = {number: set(re.findall(r"job-[0-9a-f]+", log)) for number, log in logs.items()}
    expectations = {
        f"the outcome is Succeeded (it is {status['outcome']})": status["outcome"] == "Succeeded",
        f"there were two attempts (there were {attempts})": attempts == [1, 2],
        f"the job server saw exactly one submission (it saw {submitted})": submitted == 1,
        f"a second job was prevented (status.counts is {status.get('counts')})": status["counts"]["duplicatesAverted"]
        == 1,
        f"both attempts logged the same job (they logged {jobs})": len(jobs.get(1, ())) == 1
        and jobs.get(1) == jobs.get(2),
        f"the result is the job's (it is {status.get('result')})": json.loads(status.get("result", "{}"))
        == {"rows_written": 4211},
        f"kubectl shows the outcome and the result (it shows {row!r})": "Succeeded" in row and "4211" in row,
    }
    failed = [expectation for expectation, is_met in expectations.items() if not is_met]
    if failed:
        raise DemoError("expected but not observed: " + "; ".join(failed))
    job = jobs[1].pop()
    say(
        f"Two attempts, one job: attempt 1 crashed before it stored the ID of {job}; attempt 2 found the job and reattached to it."
    )
    say("The job server received one submission.")
    print(f"\n$ kubectl get trun {NAME}\n{table}")
    print(
        f"""What to try next:
  # use kubectl, helm and kubectl reattach with this cluster
  . {CACHE}/env; PATH="{REPOSITORY}/.venv/bin:$PATH"
  # show every attempt, why it ended, and how the job was resolved
  kubectl reattach explain {NAME}
  # show the task's state
  kubectl get configmap {status["state"]["configMap"]} -o yaml
  # show all retry settings
  kubectl explain trun.spec.retry
  # run a task whose submission has an unknown outcome, and resolve it
  kubectl apply -f examples/11-held.yaml; kubectl get trun held --watch
  # delete the cluster; make clean also removes everything that was built
  make cluster-down"""
    )


def print_diagnostics() -> None:
    """Print the objects, events and logs that help to find the cause of a failure."""
    for arguments in (
        ("get", "trun,pods", "-o", "wide"),
        ("get", "trun", NAME, "-o", "jsonpath={.status}"),
        ("get", "events", "--sort-by=.lastTimestamp"),
        ("get", "pods", "-n", "reattach"),
        ("logs", "-n", "reattach", "deployment/reattach-operator", "--tail=30"),
        ("logs", "-n", "reattach", "deployment/reattach-server", "--all-pods", "--tail=20"),
    ):
        print(f"\n$ kubectl {' '.join(arguments)}", file=sys.stderr)
        try:
            print(kubectl(*arguments), file=sys.stderr)
        except DemoError as error:
            print(error, file=sys.stderr)


def attempt_logs(uid: str) -> dict[int, str]:
    """Return the log of the task's container so far, by attempt number."""
    pods = json.loads(kubectl("get", "pods", "-l", f"reattach.dev/taskrun={NAME}", "-o", "json"))["items"]
    logs = {}
    for pod in pods:
        is_owned = any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences", []))
        states = [container["state"] for container in pod.get("status", {}).get("containerStatuses", [])]
        if is_owned and any("waiting" not in state for state in states):
            logs[int(pod["metadata"]["labels"]["reattach.dev/attempt"])] = kubectl(
                "logs", pod["metadata"]["name"], "-c", "task"
            )
    return dict(sorted(logs.items()))


def submissions() -> int:
    """Return the number of submissions of this example that the job server has received."""
    stats = json.loads(kubectl("get", "--raw", "/api/v1/namespaces/default/services/jobserver:http/proxy/stats"))
    return int(stats["by_label"].get(NAME, 0))


def get(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", kind, name, "-o", "json"))
    return found


def kubectl(*arguments: str) -> str:
    """Run kubectl in the namespace `default` of the local cluster, and return its output."""
    command = [str(CACHE / "bin/kubectl"), "--kubeconfig", str(CACHE / "kubeconfig"), "--request-timeout=30s"]
    if not {"-n", "--raw"} & set(arguments):
        command += ["-n", "default"]
    process = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    if process.returncode:
        raise DemoError(f"kubectl {' '.join(arguments)}: {process.stderr.strip()}")
    return process.stdout


def say(line: str) -> None:
    print(f"{time.monotonic() - STARTED:4.0f}s {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
