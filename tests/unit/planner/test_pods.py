"""What the pod of an attempt is made of: the author's template and what Reattach adds to it, nothing else."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from builders import SETTINGS, TEMPLATE, a_taskrun
from reattach.api.taskrun import AttemptPurpose
from reattach.planner.pods import (
    TEMPLATE_BYTES_MAX,
    TEMPLATE_LEVELS_MAX,
    InvalidTemplateError,
    build_pod,
    fixed_template_hash,
    parse_template,
    pod_creation,
    task_container,
    template_hash,
    template_of_pod,
)

RICH: dict[str, Any] = {
    "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
    "spec": {
        "restartPolicy": "Never",
        "enableServiceLinks": True,
        "serviceAccountName": "loader",
        "volumes": [{"name": "data", "emptyDir": {}}],
        "initContainers": [{"name": "prepare", "image": "i"}],
        "containers": [
            {"name": "proxy", "image": "p"},
            {
                "name": "task",
                "image": "t",
                "env": [{"name": "TRY", "value": "$(REATTACH_ATTEMPT)"}],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                "terminationMessagePolicy": "File",
            },
        ],
    },
}


def test_a_bare_template_gets_all_that_reattach_adds() -> None:
    assert build_pod(a_taskrun().build(), 3, SETTINGS) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "load-01234-3",
            "namespace": "data",
            "labels": {"reattach.dev/taskrun": "load", "reattach.dev/attempt": "3"},
            "annotations": {
                "reattach.dev/template-hash": template_hash(TEMPLATE),
                "reattach.dev/fixed-template-hash": fixed_template_hash(TEMPLATE),
                "reattach.dev/ca.crt": "PEM",
            },
            "finalizers": ["reattach.dev/attempt"],
            "ownerReferences": [
                {
                    "apiVersion": "reattach.dev/v1alpha1",
                    "kind": "TaskRun",
                    "name": "load",
                    "uid": "0123456789",
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
        "spec": {
            "restartPolicy": "Never",
            "enableServiceLinks": False,
            "volumes": [
                {
                    "name": "reattach",
                    "projected": {
                        "sources": [
                            {
                                "serviceAccountToken": {
                                    "audience": "reattach.dev",
                                    "expirationSeconds": 3600,
                                    "path": "token",
                                }
                            },
                            {
                                "downwardAPI": {
                                    "items": [
                                        {
                                            "path": "ca.crt",
                                            "fieldRef": {"fieldPath": "metadata.annotations['reattach.dev/ca.crt']"},
                                        }
                                    ]
                                }
                            },
                        ]
                    },
                }
            ],
            "containers": [
                {
                    "name": "task",
                    "image": "task:1",
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [{"name": "reattach", "mountPath": "/var/run/reattach", "readOnly": True}],
                    "env": [
                        {"name": "REATTACH_URL", "value": "https://reattach.example:8443"},
                        {"name": "REATTACH_PHASE", "value": "run"},
                        {"name": "REATTACH_NAMESPACE", "value": "data"},
                        {"name": "REATTACH_TASKRUN", "value": "load"},
                        {"name": "REATTACH_ATTEMPT", "value": "3"},
                    ],
                }
            ],
        },
    }


def test_pod_has_the_address_of_the_state_api_if_it_is_known() -> None:
    (container,) = build_pod(a_taskrun().build(), 1, replace(SETTINGS, address="10.96.0.7"))["spec"]["containers"]
    assert {"name": "REATTACH_ADDRESS", "value": "10.96.0.7"} in container["env"]


@pytest.mark.parametrize(
    "path, variables",
    [
        ("/tmp/termination", ["/tmp/termination"]),
        ("/tmp/$(HOME)/$x", ["/tmp/$$(HOME)/$$x"]),
        ("/dev/termination-log", []),
        ("", []),
        (None, []),
        (7, []),
    ],
)
def test_pod_names_the_termination_message_file_if_its_path_is_the_authors(path: Any, variables: list[str]) -> None:
    container = {**TEMPLATE["spec"]["containers"][0], "terminationMessagePath": path}
    taskrun = a_taskrun(template={"spec": {**TEMPLATE["spec"], "containers": [container]}})
    (built,) = build_pod(taskrun.build(), 1, SETTINGS)["spec"]["containers"]
    assert [one["value"] for one in built["env"] if one["name"] == "REATTACH_TERMINATION_LOG"] == variables
    assert built["terminationMessagePath"] == path


def test_what_the_author_said_is_kept() -> None:
    pod = build_pod(a_taskrun(template=RICH, container="task").build(), 1, SETTINGS)
    assert pod["metadata"]["labels"] == {"team": "a", "reattach.dev/taskrun": "load", "reattach.dev/attempt": "1"}
    assert pod["metadata"]["annotations"]["note"] == "b"
    assert pod["spec"]["enableServiceLinks"] is True
    assert pod["spec"]["serviceAccountName"] == "loader"
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["data", "reattach"]
    assert pod["spec"]["containers"][1]["terminationMessagePolicy"] == "File"
    assert pod["spec"]["containers"][1]["volumeMounts"][0] == {"name": "data", "mountPath": "/data"}


def test_only_the_tasks_container_gets_token_and_variables() -> None:
    spec = build_pod(a_taskrun(template=RICH, container="task").build(), 1, SETTINGS)["spec"]
    (prepare,) = RICH["spec"]["initContainers"]
    assert spec["initContainers"] == [{**prepare, "terminationMessagePolicy": "FallbackToLogsOnError"}]
    assert spec["containers"][0] == RICH["spec"]["containers"][0]
    assert len(spec["containers"][1]["volumeMounts"]) == 2


def test_pod_keeps_the_message_policy_of_an_init_container_and_values_that_the_api_server_refuses() -> None:
    for given in ([{"name": "prepare", "terminationMessagePolicy": "File"}], ["prepare"], None, "prepare"):
        pod_spec = {**TEMPLATE["spec"], "initContainers": given}
        built = build_pod(a_taskrun(template={"spec": pod_spec}).build(), 1, SETTINGS)
        assert built["spec"]["initContainers"] == given


def test_without_a_name_the_first_container_is_the_tasks() -> None:
    spec = build_pod(a_taskrun(template=RICH).build(), 1, SETTINGS)["spec"]
    assert "volumeMounts" in spec["containers"][0]
    assert spec["containers"][1] == RICH["spec"]["containers"][1]


def test_the_authors_variables_may_refer_to_ours() -> None:
    names = [
        one["name"]
        for one in build_pod(a_taskrun(template=RICH, container="task").build(), 1, SETTINGS)["spec"]["containers"][1][
            "env"
        ]
    ]
    assert names.index("REATTACH_ATTEMPT") < names.index("TRY")


def test_the_attempts_deadline_is_the_pods() -> None:
    pod = build_pod(a_taskrun(deadlines={"attemptSeconds": 60}).build(), 1, SETTINGS)
    assert pod["spec"]["activeDeadlineSeconds"] == 60
    assert "activeDeadlineSeconds" not in build_pod(a_taskrun().build(), 1, SETTINGS)["spec"]


def test_the_hash_is_of_what_the_template_says_not_of_how_it_is_written() -> None:
    assert template_hash({"a": 1, "b": {"c": "ü"}}) == template_hash({"b": {"c": "ü"}, "a": 1})
    assert template_hash({"a": 1}) != template_hash({"a": 2})


def test_the_hash_is_the_one_that_earlier_releases_wrote() -> None:
    assert template_hash(TEMPLATE) == "a4cae73ccfe8422b"


def test_template_hash_of_integers_beyond_64_bits_is_the_one_that_earlier_releases_wrote() -> None:
    assert template_hash(
        parse_template(msgspec.Raw(b'{"spec":{"containers":[{"name":"a"}],"x":1%s}}' % (b"0" * 20)))
    ) == (template_hash({"spec": {"containers": [{"name": "a"}], "x": 10**20}}))


def test_pod_creation_body_is_the_pod_as_json() -> None:
    taskrun = a_taskrun(template={"spec": {"containers": [{"name": "task", "x": 10**20}]}}).build()
    creation = pod_creation(taskrun, 2, SETTINGS)
    assert json.loads(creation.body) == build_pod(taskrun, 2, SETTINGS)
    assert (creation.name, creation.attempt) == ("load-01234-2", 2)
    assert creation.template_hash == template_hash(parse_template(taskrun.spec.template))


def test_task_container_without_spec_container_is_the_first() -> None:
    assert task_container(a_taskrun(template=RICH).build()) == "proxy"
    assert task_container(a_taskrun(template=RICH, container="task").build()) == "task"


@pytest.mark.parametrize(
    "field", ["initContainers", "nodeName", "schedulingGates", "terminationGracePeriodSeconds", "volumes"]
)
def test_pod_of_a_template_with_a_null_field_has_token_and_variables(field: str) -> None:
    template = {"spec": {"containers": [{"name": "task", "image": "i"}], field: None}}
    [container] = build_pod(a_taskrun(template=template).build(), 1, SETTINGS)["spec"]["containers"]
    assert {"env", "volumeMounts"} <= set(container)


def nested(levels: int) -> bytes:
    """Return a template with this many levels."""
    inner = levels - 2
    return b'{"spec":{"containers":[{"name":"task"}],"x":' + b"[" * inner + b"]" * inner + b"}}"


def with_template(text: bytes) -> Any:
    taskrun = a_taskrun().build()
    return msgspec.structs.replace(taskrun, spec=msgspec.structs.replace(taskrun.spec, template=msgspec.Raw(text)))


def test_parse_template_accepts_the_greatest_depth() -> None:
    assert build_pod(with_template(nested(TEMPLATE_LEVELS_MAX)), 1, SETTINGS)["spec"]["x"]


@pytest.mark.parametrize("levels", [TEMPLATE_LEVELS_MAX + 1, 500, 900, 9_900, 100_000])
def test_parse_template_with_too_many_levels_names_the_limit(levels: int) -> None:
    with pytest.raises(InvalidTemplateError, match="must be nested at most 100 levels deep"):
        parse_template(msgspec.Raw(nested(levels)))


def test_parse_template_that_is_too_large_names_the_limit() -> None:
    most = b'{"spec":{"containers":[{"name":"task"}],"x":"%s"}}'
    largest = most % (b"x" * (TEMPLATE_BYTES_MAX - len(most) + 2))
    assert len(largest) == TEMPLATE_BYTES_MAX
    assert parse_template(msgspec.Raw(largest))
    with pytest.raises(InvalidTemplateError, match="must have at most 256 KiB"):
        parse_template(msgspec.Raw(largest + b" "))


@pytest.mark.parametrize(
    "text, path",
    [
        (b"null", "got `null`"),
        (b"{}", "`spec`"),
        (b'{"spec":{}}', "`containers` - at `$.spec`"),
        (b'{"spec":{"containers":[]}}', "$.spec.containers"),
        (b'{"spec":{"containers":[{}]}}', "`name` - at `$.spec.containers[0]`"),
        (b'{"spec":{"containers":[{"name":1}]}}', "$.spec.containers[0].name"),
        (b'{"spec":{"containers":[{"name":"a","env":{}}]}}', "$.spec.containers[0].env"),
        (b'{"spec":{"containers":[{"name":"a","volumeMounts":7}]}}', "$.spec.containers[0].volumeMounts"),
        (b'{"spec":{"containers":[{"name":"a"}],"volumes":"all"}}', "$.spec.volumes"),
        (b'{"metadata":{"labels":[]},"spec":{"containers":[{"name":"a"}]}}', "$.metadata.labels"),
    ],
)
def test_parse_template_with_wrong_type_names_the_field(text: bytes, path: str) -> None:
    with pytest.raises(InvalidTemplateError) as raised:
        parse_template(msgspec.Raw(text))
    assert str(raised.value).startswith("spec.template must be a pod template: ")
    assert path in str(raised.value)


def test_build_pod_null_means_the_same_as_an_absent_field() -> None:
    nulls: dict[str, Any] = {
        "metadata": {"labels": None, "annotations": None, "creationTimestamp": None},
        "spec": {
            "enableServiceLinks": None,
            "restartPolicy": None,
            "volumes": None,
            "containers": [{**TEMPLATE["spec"]["containers"][0], "env": None, "terminationMessagePolicy": None}],
        },
    }
    built, expected = (
        build_pod(a_taskrun(template=nulls).build(), 1, SETTINGS),
        build_pod(a_taskrun().build(), 1, SETTINGS),
    )
    assert built["spec"] == expected["spec"]
    assert built["metadata"]["labels"] == expected["metadata"]["labels"]


def test_build_pod_label_without_a_value_is_passed_on() -> None:
    given = {**TEMPLATE, "metadata": {"labels": {"team": None}, "annotations": {"note": None}}}
    metadata = build_pod(a_taskrun(template=given).build(), 1, SETTINGS)["metadata"]
    assert (metadata["labels"]["team"], metadata["annotations"]["note"]) == (None, None)


def test_template_of_pod_has_the_indexes_of_the_author_and_what_the_pod_has_otherwise() -> None:
    template = json.loads(json.dumps(RICH))
    template["spec"]["containers"][0]["env"] = [None, {"name": 1}, {"name": "REGION"}]
    template["spec"]["containers"].append({"name": "shipper", "image": "s"})
    creation = pod_creation(a_taskrun(template=template, container="task").build(), 2, SETTINGS)
    checked, pod = template_of_pod(creation.body), json.loads(creation.body)
    assert checked["metadata"] == {"name": "load-01234-2", "namespace": "data"}
    assert checked["template"]["metadata"].keys() == {"labels", "annotations"}
    proxy, task, _ = checked["template"]["spec"]["containers"]
    assert proxy["env"] == [None, {"name": 1}, {"name": "REGION"}]
    assert task["env"] == RICH["spec"]["containers"][1]["env"]
    assert task["volumeMounts"][0] == RICH["spec"]["containers"][1]["volumeMounts"][0]
    del pod["spec"]["containers"][1]["env"], task["env"]
    assert checked["template"]["spec"] == pod["spec"]


@pytest.mark.parametrize("text", [b"null", b"{}", b'{"spec":{"containers":[]}}', b'{"spec":[]}', nested(100_000)])
def test_task_container_of_an_invalid_template_is_empty(text: bytes) -> None:
    assert task_container(with_template(text)) == ""


QUEUED: dict[str, Any] = {
    "metadata": {
        "labels": {"team": "a", "kueue.x-k8s.io/queue-name": "big", "reattach.dev/purpose": "Cleanup"},
        "annotations": {"kueue.x-k8s.io/pod-group-total-count": "1", "note": "b"},
    },
    "spec": {
        "schedulingGates": [{"name": "kueue.x-k8s.io/admission"}],
        "terminationGracePeriodSeconds": 600,
        "containers": [
            {"name": "proxy", "image": "proxy:1", "args": ["-v"]},
            {
                "name": "task",
                "image": "task:1",
                "command": ["run"],
                "args": ["--all"],
                "livenessProbe": {"exec": {"command": ["is-loading"]}},
                "lifecycle": {"postStart": {"exec": {"command": ["load"]}}},
                "resources": {"limits": {"cpu": "8"}},
            },
        ],
    },
}


def test_pod_of_a_cleanup_waits_in_no_queue_and_ends_at_the_deadline() -> None:
    taskrun = a_taskrun(template=QUEUED, container="task", deadlines={"attemptSeconds": 60}).build()
    pod, run = build_pod(taskrun, 3, SETTINGS, cleanup_seconds=120), build_pod(taskrun, 3, SETTINGS)
    assert pod["metadata"]["labels"] == {
        "team": "a",
        "reattach.dev/taskrun": "load",
        "reattach.dev/attempt": "3",
        "reattach.dev/purpose": "Cleanup",
    }
    assert set(pod["metadata"]["annotations"]) == {
        "note",
        "reattach.dev/template-hash",
        "reattach.dev/fixed-template-hash",
        "reattach.dev/ca.crt",
    }
    spec = pod["spec"]
    assert ("schedulingGates" in spec, spec["activeDeadlineSeconds"]) == (False, 120)
    assert spec["terminationGracePeriodSeconds"] == 30
    assert {"name": "REATTACH_PHASE", "value": "cleanup"} in spec["containers"][1]["env"]
    task = spec["containers"][1]
    assert (task["command"], task["args"], {"livenessProbe", "lifecycle"} & task.keys()) == (["run"], ["--all"], set())
    assert {"livenessProbe", "lifecycle"} <= run["spec"]["containers"][1].keys()
    hashes = {one["metadata"]["annotations"]["reattach.dev/template-hash"] for one in (pod, run)}
    assert len(hashes) == 1
    assert pod_creation(taskrun, 3, SETTINGS, cleanup_seconds=120).purpose is AttemptPurpose.CLEANUP


def test_template_cannot_make_the_pod_of_a_run_attempt_look_like_a_cleanup() -> None:
    run = build_pod(a_taskrun(template=QUEUED).build(), 1, SETTINGS)
    assert "reattach.dev/purpose" not in run["metadata"]["labels"]
    assert run["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "big"


def test_command_and_resources_of_the_cleanup_replace_those_of_the_tasks_container() -> None:
    cleanup = {"command": ["stop", "all"], "resources": {"requests": {"cpu": 1, "memory": "64Mi"}}}
    taskrun = a_taskrun(template=QUEUED, container="task", cleanup=cleanup).build()
    proxy, task = build_pod(taskrun, 2, SETTINGS, cleanup_seconds=9)["spec"]["containers"]
    assert proxy == QUEUED["spec"]["containers"][0]
    assert (task["command"], "args" in task) == (["stop", "all"], False)
    assert task["resources"] == {"requests": {"cpu": 1, "memory": "64Mi"}}
    assert build_pod(taskrun, 2, SETTINGS)["spec"]["containers"][1]["args"] == ["--all"]


@pytest.mark.parametrize("grace, kept", [(5, 5), (31, 30), (None, 30), ("soon", 30)])
def test_grace_period_of_a_cleanup_pod_is_at_most_half_a_minute(grace: Any, kept: int) -> None:
    template = {"spec": {**QUEUED["spec"], "terminationGracePeriodSeconds": grace}}
    spec = build_pod(a_taskrun(template=template).build(), 2, SETTINGS, cleanup_seconds=9)["spec"]
    assert spec["terminationGracePeriodSeconds"] == kept


REPAIRS: list[dict[str, Any]] = [
    {"affinity": {"podAffinity": {}}},
    {"nodeSelector": {"disk": "ssd"}},
    {"tolerations": [{"operator": "Exists"}]},
    {"resources": {"limits": {"memory": "1Gi"}}},
    {"initContainers": [{"name": "prepare", "image": "j", "env": [{"name": "A", "value": "b"}]}]},
    {"containers": [RICH["spec"]["containers"][0] | {"resources": {"limits": {}}}, RICH["spec"]["containers"][1]]},
]
CHANGES: list[dict[str, Any]] = [
    {"hostNetwork": True},
    {"serviceAccountName": "other"},
    {"initContainers": [{"name": "prepare", "image": "i", "command": ["a"]}]},
    {"initContainers": []},
    {"initContainers": ["prepare"]},
    {"initContainers": {"name": "prepare"}},
    {"containers": RICH["spec"]["containers"][::-1]},
]


@pytest.mark.parametrize("spec", [*REPAIRS, *CHANGES], ids=str)
def test_fixed_hash_changes_only_with_fields_that_no_repair_changes(spec: dict[str, Any]) -> None:
    edited = {**RICH, "spec": {**RICH["spec"], **spec}}
    assert (fixed_template_hash(edited) == fixed_template_hash(RICH)) == (spec in REPAIRS)
    assert template_hash(edited) != template_hash(RICH)


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": [{"name": "task", "livenessProbe": None}]},
        {"containers": [{"name": "task"}], "initContainers": None},
        {"containers": [{"name": "task"}], "initContainers": []},
    ],
    ids=str,
)
def test_fixed_hash_takes_null_for_absent_as_the_admission_policy_does(spec: dict[str, Any]) -> None:
    assert fixed_template_hash({"spec": spec}) == fixed_template_hash({"spec": {"containers": [{"name": "task"}]}})


def test_fixed_hash_changes_with_the_labels_of_the_template() -> None:
    assert fixed_template_hash({**RICH, "metadata": {"labels": {"team": "b"}}}) != fixed_template_hash(RICH)
