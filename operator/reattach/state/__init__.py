"""Durable state: the ConfigMap's format, what each call does to it (pure), and the compare-and-set store."""

from reattach.api.state import StateView, Summary
from reattach.state.codec import State, summary_of, view_of
from reattach.state.refusals import RefusedError, UnreadableError
from reattach.state.store import Run, Store

__all__ = [
    "RefusedError",
    "Run",
    "State",
    "StateView",
    "Store",
    "Summary",
    "UnreadableError",
    "summary_of",
    "view_of",
]
