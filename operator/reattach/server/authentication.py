"""Authentication of callers: TokenReview of a pod token, and a check of its pod.

Only accepted tokens are cached, for at most `seconds` and by their SHA-256. So a deleted pod may
still call for that long.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from weakref import WeakValueDictionary

import msgspec

from reattach.api.messages import ProblemCode
from reattach.api.names import (
    API_VERSION,
    KIND,
    LABEL_ATTEMPT,
    LABEL_PURPOSE,
    LABEL_TASKRUN,
    TOKEN_AUDIENCE,
    pod_name,
)
from reattach.api.objects import ObjectMeta, PartialObject, Shape
from reattach.api.taskrun import AttemptPurpose
from reattach.cluster import Cluster, ClusterError, NotFoundError
from reattach.cluster.paths import TOKEN_REVIEWS, pods
from reattach.server.metrics import ServerMetrics
from reattach.state import RequestRejectedError, RunReference

CACHED_MAX = 10_000
REVIEWS_AT_ONCE = 32
_USER_PREFIX = "system:serviceaccount:"
_POD_NAME, _POD_UID = "authentication.kubernetes.io/pod-name", "authentication.kubernetes.io/pod-uid"


@dataclass(frozen=True)
class PodIdentity:
    """The pod of one attempt of one TaskRun."""

    run: RunReference
    attempt: int
    pod_name: str
    pod_uid: str
    purpose: AttemptPurpose = AttemptPurpose.RUN


class TokenRefusedError(RequestRejectedError):
    """The API server does not accept the token. `reason` is its text, which only the log may have.

    The text has audiences and other settings of the API server.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(
            ProblemCode.UNAUTHENTICATED, f"the token must be a valid pod token with audience {TOKEN_AUDIENCE}"
        )
        self.reason = reason


class _User(Shape, frozen=True):
    username: str = ""
    extra: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)


class _ReviewStatus(Shape, frozen=True):
    authenticated: bool = False
    audiences: tuple[str, ...] = ()
    user: _User = _User()
    error: str = ""


class _Review(Shape, frozen=True):
    status: _ReviewStatus = _ReviewStatus()


class Authenticator:
    """Authenticates callers.

    Errors of the API server are raised unchanged, because they do not show that a token is bad.
    """

    def __init__(
        self,
        cluster: Cluster,
        metrics: ServerMetrics,
        *,
        namespaces: frozenset[str] = frozenset(),
        seconds: float = 60,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._namespaces = namespaces
        self._seconds = seconds
        self._clock = clock
        self._accepted: dict[
            bytes, tuple[float, PodIdentity]
        ] = {}  # oldest first, because all entries have the same lifetime
        self._locks: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()
        self._reviews = asyncio.Semaphore(REVIEWS_AT_ONCE)

    def cached(self, authorization: str | None) -> PodIdentity | None:
        """Return the caller if this token was accepted recently."""
        accepted = self._accepted.get(_digest_of(_token_in(authorization)))
        return accepted[1] if accepted and accepted[0] > self._clock() else None

    async def authenticate(
        self, authorization: str | None, charge: AbstractContextManager[None] | None = None
    ) -> PodIdentity:
        """Return the caller with this `Authorization` header.

        `charge` is entered for the review of a token that was never accepted before.

        Raises `RequestRejectedError`: `unauthenticated` or `not-a-task-pod`.
        """
        token = _token_in(authorization)
        digest = _digest_of(token)
        # Concurrent calls of a task that just started share one review.
        async with self._locks.setdefault(digest, asyncio.Lock()):
            if caller := self.cached(authorization):
                return caller
            with nullcontext() if charge is None or digest in self._accepted else charge:
                async with self._reviews:
                    reviewed_at = self._clock()
                    try:
                        caller = await self._pod_of(await self._review(token))
                    except RequestRejectedError:
                        self._accepted.pop(digest, None)
                        raise
            self._accept(digest, reviewed_at, caller)
            return caller

    async def _review(self, token: str) -> _User:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [TOKEN_AUDIENCE]},
        }
        try:
            status = msgspec.json.decode(await self._cluster.create(TOKEN_REVIEWS, body), type=_Review).status
        except ClusterError:
            self._metrics.token_reviews.labels("error").inc()
            raise
        # An API server without support for audiences omits them.
        accepted = status.authenticated and TOKEN_AUDIENCE in status.audiences
        self._metrics.token_reviews.labels("accepted" if accepted else "refused").inc()
        if not accepted:
            raise TokenRefusedError(status.error)
        return status.user

    async def _pod_of(self, user: _User) -> PodIdentity:
        namespace = user.username.removeprefix(_USER_PREFIX).partition(":")[0]
        name, uid = (user.extra.get(extra, ("",))[0] for extra in (_POD_NAME, _POD_UID))
        if not user.username.startswith(_USER_PREFIX) or not name or not uid:
            raise _not_a_task_pod("the token must be a service-account token bound to a pod")
        if self._namespaces and namespace not in self._namespaces:
            raise _not_a_task_pod(f"namespace {namespace} is not among those that Reattach is installed for")
        try:
            text = await self._cluster.get(pods(namespace, name), metadata_only=True)
        except NotFoundError:
            raise _unauthenticated(f"the pod {namespace}/{name} of the token is gone") from None
        metadata = msgspec.json.decode(text, type=PartialObject).metadata
        if metadata.uid != uid:
            raise _unauthenticated(f"the pod {namespace}/{name} of the token is gone; another has its name")
        return caller_of(metadata)

    def _accept(self, digest: bytes, reviewed_at: float, caller: PodIdentity) -> None:
        # An expired entry still shows that the token was accepted once.
        self._accepted.pop(digest, None)
        while len(self._accepted) >= CACHED_MAX:
            del self._accepted[next(iter(self._accepted))]
        self._accepted[digest] = (reviewed_at + self._seconds, caller)


def caller_of(pod: ObjectMeta) -> PodIdentity:
    """Return the attempt of a pod, from its labels, controller and name.

    Only the operator can set these.
    """
    owner = next((owner for owner in pod.owner_references if owner.controller), None)
    if owner is None or (owner.api_version, owner.kind) != (API_VERSION, KIND):
        raise _not_a_task_pod(f"the pod {pod.namespace}/{pod.name} must have a TaskRun as its controller")
    label = pod.labels.get(LABEL_ATTEMPT, "")
    if pod.labels.get(LABEL_TASKRUN) != owner.name or not (label.isascii() and label.isdigit()) or int(label) < 1:
        raise _not_a_task_pod(
            f"the pod {pod.namespace}/{pod.name} must have the labels {LABEL_TASKRUN} and {LABEL_ATTEMPT}"
        )
    if pod.name != pod_name(owner.name, owner.uid, int(label)):
        raise _not_a_task_pod(
            f"the pod {pod.namespace}/{pod.name} must have the name that its TaskRun and attempt dictate"
        )
    run = RunReference(namespace=pod.namespace, name=owner.name, uid=owner.uid)
    return PodIdentity(run=run, attempt=int(label), pod_name=pod.name, pod_uid=pod.uid, purpose=_purpose_of(pod))


def _purpose_of(pod: ObjectMeta) -> AttemptPurpose:
    label = pod.labels.get(LABEL_PURPOSE, AttemptPurpose.RUN)
    try:
        return AttemptPurpose(label)
    except ValueError:
        # A purpose of a newer version. Its attempts may have other rights.
        raise _not_a_task_pod(
            f"the label {LABEL_PURPOSE} of the pod {pod.namespace}/{pod.name} must be {AttemptPurpose.CLEANUP} or absent;"
            f" this version does not know {label!r}"
        ) from None


def _token_in(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _unauthenticated("the header must be: Authorization: Bearer <pod token>")
    return token.strip()


def _digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _unauthenticated(detail: str) -> RequestRejectedError:
    return RequestRejectedError(ProblemCode.UNAUTHENTICATED, detail)


def _not_a_task_pod(detail: str) -> RequestRejectedError:
    return RequestRejectedError(ProblemCode.NOT_A_TASK_POD, detail)
