"""Writes of the operator: sent only while it leads, and at a limited rate."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from reattach.cluster import Cluster, ConflictError, TooManyRequestsError
from reattach.cluster.errors import is_webhook_denial
from reattach.runtime.metrics import OperatorMetrics
from reattach.runtime.rate_limiter import RateLimiter


class NotLeadingError(Exception):
    """Write by a replica that does not hold the Lease."""


class Writer:
    """Sends the writes of `Cluster` under the rate limit, in which namespaces take turns.

    Raises `NotLeadingError` besides the errors of `Cluster`.
    """

    def __init__(
        self, cluster: Cluster, rate_limiter: RateLimiter, may_write: Callable[[], bool], metrics: OperatorMetrics
    ) -> None:
        self._cluster = cluster
        self._rate_limiter = rate_limiter
        self._may_write = may_write
        self._metrics = metrics

    async def get(self, path: str) -> bytes:
        """Send a GET, without a limit."""
        return await self._cluster.get(path)

    async def create(self, path: str, body: Mapping[str, Any] | bytes, **query: str) -> bytes:
        """Send a POST."""
        return await self._send("create", path, lambda: self._cluster.create(path, body, **query))

    async def replace(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """Send a PUT."""
        return await self._send("update", path, lambda: self._cluster.replace(path, body, **query))

    async def merge_patch(self, path: str, body: Mapping[str, Any], **query: str) -> bytes:
        """Send a PATCH (RFC 7386)."""
        return await self._send("patch", path, lambda: self._cluster.merge_patch(path, body, **query))

    async def delete(
        self, path: str, *, uid: str, resource_version: str | None = None, propagation_policy: str | None = None
    ) -> bytes:
        """Send a DELETE with the UID, and the resourceVersion if given, as preconditions."""
        preconditions: dict[str, Any] = {"uid": uid, "resource_version": resource_version}
        return await self._send(
            "delete",
            path,
            lambda: self._cluster.delete(path, **preconditions, propagation_policy=propagation_policy),
        )

    async def _send(self, verb: str, path: str, call: Callable[[], Awaitable[bytes]]) -> bytes:
        namespace, resource = _target_of(path)
        await self._rate_limiter.acquire(namespace)
        try:
            if not self._may_write():
                raise NotLeadingError("this replica does not hold the Lease, so it sends no writes")
            self._metrics.writes.labels(verb=verb, resource=resource).inc()
            response = await call()
        except TooManyRequestsError as error:
            if not is_webhook_denial(error):  # a webhook of one namespace must not pause the others
                self._metrics.throttled.inc()
                self._rate_limiter.on_throttled(error.retry_after)
            raise
        except ConflictError:
            self._metrics.conflicts.inc()
            raise
        else:
            self._rate_limiter.on_success()
            return response
        finally:
            self._rate_limiter.release()


def _target_of(path: str) -> tuple[str, str]:
    """Return the namespace of a path, and its resource, such as `pods` or `taskruns/status`.

    Both are empty for a cluster-scoped object.
    """
    _, _, rest = path.partition("/namespaces/")
    namespace, *parts = rest.split("/")
    return namespace, "/".join(parts[:3:2])
