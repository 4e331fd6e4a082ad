"""Ends that tasks report, where the template has termination message settings of its own."""

from typing import Any

from realcluster import IMAGE, Cluster, condition_of, taskrun
from waiting import wait_until

PERMANENT = """
import reattach

def main(task):
    raise reattach.PermanentFailure("table orders_2024 does not exist")

reattach.run(main)
"""
RETRY_LATER = """
import reattach

def main(task):
    raise reattach.RetryLater(90, "no slot")

reattach.run(main)
"""
FAILED = """
import reattach

def main(task):
    raise ValueError("no column id")

reattach.run(main)
"""
HELD = """
import os

import reattach
from reattach.adapter import Active, Adapter, Capabilities

class Vague(Adapter):
    name, request_seconds, poll_seconds = "vague", 5.0, 1.0
    capabilities = Capabilities()

    def submit(self, submission):
        os._exit(1)

    def status(self, handle):
        return Active()

    def cancel(self, handle):
        pass

reattach.run(lambda task: task.submit_once("load", Vague(), {}).wait())
"""


def test_report_arrives_whatever_the_termination_message_settings_are(release: Cluster, namespace: str) -> None:
    def apply(name: str, program: str, **settings: str) -> None:
        container = {
            "name": "task",
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python", "-c", program],
            **settings,
        }
        retry = {"budgets": {"application": 1}, "backoff": {"initialSeconds": 1, "jitterPercent": 0}}
        release.apply(taskrun(name, container, retry=retry), namespace)

    def first_end_of(name: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            found = (release.get("taskrun", name, namespace) or {}).get("status", {})
            return found if any("finishTime" in one for one in found.get("attempts", ())) else None

        return wait_until(ended, seconds=180, what=f"attempt 1 of {name} has ended", every=1)

    own_path = {"terminationMessagePath": "/tmp/termination"}
    logs = {"terminationMessagePolicy": "FallbackToLogsOnError"}
    apply("path", PERMANENT, **own_path)
    apply("path-and-logs", PERMANENT, **own_path, **logs)
    apply("path-retry-later", RETRY_LATER, **own_path, **logs)
    apply("path-held", HELD, **own_path)
    apply("path-failed", FAILED, **own_path)

    for name in ("path", "path-and-logs"):
        status = release.finished(name, namespace)["status"]
        [attempt] = status["attempts"]
        assert (status["outcome"], attempt["cause"], attempt["reason"]) == ("Failed", "Permanent", "PermanentFailure")
        assert attempt["message"] == "table orders_2024 does not exist"
        assert attempt["message"] in release.reattach("explain", name, namespace=namespace)

    later = first_end_of("path-retry-later")
    [attempt] = later["attempts"]
    assert (attempt["cause"], attempt["reason"], attempt["message"]) == ("Application", "RetryLater", "no slot")

    failed = first_end_of("path-failed")["attempts"][0]
    assert (failed["cause"], failed["message"]) == ("Application", "ValueError: no column id")

    def is_held() -> bool:
        held = condition_of(release.get("taskrun", "path-held", namespace), "Held")
        return (held.get("status"), held.get("reason")) == ("True", "SubmissionUnknown")

    wait_until(is_held, seconds=180, what="path-held is held", every=1)
    attempts = (release.get("taskrun", "path-held", namespace) or {})["status"]["attempts"]
    assert [(one["cause"], one["exitCode"]) for one in attempts] == [("Application", 1), ("Held", 85)]
    release.let_go_of_held(namespace)
