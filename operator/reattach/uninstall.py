"""Uninstall hook `reattach-operator release`: removes our finalizers from all objects.

Without the operator, these finalizers would block each deletion. The chart runs this command
before an uninstall. Unfinished TaskRuns stay unfinished, and continue when Reattach is installed
again. Their pods keep running.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from reattach.api.names import FINALIZER_ATTEMPT, FINALIZER_EXTERNAL_JOBS, FINALIZER_STATE
from reattach.cluster import Cluster, ClusterError, ConflictError, NotFoundError, Reference, paths
from reattach.pki.certificates import remove
from reattach.runtime.pager import list_references

_PATCHES_AT_ONCE = 8
_CONFLICTS_MAX = 10
_NAMED_MAX = 5

_log = logging.getLogger(__name__)

PathOf = Callable[[str | None, str | None], str]


class ReleaseError(Exception):
    """Some objects keep their finalizers. The message names them. A retry is safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseOptions:
    """Objects to release and to delete. Without `watch_namespaces`, all namespaces are released."""

    namespace: str
    watch_namespaces: tuple[str, ...] = ()
    deployments: tuple[str, ...] = ()
    """Deleted first, because a running operator or state API could add new finalizers."""
    pod_selector: str = ""
    """Labels of their pods."""
    secrets: tuple[str, ...] = ()
    leases: tuple[str, ...] = ()
    timeout_seconds: float = 120


async def run(kubeconfig: str | None, options: ReleaseOptions) -> int:
    """Run the command. Return the exit code of the process."""
    try:
        async with await Cluster.connect(kubeconfig) as cluster:
            await stop_and_release(cluster, options)
    except (ReleaseError, ClusterError) as error:
        _log.critical("%s", error)
        return 1
    return 0


async def stop_and_release(cluster: Cluster, options: ReleaseOptions) -> None:
    """Stop Reattach, remove the finalizers, and delete its Secrets and Leases.

    Raises `ReleaseError` and `ClusterError`. A repetition is safe.
    """
    await stop(cluster, options)
    await release(cluster, options.watch_namespaces)
    await remove(cluster, options.namespace, *options.secrets)
    for name in options.leases:
        await _delete(cluster, paths.leases(options.namespace, name))


async def stop(cluster: Cluster, options: ReleaseOptions) -> None:
    """Delete the Deployments, and wait until their pods are gone.

    Raises `ReleaseError` at the timeout.

    The Deployments are not scaled to zero: `helm rollback` creates a deleted Deployment again, but
    would conflict with a number of replicas that we wrote.
    """
    for name in options.deployments:
        await _delete(cluster, paths.deployments(options.namespace, name), "Foreground")  # gone once its pods are
    loop = asyncio.get_running_loop()
    end = loop.time() + options.timeout_seconds
    while left := await _running(cluster, options):
        if loop.time() > end:
            seconds = f"{options.timeout_seconds:g} s"
            raise ReleaseError(
                f"no finalizer was removed, because these did not end within {seconds}: {', '.join(left)}"
            )
        await asyncio.sleep(0.5)


async def _running(cluster: Cluster, options: ReleaseOptions) -> list[str]:
    """Return the names of the remaining Deployments and pods.

    A Deployment that still exists may create another pod.
    """
    left = []
    for name in options.deployments:
        try:
            await cluster.get(paths.deployments(options.namespace, name), metadata_only=True)
        except NotFoundError:
            continue
        left.append(f"deployment {name}")
    if options.pod_selector:
        pods, _ = await list_references(cluster, paths.pods(options.namespace), labelSelector=options.pod_selector)
        left += [f"pod {pod.name}" for pod in pods]
    return left


async def release(cluster: Cluster, namespaces: Sequence[str]) -> int:
    """Remove our finalizers from every TaskRun, pod and state.

    Return the number of released objects.

    Without `namespaces`, objects of all namespaces are released. Objects without our labels are
    released too, because users may remove labels. Nothing else of an object is changed. If an
    object can't be changed, the others are still released, and `ReleaseError` names it at the end.
    Raises `ClusterError` if a collection can't be listed.
    """
    kinds: tuple[tuple[str, PathOf, str], ...] = (
        ("TaskRuns", paths.taskruns, FINALIZER_EXTERNAL_JOBS),
        ("pods", paths.pods, FINALIZER_ATTEMPT),
        ("states", paths.configmaps, FINALIZER_STATE),
    )
    total, failures = 0, list[str]()
    for what, path_of, finalizer in kinds:
        count = 0
        for namespace in namespaces or (None,):
            released, failed = await _release_all(cluster, namespace, path_of, finalizer)
            count += released
            failures += failed
        _log.info("Removed our finalizers from %s %s.", count, what)
        total += count
    if failures:
        raise ReleaseError(f"{len(failures)} objects keep their finalizers: {'; '.join(failures[:_NAMED_MAX])}")
    return total


async def _release_all(
    cluster: Cluster, namespace: str | None, path_of: PathOf, finalizer: str
) -> tuple[int, list[str]]:
    """Return the number of released objects, and the errors of the others."""
    gate = asyncio.Semaphore(_PATCHES_AT_ONCE)

    async def release_one(found: Reference) -> None:
        async with gate:
            await _remove_finalizer(cluster, path_of(found.namespace, found.name), found, finalizer)

    try:
        found, _ = await list_references(cluster, path_of(namespace, None))
    except NotFoundError:  # the CRD was deleted
        return 0, []
    held = [each for each in found if finalizer in each.finalizers]
    results = await asyncio.gather(*(release_one(each) for each in held), return_exceptions=True)
    failures = []
    for each, result in zip(held, results, strict=True):
        if isinstance(result, ReleaseError | ClusterError):
            failures.append(f"{each.namespace}/{each.name}: {result}")
        elif result is not None:
            raise result
    return len(held) - len(failures), failures


async def _remove_finalizer(cluster: Cluster, path: str, found: Reference, finalizer: str) -> None:
    for _ in range(_CONFLICTS_MAX):
        left = [name for name in found.finalizers if name != finalizer]
        patch = {"metadata": {"resourceVersion": found.resource_version, "finalizers": left}}
        try:
            await cluster.merge_patch(path, patch)
        except NotFoundError:
            return
        except ConflictError:
            try:
                found = await cluster.get_reference(path)
            except NotFoundError:
                return
        else:
            return
    raise ReleaseError(
        f"the finalizer {finalizer} of {path} could not be removed, because another client keeps changing the object"
    )


async def _delete(cluster: Cluster, path: str, propagation_policy: str | None = None) -> None:
    try:
        await cluster.delete(path, propagation_policy=propagation_policy)
    except NotFoundError:
        return
