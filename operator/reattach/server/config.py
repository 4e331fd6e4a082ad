"""Settings of the state API."""

from dataclasses import dataclass, field
from pathlib import Path

from reattach.api.messages import DEFAULT_RETENTION_SECONDS


@dataclass(frozen=True)
class Rate:
    """Requests (or bytes) per second, and the size of a burst. Each replica limits on its own."""

    per_second: float
    burst: int


@dataclass(frozen=True)
class ServerConfig:
    """Settings of the service. Times are in seconds."""

    tls_cert: Path
    tls_key: Path
    host: str | None = None
    port: int = 8443
    health_port: int = 8080
    serve_metrics: bool = False
    """On the health port, which checks no token."""
    watch_namespaces: frozenset[str] = field(default_factory=frozenset)
    """All namespaces if empty."""
    default_retention_seconds: int = DEFAULT_RETENTION_SECONDS
    taskrun_rate: Rate = Rate(20, 100)
    namespace_rate: Rate = Rate(200, 500)
    namespace_bytes_rate: Rate = Rate(512 * 1024, 8 * 1024 * 1024)
    """Limit for the bytes that the tasks of a namespace make a replica write to etcd."""
    refused_token_rate: Rate = Rate(1, 20)
    """Limit for requests of one address without an accepted token, and for log lines about a peer.

    Each bad token costs the API server a TokenReview.
    """
    connections_per_address: int = 64
    """All pods of a node share this where the network translates their addresses to the node's."""
    connections: int = 400
    """Total over all addresses; docs/install.md has the memory that they take."""
    first_request_seconds: float = 5
    """From accept to the end of the first request's headers, with the TLS handshake."""
    idle_seconds: float = 10
    """From the end of a request to the end of the next one's headers."""
    request_seconds: float = 20
    authentication_seconds: float = 60
    drain_seconds: float = 5
    """Time to continue serving after SIGTERM, until this pod is removed from all endpoint lists."""
    tls_reload_seconds: float = 5
    clock_difference_seconds: float = 2
    """Difference from the API server's clock beyond which a replica refuses what depends on time.

    These are new sessions, intents and cancellations. 0: not checked. Lifetimes of idempotency keys
    rest on the clocks of all replicas. Tasks allow 5 seconds between any two.
    """
