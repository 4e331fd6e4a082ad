"""Creation and decoding of a certificate authority (CA) and of its serving certificates."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATE: Final = timedelta(hours=1)
"""Time by which certificates are backdated, for clients whose clock is behind."""


@dataclass(frozen=True, kw_only=True)
class KeyPair:
    """A certificate and the private key that belongs to it."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_pem(cls, certificate: bytes, key: bytes) -> Self | None:
        """Return the pair, or None if a part is absent, damaged or of another kind or pair."""
        certificates = certificates_in(certificate)
        try:
            private = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError):
            return None
        if not certificates or not isinstance(private, ec.EllipticCurvePrivateKey):
            return None
        if certificates[0].public_key() != private.public_key():
            return None
        return cls(certificate=certificates[0], key=private)

    def key_pem(self) -> bytes:
        """Return the private key, unencrypted."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def new_authority(now: datetime, lifetime: timedelta) -> KeyPair:
    """Return a self-signed CA, valid from `now - BACKDATE` to `now + lifetime`."""
    key = ec.generate_private_key(ec.SECP256R1())
    # Each CA has its own subject. With two CAs of one name in a bundle, a client may try only the
    # wrong one.
    subject = _name(f"reattach CA {secrets.token_hex(8)}")
    certificate = (
        _builder(key, now, now + lifetime, subject=subject, issuer=subject, issuer_key=key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return KeyPair(certificate=certificate, key=key)


def new_serving(authority: KeyPair, dns_names: tuple[str, ...], now: datetime, lifetime: timedelta) -> KeyPair:
    """Return a serving certificate for these names, which expires no later than `authority`."""
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = authority.certificate
    end = min(now + lifetime, issuer.not_valid_after_utc)
    certificate = (
        _builder(key, now, end, subject=_name("reattach state API"), issuer=issuer.subject, issuer_key=authority.key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in dns_names]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return KeyPair(certificate=certificate, key=key)


def certificates_in(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the certificates of a bundle, in order; none if the bundle is empty or damaged."""
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError:
        return ()


def authorities_in(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Return the CAs of a bundle."""
    return tuple(certificate for certificate in certificates_in(pem) if is_authority(certificate))


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Return a bundle of these certificates, in this order."""
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Return whether the CA's key signed the certificate."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def is_authority(certificate: x509.Certificate) -> bool:
    """Return whether the certificate is that of a CA."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound):
        return False


def is_valid_at(certificate: x509.Certificate, now: datetime) -> bool:
    """Return whether `now` is within the dates of the certificate."""
    return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def dns_names_of(certificate: x509.Certificate) -> frozenset[str]:
    """Return the DNS names of the certificate."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return frozenset()
    return frozenset(names.get_values_for_type(x509.DNSName))


def created_time(certificate: x509.Certificate) -> datetime:
    """Return when the certificate was created, by the clock of its creator."""
    return certificate.not_valid_before_utc + BACKDATE


def renewal_time(certificate: x509.Certificate) -> datetime:
    """Return when two thirds of the lifetime have passed, which leaves time for retries."""
    created = created_time(certificate)
    return created + (certificate.not_valid_after_utc - created) * 2 / 3


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    end: datetime,
    *,
    subject: x509.Name,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
) -> x509.CertificateBuilder:
    """Return a builder with the parts common to CAs and serving certificates.

    RFC 5280 and Python 3.13 require the key identifiers.
    """
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
