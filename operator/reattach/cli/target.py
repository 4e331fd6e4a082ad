"""Cluster, namespace and user of a command."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click


@dataclass(frozen=True, kw_only=True)
class Target:
    """Cluster, namespace and user from the flags; the kubeconfig decides fields that are None."""

    kubeconfig: str | None = None
    context: str | None = None
    cluster: str | None = None
    user: str | None = None
    namespace: str | None = None
    as_user: str | None = None
    as_groups: tuple[str, ...] = ()
    request_timeout: float = 30


TARGET_OPTIONS = frozenset(field.name for field in fields(Target))
"""Names of the options that select a target: the fields of `Target`."""


def target_of(context: "click.Context") -> Target:
    """Return the target that the flags select. Flags after the command's name take precedence."""
    given: dict[str, Any] = {}
    at: click.Context | None = context
    while at is not None:
        for name in TARGET_OPTIONS:
            if (value := at.params.get(name)) not in {None, ()}:
                given.setdefault(name, value)
        at = at.parent
    if timeout := given.pop("request_timeout", None):
        given["request_timeout"] = timeout.total_seconds()
    return Target(**given)
