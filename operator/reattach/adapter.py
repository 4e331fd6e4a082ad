"""What an adapter for an external system is made of; `reattach.adapters` has those that come with Reattach.

    from reattach.adapter import Active, Adapter, Capabilities, ClientName, Submission, Submitted, Succeeded

See `docs/adapters.md` for how to write one, and `reattach.testing` for the suite that tries to break it.
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
    "Unknown",
]
