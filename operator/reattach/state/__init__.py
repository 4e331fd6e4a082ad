"""Durable state: the ConfigMap's format, what each call does to it (pure), and the compare-and-set store."""

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
