"""`reattach-operator test` on a real API server, with the rights and the policy of the chart."""

import argparse
import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import yaml

from controlplane import ControlPlane, ControlPlaneError, helm_template
from reattach import installation
from reattach.cluster.paths import taskruns
from reattach.process.options import add_common_arguments, add_test_arguments, installation_options_of

SUCCEEDED = {"status": {"outcome": "Succeeded", "result": '"works"'}}
FAILED_CONDITION = {
    "type": "Succeeded",
    "status": "False",
    "reason": "BudgetExhausted",
    "message": "Attempt 1 ended by Application.",
    "lastTransitionTime": "2026-01-01T00:00:00Z",
}
FAILED = {"status": {"outcome": "Failed", "conditions": [FAILED_CONDITION]}}
WRONG = {"status": {"outcome": "Succeeded", "result": '"other"'}}
WAITING_CONDITION = {**FAILED_CONDITION, "status": "Unknown", "reason": "PodPending", "message": "0/1 nodes fit."}
WAITING = {"status": {"conditions": [WAITING_CONDITION]}}


class Release:
    """The objects of `helm test`, and the admission policy that it checks.

    The release has a namespace of its own, because the operator creates no pods there.
    """

    def __init__(self, control_plane: ControlPlane, release_namespace: str, namespace: str) -> None:
        self.control_plane, self.release_namespace, self.namespace = control_plane, release_namespace, namespace
        templates = ("tests/installation.yaml", "admission-pods.yaml")
        # The policy would refuse the pods of other tests' operators in other namespaces.
        values = {"watchNamespaces": [namespace]}
        rendered = helm_template(*templates, values=values, namespace=release_namespace)
        self.policies: list[dict[str, Any]] = []
        for found in yaml.safe_load_all(rendered):
            if found["kind"] == "Pod":
                self.pod = found
                continue
            if found["kind"].startswith("Validating"):
                self.policies.append(found)
            metadata = {"namespace": release_namespace, **found["metadata"]}
            control_plane.apply(yaml.safe_dump({**found, "metadata": metadata}))

    @property
    def path(self) -> str:
        return taskruns(self.namespace, "reattach-test")

    async def run(self, seconds: float) -> int:
        """With the arguments of the chart's Pod, as its service account."""
        parser = argparse.ArgumentParser()
        parser.add_argument("command")
        add_common_arguments(parser, {})
        add_test_arguments(parser)
        arguments = parser.parse_args(self.pod["spec"]["containers"][0]["args"])
        arguments.kubeconfig = str(
            self.control_plane.service_account_kubeconfig(self.release_namespace, "reattach-test")
        )
        arguments.timeout_seconds = seconds
        return await installation.run(arguments.kubeconfig, installation_options_of(arguments))

    @contextlib.asynccontextmanager
    async def operator(self, status: dict[str, Any]) -> AsyncIterator[None]:
        """Write this status once the TaskRun exists, as an operator would."""

        async def write() -> None:
            while True:
                with contextlib.suppress(ControlPlaneError):
                    await asyncio.to_thread(self.control_plane.call, "PATCH", f"{self.path}/status", status)
                    return
                await asyncio.sleep(0.1)

        task = asyncio.create_task(write())
        try:
            yield
        finally:
            task.cancel()

    def is_gone(self) -> bool:
        try:
            self.control_plane.call("GET", self.path)
        except ControlPlaneError as error:
            return str(error).startswith("404")
        return False


@pytest.fixture
def release(control_plane: ControlPlane, namespace: str) -> Iterator[Release]:
    release_namespace = control_plane.create_namespace("release")
    made = Release(control_plane, release_namespace, namespace)
    yield made
    control_plane.kubectl("delete", "--ignore-not-found", "--filename=-", stdin=yaml.safe_dump_all(made.policies))
    control_plane.delete_namespace(release_namespace)


async def test_installation_test_passes_and_deletes_its_taskrun(release: Release) -> None:
    async with release.operator(SUCCEEDED):
        assert await release.run(30) == 0
    assert release.is_gone()


@pytest.mark.parametrize(
    "status, words",
    [
        (FAILED, "ended as Failed: BudgetExhausted: Attempt 1 ended by Application."),
        (WRONG, 'has the result "other" instead of "works". Look at: kubectl logs deployment/reattach-server'),
        (WAITING, "did not succeed within 5 s: PodPending: 0/1 nodes fit."),
    ],
)
async def test_installation_test_reports_why_the_taskrun_did_not_succeed(
    release: Release, status: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.CRITICAL):
        async with release.operator(status):
            assert await release.run(5) == 1
    assert words in caplog.text
    assert release.is_gone()


async def test_installation_test_without_an_operator_names_its_deployment(
    release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    assert await release.run(2) == 1
    assert "did not succeed within 2 s, because the operator did not act on it" in caplog.text
    assert f"kubectl get deployment reattach-operator --namespace {release.release_namespace}" in caplog.text
    assert release.is_gone()


async def test_installation_test_without_the_admission_policy_names_it(
    release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    release.control_plane.kubectl("delete", "--wait", "--filename=-", stdin=yaml.safe_dump_all(release.policies))

    async def is_refused() -> bool:
        caplog.clear()
        assert await release.run(2) == 1
        return "accepted a pod that poses as an attempt" not in caplog.text

    for _ in range(20):  # the API server needs a moment until it no longer applies the policy
        if not await is_refused():
            break
    assert (
        f"kubectl get validatingadmissionpolicy,validatingadmissionpolicybinding {release.release_namespace}-reattach-pods"
        in caplog.text
    )
    assert release.is_gone()
