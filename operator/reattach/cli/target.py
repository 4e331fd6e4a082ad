"""Where a command goes, and as whom."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the flags say about where to go, and as whom. None: as the kubeconfig says."""

    kubeconfig: str | None = None
    context: str | None = None
    cluster: str | None = None
    user: str | None = None
    namespace: str | None = None
    as_user: str | None = None
    as_groups: tuple[str, ...] = ()
    request_timeout: float = 30
