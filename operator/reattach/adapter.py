"""Base class and data types of adapters for external systems.

    from reattach.adapter import Active, Adapter, Capabilities, ClientName, Submission, Submitted

`docs/adapters.md` describes how to write an adapter, and `reattach.testing` tests it.
`reattach.adapters` contains the adapters that come with Reattach.
"""

from reattach.adapters.base import (
    Active,
    Adapter,
    Cancelled,
    Capabilities,
    ClientName,
    Failed,
    JobStatus,
    Lookup,
    NotFound,
    Rejected,
    Submission,
    SubmissionToken,
    Submitted,
    Succeeded,
    TaskRunOwner,
    Unknown,
)

__all__ = [
    "Active",
    "Adapter",
    "Cancelled",
    "Capabilities",
    "ClientName",
    "Failed",
    "JobStatus",
    "Lookup",
    "NotFound",
    "Rejected",
    "Submission",
    "SubmissionToken",
    "Submitted",
    "Succeeded",
    "TaskRunOwner",
    "Unknown",
]
