"""What an answer of the API server means to the person who asked: one sentence that says what to do. Pure."""

import re

from reattach.cli.text import one_line
from reattach.cluster.errors import (
    BadRequestError,
    ClusterError,
    ConflictError,
    ForbiddenError,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
)

_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]+)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]*)")?'
)


def describe_error(error: ClusterError, host: str) -> str:
    """What an answer of the API server means to the person who asked."""
    message = one_line(error.message).rstrip(".")
    match error:
        case ForbiddenError():
            return describe_missing_right(error)
        case UnauthorizedError():
            return f"{host} does not accept your credentials; log in again, or name another --context."
        case TooManyRequestsError():
            return f"{host} is too busy; try again."
        case UnavailableError():
            return f"{host} can't be reached or did not answer in time ({message}); check --context and your network."
        case ConflictError():
            return f"Somebody else changed it at the same time ({message}); try again."
        case NotFoundError():
            return f"It is not there: {message}."
        case BadRequestError():
            return f"The API server does not take that: {message}."
        case _:
            return f"The API server refuses: {message}."


def describe_missing_right(error: ForbiddenError) -> str:
    """Who lacks which right where; what RBAC did not refuse is said as the API server says it."""
    found = _FORBIDDEN.search(error.message)
    if found is None:
        return f"The API server refuses: {one_line(error.message).rstrip('.')}."
    resource = f"{found['resource']}.{found['group']}" if found["group"] else found["resource"]
    where = f" in namespace {found['namespace']}" if found["namespace"] else ""
    role = "view" if found["verb"] in {"get", "list", "watch"} else "edit"
    return (
        f"{found['user']} lacks the right to {found['verb']} {resource}{where}; "
        f'the ClusterRole "{role}" has it, ask who administers the namespace.'
    )
