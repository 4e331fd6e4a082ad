"""Alerts and dashboard of the chart on a real Prometheus.

Prometheus scrapes a real operator and a real state API. The pauses of the alerts are 0 seconds.
"""

import itertools
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml

from controlplane import CACHE, CHART, helm_template
from operator_process import Stage
from ports import free_port
from taskscripts import Tasks
from waiting import wait_until

PROMETHEUS = CACHE / "prometheus/usr/bin/prometheus"
SLOW = 120
WAITED = ("ReattachNoLeader", "ReattachRunsHeld", "ReattachStateAPIDown")


class Prometheus:
    """The HTTP API of a Prometheus."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        response = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, trust_env=False, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def firing(self) -> dict[str, dict[str, Any]]:
        found = self.get("alerts")["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in found if alert["state"] == "firing"}

    def has_data(self, query: str) -> bool:
        return any(sample["value"][1] != "NaN" for sample in self.get("query", query=query)["result"])


def rules() -> dict[str, Any]:
    values = {"enabled": True, "alerts": {name: {"for": "0s"} for name in WAITED}}
    rendered = helm_template("prometheusrule.yaml", values={"metrics": {"prometheusRule": values}})
    spec: dict[str, Any] = yaml.safe_load(rendered)["spec"]
    return spec


@pytest.fixture(scope="module")
def prometheus(stage: Stage, tasks: Tasks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Start a Prometheus with the labels that a PodMonitor sets."""
    directory = tmp_path_factory.mktemp("prometheus")
    targets = [
        {"targets": [url.removeprefix("http://")], "labels": {"namespace": "reattach", "pod": pod}}
        for pod, url in {"operator": stage.operator.health_url, "server": tasks.server.health_url}.items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "reattach", "static_configs": targets}],
    }
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules()))
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(PROMETHEUS),
                f"--config.file={directory / 'prometheus.yaml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        running = Prometheus(f"http://{address}")
        wait_until(running.is_ready, seconds=SLOW, what=f"Prometheus is ready; its log is {directory / 'log'}")
        yield running
    finally:
        process.kill()
        process.wait(30)


def dashboard_queries() -> dict[str, str]:
    """Return the queries by panel, with the variables as Grafana replaces them."""
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    queries = {}
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$namespace", "reattach").replace("$__rate_interval", "5m")
            queries[f"{panel['title']}: {target['legendFormat']}"] = query
    return queries


def test_each_query_of_the_dashboard_returns_data(prometheus: Prometheus, stage: Stage, tasks: Tasks) -> None:
    numbers = itertools.count(1)
    queries = dashboard_queries()
    assert len(queries) > 20

    def missing() -> list[str]:
        return [title for title, query in queries.items() if not prometheus.has_data(query)]

    def all_have_data() -> bool:
        # A rate needs an increase between two scrapes, so the load continues.
        name = f"queried-{next(numbers)}"
        stage.run(name, lambda _: tasks.finish)
        stage.cluster.wait_for_outcome(name, seconds=SLOW)
        return not missing()

    try:
        wait_until(all_have_data, seconds=SLOW, what="all queries return data", every=0.5)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{missing()}") from None


def test_alerts_fire_and_resolve(prometheus: Prometheus, stage: Stage, tasks: Tasks) -> None:
    def fires(name: str) -> dict[str, Any] | None:
        return prometheus.firing().get(name)

    def wait_for_end(name: str) -> None:
        wait_until(lambda: not fires(name), seconds=SLOW, what=f"{name} is resolved", every=0.2)

    for name in WAITED:
        wait_for_end(name)

    stage.run("alarming", lambda _: tasks.ask)
    alert = wait_until(lambda: fires("ReattachRunsHeld"), seconds=SLOW, what="a held run fires", every=0.2)
    assert alert["labels"]["reason"] == "SubmissionUnknown"
    assert alert["annotations"]["description"].startswith("1 TaskRuns are held as SubmissionUnknown")

    resolution = {"held": "SubmissionUnknown", "key": "load", "generation": 1, "action": "Fail"}
    path = f"/apis/reattach.dev/v1alpha1/namespaces/{stage.namespace}/taskruns/alarming"
    stage.control_plane.call("PATCH", path, {"spec": {"resolutions": [resolution]}})
    wait_for_end("ReattachRunsHeld")

    stage.operator.kill()
    alert = wait_until(lambda: fires("ReattachNoLeader"), seconds=SLOW, what="a dead operator fires", every=0.2)
    assert alert["labels"]["severity"] == "critical"
    stage.operator.start()
    wait_for_end("ReattachNoLeader")

    tasks.server.kill()
    wait_until(lambda: fires("ReattachStateAPIDown"), seconds=SLOW, what="a dead state API fires", every=0.2)
