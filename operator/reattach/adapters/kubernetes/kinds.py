"""Kinds of Kubernetes objects as jobs: their paths and the meaning of their status. Pure.

A place is a dotted path into the object. `[x]` selects the item of a list whose `type` is `x`:
`status.conditions[Complete].status`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Standing = Literal["Active", "Succeeded", "Failed", "Cancelled"]

_PLACE: Final = re.compile(r"[^.\[\]]+(\[[^\[\]]+\])?(\.[^.\[\]]+(\[[^\[\]]+\])?)*")
_STEP: Final = re.compile(r"([^\[]+)(?:\[(.+)\])?")


@dataclass(frozen=True)
class When:
    """The object has this standing if each place has one of the texts in `holds`.

    An absent value is the empty text. Empty `holds` always match.
    """

    standing: Standing
    holds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Validate the fields. Raises ValueError."""
        for place, texts in self.holds.items():
            _check_place(place)
            if not _is_texts(texts):
                raise ValueError(f"{place} must be compared with a tuple of texts, not {texts!r}")

    def matches(self, found: Mapping[str, Any]) -> bool:
        return all(text_at(found, place) in texts for place, texts in self.holds.items())


@dataclass(frozen=True)
class Kind:
    """A namespaced kind.

    `plural`: as in the API's paths. `standings`: the first match counts. An object without a match
    has an unknown status, so also list the active states, or end with `When("Active")`. `messages`:
    places of texts for users; all that are present are shown. `result`: the place of the result;
    `result_is_json`: the result is text that holds JSON.

    `ends`: fields of the manifest that remove the object after its end: the seconds until its
    removal, or any other value. `cancel_patch`: a merge patch that ends the job and keeps the
    object; None: the object is deleted.
    """

    api_version: str
    kind: str
    plural: str
    standings: tuple[When, ...]
    messages: tuple[str, ...] = ()
    result: str | None = None
    result_is_json: bool = False
    ends: tuple[str, ...] = ()
    cancel_patch: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        """Validate the fields. Raises ValueError."""
        if not re.fullmatch(r"([a-z0-9.-]+/)?v[a-z0-9]+", self.api_version):
            raise ValueError(f"api_version must be like batch/v1, not {self.api_version!r}")
        if not re.fullmatch(r"[a-z][a-z0-9]*", self.plural):
            raise ValueError(f"plural must be in small letters as in the API's paths, like jobs, not {self.plural!r}")
        if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", self.kind):
            raise ValueError(f"kind must be like Job, not {self.kind!r}")
        for place in (*self.messages, *self.ends, *([self.result] if self.result else [])):
            _check_place(place)
        if not {"Succeeded", "Failed"} <= {when.standing for when in self.standings}:
            raise ValueError("standings must define when a job has succeeded and when it has failed")

    def path(self, namespace: str, name: str = "") -> str:
        """Return the path of one object, or of all objects in the namespace."""
        group = "/api" if "/" not in self.api_version else "/apis"
        return f"{group}/{self.api_version}/namespaces/{namespace}/{self.plural}" + (f"/{name}" if name else "")


def value_at(found: Any, place: str) -> Any:
    """Return the value at the place, or None if it is absent."""
    for step in re.findall(r"[^.\[]+(?:\[[^\]]+\])?", place):
        name, chosen = _STEP.fullmatch(step).groups()  # type: ignore[union-attr] # findall found what fullmatch finds
        found = found.get(name) if isinstance(found, dict) else None
        if chosen is not None:
            items = found if isinstance(found, list) else []
            found = next((item for item in items if isinstance(item, dict) and item.get("type") == chosen), None)
    return found


def text_at(found: Any, place: str) -> str:
    """Return the value at the place as text, or the empty text if it is absent."""
    value = value_at(found, place)
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _is_texts(texts: object) -> bool:
    return isinstance(texts, tuple) and bool(texts) and all(isinstance(text, str) for text in texts)


def _check_place(place: str) -> None:
    if not _PLACE.fullmatch(place):
        raise ValueError(f"a place must be like status.conditions[Complete].status, not {place!r}")


JOB: Final = Kind(
    api_version="batch/v1",
    kind="Job",
    plural="jobs",
    # FailureTarget and SuccessCriteriaMet only predict the outcome; the pods still run.
    standings=(
        When("Succeeded", {"status.conditions[Complete].status": ("True",)}),
        When("Failed", {"status.conditions[Failed].status": ("True",)}),
        When("Active"),
    ),
    messages=(
        "status.conditions[Failed].reason",
        "status.conditions[Failed].message",
        "status.conditions[Suspended].message",
    ),
    ends=("spec.ttlSecondsAfterFinished",),
)

TASKRUN: Final = Kind(
    api_version="reattach.dev/v1alpha1",
    kind="TaskRun",
    plural="taskruns",
    standings=(
        When("Succeeded", {"status.outcome": ("Succeeded",)}),
        When("Failed", {"status.outcome": ("Failed",)}),
        When("Cancelled", {"status.outcome": ("Cancelled",)}),
        When("Active", {"status.outcome": ("",)}),
    ),
    messages=("status.conditions[Succeeded].reason", "status.conditions[Succeeded].message"),
    result="status.result",
    result_is_json=True,
    ends=("spec.ttl.succeededSeconds", "spec.ttl.failedSeconds", "spec.ttl.cancelledSeconds"),
    cancel_patch={"spec": {"cancel": True}},
)

SPARK_APPLICATION: Final = Kind(
    api_version="sparkoperator.k8s.io/v1beta2",
    kind="SparkApplication",
    plural="sparkapplications",
    # SUBMISSION_FAILED, SUCCEEDING and FAILING are not final, because the restart policy decides
    # what follows. UNKNOWN means that the operator can't reach the driver; it has no standing here,
    # so the status is unknown too.
    standings=(
        When("Succeeded", {"status.applicationState.state": ("COMPLETED",)}),
        When("Failed", {"status.applicationState.state": ("FAILED",)}),
        When(
            "Active",
            {
                "status.applicationState.state": (
                    "",
                    "SUBMITTED",
                    "RUNNING",
                    "SUBMISSION_FAILED",
                    "PENDING_RERUN",
                    "INVALIDATING",
                    "SUCCEEDING",
                    "FAILING",
                    "SUSPENDING",
                    "SUSPENDED",
                    "RESUMING",
                )
            },
        ),
    ),
    messages=("status.applicationState.state", "status.applicationState.errorMessage"),
    ends=("spec.timeToLiveSeconds",),
)

RAY_JOB: Final = Kind(
    api_version="ray.io/v1",
    kind="RayJob",
    plural="rayjobs",
    # KubeRay sets Complete for each job whose end Ray reported. In older versions, Complete shows
    # success only together with jobStatus.
    standings=(
        When("Succeeded", {"status.jobDeploymentStatus": ("Complete",), "status.jobStatus": ("SUCCEEDED",)}),
        When("Cancelled", {"status.jobDeploymentStatus": ("Complete",), "status.jobStatus": ("STOPPED",)}),
        When("Failed", {"status.jobDeploymentStatus": ("Complete",), "status.jobStatus": ("FAILED",)}),
        When("Failed", {"status.jobDeploymentStatus": ("Failed", "ValidationFailed")}),
        When(
            "Active",
            {
                "status.jobDeploymentStatus": (
                    "",
                    "Initializing",
                    "Running",
                    "Suspending",
                    "Suspended",
                    "Retrying",
                    "Waiting",
                    "Scheduling",
                    "Scheduled",
                )
            },
        ),
    ),
    messages=("status.jobDeploymentStatus", "status.jobStatus", "status.reason", "status.message"),
    # Its ttlSecondsAfterFinished removes the RayCluster, not the RayJob.
    ends=("spec.deletionStrategy", "spec.deletionPolicy"),  # the latter in KubeRay 1.3
)
