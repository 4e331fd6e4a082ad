"""Errors as `application/problem+json` (RFC 9457)."""

import math

import msgspec
from aiohttp import web

from reattach.api.messages import Problem, ProblemCode
from reattach.cluster import ClusterError, ForbiddenError, InvalidError
from reattach.state import RequestRejectedError

PROBLEMS: dict[ProblemCode, tuple[int, str]] = {
    ProblemCode.UNAUTHENTICATED: (401, "No valid pod token"),
    ProblemCode.NOT_A_TASK_POD: (403, "Not the pod of an attempt"),
    ProblemCode.INVALID: (400, "Malformed request"),
    ProblemCode.VALUE_INVALID: (422, "Not a value that can be stored"),
    ProblemCode.VALUE_TOO_LARGE: (413, "Value too large"),
    ProblemCode.STATE_FULL: (413, "State full"),
    ProblemCode.REQUEST_TOO_LARGE: (413, "Request too large"),
    ProblemCode.KEY_INVALID: (422, "Not a key"),
    ProblemCode.NOT_FOUND: (404, "No such key"),
    ProblemCode.EXISTS: (412, "The key exists"),
    ProblemCode.VERSION_MISMATCH: (412, "The key has another version"),
    ProblemCode.NOT_OPEN: (409, "The state is not open"),
    ProblemCode.FENCED: (409, "A later attempt or session took over"),
    ProblemCode.CLOSING: (409, "The run is being ended or suspended"),
    ProblemCode.COMPLETED: (409, "The attempt is complete"),
    ProblemCode.STATE_LOST: (409, "The state was deleted by force"),
    ProblemCode.DIGEST_CHANGED: (409, "Another request under the key of a job"),
    ProblemCode.ENDED: (409, "The attempt has ended"),
    ProblemCode.JOB_NOT_FOUND: (404, "No such external job"),
    ProblemCode.JOB_OPEN: (409, "The external job is open"),
    ProblemCode.JOB_OVER: (409, "The external job is over"),
    ProblemCode.JOBS_OPEN: (409, "External jobs are open"),
    ProblemCode.JOB_KEPT: (409, "The external job must be kept"),
    ProblemCode.CLEANUP_ONLY: (409, "The attempt only cleans up"),
    ProblemCode.GROUNDS_REFUSED: (409, "No grounds to submit again"),
    ProblemCode.HANDLE_DIFFERS: (409, "The external job has another handle"),
    ProblemCode.CONFLICT: (503, "Too many writers at once"),
    ProblemCode.RATE_LIMITED: (429, "Too many requests"),
    ProblemCode.FORMAT_UNKNOWN: (503, "The state can't be read"),
    ProblemCode.UNAVAILABLE: (503, "Temporarily unavailable"),
    ProblemCode.METHOD_NOT_ALLOWED: (405, "Method not allowed"),
    ProblemCode.ROUTE_UNKNOWN: (404, "No such route"),
    ProblemCode.NOT_IMPLEMENTED: (501, "Not implemented"),
    ProblemCode.INTERNAL: (500, "Internal error"),
}
"""HTTP status and title of each code."""

_OF_HTTP = {
    404: (ProblemCode.ROUTE_UNKNOWN, "no such route; those that exist are in the OpenAPI file"),
    405: (ProblemCode.METHOD_NOT_ALLOWED, "this route does not take this method; see the Allow header"),
}
_RETRY_SECONDS = 1.0
REFUSAL_CHARACTERS_MAX = 300
"""Limit for the API server's message in a response."""


class RateLimitedError(RequestRejectedError):
    """Rejection by a limit. `detail` names it. The next request may succeed after `wait` seconds.

    The status is 429, because clients repeat the request after Retry-After.
    """

    def __init__(self, detail: str, wait: float = 1.0) -> None:
        super().__init__(ProblemCode.RATE_LIMITED, f"{detail}; wait as long as Retry-After says")
        self.wait = wait


class ClockSkewedError(RequestRejectedError):
    """Rejection of a call whose decision depends on the clock of this replica, which is wrong.

    The connection is closed, so that the next request may reach another replica.
    """

    def __init__(self) -> None:
        detail = "the clock of this replica differs from the API server's; nothing was changed; try again"
        super().__init__(ProblemCode.UNAVAILABLE, detail)


def response_of(error: Exception, *, is_authenticated: bool = True) -> tuple[ProblemCode, web.Response]:
    """Return the problem code and the response for an error.

    Only an authenticated caller gets texts of the API server.
    """
    match error:
        case RateLimitedError():
            return error.code, to_response(error.code, error.detail, retry_after=error.wait)
        case ClockSkewedError():
            response = to_response(error.code, error.detail, retry_after=_RETRY_SECONDS)
            response.force_close()
            return error.code, response
        case RequestRejectedError(code=ProblemCode.CONFLICT):
            return error.code, to_response(error.code, error.detail, retry_after=_RETRY_SECONDS)
        case RequestRejectedError():
            return error.code, to_response(error.code, error.detail)
        case ClusterError():
            detail = "a call to the Kubernetes API failed; try again with the same request id"
            if is_authenticated and isinstance(error, ForbiddenError | InvalidError):
                # A quota or an admission policy. A user must change it, and looks into the log of
                # the task.
                detail = f"{detail}. The Kubernetes API rejects a write of this call: {error.message[:REFUSAL_CHARACTERS_MAX]}"
            wait = error.retry_after or _RETRY_SECONDS
            return ProblemCode.UNAVAILABLE, to_response(ProblemCode.UNAVAILABLE, detail, retry_after=wait)
        case TimeoutError():
            detail = "the request timed out; try again with the same request id"
            return ProblemCode.UNAVAILABLE, to_response(ProblemCode.UNAVAILABLE, detail, retry_after=_RETRY_SECONDS)
        case web.HTTPException(status=status) if status < 500:
            code, detail = _OF_HTTP.get(status, (ProblemCode.INVALID, error.reason))
            response = to_response(code, detail)
            if "Allow" in error.headers:
                response.headers["Allow"] = error.headers["Allow"]
            return code, response
        case _:
            return ProblemCode.INTERNAL, to_response(ProblemCode.INTERNAL, "see the log of the state API")


def to_response(code: ProblemCode, detail: str, *, retry_after: float | None = None) -> web.Response:
    """Return one problem as an HTTP response."""
    status, title = PROBLEMS[code]
    problem = Problem(type=f"urn:reattach:problem:{code}", title=title, status=status, code=code, detail=detail)
    headers = {"Cache-Control": "no-store"}
    if retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    body = msgspec.json.encode(problem)
    return web.Response(status=status, body=body, content_type="application/problem+json", headers=headers)
