"""Jobs of any system with a REST API, by a description of it: nothing to program.

description.py   what such a system is like, checked when it is made
mapping.py       pure: from what it answers to what Reattach wants to know
adapter.py       sends the requests
"""

from reattach.adapters.http.adapter import HttpJobs
from reattach.adapters.http.description import (
    Cancel,
    Credentials,
    Description,
    DescriptionError,
    LookUp,
    Names,
    States,
    Status,
    Submit,
    Token,
)

__all__ = [
    "Cancel",
    "Credentials",
    "Description",
    "DescriptionError",
    "HttpJobs",
    "LookUp",
    "Names",
    "States",
    "Status",
    "Submit",
    "Token",
]
