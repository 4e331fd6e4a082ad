"""The one seam to the Kubernetes API: raw JSON in, raw JSON out, and errors that are ours."""

from reattach.cluster.client import Cluster
from reattach.cluster.errors import (
    AlreadyExistsError,
    AnswerTooLargeError,
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
from reattach.cluster.protocol import KubernetesClient
from reattach.cluster.references import Reference

__all__ = [
    "AlreadyExistsError",
    "AnswerTooLargeError",
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
    "TooManyRequestsError",
    "UnauthorizedError",
    "UnavailableError",
]
