"""Paths of the Kubernetes API."""

from reattach.api.names import GROUP, PLURAL, VERSION


def _namespaced(prefix: str, namespace: str | None, plural: str, name: str | None, subresource: str | None) -> str:
    path = prefix if namespace is None else f"{prefix}/namespaces/{namespace}"
    return "/".join(part for part in (path, plural, name, subresource) if part)


def core(plural: str, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
    """Return a path of the core group.

    `namespace` None: all namespaces; `name` None: the collection.
    """
    return _namespaced("/api/v1", namespace, plural, name, subresource)


def namespace_of(name: str) -> str:
    """Return the path of a namespace. A Role in the namespace may allow `get` on it."""
    return f"/api/v1/namespaces/{name}"


def node(name: str) -> str:
    """Return the path of a Node."""
    return core("nodes", None, name)


def pods(namespace: str | None, name: str | None = None) -> str:
    """Return a path of Pods."""
    return core("pods", namespace, name)


def podtemplates(namespace: str) -> str:
    """Return the path of the PodTemplates of a namespace."""
    return core("podtemplates", namespace)


def configmaps(namespace: str | None, name: str | None = None) -> str:
    """Return a path of ConfigMaps."""
    return core("configmaps", namespace, name)


def services(namespace: str, name: str | None = None) -> str:
    """Return a path of Services."""
    return core("services", namespace, name)


def secrets(namespace: str, name: str | None = None) -> str:
    """Return a path of Secrets."""
    return core("secrets", namespace, name)


def taskruns(namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
    """Return a path of TaskRuns."""
    return _namespaced(f"/apis/{GROUP}/{VERSION}", namespace, PLURAL, name, subresource)


def events(namespace: str, name: str | None = None) -> str:
    """Return a path of Events in the group events.k8s.io."""
    return _namespaced("/apis/events.k8s.io/v1", namespace, "events", name, None)


def leases(namespace: str, name: str | None = None) -> str:
    """Return a path of Leases."""
    return _namespaced("/apis/coordination.k8s.io/v1", namespace, "leases", name, None)


def deployments(namespace: str, name: str | None = None, subresource: str | None = None) -> str:
    """Return a path of Deployments."""
    return _namespaced("/apis/apps/v1", namespace, "deployments", name, subresource)


TOKEN_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"  # noqa: S105 -- a path
CRD = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{GROUP}"
