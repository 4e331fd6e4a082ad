"""Deletion of ended TaskRuns by `spec.ttl`, by the real operator on a real API server.

`make test` creates 1,000 ended TaskRuns; REATTACH_ALL=1 creates 10,000.
"""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice
from typing import Any

import pytest

from apicalls import Event
from controlplane import ControlPlane, ControlPlaneError
from operator_process import (
    NAMESPACE,
    RULES,
    Cluster,
    Kubelet,
    Operator,
    Operators,
    fail,
    stage_of,
    succeed,
)
from reattach.api.names import LABEL_ORPHANS, orphans_name
from reattach.cluster.paths import configmaps, taskruns
from reattach.taskrun.ttl import TTL_FIELDS
from waiting import wait_until

COUNT = 10_000 if os.environ.get("REATTACH_ALL") else 1_000
SECONDS = 600 if os.environ.get("REATTACH_ALL") else 60
QUICK = ("--writes-per-second", "1000", "--sweep-seconds", "2")
HOUR = 3600

Object = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An ended TaskRun, and whether the operator must delete it. Each ended an hour ago."""

    name: str
    outcome: str | None
    ttl: Object | None
    is_due: bool = False
    is_orphaned: bool = False
    spec: Object = field(default_factory=dict)


CASES = (
    Case("succeeded", "Succeeded", {"succeededSeconds": 60}, is_due=True),
    Case("failed", "Failed", {"failedSeconds": 0, "succeededSeconds": 9 * HOUR}, is_due=True),
    Case("cancelled", "Cancelled", {"cancelledSeconds": HOUR - 60}, is_due=True),
    Case("other-outcome", "Succeeded", {"failedSeconds": 0, "cancelledSeconds": 0}),
    Case("not-yet", "Failed", {"failedSeconds": 2 * HOUR}),
    Case("no-ttl", "Failed", None),
    Case("of-another", "Succeeded", {"succeededSeconds": 0}, spec={"managedBy": "example.com/other"}),
    Case("orphaned", "Failed", {"failedSeconds": 0}, is_orphaned=True),
    Case("orphaned-and-dismissed", "Failed", {"failedSeconds": 0}, is_due=True),
)


def create_ended(cluster: Cluster, name: str, case: Case) -> None:
    found = cluster.create(name, case.spec, **({"ttl": case.ttl} if case.ttl else {}))
    is_orphaned = case.is_orphaned or "orphaned" in case.name
    if case.is_orphaned:
        record = {"name": orphans_name(name, found["metadata"]["uid"]), "labels": {LABEL_ORPHANS: name}}
        cluster.control_plane.call("POST", configmaps(cluster.namespace), {"metadata": record})
    ended = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = {"outcome": case.outcome, "completionTime": ended, "orphaned": is_orphaned}
    cluster.control_plane.call("PATCH", taskruns(cluster.namespace, name, "status"), {"status": status})


def create_many(cluster: Cluster, count: int) -> dict[str, Case]:
    cases = {f"{case.name}-{number}": case for number, case in enumerate(islice(cycle(CASES), count))}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: create_ended(cluster, *each), cases.items()))
    return cases


def names_in(cluster: Cluster) -> set[str]:
    names: set[str] = set()
    token = ""
    while True:
        page = cluster.control_plane.call("GET", taskruns(cluster.namespace), limit=500, **{"continue": token})
        names |= {item["metadata"]["name"] for item in page["items"]}
        if not (token := page["metadata"].get("continue", "")):
            return names


def deletions(cluster: Cluster, operator: Operator, mark: int) -> list[Event]:
    events = cluster.control_plane.audit(mark, user=operator.user, namespace=cluster.namespace)
    return [event for event in events if (event["verb"], event["objectRef"]["resource"]) == ("delete", "taskruns")]


def lists_of_ended(cluster: Cluster, operator: Operator, mark: int) -> list[str]:
    events = cluster.control_plane.audit(mark, user=operator.user, namespace=cluster.namespace)
    return [event["requestURI"] for event in events if event["verb"] == "list" and "spec.ttl." in event["requestURI"]]


def test_ended_taskruns_are_deleted_in_pages_with_one_call_each(
    control_plane: ControlPlane, namespace: str, operators: Operators
) -> None:
    cluster = Cluster(control_plane, namespace)
    cases = create_many(cluster, COUNT)
    cluster.create("unfinished", {"managedBy": "example.com/other"}, ttl={"succeededSeconds": 0})
    kept = {name for name, case in cases.items() if not case.is_due} | {"unfinished"}
    mark = control_plane.audit_mark()
    operator = operators.start(*QUICK, namespaces=[namespace])
    wait_until(lambda: names_in(cluster) == kept, seconds=SECONDS, what="only the others are left", every=0.5)

    deleted = deletions(cluster, operator, mark)
    succeeded = [event["objectRef"]["name"] for event in deleted if event["responseStatus"]["code"] == 200]
    assert Counter(succeeded) == Counter(cases.keys() - kept)
    # A page that was read right before a deletion still has the TaskRun. The sweeps here are short.
    assert {event["responseStatus"]["code"] for event in deleted} <= {200, 404}
    assert len(deleted) <= 1.5 * len(succeeded)
    for event in deleted:
        body = event["requestObject"]
        assert body["propagationPolicy"] == "Background"
        assert body["preconditions"].keys() == {"uid", "resourceVersion"}
    calls = control_plane.audit(mark, user=operator.user, namespace=namespace)
    reads = [event for event in calls if event["verb"] == "get" and event["objectRef"]["resource"] != "leases"]
    dismissed = [name for name, case in cases.items() if case.name == "orphaned-and-dismissed"]
    assert len(dismissed) <= len(reads) <= 1.5 * len(dismissed), "one read if the cache has no record of its jobs"
    uris = lists_of_ended(cluster, operator, mark)
    sweeps = -(-sum("continue=" not in uri for uri in uris) // len(TTL_FIELDS))
    # The first page of a list has 10 items, the others have 100.
    assert len(uris) <= sweeps * (len(cases) / 100 + 2 * len(TTL_FIELDS))

    orphaned = min(name for name, case in cases.items() if case.is_orphaned)
    uid = cluster.taskrun(orphaned)["metadata"]["uid"]
    control_plane.call("DELETE", configmaps(namespace, orphans_name(orphaned, uid)))
    wait_until(lambda: names_in(cluster) == kept - {orphaned}, seconds=60, what="the dismissed one is deleted")
    operator.kill()


def test_ttl_takes_effect_soon_after_the_end_and_after_a_change(
    control_plane: ControlPlane, operators: Operators, kubelet: Kubelet
) -> None:
    with stage_of(control_plane, operators, kubelet) as stage:  # the default interval of sweeps, 5 minutes
        stage.run("at-once", lambda _: succeed, ttl={"succeededSeconds": 0})
        stage.run("soon", lambda _: fail(3), ttl={"failedSeconds": 4})
        stage.run("postponed", lambda _: fail(3), ttl={"failedSeconds": 4})
        stage.run("kept", lambda _: fail(3), ttl={"succeededSeconds": 0})
        stage.cluster.wait_for_outcome("postponed")
        later = {"spec": {"ttl": {"failedSeconds": HOUR}}}
        control_plane.call("PATCH", taskruns(stage.namespace, "postponed"), later)
        gone = {"kept", "postponed"}
        wait_until(lambda: names_in(stage.cluster) == gone, seconds=60, what="two are deleted", every=0.1)
        wait_until(lambda: not stage.cluster.pods("at-once"), seconds=60, what="its pod is collected", every=0.1)
        assert stage.cluster.wait_for_outcome("kept")["outcome"] == "Failed"
        wait_until(lambda: stage.operator.metric("reattach_ttl_pending") == 0, seconds=60, what="nothing is pending")
        assert names_in(stage.cluster) == gone


def test_ttl_that_elapsed_while_no_operator_ran_takes_effect_at_its_start(
    control_plane: ControlPlane, namespace: str, operators: Operators
) -> None:
    cluster = Cluster(control_plane, namespace)
    create_ended(cluster, "load", CASES[0])
    paused = operators.start("--paused", *QUICK, namespaces=[namespace])
    operator = operators.make(namespaces=[namespace])  # with the default interval of sweeps
    assert names_in(cluster) == {"load"}, "a paused installation deletes nothing"
    paused.kill()
    operator.start()
    wait_until(lambda: not names_in(cluster), seconds=60, what="it is deleted", every=0.1)


def test_namespace_that_refuses_deletions_delays_no_other(control_plane: ControlPlane, operators: Operators) -> None:
    served, refused = (Cluster(control_plane, control_plane.create_namespace()) for _ in range(2))
    operators.make(namespaces=[served.namespace])  # creates the namespace of the Lease
    rbac, user = "/apis/rbac.authorization.k8s.io/v1", f"operator-of-{served.namespace}"
    subject = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}
    undeletable = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb != "delete"]}
        if "taskruns" in rule["resources"]
        else rule
        for rule in RULES
    ]
    cluster_wide = [rule for rule in RULES if "customresourcedefinitions" in rule["resources"]]
    for where, kind, rules in (
        (f"/namespaces/{served.namespace}/", "Role", RULES),
        (f"/namespaces/{refused.namespace}/", "Role", undeletable),
        (f"/namespaces/{NAMESPACE}/", "Role", RULES),
        ("/", "ClusterRole", cluster_wide),
    ):
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": user}
        plural = f"{kind.lower()}s"
        control_plane.call("POST", f"{rbac}{where}{plural}", {"metadata": {"name": user}, "rules": rules})
        binding = {"metadata": {"name": user}, "roleRef": role, "subjects": [subject]}
        control_plane.call("POST", f"{rbac}{where}{plural.removesuffix('s')}bindings", binding)
    for number in range(30):
        create_ended(refused, f"load-{number}", CASES[0])
    create_ended(served, "load", CASES[0])
    mark = control_plane.audit_mark()
    config = control_plane.kubeconfig(user, ())
    operator = operators.start(
        "--sweep-seconds", "5", namespaces=[refused.namespace, served.namespace], kubeconfig=config
    )
    operator.user = user
    wait_until(lambda: not names_in(served), seconds=30, what="the other namespace is swept", every=0.1)
    wait_until(lambda: len(deletions(refused, operator, mark)) > 30, seconds=30, what="it is tried again", every=0.5)
    tried = Counter(event["objectRef"]["name"] for event in deletions(refused, operator, mark))
    uris = lists_of_ended(refused, operator, mark)
    sweeps = sum("outcome%3DSucceeded" in uri and "continue=" not in uri for uri in uris)
    assert max(tried.values()) <= sweeps, "one call for each in each sweep"
    assert operator.log.count("Can't delete TaskRun") <= sweeps
    assert "is forbidden" in operator.log
    assert len(names_in(refused)) == 30
    operator.kill()


def test_operator_deletes_no_version_of_a_taskrun_that_it_has_not_read(
    control_plane: ControlPlane, namespace: str
) -> None:
    """The API server enforces the precondition on which the deletion relies."""
    cluster = Cluster(control_plane, namespace)
    create_ended(cluster, "load", CASES[0])
    metadata = cluster.taskrun("load")["metadata"]
    control_plane.call("PATCH", taskruns(namespace, "load"), {"spec": {"ttl": {"succeededSeconds": 9 * HOUR}}})
    preconditions = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
    with pytest.raises(ControlPlaneError, match="409"):
        control_plane.call("DELETE", taskruns(namespace, "load"), body)
    assert names_in(cluster) == {"load"}
