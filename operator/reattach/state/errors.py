"""Errors that the state API returns.

RequestRejectedError     one of `ProblemCode`, with a sentence that says what must hold
└── UnreadableError      `format-unknown`: the state can't be read. It is never treated as empty
"""

from reattach.api.messages import ProblemCode


class RequestRejectedError(Exception):
    """The state API rejected the call and changed nothing."""

    def __init__(self, code: ProblemCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class UnreadableError(RequestRejectedError):
    """A newer version or a user wrote something into the ConfigMap that this version can't read."""

    def __init__(self, detail: str) -> None:
        super().__init__(ProblemCode.FORMAT_UNKNOWN, detail)
