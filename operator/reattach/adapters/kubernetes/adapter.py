"""Adapter for objects of a Kubernetes API: any kind that reports its end in its status.

Presets exist for Job, TaskRun, SparkApplication and RayJob.

**Guarantees of Kubernetes.** A name exists once in a namespace. If several creations use one name,
exactly one succeeds, and the others get `AlreadyExists` as long as the object exists. So the name
contains the submission token. Anything that deletes objects ends the guarantee: a user, the
deletion of the namespace, an owner, a time to live. `retention` is how long an object certainly
exists after its submission; a manifest with a shorter time to live is rejected.

A policy or webhook of the cluster may add a time to live. So a dry run shows the object that the
API server would store, before the object is created.
"""

from datetime import timedelta
from typing import Any, ClassVar, Final

import httpx

from reattach.adapters.base import (
    Active,
    Adapter,
    Cancelled,
    Capabilities,
    ClientName,
    JobStatus,
    Lookup,
    NotFound,
    Rejected,
    Submission,
    Submitted,
    Unknown,
)
from reattach.adapters.http_client import BoundedHttpClient, CallError, HttpResponse
from reattach.adapters.kubernetes.access import Access, AccessError
from reattach.adapters.kubernetes.kinds import Kind, text_at
from reattach.adapters.kubernetes.objects import (
    ForeignObjectError,
    ObjectHandle,
    check_stored_ends,
    created_of,
    delete_options_of,
    existing_of,
    is_absent,
    object_of,
    response_text,
    status_of,
)

_SETTLING: Final = timedelta(seconds=90)
"""An API server, with its webhooks, processes a request for at most 60 s (`--request-timeout`).

The other 30 s are for the network.
"""
_CALL_SECONDS: Final = 30.0
_REQUEST_SECONDS: Final = 2 * _CALL_SECONDS
"""The dry run and the creation."""
_TRIES: Final = 5


class KubernetesObjects(Adapter):
    """Objects of one kind in one namespace.

    A request is a manifest without a name. The handle is `namespace/name/uid`.

    `kind`: `JOB`, `TASKRUN`, `SPARK_APPLICATION`, `RAY_JOB`, or a `Kind` of your own. `access`:
    None uses the pod's own service account, which needs permission to `create`, `get` and `delete`
    (TaskRuns: `patch`) the objects. `namespace`: None uses the namespace of `access`. `retention`:
    how long an object certainly exists after its submission; None: until it is recorded as
    terminal, because no client deletes it before.

    `owned`: the TaskRun owns each object, so Kubernetes deletes the object after the TaskRun. The
    object must be in the TaskRun's cluster and namespace, and `submit` rejects a job that must
    outlive its TaskRun.

    Raises:
        AccessError: the Kubernetes API can't be reached with these settings.
        ValueError: `owned` with an `access` that is not that of the pod.
    """

    name: ClassVar[str] = "kubernetes"

    def __init__(
        self,
        kind: Kind,
        *,
        access: Access | None = None,
        namespace: str | None = None,
        retention: timedelta | None = None,
        owned: bool = False,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        access = Access.from_pod() if access is None else access
        if owned and not access.is_of_pod:
            raise ValueError(
                "owned=True requires the access of the pod (leave `access` out), because Kubernetes deletes an object whose"
                " owner is not in the same cluster"
            )
        self._owned = owned
        self._kind = kind
        self._retention = retention
        self._namespace = access.namespace if namespace is None else namespace
        self.name = f"kubernetes-{kind.kind.lower()}"[:63]  # type: ignore[misc] # each kind is its own system
        self.request_seconds = _REQUEST_SECONDS
        self._deleted: set[str] = set()
        """UIDs of objects this process deleted; a 404 for them means cancelled, not unknown."""
        try:
            access.headers()
            access.tls()
        except (OSError, ValueError) as error:
            raise AccessError(f"the credentials and the CA for {access.server} must be readable: {error}") from error
        # A proxy for external addresses must not be used for the cluster's own API server.
        self._client = BoundedHttpClient(
            access.server, _CALL_SECONDS, access.headers, access.tls, trust_env=False, transport=transport
        )

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            client_name=ClientName(self._retention), look_up=Lookup(settling=_SETTLING, retention=self._retention)
        )

    def submit(self, submission: Submission) -> Submitted:
        body = object_of(self._kind, submission, self._namespace, self._retention, owned=self._owned)
        if self._kind.ends and not self._check_stored(body, submission):
            return self._existing(submission)
        created = created_of(self._create(body, submission))
        return self._existing(submission) if created is None else created

    def _check_stored(self, body: dict[str, Any], submission: Submission) -> bool:
        """Check the object that the API server would store.

        Return False if the name already has an object. Raises `Rejected`.
        """
        try:
            response = self._create(body, submission, "&dryRun=All")
            if created_of(response) is None:
                return False
        except CallError as error:  # a dry run creates no object, whatever its result is
            raise Rejected(
                f"the dry run of the creation failed: {error}", retriable=True, retry_after=error.retry_after
            ) from error
        check_stored_ends(self._kind, response.body, self._retention)
        return True

    def _create(self, body: dict[str, Any], submission: Submission, query: str = "") -> HttpResponse:
        # Strict, because the API server would otherwise drop a misspelled field silently.
        query = f"fieldValidation=Strict&fieldManager=reattach-task{query}"
        path = f"{self._kind.path(self._namespace)}?{query}"
        return self._client.submit(submission, "POST", path, body)

    def look_up(self, submission: Submission) -> Submitted | None:
        return existing_of(self._get(self._namespace, submission.name), submission)

    def status(self, handle: str) -> JobStatus:
        known = ObjectHandle.parse(handle)
        if known is None:
            return NotFound(f"the handle must be namespace/name/uid, not {handle!r}")
        try:
            status = status_of(self._kind, self._get(known.namespace, known.name), known)
        except CallError as error:
            return Unknown(str(error), error.retry_after)
        if isinstance(status, NotFound) and known.uid in self._deleted:
            return Cancelled("the object was deleted by a cancellation")
        return status

    def cancel(self, handle: str) -> None:
        """Cancel the job. Raises `CallError` if it is still active or its status is unknown."""
        known = ObjectHandle.parse(handle)
        if known is None:
            return
        for _ in range(_TRIES):
            response = self._get(known.namespace, known.name)
            if not isinstance(status_of(self._kind, response, known), Active | Unknown):
                return
            if not response.is_success or text_at(response.body, "metadata.uid") != known.uid:
                raise CallError(
                    f"{handle} was not cancelled: {response_text(response)}", retry_after=response.retry_after
                )
            cancelled = self._end(known, text_at(response.body, "metadata.resourceVersion"))
            if cancelled.is_success or is_absent(cancelled, known.name):
                return
            if cancelled.status != 409:
                raise CallError(
                    f"{handle} was not cancelled: {response_text(cancelled)}", retry_after=cancelled.retry_after
                )
        raise CallError(f"{handle} was not cancelled, because the object keeps changing")

    def _end(self, handle: ObjectHandle, version: str) -> HttpResponse:
        """Patch or delete this version of the object, so that an ended job keeps its result."""
        path = self._kind.path(handle.namespace, handle.name)
        preconditions = {"uid": handle.uid, "resourceVersion": version}
        if self._kind.cancel_patch is not None:
            patch = {**self._kind.cancel_patch, "metadata": preconditions}
            return self._client.send("PATCH", path, patch, {"Content-Type": "application/merge-patch+json"})
        # Recorded before the request, because its response may be lost after the object was
        # deleted.
        self._deleted.add(handle.uid)
        response = self._client.send("DELETE", path, delete_options_of(preconditions))
        if 400 <= response.status < 500 and not is_absent(response, handle.name):
            self._deleted.discard(handle.uid)
        return response

    def _existing(self, submission: Submission) -> Submitted:
        """Return the object that has the name."""
        try:
            found = self.look_up(submission)
        except ForeignObjectError as error:
            # The API server rejected the creation, so this request created no object and never
            # will.
            raise Rejected(str(error)) from error
        if found is None:
            raise CallError(f"{self._namespace}/{submission.name} existed, but no longer exists")
        return found

    def _get(self, namespace: str, name: str) -> HttpResponse:
        return self._client.send("GET", self._kind.path(namespace, name))
