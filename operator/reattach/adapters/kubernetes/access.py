"""Address and credentials of the Kubernetes API, from the pod's service account or a kubeconfig.

Files are read for each request, because tokens and CAs are rotated while a task runs.
"""

import base64
import binascii
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import msgspec

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class AccessError(ValueError):
    """The Kubernetes API can't be reached with these settings. The message has the requirement."""


@dataclass(frozen=True)
class Access:
    """One API server and the client's credentials.

    `certificate`: PEM of the client's certificate and key. `is_of_pod`: the API server is that of
    the cluster in which this process's pod runs.
    """

    server: str
    namespace: str
    ca: str | None
    token: str | None = None
    token_file: Path | None = None
    ca_file: Path | None = None
    certificate: str | None = None
    is_of_pod: bool = False

    @classmethod
    def from_pod(cls, directory: Path = SERVICE_ACCOUNT, environment: Mapping[str, str] = os.environ) -> Self:
        """Use the service account of the pod that this process runs in. Raises `AccessError`."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        token_file = directory / "token"
        if not host or not token_file.is_file():
            raise AccessError(
                "the pod must have its service account's token: serviceAccountName set, and automountServiceAccountToken not false "
                f"({token_file} and KUBERNETES_SERVICE_HOST). Outside a pod, use a kubeconfig"
            )
        host = f"[{host}]" if ":" in host else host
        return cls(
            server=f"https://{host}:{port}",
            namespace=(directory / "namespace").read_text().strip(),
            ca=None,
            token_file=token_file,
            ca_file=directory / "ca.crt",
            is_of_pod=True,
        )

    @classmethod
    def from_kubeconfig(cls, path: Path, context: str | None = None) -> Self:
        """Use a kubeconfig with a token or a client certificate.

        A kubeconfig in YAML needs PyYAML. JSON (`kubectl config view --raw -o json`) needs no
        package. Raises `AccessError`.
        """
        config = _parse(path)
        chosen = context or config.get("current-context")
        of_context = _named(config, "contexts", "context", chosen, path)
        cluster = _named(config, "clusters", "cluster", of_context.get("cluster"), path)
        user = _named(config, "users", "user", of_context.get("user"), path)
        _check_supported(cluster, user, path)
        ca_file = cluster.get("certificate-authority")
        token_file = user.get("tokenFile")
        return cls(
            server=str(cluster["server"]).rstrip("/"),
            namespace=of_context.get("namespace") or "default",
            ca=_text(cluster, "certificate-authority", path) if ca_file is None else None,
            ca_file=None if ca_file is None else path.parent / ca_file,
            token=user.get("token") if token_file is None else None,
            token_file=None if token_file is None else path.parent / token_file,
            certificate=_certificate_of(user, path),
        )

    def headers(self) -> dict[str, str]:
        """Return the authorization header. Raises OSError."""
        token = self.token if self.token_file is None else self.token_file.read_text().strip()
        return {} if token is None else {"Authorization": f"Bearer {token}"}

    def tls(self) -> ssl.SSLContext:
        """Return the TLS context. Raises OSError, ValueError."""
        ca = self.ca if self.ca_file is None else self.ca_file.read_text()
        context = ssl.create_default_context(cadata=ca) if ca is not None else ssl.create_default_context()
        if self.certificate is not None:
            # OpenSSL reads certificates only from files.
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(self.certificate)
                file.flush()
                context.load_cert_chain(file.name)
        return context


def _parse(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise AccessError(f"the kubeconfig must be readable: {error}") from error
    try:
        config = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        try:
            config = msgspec.yaml.decode(raw)
        except ImportError:
            raise AccessError(
                f"{path} must be JSON (kubectl config view --raw -o json), or PyYAML must be installed for YAML"
            ) from None
        except msgspec.DecodeError as error:
            raise AccessError(f"{path} must be a kubeconfig: {error}") from error
    if not isinstance(config, dict):
        raise AccessError(f"{path} must be a kubeconfig")
    return config


def _named(config: dict[str, Any], many: str, one: str, name: str | None, path: Path) -> dict[str, Any]:
    for entry in config.get(many) or ():
        if entry.get("name") == name:
            return entry.get(one) or {}
    raise AccessError(f"{path} must have {one} {name!r} among its {many}")


def _check_supported(cluster: dict[str, Any], user: dict[str, Any], path: Path) -> None:
    if not str(cluster.get("server", "")).startswith("https://"):
        raise AccessError(f"{path}: the cluster's server must begin with https://")
    for name in ("insecure-skip-tls-verify", "proxy-url", "tls-server-name"):
        if cluster.get(name):
            raise AccessError(
                f"{path}: {name} is not supported; the server must have a certificate of a CA that the cluster entry names"
            )
    for name in ("exec", "auth-provider", "username", "as"):
        if user.get(name):
            raise AccessError(
                f"{path}: {name} is not supported; the user must have a token, a tokenFile or a client certificate"
            )


def _certificate_of(user: dict[str, Any], path: Path) -> str | None:
    certificate, key = _text(user, "client-certificate", path), _text(user, "client-key", path)
    if (certificate is None) != (key is None):
        raise AccessError(f"{path}: client-certificate and client-key must both be set, or neither")
    return None if certificate is None or key is None else f"{certificate}\n{key}"


def _text(entry: dict[str, Any], name: str, path: Path) -> str | None:
    """Return PEM from the kubeconfig itself or from a file that it names."""
    try:
        if encoded := entry.get(f"{name}-data"):
            return base64.b64decode(encoded, validate=True).decode()
        if file := entry.get(name):
            return (path.parent / str(file)).read_text()
    except (OSError, binascii.Error, UnicodeDecodeError) as error:
        raise AccessError(f"{path}: {name} must be readable PEM: {error}") from error
    return None
