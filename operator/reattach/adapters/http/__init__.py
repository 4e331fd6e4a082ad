"""Jobs of any system with a REST API, by a description instead of code.

description.py   the description of an API, validated on construction
mapping.py       pure: submissions to requests, responses to job statuses
adapter.py       sends the requests
"""

from reattach.adapters.http.adapter import HttpJobs
from reattach.adapters.http.description import (
    CancelRequest,
    Credentials,
    Description,
    DescriptionError,
    JobOutcome,
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
    "JobOutcome",
    "LookupRequest",
    "Names",
    "States",
    "StatusRequest",
    "SubmitRequest",
    "Token",
]
