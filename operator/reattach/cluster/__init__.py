"""The one seam to the Kubernetes API: raw JSON in, raw JSON out, and errors that are ours."""

from reattach.cluster.client import Cluster
from reattach.cluster.errors import (
    AlreadyExistsError,
    BadRequestError,
    ClusterError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
)

__all__ = [
    "AlreadyExistsError",
    "BadRequestError",
    "Cluster",
    "ClusterError",
    "ConflictError",
    "ForbiddenError",
    "GoneError",
    "InvalidError",
    "NotFoundError",
    "TooManyRequestsError",
    "UnauthorizedError",
    "UnavailableError",
]
