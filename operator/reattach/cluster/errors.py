"""Errors of calls to the Kubernetes API.

ClusterError
├── BadRequestError       400: the API server can't decode the body, or strict validation failed
├── UnauthorizedError     401
├── ForbiddenError        403: RBAC, quota, Pod Security, admission, or a terminating namespace
├── NotFoundError         404
├── ConflictError         409: the resourceVersion or UID does not match
│   └── AlreadyExistsError
├── GoneError             410: the resourceVersion or continue token is too old
├── InvalidError          422: the object violates its schema
├── TooManyRequestsError  429: with `retry_after`
├── ResponseTooLargeError the response is larger than the caller accepts
└── UnavailableError      5xx, no connection, or a timeout. The call may have been carried out
"""

from typing import Any

NO_REASON = "Unknown"
"""The reason of a response without a `Status` object."""
_WEBHOOK_DENIAL = 'admission webhook "'
_TOO_LARGE = 413
_TOO_LARGE_FOR_ETCD = (
    "etcdserver: request is too large",
    "rpc error: code = ResourceExhausted desc = trying to send message larger than max",
)
"""Starts of the messages of a 500 for an object that etcd can't store."""
_MESSAGE_MAX = 4096
"""The API server repeats a rejected value in its message, up to the size of the object."""


class ClusterError(Exception):
    """An error response of the API server.

    `reason`, `message` and `causes` (`details.causes`) come from the `Status` object of the
    response.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        causes: tuple[dict[str, Any], ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes
        self.retry_after = retry_after


class BadRequestError(ClusterError):
    """400."""


class UnauthorizedError(ClusterError):
    """401."""


class ForbiddenError(ClusterError):
    """403."""


class NotFoundError(ClusterError):
    """404."""


class ConflictError(ClusterError):
    """409: a precondition (resourceVersion, UID) failed."""


class AlreadyExistsError(ConflictError):
    """409 with reason AlreadyExists."""


class GoneError(ClusterError):
    """410: list again."""


class InvalidError(ClusterError):
    """422."""


class TooManyRequestsError(ClusterError):
    """429."""


class ResponseTooLargeError(ClusterError):
    """The response is larger than the caller accepts."""


class UnavailableError(ClusterError):
    """5xx or no response. The call may have been carried out."""


def is_webhook_denial(error: ClusterError) -> bool:
    """Return whether an admission webhook denied the call.

    A webhook selects the status, such as 401, 409 or 429, so the status shows nothing about the API
    server.
    """
    return error.message.startswith(_WEBHOOK_DENIAL)


def is_too_large(error: ClusterError) -> bool:
    """Return whether the object is too large to be stored, so that a repetition can't help."""
    return error.status == _TOO_LARGE or error.message.startswith(_TOO_LARGE_FOR_ETCD)


_BY_STATUS: dict[int, type[ClusterError]] = {
    400: BadRequestError,
    401: UnauthorizedError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    422: InvalidError,
    429: TooManyRequestsError,
}
_SERVER_ERROR = 500


def error_of(status: int, body: dict[str, Any], retry_after: float | None) -> ClusterError:
    """Return the error for a response. `body` is the decoded `Status` object, or empty."""
    reason = str(body.get("reason") or NO_REASON)
    kind = UnavailableError if status >= _SERVER_ERROR else _BY_STATUS.get(status, ClusterError)
    if kind is ConflictError and reason == "AlreadyExists":
        kind = AlreadyExistsError
    causes = tuple((body.get("details") or {}).get("causes") or ())
    message = str(body.get("message") or f"HTTP {status}")[:_MESSAGE_MAX]
    return kind(status, reason, message, causes, retry_after)
