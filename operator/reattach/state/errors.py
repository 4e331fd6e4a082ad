"""Why the state API refuses a call.

RefusedError             one of `ProblemCode`, with a sentence that says what must hold
└── UnreadableError      `format-unknown`: the state is there, but can't be read; never taken for "nothing stored"
"""

from reattach.api.messages import ProblemCode


class RequestRejectedError(Exception):
    """The call was refused and changed nothing."""

    def __init__(self, code: ProblemCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class UnreadableError(RequestRejectedError):
    """The ConfigMap was written by a newer version, or changed by hand."""

    def __init__(self, detail: str) -> None:
        super().__init__(ProblemCode.FORMAT_UNKNOWN, detail)
