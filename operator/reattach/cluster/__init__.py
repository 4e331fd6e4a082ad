"""Client of the Kubernetes API: raw JSON in and out, and our own errors."""

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
    ResponseTooLargeError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
)
from reattach.cluster.protocol import KubernetesClient
from reattach.cluster.references import Reference

__all__ = [
    "AlreadyExistsError",
    "BadRequestError",
    "Cluster",
    "ClusterError",
    "ConflictError",
    "ForbiddenError",
    "GoneError",
    "InvalidError",
    "KubernetesClient",
    "NotFoundError",
    "Reference",
    "ResponseTooLargeError",
    "TooManyRequestsError",
    "UnauthorizedError",
    "UnavailableError",
]
