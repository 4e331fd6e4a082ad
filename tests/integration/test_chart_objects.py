"""Objects of the chart, as the real API server validates them."""

from typing import Any

import yaml

from controlplane import ControlPlane, helm_template

COLLECTIONS = {
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets",
    "Service": "/api/v1/namespaces/{}/services",
}
OPTIONAL: dict[str, Any] = {
    "metrics": {"service": {"enabled": True}},
    "networkPolicy": {
        "enabled": True,
        "stateAPIFrom": [{"ipBlock": {"cidr": "10.0.0.0/24"}}],
        "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
    },
    "operator": {"replicas": 2},
}


def test_optional_objects_of_the_chart_are_valid(control_plane: ControlPlane, namespace: str) -> None:
    kinds = []
    for values in ({"networkPolicy": {"enabled": True}}, OPTIONAL, {**OPTIONAL, "watchNamespaces": [namespace]}):
        for found in yaml.safe_load_all(helm_template(values=values, namespace=namespace)):
            if found and found["kind"] in COLLECTIONS:
                path = COLLECTIONS[found["kind"]].format(namespace)
                control_plane.call("POST", path, found, dryRun="All", fieldValidation="Strict")
                kinds.append(found["kind"])
    assert {kind: kinds.count(kind) for kind in COLLECTIONS} == {
        "Deployment": 6,
        "NetworkPolicy": 6,
        "PodDisruptionBudget": 5,
        "Service": 7,
    }
