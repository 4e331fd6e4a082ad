"""Errors of the API server as one sentence that says what to do. Pure."""

import re

from reattach.api.text import one_line
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
    """Return what an error of the API server means for you, and what to do."""
    message = one_line(error.message).rstrip(".")
    match error:
        case ForbiddenError():
            return describe_missing_right(error)
        case UnauthorizedError():
            return f"{host} does not accept your credentials; log in again, or use another --context."
        case TooManyRequestsError():
            return f"{host} is too busy; try again."
        case UnavailableError():
            return f"{host} can't be reached or did not respond in time ({message}); check --context and your network."
        case ConflictError():
            return f"Another client changed the object at the same time ({message}); try again."
        case NotFoundError():
            return f"The API server does not have the object: {message}."
        case BadRequestError():
            return f"The API server rejects the request: {message}."
        case _:
            return f"The API server rejects the request: {message}."


def describe_missing_right(error: ForbiddenError) -> str:
    """Return which right you lack where.

    An error that is not from RBAC keeps the API server's text.
    """
    found = _FORBIDDEN.search(error.message)
    if found is None:
        return f"The API server denies the request: {one_line(error.message).rstrip('.')}."
    resource = f"{found['resource']}.{found['group']}" if found["group"] else found["resource"]
    where = f" in namespace {found['namespace']}" if found["namespace"] else ""
    role = "view" if found["verb"] in {"get", "list", "watch"} else "edit"
    return (
        f"{found['user']} lacks the right to {found['verb']} {resource}{where}; "
        f'the ClusterRole "{role}" has it; ask the administrator of the namespace.'
    )
