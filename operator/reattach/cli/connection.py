"""Connection to the API server, with kubectl's kubeconfig, context, namespace and flags."""

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import yaml
from kubernetes.aio import client
from kubernetes.aio.config import ConfigException, load_incluster_config
from kubernetes.aio.config.kube_config import ConfigNode, KubeConfigLoader, KubeConfigMerger

from reattach.cli.errors import CommandError
from reattach.cli.target import Target
from reattach.cluster import Cluster, ClusterError

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_OVERRIDE = "flags of kubectl reattach"
_USER_REVIEWS = "/apis/authentication.k8s.io/v1/selfsubjectreviews"


@dataclass(frozen=True)
class ClusterConnection:
    """A cluster and the selected namespace."""

    cluster: Cluster
    namespace: str


async def connect(target: Target) -> ClusterConnection:
    """Prepare a connection, without a request.

    Raises `CommandError` if the kubeconfig selects no cluster.
    """
    configuration = client.Configuration()
    # As kubectl does: clusters often have certificates without the extensions that Python 3.13 and
    # later require.
    configuration.disable_strict_ssl_verification = True
    impersonated: dict[str, Any] = {}
    paths = _paths_of(target)
    if target.kubeconfig is None and not _exists(paths) and (_ACCOUNT / "token").exists():
        load_incluster_config(configuration)
        namespace = (_ACCOUNT / "namespace").read_text().strip()
    else:
        try:
            namespace, impersonated = await _load(paths, target, configuration)
        except (ConfigException, yaml.YAMLError, OSError, ValueError) as error:
            raise CommandError(f"The kubeconfig {paths} can't be used: {error}. See kubectl config view.") from error
        except (TypeError, LookupError, AttributeError) as error:
            # The Python client raises these for a string in place of a map, and similar faults.
            raise CommandError(f"The kubeconfig {paths} is not a valid kubeconfig; see kubectl config view.") from error
    headers = _impersonation(target, impersonated)
    # Proxies as for kubectl: HTTPS_PROXY and NO_PROXY of the environment count, but not for
    # connections to this machine itself.
    is_far = not _is_loopback(str(configuration.host))
    configuration.client_session_kwargs = {"trust_env": is_far, "headers": headers}
    try:
        cluster = Cluster(configuration, connections=16, timeout=target.request_timeout)
    except OSError as error:  # of the ssl module
        raise CommandError(f"The certificates in the kubeconfig {paths} can't be used: {error}.") from error
    return ClusterConnection(cluster, target.namespace or namespace)


def list_contexts(target: Target) -> list[str]:
    """List the names of the contexts in the kubeconfig; empty if it can't be read."""
    paths = _paths_of(target)
    try:
        merged = KubeConfigMerger(paths).config if _exists(paths) else None
        return [str(one.value["name"]) for one in merged.value["contexts"]] if merged else []
    except (ConfigException, yaml.YAMLError, OSError, KeyError, TypeError):
        return []


async def read_username(cluster: Cluster) -> str:
    """Read your user name from the API server; `unknown` if it does not return one."""
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    try:
        answer = msgspec.json.decode(await cluster.create(_USER_REVIEWS, body))
        return str(answer["status"]["userInfo"]["username"])
    except (ClusterError, KeyError):
        return "unknown"


def _paths_of(target: Target) -> str:
    named = target.kubeconfig or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")
    # As kubectl does: ignore an empty file. The Python client can't merge it.
    files = [file for file in named.split(os.pathsep) if file and not _is_empty(Path(file).expanduser())]
    return os.pathsep.join(files) or named


def _is_empty(file: Path) -> bool:
    return file.is_file() and not file.stat().st_size


def _exists(paths: str) -> bool:
    return any(Path(path).expanduser().exists() for path in paths.split(os.pathsep) if path)


async def _load(paths: str, target: Target, configuration: client.Configuration) -> tuple[str, dict[str, Any]]:
    """Return the namespace of the context, and the impersonation in the user's entry."""
    if not _exists(paths):
        raise CommandError(f"There is no kubeconfig at {paths}; set --kubeconfig or KUBECONFIG.")
    context = target.context or _current_context_of(paths)
    merged: ConfigNode = KubeConfigMerger(paths).config
    if not context and not target.cluster:
        raise CommandError(f"The kubeconfig {paths} has no current context; select one with --context.")
    about = _context_of(merged, context)
    about |= {name: value for name, value in (("cluster", target.cluster), ("user", target.user)) if value}
    overridden = {"name": _OVERRIDE, "context": about}
    merged.value["contexts"].append(ConfigNode(_OVERRIDE, overridden))
    loader = KubeConfigLoader(merged, active_context=_OVERRIDE, config_base_path=None)
    await loader.load_and_set(configuration)
    user = next((one.value["user"] for one in merged.value["users"] if one.value["name"] == about.get("user")), None)
    return str(about.get("namespace") or "default"), user or {}


def _context_of(merged: ConfigNode, name: str | None) -> dict[str, Any]:
    contexts = [one.value for one in merged.value["contexts"]]
    found = next((one for one in contexts if one["name"] == name), None)
    if found is None and name:
        known = ", ".join(one["name"] for one in contexts) or "none"
        raise CommandError(f"There is no context {name!r} in the kubeconfig; it has: {known}.")
    return dict(found["context"]) if found else {}


def _current_context_of(paths: str) -> str | None:
    """Return the first current context in the files, as kubectl does.

    The Python client uses the last one.
    """
    for path in paths.split(os.pathsep):
        file = Path(path).expanduser()
        if path and file.exists() and (named := (yaml.safe_load(file.read_text()) or {}).get("current-context")):
            return str(named)
    return None


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _impersonation(target: Target, user: dict[str, Any]) -> list[tuple[str, str]]:
    name = target.as_user or user.get("as")
    groups = target.as_groups or tuple(user.get("as-groups") or ())
    if groups and not name:
        raise CommandError("--as-group must come with --as.")
    headers = [("Impersonate-User", name)] if name else []
    return headers + [("Impersonate-Group", group) for group in groups]
