"""Rejections of pods by the API server: what they mean for the next try, and how they are shown."""

import re

from reattach.cluster import BadRequestError, ClusterError, ForbiddenError, InvalidError
from reattach.cluster.errors import NO_REASON, is_too_large, is_webhook_denial
from reattach.planner.plan import PodRejectionKind

_QUOTA_DENIALS = ("exceeded quota: ", "status unknown for quota: ")
"""Starts of the messages of the ResourceQuota plugin; the second: its usage is not counted yet."""
_EXCEEDED_COUNT = re.compile(
    r"exceeded quota: [^, ]+, requested: count/pods=(\d+k?), used: count/pods=(\d+k?), limited: count/pods=(\d+k?)"
)
_DELETED_AT_ONCE_MAX = 10
_CAUSES_MAX = 20
"""Wrong fields that are named. A condition's message is cut long before that."""
_OF_THE_DECODER = re.compile(r'^PodTemplate in version "v1" cannot be handled as a PodTemplate: ')
_GO_FIELD = re.compile(r"\bGo struct field \w+\.template\.")
_UNKNOWN_FIELD = re.compile(r'\bfield "template\.')


def rejection_kind_of(error: ClusterError, name: str, plural: str = "pods") -> PodRejectionKind:
    """Return what the rejection of a pod means for the next try. `name`: the name of the pod.

    An admission policy rejects with 400, 403 or 422, and a webhook with any status. Both may
    change, so their rejection never means that the template is invalid.

    Only the start of the message is compared, because the rest may quote values of the template.
    """
    if is_webhook_denial(error):
        return PodRejectionKind.FORBIDDEN
    # Admission plugins begin so, with any status, and ValidatingAdmissionPolicies among them.
    admission = f'{plural} "{name}" is forbidden: '
    if error.message.startswith(admission) or isinstance(error, ForbiddenError):
        is_quota = error.message.removeprefix(admission).startswith(_QUOTA_DENIALS)
        return PodRejectionKind.QUOTA if is_quota else PodRejectionKind.FORBIDDEN
    is_final = isinstance(error, BadRequestError | InvalidError) or is_too_large(error)
    # A response without a reason comes from a proxy, not from the API server.
    return PodRejectionKind.INVALID if is_final and error.reason != NO_REASON else PodRejectionKind.ERROR


def excess_pods_of(error: ClusterError, name: str) -> int:
    """Return how many pods less a quota would need to have room for a pod; 0: it would not help.

    Only `count/pods` counts pods that have ended. If another resource exceeds the quota, too, the
    message lists both, and fewer pods don't help.
    """
    found = _EXCEEDED_COUNT.fullmatch(error.message.removeprefix(f'pods "{name}" is forbidden: '))
    if found is None:
        return 0
    requested, used, limit = (int(count.replace("k", "000")) for count in found.groups())
    return min(max(requested + used - limit, 1), _DELETED_AT_ONCE_MAX)


def describe_template_error(error: ClusterError) -> str:
    """Return the rejection of a PodTemplate with the paths of the fields in a TaskRun."""
    fields = [
        f"spec.{cause['field']}: {cause.get('message')}"
        for cause in error.causes[:_CAUSES_MAX]
        if str(cause.get("field", "")).startswith("template.")
    ]
    if fields:
        return "; ".join(fields)
    message = _OF_THE_DECODER.sub("", error.message)
    message = _GO_FIELD.sub("field spec.template.", message)
    return _UNKNOWN_FIELD.sub('field "spec.template.', message)
