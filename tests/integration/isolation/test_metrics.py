"""Metrics are closed by default: processes serve them only with a flag that the chart omits."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from controlplane import ControlPlane
from operator_process import Operators
from stateapi import Servers
from waiting import wait_until


@pytest.fixture
def health_urls(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[list[str]]:
    """Health ports of an operator and of a state API that have no `--serve-metrics`."""
    operators, servers = Operators(control_plane, tmp_path / "operator"), Servers(control_plane, tmp_path / "server")
    try:
        operator = operators.make(namespaces=[namespace], serves_metrics=False).start(wait=False)
        server = servers.start(serves_metrics=False)
        wait_until(operator.is_ready, seconds=60, what="the operator is ready")
        yield [operator.health_url, server.health_url]
    finally:
        operators.stop()
        servers.stop()


def test_metrics_without_the_flag_are_not_served_beside_the_probes(health_urls: list[str]) -> None:
    for url in health_urls:
        statuses = {path: httpx.get(url + path, trust_env=False).status_code for path in ("/healthz", "/readyz")}
        assert statuses == {"/healthz": 200, "/readyz": 200}
        response = httpx.get(f"{url}/metrics", trust_env=False)
        assert response.status_code == 404
        assert "reattach_" not in response.text
