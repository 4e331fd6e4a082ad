"""API calls as the audit log records them: what was called, and how large its bodies were."""

import json
from collections.abc import Mapping
from typing import Any

Event = Mapping[str, Any]
"""An audit.k8s.io/v1 Event."""

_ERROR_FROM = 400


def call_of(event: Event) -> str:
    """Return verb and resource, such as `patch taskruns/status`, and the code of an error."""
    about = event["objectRef"]
    resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
    code = event["responseStatus"]["code"]
    return f"{event['verb']} {resource}" + (f" ({code})" if code >= _ERROR_FROM else "")


def request_bytes(event: Event) -> int:
    """Return the size of the request's body, as compact JSON; 0 where the log has none."""
    return _size_of(event.get("requestObject"))


def response_bytes(event: Event) -> int:
    """Return the same of the response's body."""
    return _size_of(event.get("responseObject"))


def _size_of(body: Any) -> int:
    return 0 if body is None else len(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode())
