"""TLS of the state API: a CA of our own, a serving certificate, and their rotation without a broken connection.

Two Secrets in the operator's namespace. The CA's holds its certificate and key (`tls.crt`, `tls.key`) and the older CAs that are
still trusted (`previous.crt`); its key never leaves it. The serving certificate's is mounted by the state API (`tls.crt`, `tls.key`,
and the bundle as `ca.crt`). Task pods trust the bundle, the CA and the older ones, which they have in an annotation.

`reattach.pki.rotation` decides; here is what reads and writes.
"""

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

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
"""On the CA's Secret: since when every live pod has carried the present bundle (RFC 3339)."""

_STEPS_MAX = 10
_PATCHES_AT_ONCE = 8
_LIVE = "status.phase!=Succeeded,status.phase!=Failed"

_log = logging.getLogger(__name__)


class CertificatesError(Exception):
    """There is no bundle to give to pods yet; the message says what is missing. Try again later."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """What task pods check the state API's certificate with, as PEM, and when to call `ensure` again."""

    pem: str
    look_again_at: datetime


async def ensure(cluster: Cluster, writer: Writer, settings: CertificateSettings, now: datetime) -> Bundle:
    """Bring the certificates to where they should be at `now`; safe to repeat, to interrupt, and beside another operator.

    Put the answer's PEM into the annotation `reattach.dev/ca.crt` of new pods, and whenever it changed also of the live ones
    (`distribute`). During a rotation, which goes on only when all of them have it, that is done here as well. Raises
    `CertificatesError` where cert-manager isn't done yet, and `ClusterError`.
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
            return Bundle(pem=bundle, look_again_at=step.until)
        write = _write_for(step, stored, settings, now)
        _log.log(write.level, "%s", write.why)
        try:
            await _write_secret(write, secrets[write.name], writer, settings.namespace)
        except ConflictError as error:
            _log.info("another operator wrote the certificates, looking again: %s", error)
    raise CertificatesError(
        f"the certificates of the state API did not settle in {_STEPS_MAX} steps; does another operator write them?"
    )


async def distribute(cluster: Cluster, writer: Writer, watch_namespaces: Sequence[str], pem: str) -> int:
    """Put the bundle on every live pod of ours that lacks it; safe to repeat. The number of pods that lacked it: written now, or refused."""
    pods = [pod async for pod in unmarked_pods(cluster, watch_namespaces, pem)]
    gate = asyncio.Semaphore(_PATCHES_AT_ONCE)

    async def mark(namespace: str, name: str, uid: str) -> int:
        async with gate:
            patch = {"metadata": {"uid": uid, "annotations": {ANNOTATION_CA: pem}}}
            try:
                await writer.merge_patch(paths.pods(namespace, name), patch)
            except (NotFoundError, InvalidError):
                return 0  # gone, or another pod by that name (a UID is immutable): the next look tells
            except ClusterError as error:
                # One namespace's policy is no reason to serve no other.
                _log.warning("Pod %s/%s can't be told of the state API's CA: %s", namespace, name, error)
            return 1

    return sum(await asyncio.gather(*(mark(*pod) for pod in pods)))


async def unmarked_pods(
    cluster: Cluster, watch_namespaces: Sequence[str], pem: str
) -> AsyncIterator[tuple[str, str, str]]:
    """Namespace, name and UID of the live pods of ours that don't carry this bundle, but for those of a namespace that refuses to tell."""
    for namespace in watch_namespaces or (None,):
        pods = metadata_of_all(cluster, paths.pods(namespace), label_selector=LABEL_TASKRUN, field_selector=_LIVE)
        try:
            async for metadata in pods:
                if metadata.annotations.get(ANNOTATION_CA) != pem:
                    yield metadata.namespace, metadata.name, metadata.uid
        except ForbiddenError as error:
            if namespace is None:
                raise
            # Such as one that was deleted, and its Role with it: no reason to let the certificates of all others run out.
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
    """What a Secret should hold, and the line for the log."""

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
    """The one write that carries out the step."""
    ca, tls = settings.ca_secret, settings.tls_secret
    if isinstance(step, ReplaceAuthority):
        data = _data_of_authority(new_authority(now, settings.ca_lifetime), step.previous)
        return _Write(name=ca, data=data, why=f"making a new CA for the state API: {step.why}", level=logging.WARNING)
    assert stored.authority is not None, "every other step is taken with a CA"
    match step:
        case DropPrevious(keep=keep):
            data, since = _data_of_authority(stored.authority, keep), stored.distributed_time
            return _Write(name=ca, data=data, distributed_time=since, why="all that an old CA issued is over: it goes")
        case RecordDistribution(time=time):
            data = _data_of_authority(stored.authority, stored.previous)
            why = "every live pod has the new CA" if time else "a live pod lacks the new CA"
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
            f"the Secret {settings.namespace}/{settings.tls_secret} must hold a CA in ca.crt; look at cert-manager's Certificate of that name"
        )
    return Bundle(pem=pem_of(*bundle).decode(), look_again_at=now + settings.check_every)


async def _read(cluster: Cluster, namespace: str, *names: str) -> dict[str, Secret]:
    found: dict[str, Secret] = dict.fromkeys(names)
    for name in names:
        try:
            found[name] = json.loads(await cluster.get(paths.secrets(namespace, name)))
        except NotFoundError:
            continue
    return found


async def _write_secret(write: _Write, old: Secret, writer: Writer, namespace: str) -> None:
    """Create the Secret, or replace exactly the version that was read."""
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
