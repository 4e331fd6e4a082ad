"""Pure decisions about the replacement of the CA and of its serving certificate.

A CA is replaced in an order in which every pod always trusts the current serving certificate:

    make the new CA, the old one stays in the bundle, the serving certificate stays the old one's
    → the bundle is on every live pod, and `overlap` has passed, so that the kubelets have followed
      (pods that can't be written are waited for at most `overlap_max`)
    → issue a serving certificate by the new CA
    → what the old CA issued last has expired: it leaves the bundle

`next_step` derives the next step from what is stored, so a new operator continues where the last
one was killed.
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
"""On the CA's Secret, set by a user: replace the CA now, in the order above."""


@dataclass(frozen=True, kw_only=True)
class CertificateSettings:
    """Names and lifetimes of the certificates."""

    namespace: str
    """Namespace of the operator."""
    ca_secret: str
    tls_secret: str
    dns_names: tuple[str, ...]
    """Names by which task pods call the state API."""
    watch_namespaces: tuple[str, ...] = ()
    """Namespaces of task pods. Empty means all."""
    cert_manager: bool = False
    """cert-manager writes `tls_secret`, and no CA of our own exists."""
    ca_lifetime: timedelta = timedelta(days=365)
    serving_lifetime: timedelta = timedelta(days=30)
    overlap: timedelta = timedelta(minutes=5)
    """Time between the distribution of a bundle and its use. A kubelet follows an annotation
    within about 90 s.
    """
    check_every: timedelta = timedelta(minutes=5)
    """Time until a deleted Secret, an order to rotate, or a removed annotation is noticed."""

    @property
    def overlap_max(self) -> timedelta:
        """Time between the creation of a CA and its use, even if a pod lacks the bundle.

        Only an operator that was stopped meanwhile takes longer.
        """
        return self.overlap * 3

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
    """Content of the two Secrets. A part that is absent or damaged is None or empty."""

    authority: KeyPair | None = None
    previous: tuple[x509.Certificate, ...] = ()
    """Newest first."""
    rotate: bool = False
    distributed_time: datetime | None = None
    serving: KeyPair | None = None
    bundle: bytes = b""
    """Bundle that was written beside the serving certificate."""

    @property
    def trusted(self) -> tuple[x509.Certificate, ...]:
        """CAs of the bundle, newest first."""
        return (*((self.authority.certificate,) if self.authority else ()), *self.previous)

    @property
    def known(self) -> tuple[x509.Certificate, ...]:
        """CAs that pods trust, even if the CA's Secret is lost or damaged.

        The last bundle is also beside the serving certificate.
        """
        if self.authority:
            return self.trusted
        return tuple(dict.fromkeys((*authorities_in(self.bundle), *self.previous)))

    @property
    def pem(self) -> bytes:
        """Bundle that pods should have."""
        return pem_of(*self.trusted)


@dataclass(frozen=True)
class ReplaceAuthority:
    """Create a new CA. Keep `previous` trusted."""

    previous: tuple[x509.Certificate, ...]
    why: str


@dataclass(frozen=True)
class DropPrevious:
    """Keep only `keep` of the older CAs."""

    keep: tuple[x509.Certificate, ...]


@dataclass(frozen=True)
class RecordDistribution:
    """Record the start of the overlap, or (None) that a pod lacks the bundle."""

    time: datetime | None


@dataclass(frozen=True)
class IssueServing:
    """Issue a serving certificate by the CA."""

    why: str


@dataclass(frozen=True)
class CopyBundle:
    """Write the bundle beside the serving certificate."""


@dataclass(frozen=True)
class Wait:
    """Do nothing before `until`."""

    until: datetime


Step = ReplaceAuthority | DropPrevious | RecordDistribution | IssueServing | CopyBundle | Wait


def next_step(stored: StoredCertificates, settings: CertificateSettings, now: datetime, *, lagging: bool) -> Step:
    """Return the next step.

    `lagging`: a live pod had another bundle when this one was distributed; needed only while
    `is_overlap`.
    """
    if why := reason_to_replace_authority(stored, now):
        return ReplaceAuthority(still_trusted(stored.known, stored, settings, now), why)
    keep = still_trusted(stored.trusted, stored, settings, now)[1:]
    if keep != stored.previous:
        return DropPrevious(keep)
    if why := reason_to_issue(stored, settings, now):
        return IssueServing(why)
    if is_overlap(stored, settings, now):
        if lagging and now < (end := _end_of_waiting(stored, settings)):
            soon = min(now + settings.overlap / 10, now + settings.check_every, end)
            return Wait(soon) if stored.distributed_time is None else RecordDistribution(None)
        if stored.distributed_time is None or stored.distributed_time > now:
            return RecordDistribution(now)
        if now >= stored.distributed_time + settings.overlap:
            return IssueServing(
                f"a pod still lacks the new CA after {settings.overlap_max}"
                if lagging
                else "every pod trusts the new CA"
            )
    if stored.bundle != stored.pem:
        return CopyBundle()
    return Wait(_next_check(stored, settings, now))


def reason_to_replace_authority(stored: StoredCertificates, now: datetime) -> str | None:
    """Return why a new CA is needed, or None."""
    if stored.authority is None:
        return "it is absent or damaged"
    if not is_valid_at(stored.authority.certificate, now):
        return "it is not valid now"
    if now >= renewal_time(stored.authority.certificate):
        return "two thirds of its lifetime have passed"
    if stored.rotate:
        return f"the annotation {ANNOTATION_ROTATE} requests it"
    return None


def reason_to_issue(stored: StoredCertificates, settings: CertificateSettings, now: datetime) -> str | None:
    """Return why a serving certificate is needed at once, or None.

    These reasons apply even if a pod would not trust the new certificate.
    """
    if stored.serving is None:
        return "it is absent or damaged"
    certificate = stored.serving.certificate
    if not is_valid_at(certificate, now):
        return "it is not valid now"
    if not dns_names_of(certificate) >= set(settings.dns_names):
        return "it lacks a DNS name"
    if not any(is_issued_by(certificate, authority) for authority in stored.trusted):
        return "no CA in the bundle issued it"
    if is_issued_by(certificate, stored.trusted[0]):
        return "two thirds of its lifetime have passed" if now >= renewal_time(certificate) else None
    if now + settings.overlap >= certificate.not_valid_after_utc:
        return "it expires, although a pod may not trust the new CA yet"
    return None


def _end_of_waiting(stored: StoredCertificates, settings: CertificateSettings) -> datetime:
    """Return when the overlap begins although a pod lacks the bundle."""
    assert stored.authority is not None, "an overlap has a CA"
    return created_time(stored.authority.certificate) + settings.overlap_max - settings.overlap


def is_overlap(stored: StoredCertificates, settings: CertificateSettings, now: datetime) -> bool:
    """Return whether the serving certificate is usable, but was issued by an older CA."""
    if stored.authority is None or stored.serving is None or reason_to_issue(stored, settings, now):
        return False
    return not is_issued_by(stored.serving.certificate, stored.authority.certificate)


def still_trusted(
    authorities: Sequence[x509.Certificate], stored: StoredCertificates, settings: CertificateSettings, now: datetime
) -> tuple[x509.Certificate, ...]:
    """Return the `authorities` that may have issued a certificate that is still in use.

    `authorities` are sorted, newest first. A CA issues nothing once the next one exists, so its
    last certificate expires one serving lifetime later.
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


def _next_check(stored: StoredCertificates, settings: CertificateSettings, now: datetime) -> datetime:
    """Return when the next step can be due, at the latest after `check_every`."""
    times = [now + settings.check_every]
    times += [renewal_time(pair.certificate) for pair in (stored.authority, stored.serving) if pair]
    times += [_drop_time(newer, older, settings) for newer, older in pairwise(stored.trusted)]
    if stored.distributed_time and is_overlap(stored, settings, now):
        # Some pods were created with the old bundle meanwhile, or could not be written.
        times += [now + settings.overlap / 10, stored.distributed_time + settings.overlap]
    return min(time for time in times if time > now)
