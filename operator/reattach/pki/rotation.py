"""When the CA of the state API and the certificate that it issued are replaced: pure decisions.

A CA is replaced in an order that never leaves a pod without the CA of the certificate that it meets:

    make the new CA, the old one stays in the bundle, the serving certificate stays the old one's
    → the bundle is on every live pod, and `overlap` has passed, so that the kubelets have followed
    → issue a serving certificate by the new CA
    → what the old CA issued last has expired: it leaves the bundle

`next_step` derives the next step from what is stored, so an operator that dies anywhere goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

from cryptography import x509

from reattach.api.names import GROUP
from reattach.pki.ca import (
    KeyPair,
    authorities_in,
    created_time,
    dns_names_of,
    is_issued_by,
    is_valid_at,
    pem_of,
    renewal_time,
)

ANNOTATION_ROTATE: Final = f"{GROUP}/rotate"
"""On the CA's Secret, by a person: replace the CA now, in the order above."""


@dataclass(frozen=True, kw_only=True)
class CertificateSettings:
    """Where the certificates are, and how long they last."""

    namespace: str
    """The operator's own."""
    ca_secret: str
    tls_secret: str
    dns_names: tuple[str, ...]
    """What task pods call the state API."""
    watch_namespaces: tuple[str, ...] = ()
    """Where task pods are; empty means everywhere."""
    cert_manager: bool = False
    """cert-manager writes `tls_secret`; there is no CA of our own."""
    ca_lifetime: timedelta = timedelta(days=365)
    serving_lifetime: timedelta = timedelta(days=30)
    overlap: timedelta = timedelta(minutes=5)
    """From the new bundle being on every pod to its use. A kubelet follows an annotation within some 90 s."""
    check_every: timedelta = timedelta(minutes=5)
    """How long a Secret that was deleted, or an order to rotate, may go unseen."""

    def __post_init__(self) -> None:
        if not self.dns_names:
            raise ValueError("dns_names must name at least one name of the state API")
        if self.serving_lifetime * 3 > self.ca_lifetime:
            raise ValueError(
                "serving_lifetime must be at most a third of ca_lifetime, else a rotation can't be finished in time"
            )
        if self.overlap * 6 > self.serving_lifetime:
            raise ValueError(
                "overlap must be at most a sixth of serving_lifetime, else a rotation can't be finished in time"
            )


@dataclass(frozen=True, kw_only=True)
class StoredCertificates:
    """What the two Secrets say. A part that is absent or damaged is None or empty."""

    authority: KeyPair | None = None
    previous: tuple[x509.Certificate, ...] = ()
    """Newest first."""
    rotate: bool = False
    distributed_time: datetime | None = None
    serving: KeyPair | None = None
    bundle: bytes = b""
    """The bundle as it was written beside the serving certificate."""

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """The CAs of the bundle, newest first."""
        return (*((self.authority.certificate,) if self.authority else ()), *self.previous)

    @property
    def known(self) -> tuple[x509.Certificate, ...]:
        """Those that pods trust, also when the CA's Secret is lost or damaged: its last bundle lies beside the serving certificate."""
        if self.authority:
            return self.trusted
        return tuple(dict.fromkeys((*authorities_in(self.bundle), *self.previous)))

    @property
    def pem(self) -> bytes:
        """The bundle that pods should have."""
        return pem_of(*self.trusted)


@dataclass(frozen=True)
class ReplaceAuthority:
    """Make a new CA; `previous` stay trusted."""

    previous: tuple[x509.Certificate, ...]
    why: str


@dataclass(frozen=True)
class DropPrevious:
    """Only `keep` of the older CAs are still of use."""

    keep: tuple[x509.Certificate, ...]


@dataclass(frozen=True)
class RecordDistribution:
    """Every live pod carries the bundle since `time`; None: one doesn't, after all."""

    time: datetime | None


@dataclass(frozen=True)
class IssueServing:
    """Make a serving certificate by the CA."""

    why: str


@dataclass(frozen=True)
class CopyBundle:
    """Write the bundle beside the serving certificate."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do before `until`."""

    until: datetime


Step = ReplaceAuthority | DropPrevious | RecordDistribution | IssueServing | CopyBundle | Wait


def next_step(stored: StoredCertificates, settings: CertificateSettings, now: datetime, *, lagging: bool) -> Step:
    """The one thing to do now. `lagging`: some live pod lacks the bundle; asked for only while `is_overlap`."""
    if why := reason_to_replace_authority(stored, now):
        return ReplaceAuthority(still_of_use(stored.known, stored, settings, now), why)
    keep = still_of_use(stored.trusted, stored, settings, now)[1:]
    if keep != stored.previous:
        return DropPrevious(keep)
    if why := reason_to_issue(stored, settings, now):
        return IssueServing(why)
    if is_overlap(stored, settings, now):
        if lagging:
            soon = now + min(settings.overlap / 10, settings.check_every)
            return Wait(soon) if stored.distributed_time is None else RecordDistribution(None)
        if stored.distributed_time is None or stored.distributed_time > now:
            return RecordDistribution(now)
        if now >= stored.distributed_time + settings.overlap:
            return IssueServing("every pod trusts the new CA by now")
    if stored.bundle != stored.pem:
        return CopyBundle()
    return Wait(_next_look(stored, settings, now))


def reason_to_replace_authority(stored: StoredCertificates, now: datetime) -> str | None:
    """Why a new CA is needed, or None."""
    if stored.authority is None:
        return "there is none that can be read"
    if not is_valid_at(stored.authority.certificate, now):
        return "its dates don't hold now"
    if now >= renewal_time(stored.authority.certificate):
        return "two thirds of its life are over"
    if stored.rotate:
        return f"the annotation {ANNOTATION_ROTATE} asks for it"
    return None


def reason_to_issue(stored: StoredCertificates, settings: CertificateSettings, now: datetime) -> str | None:
    """Why a serving certificate is needed at once, whether or not every pod would trust it, or None."""
    if stored.serving is None:
        return "there is none that can be read"
    certificate = stored.serving.certificate
    if not is_valid_at(certificate, now):
        return "its dates don't hold now"
    if not dns_names_of(certificate) >= set(settings.dns_names):
        return "it lacks a name"
    if not any(is_issued_by(certificate, authority) for authority in stored.trusted):
        return "no CA in the bundle issued it"
    if is_issued_by(certificate, stored.trusted[0]):
        return "two thirds of its life are over" if now >= renewal_time(certificate) else None
    if now + settings.overlap >= certificate.not_valid_after_utc:
        return "it ends, although some pod may not trust the new CA yet"
    return None


def is_overlap(stored: StoredCertificates, settings: CertificateSettings, now: datetime) -> bool:
    """Whether the serving certificate serves well, but is an older CA's."""
    if stored.authority is None or stored.serving is None or reason_to_issue(stored, settings, now):
        return False
    return not is_issued_by(stored.serving.certificate, stored.authority.certificate)


def still_of_use(
    authorities: Sequence[x509.Certificate], stored: StoredCertificates, settings: CertificateSettings, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Those of `authorities` (newest first) that may have issued a certificate which somebody still meets.

    A CA issues nothing once the next one is made, so its last certificate is over a serving lifetime later.
    """
    if not authorities:
        return ()
    kept = [authorities[0]] if is_valid_at(authorities[0], now) else []
    for newer, older in pairwise(authorities):
        serves = stored.serving is not None and is_issued_by(stored.serving.certificate, older)
        if is_valid_at(older, now) and (serves or now < _drop_time(newer, older, settings)):
            kept.append(older)
    return tuple(kept)


def _drop_time(newer: x509.Certificate, older: x509.Certificate, settings: CertificateSettings) -> datetime:
    return min(created_time(newer) + settings.serving_lifetime, older.not_valid_after_utc)


def _next_look(stored: StoredCertificates, settings: CertificateSettings, now: datetime) -> datetime:
    """When the next step can be due, at the latest after `check_every`."""
    times = [now + settings.check_every]
    times += [renewal_time(pair.certificate) for pair in (stored.authority, stored.serving) if pair]
    times += [_drop_time(newer, older, settings) for newer, older in pairwise(stored.trusted)]
    if stored.distributed_time and is_overlap(stored, settings, now):
        times.append(stored.distributed_time + settings.overlap)
    return min(time for time in times if time > now)
