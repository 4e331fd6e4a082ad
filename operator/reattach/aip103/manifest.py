"""TaskRun for a task of a Dag file: the arguments of `@task` as budgets, pauses and deadlines."""

import math
import re
from datetime import timedelta
from typing import Any, Final

from reattach.aip103.dagfile import seconds_of
from reattach.api.names import NAME_MAX

_RETRY_SECONDS: Final = 300
"""Airflow's default of `retry_delay`."""
_MAX_RETRY_SECONDS: Final = 24 * 3600
"""Airflow's limit of a pause without `max_retry_delay`, and that of a TaskRun."""
_RETRIES_MAX: Final = 10_000
_FACTOR_MAX: Final = 10
_TIMEOUT_MAX: Final = timedelta(days=365)
"""Limits of a TaskRun that Airflow does not have."""


def build_taskrun(reference: str, arguments: dict[str, Any], image: str) -> dict[str, Any]:
    """Return the TaskRun that runs the task with the retries of `@task(**arguments)`.

    Raises:
        ValueError: an argument has a value that Airflow or a TaskRun does not allow.
    """
    function = reference.rpartition(":")[2]
    spec: dict[str, Any] = {"retry": _build_retry(arguments)}
    timeout = arguments.get("execution_timeout")
    if timeout is not None:
        if not isinstance(timeout, timedelta) or not timedelta() < timeout <= _TIMEOUT_MAX:
            raise ValueError(f"execution_timeout must be a timedelta over 0, of at most 365 days, not {timeout!r}")
        spec["deadlines"] = {"attemptSeconds": math.ceil(timeout.total_seconds())}
    command = ["python", "-u", "-m", "reattach.aip103", reference, f"--retries={retries_of(arguments)}"]
    spec["template"] = {"spec": {"containers": [{"name": "task", "image": image, "command": command}]}}
    name = re.sub(r"[^a-z0-9]+", "-", function.lower()).strip("-")[:NAME_MAX].strip("-") or "task"
    return {"apiVersion": "reattach.dev/v1alpha1", "kind": "TaskRun", "metadata": {"name": name}, "spec": spec}


def retries_of(arguments: dict[str, Any]) -> int:
    """Return the retries of `@task(**arguments)`. Airflow's default is 0."""
    retries = arguments.get("retries")
    if retries is None:
        return 0
    if not isinstance(retries, int) or not 0 <= retries <= _RETRIES_MAX:
        raise ValueError(f"retries must be an integer from 0 to {_RETRIES_MAX}, not {retries!r}")
    return retries


def _build_retry(arguments: dict[str, Any]) -> dict[str, Any]:
    pause = _seconds(arguments, "retry_delay", _RETRY_SECONDS)
    exponential = arguments.get("retry_exponential_backoff") or 0
    if not isinstance(exponential, bool | int | float) or not 0 <= exponential <= _FACTOR_MAX:
        raise ValueError(
            f"retry_exponential_backoff must be a bool or a number from 0 to {_FACTOR_MAX}, not {exponential!r}"
        )
    # In Airflow, True is 2.0, and 0 and 1 are a constant pause. Only a growing pause has jitter.
    factor = 2.0 if exponential is True else float(exponential or 1)
    grows = factor != 1
    longest = _seconds(arguments, "max_retry_delay", _MAX_RETRY_SECONDS) if grows else pause
    return {
        "budgets": {"application": retries_of(arguments)},
        "backoff": {
            "initialSeconds": min(pause, longest),
            "factorPercent": max(100, round(factor * 100)),
            "maxSeconds": longest,
            "jitterPercent": 20 if grows else 0,
        },
    }


def _seconds(arguments: dict[str, Any], name: str, default: int) -> int:
    value = arguments.get(name)
    if value is None:
        return default
    if not isinstance(value, timedelta | int | float) or not 0 <= seconds_of(value) <= _MAX_RETRY_SECONDS:
        raise ValueError(f"{name} must be a timedelta or seconds, from 0 to 24 hours, not {value!r}")
    return math.ceil(seconds_of(value))
