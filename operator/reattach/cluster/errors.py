"""What can go wrong with a call to the Kubernetes API.

ClusterError
├── BadRequestError       400: the body isn't what the API server can read (also unknown fields under strict validation)
├── UnauthorizedError     401
├── ForbiddenError        403: RBAC, quota, Pod Security, a terminating namespace or an admission policy refuses
├── NotFoundError         404
├── ConflictError         409: another resourceVersion or UID than the one named
│   └── AlreadyExistsError
├── GoneError             410: the resourceVersion or continue token is too old
├── InvalidError          422: the object breaks its schema
├── TooManyRequestsError  429: with `retry_after`
├── AnswerTooLargeError   the answer has more bytes than the caller takes
└── UnavailableError      5xx, no connection, no answer in time: whether the call was carried out is not known
"""

from typing import Any

NO_REASON = "Unknown"
"""The reason of an answer that is no `Status` object of the API server."""


class ClusterError(Exception):
    """An answer of the API server that is not success.

    `reason` is the CamelCase reason of the answer's `Status` object, `message` its sentence, `causes` its `details.causes`.
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
    """409: a precondition (resourceVersion, UID) does not hold."""


class AlreadyExistsError(ConflictError):
    """409 with reason AlreadyExists."""


class GoneError(ClusterError):
    """410: list again."""


class InvalidError(ClusterError):
    """422."""


class TooManyRequestsError(ClusterError):
    """429."""


class AnswerTooLargeError(ClusterError):
    """The answer has more bytes than the caller takes."""


class UnavailableError(ClusterError):
    """5xx or no answer. The call may have been carried out."""


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
    """The error for an answer: `body` is the decoded `Status` object, or empty if the answer was none."""
    reason = str(body.get("reason") or NO_REASON)
    kind = UnavailableError if status >= _SERVER_ERROR else _BY_STATUS.get(status, ClusterError)
    if kind is ConflictError and reason == "AlreadyExists":
        kind = AlreadyExistsError
    causes = tuple((body.get("details") or {}).get("causes") or ())
    return kind(status, reason, str(body.get("message") or f"HTTP {status}"), causes, retry_after)
