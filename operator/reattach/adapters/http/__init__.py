"""Jobs of any system with a REST API, by a description of it: nothing to program.

description.py   what such a system is like, checked when it is made
mapping.py       pure: from what it answers to what Reattach wants to know
adapter.py       sends the requests
"""

from reattach.adapters.http.adapter import HttpJobs
from reattach.adapters.http.description import (
    CancelRequest,
    Credentials,
    Description,
    DescriptionError,
    LookupRequest,
    Names,
    States,
    StatusRequest,
    SubmitRequest,
    Token,
)

__all__ = [
    "CancelRequest",
    "Credentials",
    "Description",
    "DescriptionError",
    "HttpJobs",
    "LookupRequest",
    "Names",
    "States",
    "StatusRequest",
    "SubmitRequest",
    "Token",
]
