"""TLS of the state API: CA, serving certificate, and rotation without broken connections.

Two Secrets exist in the operator's namespace. The Secret of the CA holds its certificate and key
(`tls.crt`, `tls.key`) and the older CAs that are still trusted (`previous.crt`). Its key never
leaves it. The state API mounts the Secret of the serving certificate (`tls.crt`, `tls.key`, and
the bundle as `ca.crt`). Task pods trust the bundle, which is the CA and the older CAs, and have it
in an annotation.

`reattach.pki.rotation` decides. This module reads and writes.
"""

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from cryptography import x509

from reattach.api.names import ANNOTATION_CA, GROUP, LABEL_TASKRUN
from reattach.cluster import Cluster, ClusterError, ConflictError, ForbiddenError, InvalidError, NotFoundError, paths
from reattach.pki.ca import KeyPair, authorities_in, is_authority, new_authority, new_serving, pem_of
from reattach.pki.rotation import (
    ANNOTATION_ROTATE,
    CertificateSettings,
    CopyBundle,
    DropPrevious,
    IssueServing,
    RecordDistribution,
    ReplaceAuthority,
    StoredCertificates,
    Wait,
    is_overlap,
    next_step,
)
from reattach.runtime.pager import metadata_of_all
from reattach.runtime.writer import Writer

__all__ = ["Bundle", "CertificateSettings", "CertificatesError", "distribute", "ensure", "remove", "unmarked_pods"]

ANNOTATION_DISTRIBUTED: Final = f"{GROUP}/distributed-time"
"""On the CA's Secret: start of the overlap (RFC 3339)."""

_STEPS_MAX = 10
_PATCHES_AT_ONCE = 8
_LIVE = "status.phase!=Succeeded,status.phase!=Failed"

_log = logging.getLogger(__name__)


class CertificatesError(Exception):
    """Missing bundle for pods. The message names what is missing. Retry later."""


class UnmarkedPod(NamedTuple):
    """A live task pod that lacks the bundle, or has another one."""

    namespace: str
    name: str
    uid: str
    has_another: bool


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Trusted CAs of task pods as PEM, and when to call `ensure` again."""

    pem: str
    check_again_at: datetime


async def ensure(cluster: Cluster, writer: Writer, settings: CertificateSettings, now: datetime) -> Bundle:
    """Create, rotate and renew the certificates that are due at `now`.

    A repetition, an interruption and another operator at the same time are safe. Put the returned
    PEM into the annotation `reattach.dev/ca.crt` of new pods. After each change, put it into live
    pods as well (`distribute`). A rotation continues only when all pods have the bundle, so this
    function distributes it too. Raises `CertificatesError` while cert-manager is not done,
    `ClusterError`, and `NotLeadingError`.
    """
    if settings.cert_manager:
        return await _bundle_of_cert_manager(cluster, settings, now)
    for _ in range(_STEPS_MAX):
        secrets = await _read(cluster, settings.namespace, settings.ca_secret, settings.tls_secret)
        stored = _stored_in(secrets[settings.ca_secret], secrets[settings.tls_secret])
        bundle = stored.pem.decode()
        lagging = (
            is_overlap(stored, settings, now)
            and await distribute(cluster, writer, settings.watch_namespaces, bundle) > 0
        )
        step = next_step(stored, settings, now, lagging=lagging)
        if isinstance(step, Wait):
            return Bundle(pem=bundle, check_again_at=step.until)
        write = _write_for(step, stored, settings, now)
        _log.log(write.level, "%s", write.why)
        try:
            await _write_secret(write, secrets[write.name], writer, settings.namespace)
        except ConflictError as error:
            _log.info("another operator wrote the certificates, reading them again: %s", error)
    raise CertificatesError(
        f"the certificates of the state API did not settle in {_STEPS_MAX} steps; does another operator write them?"
    )


async def distribute(cluster: Cluster, writer: Writer, watch_namespaces: Sequence[str], pem: str) -> int:
    """Put the bundle on every live task pod that lacks it.

    Return the number of these pods that had another bundle, including those whose write was
    rejected. A pod without the annotation is not counted. The operator creates no such pod, so a
    user removed the annotation, and may do so again and again.
    """
    pods = [pod async for pod in unmarked_pods(cluster, watch_namespaces, pem)]
    gate = asyncio.Semaphore(_PATCHES_AT_ONCE)

    async def mark(pod: UnmarkedPod) -> int:
        async with gate:
            patch = {"metadata": {"uid": pod.uid, "annotations": {ANNOTATION_CA: pem}}}
            try:
                await writer.merge_patch(paths.pods(pod.namespace, pod.name), patch)
            except (NotFoundError, InvalidError):
                return 0  # gone, or another pod of that name, because a UID is immutable
            except ClusterError as error:
                # The policy of one namespace must not affect the others.
                _log.warning("Can't write the CA of the state API to pod %s/%s: %s", pod.namespace, pod.name, error)
            return int(pod.has_another)

    return sum(await asyncio.gather(*(mark(pod) for pod in pods)))


async def unmarked_pods(cluster: Cluster, watch_namespaces: Sequence[str], pem: str) -> AsyncIterator[UnmarkedPod]:
    """Yield the live task pods without this bundle.

    Skip a namespace that refuses the list.
    """
    for namespace in watch_namespaces or (None,):
        pods = metadata_of_all(cluster, paths.pods(namespace), label_selector=LABEL_TASKRUN, field_selector=_LIVE)
        try:
            async for metadata in pods:
                bundle = metadata.annotations.get(ANNOTATION_CA)
                if bundle != pem:
                    yield UnmarkedPod(metadata.namespace, metadata.name, metadata.uid, has_another=bundle is not None)
        except ForbiddenError as error:
            if namespace is None:
                raise
            # The namespace may have been deleted with its Role. The certificates of the others
            # must not expire because of it.
            _log.warning("The pods of namespace %s can't be listed: %s", namespace, error)


async def remove(cluster: Cluster, namespace: str, *names: str) -> None:
    """Delete Secrets that `ensure` made, when Reattach is uninstalled."""
    for name in names:
        try:
            await cluster.delete(paths.secrets(namespace, name))
        except NotFoundError:
            continue


Secret = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class _Write:
    """Content of a Secret, and the line for the log."""

    name: str
    data: Mapping[str, bytes]
    distributed_time: datetime | None = None
    why: str
    level: int = logging.INFO


def _write_for(
    step: ReplaceAuthority | DropPrevious | RecordDistribution | IssueServing | CopyBundle,
    stored: StoredCertificates,
    settings: CertificateSettings,
    now: datetime,
) -> _Write:
    """Return the write of the step."""
    ca, tls = settings.ca_secret, settings.tls_secret
    if isinstance(step, ReplaceAuthority):
        data = _data_of_authority(new_authority(now, settings.ca_lifetime), step.previous)
        return _Write(name=ca, data=data, why=f"making a new CA for the state API: {step.why}", level=logging.WARNING)
    assert stored.authority is not None, "every other step is taken with a CA"
    match step:
        case DropPrevious(keep=keep):
            data, since = _data_of_authority(stored.authority, keep), stored.distributed_time
            return _Write(
                name=ca,
                data=data,
                distributed_time=since,
                why="removing a previous CA, because every certificate that it issued has expired",
            )
        case RecordDistribution(time=time):
            data = _data_of_authority(stored.authority, stored.previous)
            why = f"the new CA is used after {settings.overlap}" if time else "a live pod lacks the new CA"
            return _Write(name=ca, data=data, distributed_time=time, why=why)
        case IssueServing(why=why):
            made = new_serving(stored.authority, settings.dns_names, now, settings.serving_lifetime)
            why = f"issuing a certificate for the state API: {why}"
            return _Write(name=tls, data=_data_of_serving(made, stored.pem), why=why)
        case CopyBundle():
            assert stored.serving is not None, "copied only beside a certificate that serves"
            data = _data_of_serving(stored.serving, stored.pem)
            return _Write(name=tls, data=data, why="writing the bundle beside the state API's certificate")


def _data_of_authority(pair: KeyPair, previous: Sequence[x509.Certificate]) -> dict[str, bytes]:
    return {"tls.crt": pem_of(pair.certificate), "tls.key": pair.key_pem(), "previous.crt": pem_of(*previous)}


def _data_of_serving(pair: KeyPair, bundle: bytes) -> dict[str, bytes]:
    return {"tls.crt": pem_of(pair.certificate), "tls.key": pair.key_pem(), "ca.crt": bundle}


def _stored_in(ca: Secret, tls: Secret) -> StoredCertificates:
    authority = KeyPair.from_pem(_value(ca, "tls.crt"), _value(ca, "tls.key"))
    return StoredCertificates(
        authority=authority if authority and is_authority(authority.certificate) else None,
        previous=authorities_in(_value(ca, "previous.crt")),
        rotate=_annotation(ca, ANNOTATION_ROTATE) is not None,
        distributed_time=_time_in(_annotation(ca, ANNOTATION_DISTRIBUTED)),
        serving=KeyPair.from_pem(_value(tls, "tls.crt"), _value(tls, "tls.key")),
        bundle=_value(tls, "ca.crt"),
    )


async def _bundle_of_cert_manager(cluster: Cluster, settings: CertificateSettings, now: datetime) -> Bundle:
    secrets = await _read(cluster, settings.namespace, settings.tls_secret)
    bundle = authorities_in(_value(secrets[settings.tls_secret], "ca.crt"))
    if not bundle:
        raise CertificatesError(
            f"the Secret {settings.namespace}/{settings.tls_secret} must hold a CA in ca.crt; check cert-manager's Certificate of that name"
        )
    return Bundle(pem=pem_of(*bundle).decode(), check_again_at=now + settings.check_every)


async def _read(cluster: Cluster, namespace: str, *names: str) -> dict[str, Secret]:
    found: dict[str, Secret] = dict.fromkeys(names)
    for name in names:
        try:
            found[name] = json.loads(await cluster.get(paths.secrets(namespace, name)))
        except NotFoundError:
            continue
    return found


async def _write_secret(write: _Write, old: Secret, writer: Writer, namespace: str) -> None:
    """Create the Secret, or replace the version that was read."""
    metadata: dict[str, Any] = {
        "name": write.name,
        "namespace": namespace,
        "labels": {"app.kubernetes.io/managed-by": "reattach-operator", "app.kubernetes.io/part-of": "reattach"},
    }
    if write.distributed_time:
        metadata["annotations"] = {ANNOTATION_DISTRIBUTED: write.distributed_time.isoformat()}
    encoded = {key: base64.b64encode(value).decode() for key, value in write.data.items()}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encoded}
    if old is None:
        await writer.create(paths.secrets(namespace), body)
    else:
        metadata["resourceVersion"] = old["metadata"]["resourceVersion"]
        body["type"] = old.get("type", "Opaque")  # can't be changed
        await writer.replace(paths.secrets(namespace, write.name), body)


def _value(secret: Secret, key: str) -> bytes:
    try:
        return base64.b64decode(((secret or {}).get("data") or {}).get(key) or "", validate=True)
    except binascii.Error:
        return b""


def _annotation(secret: Secret, key: str) -> str | None:
    value: str | None = ((secret or {}).get("metadata", {}).get("annotations") or {}).get(key)
    return value


def _time_in(text: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
    return time if time is None or time.tzinfo else time.replace(tzinfo=UTC)
