"""Names of one kind of object in the Kubernetes API."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """Group, version, kind and plural of a namespaced custom resource."""

    group: str
    version: str
    kind: str
    plural: str

    @property
    def api_version(self) -> str:
        """Value of `apiVersion`, such as `batch/v1`."""
        return f"{self.group}/{self.version}"

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """Return the path of an object or its subresource, or of the collection.

        Without `namespace`, the collection is that of all namespaces.
        """
        middle = "" if namespace is None else f"namespaces/{namespace}"
        return "/".join(filter(None, (f"/apis/{self.api_version}", middle, self.plural, name, subresource)))
