"""Test of an installation, `reattach-operator test`: one TaskRun from its creation to its result.

`helm test` runs it. It needs only the rights to create pods, and to create, read and delete the
TaskRun.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from reattach.api.names import LABEL_TASKRUN
from reattach.api.objects import Shape
from reattach.api.reasons import ConditionType, Outcome
from reattach.api.taskrun import TaskRunStatus
from reattach.cluster import (
    AlreadyExistsError,
    Cluster,
    ClusterError,
    ForbiddenError,
    NotFoundError,
    UnavailableError,
    paths,
)

RESULT = '"works"'
"""The result of the task, as JSON. It passes through the state API."""
_POLL_SECONDS = 1
_POLICY_SECONDS = 15
"""Seconds within which each API server applies a new policy."""

_log = logging.getLogger(__name__)


class InstallationError(Exception):
    """A part of the installation does not work. The message names the commands that show why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallationOptions:
    """Names and limits of one test.

    `namespace`: of the TaskRun. `release_namespace`: of the Deployments. `policy`: the admission
    policy that must refuse a pod which poses as an attempt.
    """

    namespace: str
    release_namespace: str
    taskrun: Mapping[str, Any]
    policy: str
    operator: str
    server: str
    timeout_seconds: float

    @property
    def name(self) -> str:
        """Name of the TaskRun."""
        return str(self.taskrun["metadata"]["name"])


class _TaskRun(Shape, frozen=True):
    status: TaskRunStatus = TaskRunStatus()


async def run(kubeconfig: str | None, options: InstallationOptions) -> int:
    """Run the command. Return the exit code of the process."""
    try:
        async with await Cluster.connect(kubeconfig) as cluster:
            await check_installation(cluster, options)
    except (InstallationError, ClusterError) as error:
        _log.critical("The installation does not work: %s", error)
        return 1
    _log.info("The installation works: admission refused a false attempt, and TaskRun %s succeeded.", options.name)
    return 0


async def check_installation(cluster: Cluster, options: InstallationOptions) -> None:
    """Check the admission policies, then the operator and the state API by a TaskRun.

    Raises `InstallationError` and `ClusterError`. The TaskRun is deleted in any case.
    """
    await _check_admission(cluster, options)
    path = paths.taskruns(options.namespace, options.name)
    await _delete(cluster, path)
    loop = asyncio.get_running_loop()
    end = loop.time() + options.timeout_seconds
    try:
        await _create(cluster, options, end)
        while True:
            status = await _status(cluster, path)
            if status is not None and status.outcome is not None:
                _check_end(status, options)
                return
            if loop.time() > end:
                raise InstallationError(_describe_delay(status, options))
            await asyncio.sleep(_POLL_SECONDS)
    finally:
        await _delete(cluster, path)


async def _check_admission(cluster: Cluster, options: InstallationOptions) -> None:
    """Create a pod with the label of an attempt, as a dry run, which the policy must refuse."""
    name = f"{options.name}-false-attempt"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL_TASKRUN: options.name}},
        "spec": options.taskrun["spec"]["template"]["spec"],
    }
    loop = asyncio.get_running_loop()
    end = loop.time() + min(options.timeout_seconds, _POLICY_SECONDS)
    while loop.time() < end:
        try:
            await cluster.create(paths.pods(options.namespace), pod, dryRun="All")
        except ForbiddenError as error:
            if options.policy in str(error):
                return
            raise
        await asyncio.sleep(_POLL_SECONDS)
    raise InstallationError(
        f"the API server accepted a pod that poses as an attempt, so the ValidatingAdmissionPolicy {options.policy} "
        f"or its binding is missing. Look at: kubectl get validatingadmissionpolicy,validatingadmissionpolicybinding "
        f"{options.policy}"
    )


async def _create(cluster: Cluster, options: InstallationOptions, end: float) -> None:
    """Create the TaskRun. One of an interrupted test may still be there for a moment."""
    while True:
        try:
            await cluster.create(paths.taskruns(options.namespace), options.taskrun)
        except AlreadyExistsError:
            if asyncio.get_running_loop().time() > end:
                where = f"--namespace {options.namespace}"
                raise InstallationError(
                    f"TaskRun {options.name} of an earlier test is still being deleted. Look at: "
                    f"kubectl get trun {options.name} {where} -o yaml"
                ) from None
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return


async def _status(cluster: Cluster, path: str) -> TaskRunStatus | None:
    """Return the status, or None if the API server is unavailable at the moment."""
    try:
        return msgspec.json.decode(await cluster.get(path), type=_TaskRun).status
    except UnavailableError as error:
        _log.warning("The API server is unavailable: %s", error)
        return None


def _check_end(status: TaskRunStatus, options: InstallationOptions) -> None:
    if status.outcome != Outcome.SUCCEEDED:
        raise InstallationError(f"TaskRun {options.name} ended as {status.outcome}: {_described(status)}.")
    if status.result != RESULT:
        raise InstallationError(
            f"TaskRun {options.name} has the result {status.result} instead of {RESULT}. Look at: {_logs_of(options.server, options)}"
        )


def _describe_delay(status: TaskRunStatus | None, options: InstallationOptions) -> str:
    """Return why the TaskRun has not ended in time, with the commands to run now."""
    late = f"TaskRun {options.name} did not succeed within {options.timeout_seconds:g} s"
    is_known = status is not None and any(one.type == ConditionType.SUCCEEDED for one in status.conditions)
    if status is None or not is_known:
        where = f"--namespace {options.release_namespace}"
        return (
            f"{late}, because the operator did not act on it. Look at: kubectl get deployment {options.operator} {where}; "
            f"{_logs_of(options.operator, options)}"
        )
    return (
        f"{late}: {_described(status)}. Raise test.timeoutSeconds if images are pulled slowly. Look at: "
        f"kubectl get pods,events --namespace {options.namespace}; {_logs_of(options.server, options)}"
    )


def _described(status: TaskRunStatus) -> str:
    """Return reason and message of the condition Succeeded, and how the newest attempt ended."""
    shown = [f"{one.reason}: {one.message}" for one in status.conditions if one.type == ConditionType.SUCCEEDED]
    shown += [f"attempt {one.number}, {one.cause}: {one.message}" for one in status.attempts[-1:] if one.cause]
    return "; ".join(text.strip().rstrip(".") for text in shown)


def _logs_of(deployment: str, options: InstallationOptions) -> str:
    return f"kubectl logs deployment/{deployment} --namespace {options.release_namespace} --all-pods"


async def _delete(cluster: Cluster, path: str) -> None:
    try:
        await cluster.delete(path)
    except NotFoundError:
        return
