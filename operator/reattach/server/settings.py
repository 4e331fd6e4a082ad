"""What can be set for the state API."""

from dataclasses import dataclass, field
from pathlib import Path

from reattach.api.messages import DEFAULT_RETENTION_SECONDS

BODY_BYTES_MAX = 1024 * 1024
"""Of one request: room for a batch that fills a state."""


@dataclass(frozen=True)
class Rate:
    """Requests per second, and how many may come at once. Held by each replica for itself."""

    per_second: float
    burst: int


@dataclass(frozen=True)
class Settings:
    """The service's settings; seconds everywhere."""

    tls_cert: Path
    tls_key: Path
    host: str | None = None
    port: int = 8443
    health_port: int = 8080
    watch_namespaces: frozenset[str] = field(default_factory=frozenset)
    """Empty: all of them."""
    default_retention_seconds: int = DEFAULT_RETENTION_SECONDS
    taskrun_rate: Rate = Rate(20, 100)
    namespace_rate: Rate = Rate(200, 500)
    refused_token_rate: Rate = Rate(1, 20)
    """Of bad tokens from one address, each of which costs the API server a TokenReview."""
    request_seconds: float = 20
    authentication_seconds: float = 60
    drain_seconds: float = 5
    """How long to go on serving after SIGTERM, until no endpoint list names this pod any more."""
    tls_reload_seconds: float = 5
