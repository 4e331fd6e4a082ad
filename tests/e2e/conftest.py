"""The real cluster that `make cluster-up` made, the built image in it, and the chart installed by helm; see `tests/realcluster.py`."""

from collections.abc import Generator, Iterator

import pytest
from pytest_kind import KindCluster

from realcluster import IMAGE, Cluster


@pytest.fixture(scope="session")
def cluster(kind_cluster: KindCluster) -> Cluster:
    """The cluster, with the built image in its nodes, without Reattach: for tests of the chart itself."""
    kind_cluster.load_docker_image(IMAGE)
    return Cluster(kind_cluster)


@pytest.fixture(scope="session")
def release(cluster: Cluster) -> Cluster:
    """The cluster with Reattach installed for all namespaces; a test that changes the release puts it back."""
    cluster.install()
    return cluster


@pytest.fixture(scope="module")
def namespace(release: Cluster) -> Iterator[str]:
    """A namespace of the module's own, with the job server; in the end it must go away by itself, with all that is in it."""
    name = release.create_namespace()
    try:
        release.start_jobserver(name)
        yield name
    finally:
        release.delete_namespace(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to the report of a failure what the cluster knows."""
    report = yield
    arguments = getattr(item, "funcargs", {})
    if report.failed and "namespace" in arguments:
        report.sections += list(arguments["release"].describe(arguments["namespace"]).items())
    return report
