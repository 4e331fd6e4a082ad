"""What is read and written, step by step, and that no TLS connection fails meanwhile."""

import base64
import itertools
import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from reattach.api.names import ANNOTATION_CA
from reattach.cluster import (
    AlreadyExistsError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from reattach.pki.ca import certificates_in, is_issued_by
from reattach.pki.certificates import (
    ANNOTATION_DISTRIBUTED,
    CertificatesError,
    CertificateSettings,
    distribute,
    ensure,
    remove,
)
from reattach.pki.rotation import ANNOTATION_ROTATE
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.rate_limiter import RateLimiter
from reattach.runtime.writer import NotLeadingError, Writer

if TYPE_CHECKING:
    from reattach.cluster import Cluster

HOST = "reattach-server.reattach.svc"
MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
CA, TLS = "/api/v1/namespaces/reattach/secrets/ca", "/api/v1/namespaces/reattach/secrets/tls"
SETTINGS = CertificateSettings(
    namespace="reattach",
    ca_secret="ca",
    tls_secret="tls",
    dns_names=(HOST,),
    # A whole rotation fits into the hour by which certificates are backdated, so OpenSSL, which has a clock of its own, believes
    # a certificate from the simulated future.
    ca_lifetime=timedelta(hours=2),
    serving_lifetime=30 * MINUTE,
)


@dataclass
class FakeCluster:
    """Secrets and pods in memory, with compare-and-set; `before_write` may interfere."""

    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    before_write: Callable[[str], None] = lambda _: None
    writes: list[str] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    async def get(self, path: str) -> bytes:
        if path not in self.objects:
            raise NotFoundError(404, "NotFound", path)
        return json.dumps(self.objects[path]).encode()

    async def list(self, path: str, **query: Any) -> bytes:
        if path in self.refused:
            raise ForbiddenError(403, "Forbidden", "no Role there")
        items = [self.objects[key] for key in sorted(self.objects) if key.startswith(f"{path}/")]
        start = int(query.get("continue") or 0)
        metadata = {"continue": str(start + 2)} if start + 2 < len(items) else {}
        return json.dumps({"metadata": metadata, "items": items[start : start + 2] or None}).encode()

    async def create(self, path: str, body: dict[str, Any]) -> bytes:
        path = f"{path}/{body['metadata']['name']}"
        self.before_write(path)
        if path in self.objects:
            raise AlreadyExistsError(409, "AlreadyExists", path)
        return self.store(path, body)

    async def replace(self, path: str, body: dict[str, Any]) -> bytes:
        self.before_write(path)
        if path not in self.objects:
            raise NotFoundError(404, "NotFound", path)
        if body["metadata"]["resourceVersion"] != self.objects[path]["metadata"]["resourceVersion"]:
            raise ConflictError(409, "Conflict", path)
        return self.store(path, body)

    async def merge_patch(self, path: str, body: dict[str, Any]) -> bytes:
        if path not in self.objects:
            raise NotFoundError(404, "NotFound", path)
        if self.objects[path]["metadata"]["uid"] != body["metadata"]["uid"]:
            raise InvalidError(422, "Invalid", path)
        if path in self.refused:
            raise ForbiddenError(403, "Forbidden", "a webhook of that namespace says no")
        self.objects[path]["metadata"].setdefault("annotations", {}).update(body["metadata"]["annotations"])
        return b"{}"

    async def delete(self, path: str) -> bytes:
        if self.objects.pop(path, None) is None:
            raise NotFoundError(404, "NotFound", path)
        return b"{}"

    def store(self, path: str, body: dict[str, Any]) -> bytes:
        stored = json.loads(json.dumps(body))
        stored["metadata"]["resourceVersion"] = str(next(self.versions))
        self.objects[path] = stored
        self.writes.append(path)
        return json.dumps(stored).encode()

    def add_pod(self, name: str, annotation: str | None = None) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": name, "namespace": "work", "uid": f"uid-of-{name}"}
        if annotation is not None:
            metadata["annotations"] = {ANNOTATION_CA: annotation}
        self.objects[f"/api/v1/namespaces/work/pods/{name}"] = {"metadata": metadata}
        # Listed over all namespaces; the same object, so that a patch is seen.
        self.objects[f"/api/v1/pods/{name}"] = self.objects[f"/api/v1/namespaces/work/pods/{name}"]
        return metadata

    def data(self, path: str, key: str) -> bytes:
        return base64.b64decode(self.objects[path]["data"][key])

    def set_data(self, path: str, key: str, value: bytes) -> None:
        self.objects[path]["data"][key] = base64.b64encode(value).decode()

    def annotate(self, path: str, key: str) -> None:
        self.objects[path]["metadata"].setdefault("annotations", {})[key] = "now"


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


async def test_a_first_start_makes_a_ca_and_a_certificate_that_it_issued(cluster: FakeCluster, now: datetime) -> None:
    bundle = await ensure(cluster, cluster, SETTINGS, now)
    (authority,) = certificates_in(bundle.pem.encode())
    (serving,) = certificates_in(cluster.data(TLS, "tls.crt"))
    assert is_issued_by(serving, authority)
    assert bundle.check_again_at == now + SETTINGS.check_every
    assert cluster.data(TLS, "ca.crt") == bundle.pem.encode()


async def test_the_key_of_the_ca_is_in_its_own_secret_alone(cluster: FakeCluster, now: datetime) -> None:
    await ensure(cluster, cluster, SETTINGS, now)
    assert cluster.data(CA, "tls.key") not in [cluster.data(TLS, key) for key in cluster.objects[TLS]["data"]]
    assert "PRIVATE" not in (await ensure(cluster, cluster, SETTINGS, now)).pem


async def test_a_second_call_writes_nothing(cluster: FakeCluster, now: datetime) -> None:
    first = await ensure(cluster, cluster, SETTINGS, now)
    cluster.writes.clear()
    assert await ensure(cluster, cluster, SETTINGS, now) == first
    assert cluster.writes == []


async def test_an_operator_that_dies_between_any_two_writes_is_followed_by_one_that_goes_on(
    cluster: FakeCluster, now: datetime
) -> None:
    """The write is done, its answer is lost, and the process with it; again and again, through a whole rotation."""

    class DyingCluster(FakeCluster):
        def store(self, path: str, body: dict[str, Any]) -> bytes:
            super().store(path, body)
            raise UnavailableError(0, "NoAnswer", "died")

    dying = DyingCluster()
    dying.add_pod("nightly-1")
    deaths = 0
    start, minutes = now, 0
    while minutes < 20:
        try:
            bundle = await ensure(dying, dying, SETTINGS, start + minutes * MINUTE)
        except UnavailableError:
            deaths += 1
            continue
        await distribute(dying, dying, (), bundle.pem)
        if minutes == 1:
            dying.annotate(CA, ANNOTATION_ROTATE)
        minutes += 1
    assert deaths == len(dying.writes) == 6  # CA, serving; CA, bundle… each once
    authority, old = certificates_in(bundle.pem.encode())
    (serving,) = certificates_in(dying.data(TLS, "tls.crt"))
    assert is_issued_by(serving, authority)
    assert not is_issued_by(serving, old)


async def test_of_two_operators_that_start_at_once_one_makes_the_ca_and_both_use_it(
    cluster: FakeCluster, now: datetime
) -> None:
    other: list[str] = []

    def the_other_is_faster(path: str) -> None:
        if not other:
            other.append(path)
            rival = FakeCluster(objects=cluster.objects, versions=cluster.versions)
            run_now(ensure(rival, rival, SETTINGS, now))

    cluster.before_write = the_other_is_faster
    bundle = await ensure(cluster, cluster, SETTINGS, now)
    assert other == [CA]
    assert len(certificates_in(bundle.pem.encode())) == 1
    assert cluster.data(CA, "tls.crt") == bundle.pem.encode()
    assert cluster.writes == []  # the rival's were the ones


async def test_an_operator_that_never_wins_says_so(cluster: FakeCluster, now: datetime) -> None:
    def refuse(path: str) -> None:
        raise ConflictError(409, "Conflict", path)

    cluster.before_write = refuse
    with pytest.raises(CertificatesError, match="does another operator write them"):
        await ensure(cluster, cluster, SETTINGS, now)


@pytest.mark.parametrize("key", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("damage", [b"", b"nonsense"])
async def test_a_damaged_ca_is_replaced_and_what_serves_stays_trusted(
    cluster: FakeCluster, now: datetime, key: str, damage: bytes
) -> None:
    cluster.add_pod("nightly-1", (await ensure(cluster, cluster, SETTINGS, now)).pem)
    serving = cluster.data(TLS, "tls.crt")
    cluster.set_data(CA, key, damage)
    bundle = await ensure(cluster, cluster, SETTINGS, now + MINUTE)
    assert len(certificates_in(bundle.pem.encode())) == 2
    assert cluster.data(TLS, "tls.crt") == serving


async def test_a_certificate_that_is_no_ca_is_neither_used_as_one_nor_trusted(
    cluster: FakeCluster, now: datetime
) -> None:
    before = await ensure(cluster, cluster, SETTINGS, now)
    for key in ("tls.crt", "tls.key"):
        cluster.set_data(CA, key, cluster.data(TLS, key))
    new, old = certificates_in((await ensure(cluster, cluster, SETTINGS, now)).pem.encode())
    assert (old,) == certificates_in(before.pem.encode())
    assert new.subject != old.subject


async def test_secrets_that_are_not_base64_or_have_no_data_are_replaced(cluster: FakeCluster, now: datetime) -> None:
    await ensure(cluster, cluster, SETTINGS, now)
    cluster.objects[CA]["data"]["tls.key"] = "%%%"
    cluster.objects[TLS]["data"] = None
    bundle = await ensure(cluster, cluster, SETTINGS, now)
    assert is_issued_by(certificates_in(cluster.data(TLS, "tls.crt"))[0], certificates_in(bundle.pem.encode())[0])


async def test_a_damaged_serving_certificate_is_replaced_by_the_same_ca(cluster: FakeCluster, now: datetime) -> None:
    before = await ensure(cluster, cluster, SETTINGS, now)
    cluster.set_data(TLS, "tls.key", b"nonsense")
    assert (await ensure(cluster, cluster, SETTINGS, now)).pem == before.pem
    assert cluster.data(TLS, "tls.key") != b"nonsense"


async def test_a_secret_of_another_type_keeps_it(cluster: FakeCluster, now: datetime) -> None:
    """A Secret's type can't be changed; cert-manager's is kubernetes.io/tls."""
    cluster.store(TLS, {"metadata": {"name": "tls"}, "type": "kubernetes.io/tls", "data": {}})
    await ensure(cluster, cluster, SETTINGS, now)
    assert cluster.objects[TLS]["type"] == "kubernetes.io/tls"


async def test_a_distribution_time_that_nobody_can_read_is_recorded_again(cluster: FakeCluster, now: datetime) -> None:
    await ensure(cluster, cluster, SETTINGS, now)
    cluster.annotate(CA, ANNOTATION_ROTATE)
    await ensure(cluster, cluster, SETTINGS, now)
    cluster.objects[CA]["metadata"]["annotations"][ANNOTATION_DISTRIBUTED] = "soon"
    await ensure(cluster, cluster, SETTINGS, now + MINUTE)
    assert cluster.objects[CA]["metadata"]["annotations"][ANNOTATION_DISTRIBUTED] == (now + MINUTE).isoformat()


async def test_the_order_to_rotate_is_carried_out_once(cluster: FakeCluster, now: datetime) -> None:
    await ensure(cluster, cluster, SETTINGS, now)
    cluster.annotate(CA, ANNOTATION_ROTATE)
    bundles = {(await ensure(cluster, cluster, SETTINGS, now + minute * MINUTE)).pem for minute in range(10)}
    assert len(bundles) == 1
    assert len(certificates_in(bundles.pop().encode())) == 2


async def test_the_old_certificate_serves_until_pods_have_had_the_bundle_for_the_overlap(
    cluster: FakeCluster, now: datetime
) -> None:
    first = await ensure(cluster, cluster, SETTINGS, now)
    pods = [cluster.add_pod(name, first.pem) for name in ("nightly-1", "nightly-2", "nightly-3")]
    serving = cluster.data(TLS, "tls.crt")
    cluster.annotate(CA, ANNOTATION_ROTATE)
    bundle = await ensure(cluster, cluster, SETTINGS, now)
    assert [pod["annotations"][ANNOTATION_CA] for pod in pods] == [bundle.pem] * 3
    assert bundle.check_again_at == now + 30 * SECOND
    for seconds in range(30, 320, 10):
        await ensure(cluster, cluster, SETTINGS, now + seconds * SECOND)
        assert cluster.data(TLS, "tls.crt") == serving
    await ensure(cluster, cluster, SETTINGS, now + 330 * SECOND)
    assert cluster.data(TLS, "tls.crt") != serving


async def test_rotation_whose_pod_loses_the_annotation_again_and_again_waits_for_one_overlap(
    cluster: FakeCluster, now: datetime
) -> None:
    first = await ensure(cluster, cluster, SETTINGS, now)
    pod = cluster.add_pod("nightly-1", first.pem)
    serving = cluster.data(TLS, "tls.crt")
    cluster.annotate(CA, ANNOTATION_ROTATE)
    at, checks = now, 0
    while cluster.data(TLS, "tls.crt") == serving:
        bundle = await ensure(cluster, cluster, SETTINGS, at)
        assert pod["annotations"].pop(ANNOTATION_CA) == bundle.pem
        at, checks = bundle.check_again_at, checks + 1
    assert checks == 12  # one writes the pod, one begins the overlap, and one follows each tenth of it
    assert at - now == SETTINGS.overlap * 1.1 + SETTINGS.check_every


async def test_rotation_whose_pod_refuses_the_bundle_ends_after_three_overlaps(
    cluster: FakeCluster, now: datetime
) -> None:
    first = await ensure(cluster, cluster, SETTINGS, now)
    cluster.add_pod("nightly-1", first.pem)
    cluster.refused.add("/api/v1/namespaces/work/pods/nightly-1")
    serving = cluster.data(TLS, "tls.crt")
    cluster.annotate(CA, ANNOTATION_ROTATE)
    at = now
    while cluster.data(TLS, "tls.crt") == serving:
        last, at = at, (await ensure(cluster, cluster, SETTINGS, at)).check_again_at
    assert last - now <= 3 * SETTINGS.overlap
    assert last - now > 2 * SETTINGS.overlap


async def test_distribution_puts_a_removed_annotation_back_and_does_not_count_its_pod(cluster: FakeCluster) -> None:
    pod = cluster.add_pod("nightly-1")
    assert await distribute(cluster, cluster, (), "bundle") == 0
    assert pod["annotations"][ANNOTATION_CA] == "bundle"


async def test_a_pod_that_was_made_with_the_old_bundle_gets_the_new_one_and_the_overlap_begins_anew(
    cluster: FakeCluster, now: datetime
) -> None:
    """Its creation was under way when the CA was replaced."""
    first = await ensure(cluster, cluster, SETTINGS, now)
    serving = cluster.data(TLS, "tls.crt")
    cluster.annotate(CA, ANNOTATION_ROTATE)
    await ensure(cluster, cluster, SETTINGS, now)
    pod = cluster.add_pod("nightly-1", first.pem)
    bundle = await ensure(cluster, cluster, SETTINGS, now + SETTINGS.overlap)
    assert pod["annotations"][ANNOTATION_CA] == bundle.pem
    assert cluster.data(TLS, "tls.crt") == serving
    await ensure(cluster, cluster, SETTINGS, now + 2 * SETTINGS.overlap - SECOND)
    assert cluster.data(TLS, "tls.crt") == serving
    await ensure(cluster, cluster, SETTINGS, now + 2 * SETTINGS.overlap)
    assert cluster.data(TLS, "tls.crt") != serving


async def test_distribution_writes_each_pod_once(cluster: FakeCluster) -> None:
    for name in ("nightly-1", "nightly-2", "nightly-3"):
        cluster.add_pod(name, "old")
    assert await distribute(cluster, cluster, (), "new") == 3
    assert await distribute(cluster, cluster, (), "new") == 0


async def test_distribution_passes_over_a_pod_that_is_gone_or_made_anew(cluster: FakeCluster) -> None:
    cluster.add_pod("gone")
    del cluster.objects["/api/v1/namespaces/work/pods/gone"]
    cluster.add_pod("anew")
    cluster.objects["/api/v1/namespaces/work/pods/anew"] = {"metadata": {"uid": "another"}}
    assert await distribute(cluster, cluster, (), "bundle") == 0


async def test_a_pod_that_may_not_be_written_counts_as_lacking_the_bundle_and_holds_up_no_other(
    cluster: FakeCluster,
) -> None:
    for name in ("nightly-1", "nightly-2", "nightly-3"):
        cluster.add_pod(name, "old")
    cluster.refused.add("/api/v1/namespaces/work/pods/nightly-2")
    assert await distribute(cluster, cluster, (), "new") == 3
    assert await distribute(cluster, cluster, (), "new") == 1
    cluster.refused.clear()
    assert await distribute(cluster, cluster, (), "new") == 1
    assert await distribute(cluster, cluster, (), "new") == 0


async def test_a_namespace_that_refuses_to_tell_its_pods_is_passed_over(cluster: FakeCluster) -> None:
    cluster.add_pod("nightly-1", "old")
    cluster.refused.add("/api/v1/namespaces/gone/pods")
    assert await distribute(cluster, cluster, ("gone", "work"), "new") == 1
    cluster.refused.add("/api/v1/pods")
    with pytest.raises(ForbiddenError):
        await distribute(cluster, cluster, (), "new")


async def test_distribution_looks_into_the_watched_namespaces_alone(cluster: FakeCluster) -> None:
    cluster.add_pod("nightly-1", "old")
    assert await distribute(cluster, cluster, ("elsewhere",), "bundle") == 0
    assert await distribute(cluster, cluster, ("elsewhere", "work"), "bundle") == 1


# -- cert-manager ----------------------------------------------------------------------------------


async def test_with_cert_manager_the_bundle_is_what_it_wrote(cluster: FakeCluster, now: datetime) -> None:
    own = await ensure(cluster, cluster, SETTINGS, now)
    del cluster.objects[CA]
    settings = CertificateSettings(
        namespace="reattach", ca_secret="ca", tls_secret="tls", dns_names=(HOST,), cert_manager=True
    )
    assert (await ensure(cluster, cluster, settings, now)).pem == own.pem
    assert CA not in cluster.objects


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
async def test_with_cert_manager_a_missing_ca_is_said(
    cluster: FakeCluster, now: datetime, content: bytes | None
) -> None:
    settings = CertificateSettings(
        namespace="reattach", ca_secret="ca", tls_secret="tls", dns_names=(HOST,), cert_manager=True
    )
    if content is not None:
        cluster.store(TLS, {"metadata": {}, "data": {}})
        cluster.set_data(TLS, "ca.crt", content)
    with pytest.raises(CertificatesError, match=r"the Secret reattach/tls must hold a CA in ca\.crt"):
        await ensure(cluster, cluster, settings, now)
    assert cluster.objects.keys() <= {TLS}


async def test_removal_deletes_both_secrets_and_can_be_repeated(cluster: FakeCluster, now: datetime) -> None:
    await ensure(cluster, cluster, SETTINGS, now)
    for _ in range(2):
        await remove(cluster, "reattach", "ca", "tls")
    assert cluster.objects == {}


# -- TLS -------------------------------------------------------------------------------------------


@dataclass
class Follower:
    """A file in a pod, that follows its source up to `lag` later, as kubelets do."""

    lag: timedelta
    history: list[tuple[datetime, bytes]] = field(default_factory=list)

    def see(self, at: datetime, content: bytes) -> None:
        if not self.history or self.history[-1][1] != content:
            self.history.append((at, content))

    def content(self, at: datetime) -> bytes:
        return [content for seen, content in self.history if seen + self.lag <= at or seen == self.history[0][0]][-1]


def handshake(server_pem: bytes, bundle: bytes, folder: Path) -> None:
    """A TLS handshake, in memory, between a state API with that certificate and a task with that bundle."""
    chain = folder / "server.pem"
    chain.write_bytes(server_pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain)
    client = ssl.create_default_context(cadata=bundle.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does unasked
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=HOST),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(10):
        for end in list(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            ends.remove(end)
        if not ends:
            return
    raise AssertionError("the handshake did not end")


async def test_no_connection_fails_through_a_rotation_however_kubelets_lag(
    cluster: FakeCluster, now: datetime, tmp_path: Path
) -> None:
    """Three tasks and two replicas of the state API, each with files of another age, every ten seconds for 50 minutes."""
    pods = {f"nightly-{n}": Follower(lag) for n, lag in enumerate((SECOND, 45 * SECOND, 90 * SECOND))}
    replicas = [Follower(SECOND), Follower(90 * SECOND)]
    first = await ensure(cluster, cluster, SETTINGS, now)
    metadata = {name: cluster.add_pod(name, first.pem) for name in pods}
    tried: set[tuple[bytes, bytes]] = set()
    check_again_at, authorities, sizes = now, set(), []
    for tick in range(300):
        at = now + tick * 10 * SECOND
        if tick == 30:
            cluster.annotate(CA, ANNOTATION_ROTATE)
        if at >= check_again_at:
            bundle = await ensure(cluster, cluster, SETTINGS, at)
            check_again_at = bundle.check_again_at
            await distribute(cluster, cluster, (), bundle.pem)
        for name, file in pods.items():
            file.see(at, metadata[name]["annotations"][ANNOTATION_CA].encode())
        for replica in replicas:
            replica.see(at, cluster.data(TLS, "tls.crt") + cluster.data(TLS, "tls.key"))
        meetings = {(replica.content(at), file.content(at)) for replica in replicas for file in pods.values()}
        for server_pem, trusted in meetings - tried:
            handshake(server_pem, trusted, tmp_path)
        tried |= meetings
        authorities.update(certificates_in(bundle.pem.encode()))
        sizes.append(len(certificates_in(bundle.pem.encode())))
    # It was a rotation: the CA changed, both were trusted for a while, and in the end the old one was dropped.
    assert len(authorities) == 2
    assert [size for size, _ in itertools.groupby(sizes)] == [1, 2, 1]
    assert len({server_pem for server_pem, _ in tried}) > 2


async def test_a_certificate_of_another_ca_is_refused_by_the_task(
    cluster: FakeCluster, now: datetime, tmp_path: Path
) -> None:
    """The other test can fail."""
    other = FakeCluster()
    bundle = await ensure(other, other, SETTINGS, now)
    await ensure(cluster, cluster, SETTINGS, now)
    pem = cluster.data(TLS, "tls.crt") + cluster.data(TLS, "tls.key")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(pem, bundle.pem.encode(), tmp_path)


def run_now(coroutine: Any) -> None:
    """Run a coroutine that never waits, from within another."""
    with pytest.raises(StopIteration):
        coroutine.send(None)


# -- the leader's writes ----------------------------------------------------------------------------------------------


async def test_certificates_are_written_only_by_leader(cluster: FakeCluster, now: datetime) -> None:
    limiter = RateLimiter(per_second=100, at_once=8)
    cluster.add_pod("nightly-1", "old")
    standby = Writer(cast("Cluster", cluster), limiter, lambda: False, OperatorMetrics())
    with pytest.raises(NotLeadingError):
        await ensure(cast("Cluster", cluster), standby, SETTINGS, now)
    with pytest.raises(NotLeadingError):
        await distribute(cast("Cluster", cluster), standby, (), "new")
    assert cluster.writes == []


async def test_certificate_writes_are_counted(cluster: FakeCluster, now: datetime) -> None:
    metrics = OperatorMetrics()
    writer = Writer(cast("Cluster", cluster), RateLimiter(per_second=100, at_once=8), lambda: True, metrics)
    cluster.add_pod("nightly-1", "old")
    bundle = await ensure(cast("Cluster", cluster), writer, SETTINGS, now)
    await distribute(cast("Cluster", cluster), writer, (), bundle.pem)
    text = metrics.text().decode()
    assert 'reattach_writes_total{resource="secrets",verb="create"} 2.0' in text
    assert 'reattach_writes_total{resource="pods",verb="patch"} 1.0' in text
