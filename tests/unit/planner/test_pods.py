"""What the pod of an attempt is made of: the author's template and what Reattach adds to it, nothing else."""

import copy
from typing import Any

from builders import SETTINGS, TEMPLATE, a_taskrun
from reattach.planner.pods import build_pod, template_hash

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
            "annotations": {"reattach.dev/template-hash": template_hash(TEMPLATE), "reattach.dev/ca.crt": "PEM"},
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


def test_what_the_author_said_is_kept() -> None:
    before = copy.deepcopy(RICH)
    pod = build_pod(a_taskrun(template=RICH, container="task").build(), 1, SETTINGS)
    assert before == RICH
    assert pod["metadata"]["labels"] == {"team": "a", "reattach.dev/taskrun": "load", "reattach.dev/attempt": "1"}
    assert pod["metadata"]["annotations"]["note"] == "b"
    assert pod["spec"]["enableServiceLinks"] is True
    assert pod["spec"]["serviceAccountName"] == "loader"
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["data", "reattach"]
    assert pod["spec"]["containers"][1]["terminationMessagePolicy"] == "File"
    assert pod["spec"]["containers"][1]["volumeMounts"][0] == {"name": "data", "mountPath": "/data"}


def test_only_the_tasks_container_gets_token_and_variables() -> None:
    spec = build_pod(a_taskrun(template=RICH, container="task").build(), 1, SETTINGS)["spec"]
    assert spec["initContainers"] == RICH["spec"]["initContainers"]
    assert spec["containers"][0] == RICH["spec"]["containers"][0]
    assert len(spec["containers"][1]["volumeMounts"]) == 2


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
