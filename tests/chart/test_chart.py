"""Objects that helm renders from the chart, for several sets of values."""

import itertools
import json
import re
import runpy
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from controlplane import CHART, HELM, REPOSITORY, ControlPlaneError, helm_template

Object = dict[str, Any]
Right = tuple[str, str, str, str]

VALUES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "two namespaces": {"watchNamespaces": ["team-a", "team-b"]},
    "cert-manager": {"certificates": {"certManager": {"enabled": True}}},
    "cert-manager with a given issuer": {
        "certificates": {"certManager": {"enabled": True, "issuerRef": {"name": "corporate", "kind": "ClusterIssuer"}}}
    },
    "high availability": {"operator": {"replicas": 2}, "server": {"replicas": 5}},
    "everything optional on": {
        "metrics": {
            "service": {"enabled": True},
            "podMonitor": {"enabled": True, "labels": {"team": "a"}},
            "dashboard": {"enabled": True},
            "prometheusRule": {"enabled": True, "labels": {"team": "a"}, "runbookURL": "https://docs.example/runbooks"},
        },
        "networkPolicy": {
            "enabled": True,
            "stateAPIFrom": [{"ipBlock": {"cidr": "10.0.0.0/24"}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        },
        "imagePullSecrets": ["registry"],
        "image": {"digest": "sha256:" + "0" * 64},
        "fullnameOverride": "re",
        "operator": {
            "podAnnotations": {"a": "b"},
            "podLabels": {"c": "d", "app.kubernetes.io/component": "mine"},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "system-cluster-critical",
            "serviceAccount": {"name": "op", "annotations": {"e": "f"}},
            "writesPerSecond": 2.5,
            "paused": True,
            "logFormat": "json",
        },
        "nodes": {"evidence": True, "deletedMeansDead": True},
    },
    "a ServiceMonitor": {"metrics": {"serviceMonitor": {"enabled": True, "labels": {"team": "a"}}}},
    "everything optional off": {
        "crd": {"install": False},
        "rbac": {"create": False, "aggregate": False},
        "flowControl": {"enabled": False},
        "uninstall": {"release": False},
        "server": {"replicas": 1, "serviceAccount": {"create": False, "name": "mine"}},
        "operator": {"serviceAccount": {"create": False, "name": "mine-too"}},
    },
}


def render(values: dict[str, Any] | None = None) -> list[Object]:
    return [found for found in yaml.safe_load_all(helm_template(values=values)) if found]


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def pod_specs(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for found in objects:
        if found["kind"] in {"Deployment", "Job"}:
            yield found["metadata"]["name"], found["spec"]["template"]["spec"]
        if found["kind"] == "Pod":
            yield found["metadata"]["name"], found["spec"]


@pytest.fixture(scope="module", params=VALUES)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return render(VALUES[request.param])


@pytest.fixture(scope="module")
def defaults() -> list[Object]:
    return render()


# -- with all sets of values -----------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_helm_lint_passes(name: str) -> None:
    process = subprocess.run(
        [str(HELM), "lint", "--strict", "--quiet", str(CHART), "--values", "-"],
        input=yaml.safe_dump(VALUES[name]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_containers_run_with_least_privilege(objects: list[Object]) -> None:
    for name, spec in pod_specs(objects):
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}, name
        assert "hostNetwork" not in spec
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "privileged": False,
                "readOnlyRootFilesystem": True,
            }, name
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}, name
            assert container["resources"]["limits"].keys() == {"memory"}, name


def test_rules_have_no_wildcard_and_no_access_to_all_secrets(objects: list[Object]) -> None:
    for found in objects:
        for rule in found.get("rules") or () if "Role" in found["kind"] else ():
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"], found["metadata"]["name"]
            if "secrets" in rule["resources"]:
                assert found["kind"] == "Role"
                assert rule["verbs"] == ["create"] or rule.get("resourceNames"), found["metadata"]["name"]


def test_selectors_use_only_labels_that_values_and_versions_do_not_change(objects: list[Object]) -> None:
    for deployment in of_kind(objects, "Deployment").values():
        selector = deployment["spec"]["selector"]["matchLabels"]
        assert selector.keys() == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
        }
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert selector.items() <= labels.items()
        assert not any("version" in key or "chart" in key for key in labels)


def test_release_job_has_the_pod_labels_and_annotations_of_the_operator() -> None:
    """For example to disable a service mesh, whose sidecar would keep the Job from completing."""
    (job,) = of_kind(render(VALUES["everything optional on"]), "Job").values()
    metadata = job["spec"]["template"]["metadata"]
    assert metadata["annotations"] == {"a": "b"}
    assert metadata["labels"]["c"] == "d"
    assert metadata["labels"]["app.kubernetes.io/component"] == "release"


def test_services_budgets_and_network_policies_each_select_the_pods_of_one_deployment(objects: list[Object]) -> None:
    pods = [found["spec"]["template"]["metadata"]["labels"] for found in of_kind(objects, "Deployment").values()]
    selectors = [found["spec"]["selector"] for found in of_kind(objects, "Service").values()]
    selectors += [
        found["spec"]["selector"]["matchLabels"] for found in of_kind(objects, "PodDisruptionBudget").values()
    ]
    selectors += [found["spec"]["podSelector"]["matchLabels"] for found in of_kind(objects, "NetworkPolicy").values()]
    for selector in selectors:
        assert sum(selector.items() <= labels.items() for labels in pods) == 1, selector


def test_bindings_refer_to_roles_and_service_accounts_of_the_release(objects: list[Object]) -> None:
    accounts = {(found["metadata"]["name"], "reattach") for found in objects if found["kind"] == "ServiceAccount"}
    accounts |= {("mine", "reattach"), ("mine-too", "reattach")}
    roles = {
        (found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"])
        for found in objects
        if found["kind"] in {"Role", "ClusterRole"}
    }
    for found in objects:
        if found["kind"] in {"RoleBinding", "ClusterRoleBinding"}:
            role = found["roleRef"]
            assert (role["kind"], found["metadata"].get("namespace"), role["name"]) in roles
            assert {(subject["name"], subject["namespace"]) for subject in found["subjects"]} <= accounts


def test_objects_have_unique_names_and_the_instance_label(objects: list[Object]) -> None:
    names = [(found["kind"], found["metadata"].get("namespace"), found["metadata"]["name"]) for found in objects]
    assert len(set(names)) == len(names)
    for found in objects:
        if found["kind"] != "CustomResourceDefinition":
            assert found["metadata"]["labels"]["app.kubernetes.io/instance"] == "reattach", found["metadata"]["name"]


# -- Deployments -----------------------------------------------------------------------------------


def arguments_of(objects: list[Object], name: str) -> dict[str, str]:
    (container,) = dict(pod_specs(objects))[name]["containers"]
    return dict(argument.removeprefix("--").partition("=")[::2] for argument in container["args"])


def test_defaults_run_one_operator_and_two_state_apis(defaults: list[Object]) -> None:
    deployments = of_kind(defaults, "Deployment")
    assert {name: found["spec"]["replicas"] for name, found in deployments.items()} == {
        "reattach-operator": 1,
        "reattach-server": 2,
    }


@pytest.mark.parametrize("name", VALUES)
def test_processes_accept_the_rendered_flags(name: str) -> None:
    """The test parses the flags with the parsers that the processes use."""
    from reattach.process.__main__ import _parser
    from reattach.process.options import run_options_of
    from reattach.server.__main__ import from_arguments

    for _, spec in pod_specs(render(VALUES[name])):
        (container,) = spec["containers"]
        if container["command"] == ["reattach-server"]:
            from_arguments(container["args"])
            continue
        parsed = _parser().parse_args(container["args"])
        if parsed.command == "run":
            run_options_of(parsed)


@pytest.mark.parametrize(
    "metrics, is_served",
    [
        ({}, False),
        ({"enabled": True}, True),
        ({"service": {"enabled": True}}, True),
        ({"podMonitor": {"enabled": True}}, True),
    ],
)
def test_metrics_are_served_only_if_a_value_enables_them(metrics: dict[str, Any], is_served: bool) -> None:
    objects = render({"metrics": metrics})
    for name in ("reattach-operator", "reattach-server"):
        assert ("serve-metrics" in arguments_of(objects, name)) == is_served, name


def test_connection_limits_are_passed_to_the_process_and_equal_its_defaults() -> None:
    from reattach.server.config import ServerConfig

    def limits(values: dict[str, Any]) -> tuple[str, str]:
        arguments = arguments_of(render(values), "reattach-server")
        return arguments["connections-per-address"], arguments["connections"]

    assert limits({}) == (str(ServerConfig.connections_per_address), str(ServerConfig.connections))
    assert limits({"server": {"connections": {"perAddress": 200, "total": 100_000}}}) == ("200", "100000")


def test_rates_and_clock_limit_are_passed_to_the_process_and_equal_its_defaults() -> None:
    from reattach.server.__main__ import from_arguments
    from reattach.server.config import Rate, ServerConfig

    def rates(values: dict[str, Any]) -> tuple[object, ...]:
        (container,) = dict(pod_specs(render(values)))["reattach-server"]["containers"]
        settings, _, _ = from_arguments(container["args"])
        rates = (settings.taskrun_rate, settings.namespace_rate, settings.namespace_bytes_rate)
        return *rates, settings.clock_difference_seconds

    defaults = (
        ServerConfig.taskrun_rate,
        ServerConfig.namespace_rate,
        ServerConfig.namespace_bytes_rate,
        ServerConfig.clock_difference_seconds,
    )
    assert rates({}) == defaults
    large = {"perSecond": 10_000_000, "burst": 50_000_000}
    assert rates({"server": {"rates": {"namespaceBytes": large}}})[2] == Rate(10_000_000, 50_000_000)


def test_state_api_url_is_the_service_and_among_the_names_of_the_certificate(defaults: list[Object]) -> None:
    arguments = arguments_of(defaults, "reattach-operator")
    (name,) = of_kind(defaults, "Service")
    assert arguments["state-api-url"] == f"https://{name}.reattach.svc"
    assert arguments["dns-names"].split(",") == [f"{name}.reattach.svc", f"{name}.reattach.svc.cluster.local"]
    service = of_kind(defaults, "Service")[name]
    assert service["spec"]["ports"] == [{"name": "https", "port": 443, "targetPort": "https"}]


@pytest.mark.parametrize("name", ["defaults", "cert-manager"])
def test_state_api_mounts_the_secret_that_the_operator_or_cert_manager_writes(name: str) -> None:
    objects = render(VALUES[name])
    (volume,) = dict(pod_specs(objects))["reattach-server"]["volumes"]
    assert volume["secret"]["secretName"] == arguments_of(objects, "reattach-operator")["tls-secret"]
    certificates = [found["spec"]["secretName"] for found in of_kind(objects, "Certificate").values()]
    assert certificates == ([] if name == "defaults" else ["reattach-ca", "reattach-server-tls"])


def test_cert_manager_enabled_operator_issues_no_certificate_and_may_not_write_secrets() -> None:
    objects = render(VALUES["cert-manager"])
    assert "cert-manager" in arguments_of(objects, "reattach-operator")
    assert {right for right in rights(objects, "operator") if right[2] == "secrets"} == {
        ("own", "", "secrets", "get reattach-server-tls")
    }


def test_cert_manager_with_a_given_issuer_creates_no_issuer() -> None:
    objects = render(VALUES["cert-manager with a given issuer"])
    assert of_kind(objects, "Issuer") == {}
    (certificate,) = of_kind(objects, "Certificate").values()
    assert certificate["spec"]["issuerRef"] == {"name": "corporate", "kind": "ClusterIssuer"}


def test_single_state_api_has_no_disruption_budget_that_would_block_a_drain() -> None:
    assert of_kind(render({"server": {"replicas": 1}}), "PodDisruptionBudget") == {}
    (budget,) = of_kind(render(), "PodDisruptionBudget").values()
    assert budget["spec"]["maxUnavailable"] == 1


def test_second_operator_has_a_disruption_budget() -> None:
    budgets = of_kind(render(VALUES["high availability"]), "PodDisruptionBudget")
    assert {name: found["spec"]["maxUnavailable"] for name, found in budgets.items()} == {
        "reattach-operator": 1,
        "reattach-server": 1,
    }
    off = {"podDisruptionBudget": {"enabled": False}}
    values = {"operator": {"replicas": 2, **off}, "server": off}
    assert of_kind(render(values), "PodDisruptionBudget") == {}


def test_replicas_are_spread_over_nodes_where_possible(objects: list[Object]) -> None:
    for deployment in of_kind(objects, "Deployment").values():
        assert deployment["spec"]["template"]["spec"]["topologySpreadConstraints"] == [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": deployment["spec"]["selector"],
                "matchLabelKeys": ["pod-template-hash"],
            }
        ]


# -- NetworkPolicies -------------------------------------------------------------------------------


def ingress_of(values: dict[str, Any]) -> dict[str, list[tuple[int, list[Object]]]]:
    """Return the port and the peers of each rule, by the name of the policy."""
    policies = of_kind(
        render({"networkPolicy": {"enabled": True, **values.pop("networkPolicy", {})}, **values}), "NetworkPolicy"
    )
    assert all(found["spec"]["policyTypes"] == ["Ingress"] for found in policies.values())
    return {
        name: [(rule["ports"][0]["port"], rule["from"]) for rule in found["spec"]["ingress"]]
        for name, found in policies.items()
    }


TASK_PODS = {"matchExpressions": [{"key": "reattach.dev/taskrun", "operator": "Exists"}]}


def test_network_policies_are_created_only_if_enabled(defaults: list[Object]) -> None:
    assert of_kind(defaults, "NetworkPolicy") == {}


def test_network_policies_admit_only_task_pods_to_the_state_api_by_default() -> None:
    assert ingress_of({}) == {
        "reattach-operator": [],
        "reattach-server": [(8443, [{"podSelector": TASK_PODS, "namespaceSelector": {}}])],
    }


def test_network_policies_admit_only_pods_of_watched_namespaces() -> None:
    rules = ingress_of({"watchNamespaces": ["team-a", "team-b"]})
    names = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]}
    selector = {"matchExpressions": [names]}
    assert rules["reattach-server"] == [(8443, [{"podSelector": TASK_PODS, "namespaceSelector": selector}])]


def test_network_policies_admit_the_given_peers() -> None:
    nodes, prometheus = {"ipBlock": {"cidr": "10.0.0.0/24"}}, {"podSelector": {"matchLabels": {"app": "prometheus"}}}
    rules = ingress_of({"networkPolicy": {"stateAPIFrom": [nodes], "metricsFrom": [prometheus]}})
    assert rules["reattach-operator"] == [(8080, [prometheus])]
    task_pods = {"podSelector": TASK_PODS, "namespaceSelector": {}}
    assert rules["reattach-server"] == [(8443, [task_pods, nodes]), (8080, [prometheus])]


def test_values_are_applied_to_the_pods() -> None:
    objects = render(VALUES["everything optional on"])
    operator = of_kind(objects, "Deployment")["re-operator"]["spec"]["template"]
    assert operator["metadata"]["annotations"] == {"a": "b"}
    assert operator["metadata"]["labels"]["c"] == "d"
    assert operator["metadata"]["labels"]["app.kubernetes.io/component"] == "operator"
    spec = operator["spec"]
    assert spec["containers"][0]["image"] == f"localhost/reattach@sha256:{'0' * 64}"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert (spec["nodeSelector"], spec["serviceAccountName"]) == ({"disk": "ssd"}, "op")
    assert spec["tolerations"] == [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}]
    assert of_kind(objects, "PodMonitor")["re"]["metadata"]["labels"]["team"] == "a"
    assert len(of_kind(objects, "Service")) == 3


def test_every_value_is_used_by_a_template() -> None:
    """An unused value would be accepted and ignored."""
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    reads = set(re.findall(r"\.[a-zA-Z]+", templates))

    def leaves(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        if isinstance(values, dict) and values:
            for key, value in values.items():
                yield from leaves(value, (*path, key))
        else:
            yield path

    # Values that a template renders as a whole with toYaml.
    whole = {"resources", "grafana_dashboard"}
    for path in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        missing = [key for key in path if f".{key}" not in reads and not whole & set(path)]
        assert not missing, ".".join(path)


def test_every_top_level_value_has_a_comment() -> None:
    lines = (CHART / "values.yaml").read_text().splitlines()
    for above, line in itertools.pairwise(lines):
        if line and not line.startswith((" ", "#")) and ": " in line:
            assert above.startswith("#"), line


# -- permissions -----------------------------------------------------------------------------------


def rights(objects: list[Object], component: str) -> set[Right]:
    """Return a component's rights: scope, API group, resource, and verb with its resource names.

    The scope is `served` (served namespaces), `own` (the release's namespace) or `cluster`.
    """
    found: set[Right] = set()
    for role in objects:
        if role["kind"] not in {"Role", "ClusterRole"}:
            continue
        if role["metadata"]["labels"].get("app.kubernetes.io/component") != component:
            continue
        name = role["metadata"]["name"]
        where = "served" if name == f"reattach-reattach-{component}" else "own" if role["kind"] == "Role" else "cluster"
        for rule in role["rules"]:
            names = " ".join(["", *sorted(rule.get("resourceNames", ()))])
            found |= {
                (where, group, resource, verb + names)
                for group in rule["apiGroups"]
                for resource in rule["resources"]
                for verb in rule["verbs"]
            }
    return found


def each(where: str, group: str, resource: str, verbs: str, names: str = "") -> set[Right]:
    return {(where, group, resource, verb + names) for verb in verbs.split()}


SECRETS = " reattach-ca reattach-server-tls"
OPERATOR = (
    each("served", "reattach.dev", "taskruns", "delete get list patch watch")
    | each("served", "reattach.dev", "taskruns/status", "patch")
    | each("served", "reattach.dev", "taskruns/finalizers", "update")
    | each("served", "", "pods", "create delete get list patch watch")
    | each("served", "", "podtemplates", "create")
    | each("served", "", "configmaps", "create get list patch update watch")
    | each("served", "events.k8s.io", "events", "create list")
    | each("served", "", "namespaces", "get")
    | each("own", "coordination.k8s.io", "leases", "create")
    | each("own", "coordination.k8s.io", "leases", "get patch update", " reattach-operator")
    | each("own", "", "services", "get", " reattach-server")
    | each("own", "", "secrets", "create")
    | each("own", "", "secrets", "get update", SECRETS)
    | each("cluster", "apiextensions.k8s.io", "customresourcedefinitions", "get", " taskruns.reattach.dev")
)
SERVER = (
    each("served", "", "pods", "get")
    | each("served", "reattach.dev", "taskruns", "get patch")
    | each("served", "reattach.dev", "taskruns/status", "patch")
    | each("served", "reattach.dev", "taskruns/finalizers", "update")
    | each("served", "", "configmaps", "create get update")
    | each("cluster", "authentication.k8s.io", "tokenreviews", "create")
)
RELEASE = (
    each("served", "reattach.dev", "taskruns", "get list patch")
    | each("served", "", "pods", "get list patch")
    | each("served", "", "configmaps", "get list patch")
    | each("own", "apps", "deployments", "delete get", " reattach-operator reattach-server")
    | each("own", "", "pods", "list")
    | each("own", "", "secrets", "delete", SECRETS)
    | each("own", "coordination.k8s.io", "leases", "delete", " reattach-operator")
)


@pytest.mark.parametrize("name", ["defaults", "two namespaces"])
@pytest.mark.parametrize("component, expected", [("operator", OPERATOR), ("server", SERVER), ("release", RELEASE)])
def test_component_has_exactly_these_rights(component: str, expected: set[Right], name: str) -> None:
    reads_nodes = (component, name) == ("operator", "defaults")
    nodes = each("cluster", "", "nodes", "get") if reads_nodes else set()
    assert rights(render(VALUES[name]), component) == expected | nodes


def test_watch_namespaces_grants_cluster_wide_rights_only_on_cluster_scoped_resources() -> None:
    objects = render(VALUES["two namespaces"])
    served = {
        (found["metadata"]["name"], found["metadata"]["namespace"])
        for found in objects
        if found["kind"] == "RoleBinding" and "namespace" in found["metadata"]
    }
    assert served - {("reattach-reattach-test", "team-a")} == {
        (f"reattach-reattach-{component}", namespace)
        for component in ("operator", "server", "release")
        for namespace in ("team-a", "team-b")
    }
    assert of_kind(objects, "ClusterRoleBinding").keys() == {
        "reattach-reattach-operator-schema",
        "reattach-reattach-server-tokens",
    }
    for name in ("reattach-operator", "reattach-server", "reattach-release"):
        assert arguments_of(objects, name)["watch-namespaces"] == "team-a,team-b"


@pytest.mark.parametrize(
    "values, flags, granted",
    [
        ({}, {"read-nodes"}, True),
        ({"nodes": {"deletedMeansDead": True}}, {"read-nodes", "deleted-nodes-are-dead"}, True),
        ({"nodes": {"evidence": False}}, set(), False),
        ({"watchNamespaces": ["team-a"]}, set(), False),
        ({"watchNamespaces": ["team-a"], "nodes": {"evidence": True}}, {"read-nodes"}, True),
    ],
)
def test_operator_reads_nodes_only_where_the_chart_grants_it(
    values: dict[str, Any], flags: set[str], granted: bool
) -> None:
    rendered = render(values)
    arguments = arguments_of(rendered, "reattach-operator").keys()
    assert arguments & {"read-nodes", "deleted-nodes-are-dead"} == flags
    assert (("cluster", "", "nodes", "get") in rights(rendered, "operator")) is granted


def test_deleted_nodes_are_no_evidence_if_nodes_are_not_read() -> None:
    with pytest.raises(ControlPlaneError, match=r"nodes\.deletedMeansDead requires nodes\.evidence: true"):
        render({"nodes": {"evidence": False, "deletedMeansDead": True}})


def test_edit_and_view_roles_include_taskruns_but_not_their_status(defaults: list[Object]) -> None:
    roles = of_kind(defaults, "ClusterRole")
    edit, view = roles["reattach-reattach-edit"], roles["reattach-reattach-view"]
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    (may_edit,), (may_view,) = edit["rules"], view["rules"]
    assert may_edit["resources"] == may_view["resources"] == ["taskruns"]
    assert may_view["verbs"] == ["get", "list", "watch"]
    assert set(may_edit["verbs"]) == {"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}


def test_responder_role_may_not_create_and_is_not_aggregated(defaults: list[Object]) -> None:
    role = of_kind(defaults, "ClusterRole")["reattach-reattach-responder"]
    assert not [label for label in role["metadata"]["labels"] if "aggregate-to" in label]
    (rule,) = role["rules"]
    assert (rule["resources"], set(rule["verbs"])) == (["taskruns"], {"get", "list", "patch", "update", "watch"})


# -- other objects ---------------------------------------------------------------------------------


def test_lease_requests_do_not_queue_behind_other_writes_of_the_operator(defaults: list[Object]) -> None:
    (schema,) = of_kind(defaults, "FlowSchema").values()
    assert schema["spec"]["priorityLevelConfiguration"]["name"] == "leader-election"
    assert schema["spec"]["matchingPrecedence"] < 1000  # before the API server's own, for all service accounts
    (rule,) = schema["spec"]["rules"]
    (subject,) = rule["subjects"]
    assert subject["serviceAccount"] == {"name": "reattach-operator", "namespace": "reattach"}
    assert rule["resourceRules"][0]["resources"] == ["leases"]


def test_release_job_is_the_last_hook_after_its_permissions(defaults: list[Object]) -> None:
    weights = {
        found["kind"]: int(found["metadata"]["annotations"]["helm.sh/hook-weight"])
        for found in defaults
        if found["metadata"].get("annotations", {}).get("helm.sh/hook") == "pre-delete"
    }
    assert weights.pop("Job") > max(weights.values())
    policy = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert weights.keys() == {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"} | policy
    assert all(weights[kind] < weights["ServiceAccount"] for kind in policy), "the account is never without its policy"


TEST = (
    each("own", "reattach.dev", "taskruns", "create")
    | each("own", "reattach.dev", "taskruns", "delete get", " reattach-test")
    | each("own", "", "pods", "create")
)


def task_of(objects: list[Object]) -> Object:
    """Return the pod spec of the TaskRun that `helm test` creates."""
    [pod] = of_kind(objects, "Pod").values()
    [argument] = [one for one in pod["spec"]["containers"][0]["args"] if one.startswith("--taskrun=")]
    spec: Object = json.loads(argument.removeprefix("--taskrun="))["spec"]["template"]["spec"]
    return spec


def test_helm_test_has_only_the_rights_that_a_taskrun_needs() -> None:
    found = {("own", *right[1:]) for right in rights(render(), "test")}
    assert found == TEST


def test_helm_test_leaves_nothing_but_a_failed_pod(defaults: list[Object]) -> None:
    policies = {
        found["kind"]: found["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(",")
        for found in defaults
        if found["metadata"].get("annotations", {}).get("helm.sh/hook") == "test"
    }
    assert policies.keys() == {"ServiceAccount", "Role", "RoleBinding", "Pod"}
    assert all("hook-succeeded" in policy for policy in policies.values())
    assert [kind for kind, policy in policies.items() if "hook-failed" not in policy] == ["Pod"]


def test_helm_test_runs_in_a_served_namespace_and_its_pod_beside_the_operator() -> None:
    objects = render(VALUES["two namespaces"])
    assert of_kind(objects, "Role")["reattach-reattach-test"]["metadata"]["namespace"] == "team-a"
    assert arguments_of(objects, "reattach-test")["taskrun-namespace"] == "team-a"
    assert "namespace" not in of_kind(objects, "Pod")["reattach-test"]["metadata"]


@pytest.mark.parametrize(
    "values, namespace",
    [
        ({}, "default"),
        ({"watchNamespaces": ["reattach", "team-a"]}, "team-a"),
        ({"watchNamespaces": ["team-a"], "test": {"namespace": "team-b"}}, "team-b"),
    ],
)
def test_helm_test_runs_where_the_operator_may_create_pods(values: Object, namespace: str) -> None:
    assert arguments_of(render(values), "reattach-test")["taskrun-namespace"] == namespace


@pytest.mark.parametrize("name", ["defaults", "everything optional on"])
def test_task_of_helm_test_is_restricted_and_follows_the_values(name: str) -> None:
    objects = render(VALUES[name])
    task, [pod] = task_of(objects), of_kind(objects, "Pod").values()
    for spec in (task, pod["spec"]):
        [container] = spec["containers"]
        assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert (
            container["image"]
            == of_kind(objects, "Deployment")[f"{prefix_of(objects)}-operator"]["spec"]["template"]["spec"][
                "containers"
            ][0]["image"]
        )
        operator = VALUES[name].get("operator", {})
        assert spec.get("nodeSelector") == operator.get("nodeSelector")
        assert spec.get("tolerations") == operator.get("tolerations")
        assert spec.get("imagePullSecrets", []) == [{"name": one} for one in VALUES[name].get("imagePullSecrets", ())]
    assert "serviceAccountName" not in task, "a task has no rights in Kubernetes"
    assert task["automountServiceAccountToken"] is False


def prefix_of(objects: list[Object]) -> str:
    [name] = of_kind(objects, "Pod")
    return name.removesuffix("-test")


def test_policies_bound_everywhere_apply_to_the_accounts_of_the_release_alone() -> None:
    """A kubelet that writes the status of a pod must not pay for them."""
    objects = render({"watchNamespaces": ["team-a"]})
    policies = of_kind(objects, "ValidatingAdmissionPolicy")
    bindings = of_kind(objects, "ValidatingAdmissionPolicyBinding")
    assert policies.keys() == bindings.keys()
    everywhere = {name for name, binding in bindings.items() if "matchResources" not in binding["spec"]}
    assert everywhere == {
        f"reattach-reattach-{name}"
        for name in ("configmaps", "finalizers", "operator", "operator-pods", "operator-podtemplates", "release")
    }
    for name in everywhere:
        spec = policies[name]["spec"]
        (condition,) = spec["matchConditions"]
        assert condition["expression"].startswith("request.userInfo.username "), name
        resources = {resource for rule in spec["matchConstraints"]["resourceRules"] for resource in rule["resources"]}
        assert not {"pods/*", "pods/status"} & resources, name


def test_crd_is_kept_on_uninstall(defaults: list[Object]) -> None:
    (crd,) = of_kind(defaults, "CustomResourceDefinition").values()
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize(
    "version, is_accepted",
    [("1.33.9", False), ("1.34.0", True), ("1.34.4-gke.1000", True), ("1.37.2", True), ("1.38.0", True)],
)
def test_helm_accepts_the_tested_and_newer_kubernetes_versions(version: str, is_accepted: bool) -> None:
    process = subprocess.run(
        [str(HELM), "template", "reattach", str(CHART), "--kube-version", version],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode == 0) is is_accepted, process.stderr
    assert is_accepted or "incompatible with Kubernetes" in process.stderr


def test_chart_version_equals_the_package_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = (CHART.parent.parent / "pyproject.toml").read_text()
    assert f'\nversion = "{chart["appVersion"]}"\n' in project


def test_documented_metrics_are_exactly_the_exported_metrics() -> None:
    docs = (REPOSITORY / "docs/install.md").read_text()
    [section] = re.findall(r"\n## Metrics\n(.*?)\n## ", docs, re.DOTALL)
    documented = {name.removesuffix("_total") for name in re.findall(r"`(reattach_\w+)`", section)}
    sources = [
        path.read_text()
        for part in ("runtime", "process", "server")
        for path in (REPOSITORY / "operator/reattach" / part).glob("*.py")
    ]
    exported = {
        name.removesuffix("_total") for source in sources for name in re.findall(r'"(reattach_[a-z_]+)"', source)
    }
    assert documented == exported


def test_readme_is_generated_from_the_values() -> None:
    generated = runpy.run_path(str(REPOSITORY / "hack/chart_readme.py"))["readme"]()
    assert (CHART / "README.md").read_text() == generated, "run: .venv/bin/python hack/chart_readme.py"


def test_artifact_hub_lists_the_served_crd() -> None:
    annotations = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]
    [listed] = yaml.safe_load(annotations["artifacthub.io/crds"])
    crd = yaml.safe_load((CHART / "files/taskruns.yaml").read_text())
    served = [version["name"] for version in crd["spec"]["versions"] if version["served"]]
    assert (listed["name"], listed["kind"]) == (crd["metadata"]["name"], crd["spec"]["names"]["kind"])
    assert [listed["version"]] == served


def test_notes_create_a_taskrun_with_the_image_of_the_release(defaults: list[Object]) -> None:
    """A cluster that can pull this image may be unable to pull any other."""
    arguments = ["install", "reattach", str(CHART), "--namespace", "reattach", "--dry-run=client"]
    output = subprocess.run([str(HELM), *arguments], capture_output=True, text=True, check=True).stdout
    [manifest] = re.findall(r"<<END\n(.*?)\n    END\n", output.partition("\nNOTES:\n")[2], re.DOTALL)
    [container] = yaml.safe_load(manifest)["spec"]["template"]["spec"]["containers"]
    [ours] = {found["image"] for _, spec in pod_specs(defaults) for found in spec["containers"]}
    assert container == {"name": "task", "image": ours, "command": ["python", "-c", 'print("hello")']}


# -- invalid values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, message",
    [
        ({"test": {"timeoutSeconds": 1}}, "minimum: got 1, want 5"),
        ({"test": {"namespace": "Team_A"}}, "does not match pattern"),
        ({"test": {"namespace": "reattach"}}, "must not be reattach, the namespace of the release"),
        ({"replicas": 2}, "additional properties 'replicas' not allowed"),
        ({"operator": {"replica": 2}}, "additional properties 'replica' not allowed"),
        ({"operator": {"replicas": "two"}}, "got string, want integer"),
        ({"operator": {"replicas": -1}}, "minimum: got -1, want 0"),
        ({"operator": {"leaseDurationSeconds": 1}}, "minimum: got 1, want 3"),
        ({"operator": {"resources": {"request": {}}}}, "additional properties 'request' not allowed"),
        ({"operator": {"tolerations": [{"keys": "a"}]}}, "additional properties 'keys' not allowed"),
        ({"operator": {"affinity": {"podAntiAffinitty": {}}}}, "additional properties 'podAntiAffinitty' not allowed"),
        ({"operator": {"serviceAccount": {"create": "yes"}}}, "got string, want boolean"),
        ({"server": {"rates": {"taskRun": {"perSecond": 0}}}}, "exclusiveMinimum: got 0, want 0"),
        ({"server": {"rates": {"pod": {"perSecond": 1}}}}, "additional properties 'pod' not allowed"),
        ({"server": {"defaultRetentionSeconds": -1}}, "minimum: got -1, want 0"),
        ({"server": {"connections": {"total": 0}}}, "minimum: got 0, want 1"),
        ({"server": {"connections": {"perNode": 1}}}, "additional properties 'perNode' not allowed"),
        ({"watchNamespaces": "team-a"}, "got string, want array"),
        ({"networkPolicy": {"metricsFrom": [{"pods": {}}]}}, "additional properties 'pods' not allowed"),
        ({"networkPolicy": {"stateAPIFrom": [{}]}}, "minProperties: got 0, want 1"),
        (
            {"operator": {"podDisruptionBudget": {"maxUnavailable": 1}}},
            "additional properties 'maxUnavailable' not allowed",
        ),
        ({"metrics": {"enabled": "yes"}}, "got string, want boolean"),
        ({"metrics": {"prometheusRule": {"alerts": {"ReattachNoLeader": {"for": 5}}}}}, "got number, want string"),
        ({"metrics": {"prometheusRule": {"runbookURL": "docs"}}}, "does not match pattern"),
        ({"metrics": {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True}}}, "scrape each pod twice"),
        ({"watchNamespaces": ["Team_A"]}, "does not match pattern"),
        ({"watchNamespaces": ["a", "a"]}, "items at 0 and 1 are equal"),
        ({"image": {"pullPolicy": "Sometimes"}}, "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ({"image": {"repository": ""}}, "minLength: got 0, want 1"),
        ({"image": {"digest": "latest"}}, "does not match pattern"),
        ({"logLevel": "verbose"}, "value must be one of 'debug', 'info', 'warning', 'error'"),
        ({"certificates": {"certmanager": {}}}, "additional properties 'certmanager' not allowed"),
        ({"certificates": {"certManager": {"issuerRef": {"names": "a"}}}}, "additional properties 'names' not allowed"),
        ({"uninstall": {"timeoutSeconds": 5}}, "minimum: got 5, want 30"),
        ({"flowControl": {"enabled": None, "on": True}}, "additional properties 'on' not allowed"),
        ({"operator": {"serviceAccount": {"create": False}}}, "must name an existing ServiceAccount"),
        ({"server": {"serviceAccount": {"create": False}}}, "must name an existing ServiceAccount"),
        (
            {"operator": {"serviceAccount": {"name": "one"}}, "server": {"serviceAccount": {"name": "one"}}},
            "operator.serviceAccount.name and server.serviceAccount.name must differ",
        ),
        ({"certificates": {"certManager": {"issuerRef": {"kind": "Issuer"}}}}, "if 'kind' exists"),
        ({"operator": {"writesPerSecond": 0}}, "exclusiveMinimum: got 0, want 0"),
        ({"operator": {"paused": "yes"}}, "got string, want boolean"),
        ({"operator": {"logFormat": "xml"}}, "value must be one of 'plain', 'json'"),
    ],
)
def test_invalid_value_is_rejected_with_its_location(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ControlPlaneError, match=re.escape(message)):
        helm_template(values=values)


def test_schema_allows_additional_properties_only_in_listed_objects() -> None:
    """Only maps with user-chosen keys, and objects that Kubernetes defines, may have any key."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    open_ones = {"stringMap", "quantities", "nodeAffinity", "podAffinity", "podAntiAffinity", "global", "alertChanges"}

    def walk(node: Any, name: str) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and name not in open_ones:
                assert node.get("additionalProperties") is False, name
            for key, value in node.items():
                walk(value, key)
        elif isinstance(node, list):
            for value in node:
                walk(value, name)

    walk(schema, "the chart")


def test_schema_has_exactly_the_properties_of_values_yaml() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def compare(node: Any, value: Any, path: str) -> None:
        node = schema["definitions"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        if value and "properties" in node:  # the schema has more properties than an empty default
            assert node["properties"].keys() - {"global"} == value.keys(), path
            for key in value:
                compare(node["properties"][key], value[key], f"{path}.{key}")

    compare(schema, values, "")
