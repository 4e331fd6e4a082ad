"""Durable state: the format of the ConfigMap, the operations on it (pure), and the store."""

from reattach.api.state import StateView, Summary
from reattach.state.codec import DurableState, summary_of, view_of
from reattach.state.errors import RequestRejectedError, UnreadableError
from reattach.state.store import RunReference, Store

__all__ = [
    "DurableState",
    "RequestRejectedError",
    "RunReference",
    "StateView",
    "Store",
    "Summary",
    "UnreadableError",
    "summary_of",
    "view_of",
]
