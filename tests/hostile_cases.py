"""Random hostile objects of every class that the API server accepts.

A case has a kind, a trait and a seed. The kinds and traits take turns, so that a few cases cover
all of them.
"""

import random
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from hostile import (
    FIELDS,
    JSON,
    JSON_BYTES,
    LEVELS,
    OTHER_MANAGER,
    PROTOBUF_BYTES,
    HostileObject,
    configmap,
    managed_fields,
    nested_lists,
    nested_maps,
    owned_by,
    pod,
    taskrun,
)
from reattach.api.names import (
    ANNOTATION_SUMMARY,
    ANNOTATION_TEMPLATE_HASH,
    API_VERSION,
    FINALIZER_ATTEMPT,
    FINALIZER_STATE,
    KIND,
    LABEL_ATTEMPT,
    LABEL_TASKRUN,
)
from reattach.planner.pods import TEMPLATE_BYTES_MAX

KINDS = ("taskruns", "pods", "configmaps")
TIMES = (
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59Z",
    "2020-02-29T23:59:59.999999999-23:59",
    "1969-12-31T23:59:59+14:00",
)
NAIVE_TIME = "2020-01-01T00:00:00"
INTEGERS = (2**31, 2**53 + 1, 2**63 - 1, -(2**63), 10**20, 10**300)
CATEGORIES = {unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1)} - {"Cs"}
"""All classes of Unicode except surrogates, which UTF-8 can't encode."""

_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{\]}]', re.DOTALL)


class Choices(random.Random):
    """Seeded random choices for one case."""

    owner_uid = ""


@dataclass(frozen=True)
class Case:
    """An object, and a status that is written to it afterwards."""

    kind: str
    trait: str
    body: HostileObject
    status: JSON | None = None


def case_of(index: int, owner_uid: str) -> Case:
    """Return the case of this number. The same arguments return the same case.

    `owner_uid`: of a TaskRun `victim`, which owns some of the Pods and ConfigMaps.
    """
    kind, trait = KINDS[index % len(KINDS)], list(_TRAITS)[index // len(KINDS) % len(_TRAITS)]
    choices = Choices(index)
    choices.owner_uid = owner_uid
    body, status = _TRAITS[trait](kind, choices)
    return Case(kind, trait, body, status)


CASES = len(KINDS) * 7
"""Cases that cover each kind with each trait."""


# -- traits ----------------------------------------------------------------------------------------

Made = tuple[HostileObject, JSON | None]


def _nested(kind: str, choices: Choices) -> Made:
    levels = choices.choice([LEVELS, LEVELS, choices.randint(80, LEVELS)])
    if kind == "taskruns":
        nested = choices.choice([nested_maps, nested_lists])(levels)
        return taskrun(template={"extra": "@nested@"}, nested=nested, **_manager(choices)), None
    version = "v1"
    metadata = {**managed_fields(version), **_marks(kind, choices)}
    return _of(
        kind, metadata, nested=FIELDS if choices.random() < 0.7 else nested_maps(levels, key="f:a", leaf="{}")
    ), None


def _large(kind: str, choices: Choices) -> Made:
    if kind == "taskruns":
        text = choices.choice(["a" * JSON_BYTES, "<" * (JSON_BYTES // 6), "\U0001f600" * (JSON_BYTES // 12)])
        return taskrun(template={"extra": text}, **_manager(choices)), None
    if kind == "pods":
        return pod(_marks(kind, choices), container={"env": [{"name": "A", "value": "a" * PROTOBUF_BYTES}]}), None
    return _configmap(choices, {"key.a": "a" * 1_000_000, "key.b": '"' * 40_000}), None


def _many(kind: str, choices: Choices) -> Made:
    """Return an object with very many small values. The operator parses the template."""
    if kind == "taskruns":
        nested = "[" + choices.choice(["{},", "[],", "0,", '"",']) * (TEMPLATE_BYTES_MAX // 5) + "0]"
        return taskrun(template={"extra": "@nested@"}, nested=nested, **_manager(choices)), None
    labels = {f"l{number}": "" for number in range(20_000)}
    marks = _marks(kind, choices)
    return _of(kind, {**marks, "labels": {**labels, **marks["labels"]}}), None


def _long_line(kind: str, choices: Choices) -> Made:
    size = JSON_BYTES // 6 if kind == "taskruns" else PROTOBUF_BYTES
    return _of(kind, {**_marks(kind, choices), **owned_by("<" * size)}), None


def _odd_time(kind: str, choices: Choices) -> Made:
    time = choices.choice(TIMES)
    match kind:
        case "taskruns":
            finish = choices.choice(TIMES)
            attempts = [
                {"number": number, "podName": "a", "startTime": start, "finishTime": finish}
                for number, start in enumerate(TIMES, 1)
            ]
            return taskrun(managedBy=choices.choice([OTHER_MANAGER, "reattach.dev/operator"])), {"attempts": attempts}
        case "pods":
            ended = {"terminated": {"exitCode": 1, "startedAt": time, "finishedAt": choices.choice(TIMES)}}
            status = {"name": "task", "image": "a", "imageID": "", "ready": False, "restartCount": 0, "state": ended}
            return pod(_marks(kind, choices)), {"phase": "Failed", "startTime": time, "containerStatuses": [status]}
        case _:
            return _configmap(
                choices, {"completion": f'{{"attempt":1,"podUID":"a","time":"{NAIVE_TIME}"}}'}, time=NAIVE_TIME
            ), None


def _huge_integer(kind: str, choices: Choices) -> Made:
    number = choices.choice(INTEGERS)
    match kind:
        case "taskruns":
            template = {"extra": list(INTEGERS), "terminationGracePeriodSeconds": number}
            return taskrun(template=template, **_manager(choices)), None
        case "pods":
            marks = _marks(kind, choices)
            marks["labels"][LABEL_ATTEMPT] = str(abs(number))[:63]  # a label can't begin with "-"
            return pod(marks, container={"ports": [{"containerPort": 65535}]}), None
        case _:
            return _configmap(
                choices, {"lastVersion": str(number), "epoch": f'{{"attempt":{number},"podUID":"a"}}'}
            ), None


def _unicode(kind: str, choices: Choices) -> Made:
    text = "".join(_character(category, choices) for category in sorted(CATEGORIES))
    match kind:
        case "taskruns":
            return taskrun({"annotations": {"a": text}}, template={text: [text]}, **_manager(choices)), None
        case "pods":
            marks = _marks(kind, choices)
            marks["annotations"] = {ANNOTATION_TEMPLATE_HASH: text}
            return pod(marks, container={"env": [{"name": "A", "value": text}]}), None
        case _:
            return _configmap(choices, {"key.a": text, "counts": text}, summary=text), None


_TRAITS: dict[str, Callable[[str, Choices], Made]] = {
    "nested": _nested,
    "large": _large,
    "many": _many,
    "long-line": _long_line,
    "odd-time": _odd_time,
    "huge-integer": _huge_integer,
    "unicode": _unicode,
}


def _character(category: str, choices: Choices) -> str:
    while True:  # the search starts at random, and continues through some blocks to find rare classes
        code = choices.randrange(sys.maxunicode + 1)
        for candidate in range(code, min(code + 20_000, sys.maxunicode + 1)):
            if unicodedata.category(chr(candidate)) == category and candidate:
                return chr(candidate)


def _manager(choices: Choices) -> JSON:
    return choices.choice([{}, {"managedBy": OTHER_MANAGER}])


def _marks(kind: str, choices: Choices) -> JSON:
    """Return the metadata of an object of the operator, or of one that only carries its label."""
    if kind == "taskruns":
        return {}
    finalizer = {"pods": FINALIZER_ATTEMPT, "configmaps": FINALIZER_STATE}[kind]
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": "victim",
        "uid": choices.owner_uid,
        "controller": True,
    }
    if choices.random() < 0.3:
        return {"labels": {LABEL_TASKRUN: "victim"}}
    return {
        "labels": {LABEL_TASKRUN: "victim", LABEL_ATTEMPT: "1"},
        "finalizers": [finalizer],
        "ownerReferences": [owner],
    }


def _of(kind: str, metadata: JSON, nested: str = "null") -> HostileObject:
    make = {"taskruns": taskrun, "pods": pod, "configmaps": configmap}[kind]
    return make(metadata, nested=nested)


def _configmap(choices: Choices, data: JSON, *, summary: str = "", time: str = "2020-01-01T00:00:00Z") -> HostileObject:
    summary = summary or f'{{"nextExpiry":"{time}","epoch":{{"attempt":{choices.choice(INTEGERS)},"podUID":"a"}}}}'
    body = configmap({**_marks("configmaps", choices), "annotations": {ANNOTATION_SUMMARY: summary}}).body
    return HostileObject("configmaps", {**body, "data": {"formatVersion": "1", **data}})


# -- what an object has reached --------------------------------------------------------------------


def levels_of(text: bytes) -> int:
    """Return the levels of nesting in a JSON text, without recursion."""
    depth = most = 0
    for token in _TOKENS.finditer(text):
        match text[token.start()]:
            case 0x5B | 0x7B:
                depth += 1
                most = max(most, depth)
            case 0x5D | 0x7D:
                depth -= 1
    return most
