"""Runs examples/10-submit-once.yaml on the local cluster, tells what happens as it happens, and holds it to what Reattach promises.

`make demo` calls it once the cluster, the image and the chart are there; kubectl and KUBECONFIG come from the cluster's cache.
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
PATIENCE = (
    120.0  # seconds from kubectl apply to the end of the story, which takes some 20; and for the job server to answer
)
STARTED = time.monotonic()


class DemoError(Exception):
    """The demo can't go on, or shows something else than it should."""


def main() -> int:
    try:
        show(follow(*prepare()))
    except DemoError as error:
        say(f"FAILED: {error}")
        explain()
        return 1
    return 0


def prepare() -> tuple[str, int]:
    """Start the job server, remove what an earlier demo left, apply the example.

    Returns:
        The TaskRun's UID, and how many submissions the job server had seen before.
    """
    say("Starting the external system: a job server that counts what is submitted to it")
    kubectl("apply", "-k", "examples/jobserver")
    kubectl("rollout", "status", "deployment/jobserver", "--timeout=90s")
    wait_for_service()
    kubectl("delete", "-f", EXAMPLE, "--ignore-not-found", "--timeout=60s")
    before = submissions()
    say(f"kubectl apply -f {EXAMPLE}")
    kubectl("apply", "-f", EXAMPLE)
    return str(get("trun", NAME)["metadata"]["uid"]), before


def wait_for_service() -> None:
    """On a node, a Service answers a little after its pod is ready."""
    ask = "import urllib.request; urllib.request.urlopen('http://jobserver:8000/healthz', timeout=5)"
    until = time.monotonic() + PATIENCE
    while True:
        try:
            kubectl("exec", "deployment/jobserver", "--", "python", "-c", ask)
        except DemoError:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
        else:
            return


def follow(uid: str, before: int) -> tuple[dict[str, Any], dict[int, str], int]:
    """Tell the story as it happens, until there is an outcome.

    Returns:
        The final status, what each attempt logged, and the number of submissions since `before`.
    """
    until = time.monotonic() + PATIENCE
    told: list[str] = []
    while True:
        taskrun = get("trun", NAME)
        if taskrun["metadata"]["uid"] != uid:
            raise DemoError(f"somebody replaced the TaskRun {NAME} meanwhile")
        status = taskrun.get("status", {})
        logs = attempt_logs(uid)
        for line in story(status, logs):
            if line not in told:
                told.append(line)
                say(line)
        if "outcome" in status:
            return status, logs, submissions() - before
        if time.monotonic() > until:
            raise DemoError(f"no outcome within {PATIENCE:g} s; the status is {json.dumps(status)}")
        time.sleep(0.3)


def story(status: dict[str, Any], logs: dict[int, str]) -> list[str]:
    """What is known by now, in sentences, oldest first; each stays the same once it is true."""
    lines = []
    ended = {attempt["number"]: attempt for attempt in status.get("attempts", []) if "cause" in attempt}
    for number in sorted({*logs, *ended}):
        if number > 1 and number - 1 not in ended:
            break  # the logs were read after the status: what came in between is told first, the next time
        lines.append(f"Attempt {number} runs")
        lines += [f"  its log | {line}" for line in told_of(logs.get(number, ""))]
        if attempt := ended.get(number):
            code = f", exit code {attempt['exitCode']}" if "exitCode" in attempt else ""
            lines.append(f"Attempt {number} ended: {attempt['cause']}{code}")
    lines += [
        f"status.externalJobs: {job['key']} is {job['state']}, {job.get('handle', 'its id not known')}"
        for job in status.get("externalJobs", [])
    ]
    if "nextAttemptTime" in status and "outcome" not in status:
        lines.append(f"The next attempt starts at {status['nextAttemptTime']}")
    if "outcome" in status:
        lines.append(f"The TaskRun is over: {status['outcome']}")
    return lines


def told_of(log: str) -> list[str]:
    """What a task logged, without the time, which is told already, and without tracebacks."""
    lines = [re.sub(r"^\d{4}-\d\d-\d\d \S+ ", "", line) for line in log.splitlines()]
    return [line for line in lines if not line.startswith((" ", "Traceback"))]


def show(seen: tuple[dict[str, Any], dict[int, str], int]) -> None:
    """Hold the end to what was promised, and say what to try next."""
    status, logs, submitted = seen
    table = kubectl("get", "trun", NAME)
    row = table.splitlines()[-1]
    attempts = [attempt["number"] for attempt in status.get("attempts", [])]
    jobs = {number: set(re.findall(r"job-[0-9a-f]+", log)) for number, log in logs.items()}
    promises = {
        f"the outcome is Succeeded (it is {status['outcome']})": status["outcome"] == "Succeeded",
        f"there were two attempts (there were {attempts})": attempts == [1, 2],
        f"the job server saw exactly one submission (it saw {submitted})": submitted == 1,
        f"a second job was averted (status.counts is {status.get('counts')})": status["counts"]["duplicatesAverted"]
        == 1,
        f"both attempts speak of one and the same job (they speak of {jobs})": len(jobs.get(1, ())) == 1
        and jobs.get(1) == jobs.get(2),
        f"the result is the job's (it is {status.get('result')})": json.loads(status.get("result", "{}"))
        == {"rows_written": 4211},
        f"kubectl shows the outcome and the result (it shows {row!r})": "Succeeded" in row and "4211" in row,
    }
    broken = [promise for promise, kept in promises.items() if not kept]
    if broken:
        raise DemoError("it does not hold that " + "; nor that ".join(broken))
    job = jobs[1].pop()
    say(
        f"Two attempts, one job: attempt 1 died before the id of {job} was stored; attempt 2 found out and took it over."
    )
    say("The job server has counted one submission.")
    print(f"\n$ kubectl get trun {NAME}\n{table}")
    print(
        f"""What to try next:
  # kubectl, helm and kubectl reattach for this cluster
  . {CACHE}/env; PATH="{REPOSITORY}/.venv/bin:$PATH"
  # every attempt, why it ended, and what was decided about the job
  kubectl reattach explain {NAME}
  # the task's state
  kubectl get configmap {status["state"]["configMap"]} -o yaml
  # what else a TaskRun can say about its retries
  kubectl explain trun.spec.retry
  # a job that nobody can tell of, and the one command that answers
  kubectl apply -f examples/11-held.yaml; kubectl get trun held --watch
  # the end; make clean removes all that was built
  make cluster-down"""
    )


def explain() -> None:
    """What helps to find out why."""
    for question in (
        ("get", "trun,pods", "-o", "wide"),
        ("get", "trun", NAME, "-o", "jsonpath={.status}"),
        ("get", "events", "--sort-by=.lastTimestamp"),
        ("get", "pods", "-n", "reattach"),
        ("logs", "-n", "reattach", "deployment/reattach-operator", "--tail=30"),
        ("logs", "-n", "reattach", "deployment/reattach-server", "--all-pods", "--tail=20"),
    ):
        print(f"\n$ kubectl {' '.join(question)}", file=sys.stderr)
        try:
            print(kubectl(*question), file=sys.stderr)
        except DemoError as error:
            print(error, file=sys.stderr)


def attempt_logs(uid: str) -> dict[int, str]:
    """What the task's container of each attempt has logged so far, by attempt."""
    pods = json.loads(kubectl("get", "pods", "-l", f"reattach.dev/taskrun={NAME}", "-o", "json"))["items"]
    logs = {}
    for pod in pods:
        ours = any(owner["uid"] == uid for owner in pod["metadata"].get("ownerReferences", []))
        states = [container["state"] for container in pod.get("status", {}).get("containerStatuses", [])]
        if ours and any("waiting" not in state for state in states):
            logs[int(pod["metadata"]["labels"]["reattach.dev/attempt"])] = kubectl(
                "logs", pod["metadata"]["name"], "-c", "task"
            )
    return dict(sorted(logs.items()))


def submissions() -> int:
    """How many jobs of this example the job server was ever asked to run."""
    stats = json.loads(kubectl("get", "--raw", "/api/v1/namespaces/default/services/jobserver:http/proxy/stats"))
    return int(stats["by_label"].get(NAME, 0))


def get(kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl("get", kind, name, "-o", "json"))
    return found


def kubectl(*arguments: str) -> str:
    """What kubectl prints about namespace `default` of the local cluster."""
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
