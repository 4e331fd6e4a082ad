"""A wrong description is refused when it is made, with a sentence that says what must hold."""

import copy
from datetime import timedelta
from typing import Any

import pytest

from reattach.adapters.base import LONGEST, Capabilities, ClientName, Lookup, SubmissionToken
from reattach.adapters.http import Description, DescriptionError, HttpJobs

GOOD: dict[str, Any] = {
    "address": "https://jobs.example.com/api/v2",
    "submit": {
        "path": "/jobs",
        "handle": "data.id",
        "headers": {"Idempotency-Key": "{token}"},
        "body": {"labels.reattach": "{token}", "name": "{name}"},
        "exists": [409],
        "existingHandle": "error.jobId",
        "url": "https://ui.example.com/jobs/{handle}",
    },
    "status": {
        "path": "/jobs/{handle}",
        "state": "data.state",
        "states": {
            "active": ["QUEUED", "RUNNING"],
            "succeeded": ["DONE"],
            "failed": ["ERROR"],
            "cancelled": ["KILLED"],
        },
        "result": "data.output",
        "message": "data.detail",
        "notFoundSays": "no such job",
    },
    "cancel": {"path": "/jobs/{handle}", "method": "DELETE"},
    "names": {"retentionSeconds": None},
    "token": {"lifetimeSeconds": 86400},
    "lookUp": {
        "path": "/jobs?label=reattach:{token}",
        "items": "data",
        "carries": "labels.reattach",
        "handle": "id",
        "settlingSeconds": 30,
        "retentionSeconds": 604800,
    },
    "headers": {"X-Team": "data"},
    "requestSeconds": 20,
}

# Where, what stands there instead (None removes it), and what the message says.
WRONG: list[tuple[str, Any, str]] = [
    ("address", "jobs.example.com", "address must be like https://"),
    ("address", "https://jobs.example.com/", "without a / at its end"),
    ("address", "https://me:geheim@jobs.example.com", "without a password, not 'jobs.example.com'"),
    ("address", "https://jobs.example.com?x=1", "address must be like"),
    ("name", "My API", "must be a DNS label"),
    ("speling", 1, "unknown field `speling`"),
    ("submit", None, "missing required field `submit`"),
    ("submit.path", "jobs", "submit.path must begin with /"),
    ("submit.path", "/jobs/{handle}", r"\{handle\} is not a placeholder here; known are \{generation\}"),
    ("submit.path", "/jobs/{name", "braces must match"),
    ("submit.path", "/jobs/{name.__class__}", "is not a placeholder here"),
    ("submit.path", "/jobs/{name!r}", "is not a placeholder here"),
    ("submit.method", "post", "must be an HTTP method in capitals"),
    ("submit.handle", "data..id", "submit.handle must be a place like data.id"),
    ("submit.handle", "{handle}", "is not a placeholder here"),
    ("submit.body", {"a..b": "{token}"}, "submit.body must be a place"),
    ("submit.body", {"name": "{nam}"}, r"\{nam\} is not a placeholder"),
    ("submit.headers", {"Bad Header": "x"}, "is not a header name"),
    ("submit.headers", {"X": "a\r\nY: b"}, "must be printable ASCII"),
    ("submit.accepted", [], "submit.accepted must name"),
    ("submit.accepted", [99], "status codes from 200 to 599"),
    ("submit.refused", [201], "201 must mean one thing"),
    ("submit.busy", [409], "409 must mean one thing"),
    ("submit.url", "https://ui/{tokn}", "is not a placeholder here"),
    ("status.path", "/jobs/1", r"status.path must hold \{handle\}"),
    ("status.path", "/jobs/{token}", "is not a placeholder here"),
    ("status.state", "", "status.state must be a place"),
    ("status.result", "a..b", "status.result must be a place"),
    ("status.states.active", [], "status.states.active must name at least one word"),
    ("status.states.succeeded", [], "status.states.succeeded must name at least one word"),
    ("status.states.failed", [], "status.states.failed must name at least one word"),
    ("status.states.failed", ["DONE"], "DONE has two"),
    ("status.states.failed", "ERROR", "Expected `array`"),
    ("status.notFound", [1404], "status codes from 200 to 599"),
    ("status.notFoundSays", None, "status.notFoundSays must be what the API itself says"),
    ("status.notFoundSays", " ", "status.notFoundSays must be what the API itself says"),
    ("cancel.path", "/cancel", r"cancel.path must hold \{handle\}"),
    ("cancel.method", "stop it", "must be an HTTP method"),
    ("names.retentionSeconds", -1, "must be at least 0 seconds"),
    ("names", {}, "names must have one of retentionSeconds, .* and whileOpen"),
    ("names", {"retentionSeconds": None, "whileOpen": True}, "names must have one of retentionSeconds"),
    ("token", {}, "token must have one of lifetimeSeconds, .* and whileOpen"),
    ("token", {"lifetimeSeconds": 86400, "whileOpen": True}, "token must have one of lifetimeSeconds"),
    ("lookUp.retentionSeconds", None, "lookUp must have one of retentionSeconds, .* and whileOpen"),
    ("lookUp.whileOpen", True, "lookUp must have one of retentionSeconds"),
    ("submit.exists", [], "submit.exists must name the status by which a taken name"),
    ("token.lifetimeSeconds", 25, "must be more than requestSeconds"),
    ("lookUp.path", "/jobs?user={taskrun}", r"lookUp.path must hold \{name\} or \{token\}"),
    ("lookUp.carries", ".", "lookUp.carries must be a place"),
    ("lookUp.items", None, "lookUp.notFoundSays must be what the API itself says with 404"),
    ("lookUp.nextPage", "a..b", "lookUp.nextPage must be a place"),
    ("lookUp.settlingSeconds", -1, "must be at least 0 seconds"),
    ("lookUp.retentionSeconds", 10, "lookUp.retentionSeconds must be at least 30 seconds"),
    ("lookUp.retentionSeconds", "for ever", "Expected `float | null`"),
    ("credentials", {}, "one of env, a variable, and file"),
    ("credentials", {"env": "A", "file": "/b"}, "one of env, a variable, and file"),
    ("credentials", {"env": "A", "template": "Bearer x"}, r"credentials.template must hold \{secret\}"),
    ("credentials", {"env": "A", "header": "A B"}, "is not a header name"),
    ("headers", {"X": "{token}"}, "known are none"),
    ("requestSeconds", 0, "requestSeconds must be at least 1 seconds"),
    ("pollSeconds", 0, "pollSeconds must be at least 0.05 seconds"),
]


def with_field(where: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(GOOD)
    *folders, name = where.split(".")
    inner = changed
    for folder in folders:
        inner = inner[folder]
    inner[name] = value
    if value is None:
        del inner[name]
    return changed


def test_description_complete_is_accepted() -> None:
    capabilities = HttpJobs(Description.from_mapping(GOOD)).capabilities
    assert None not in {capabilities.client_name, capabilities.token, capabilities.look_up}


def test_description_of_what_ends_with_the_job_declares_it() -> None:
    described = with_field("lookUp.retentionSeconds", None)
    described["lookUp"]["whileOpen"] = True
    described |= {"names": {"whileOpen": True}, "token": {"whileOpen": True}}
    capabilities = HttpJobs(Description.from_mapping(described)).capabilities
    assert capabilities == Capabilities(
        ClientName(while_open=True),
        SubmissionToken(LONGEST, while_open=True),
        Lookup(timedelta(seconds=30), while_open=True),
    )


@pytest.mark.parametrize("where,value,message", WRONG)
def test_description_invalid_names_the_requirement(where: str, value: Any, message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        Description.from_mapping(with_field(where, value))


def test_description_name_or_token_that_the_submission_lacks_is_refused() -> None:
    nameless = with_field("submit.body", {})
    with pytest.raises(DescriptionError, match=r"names: submit.body or submit.path must hold"):
        Description.from_mapping(nameless)
    del nameless["names"]
    Description.from_mapping(nameless)
    tokenless = copy.deepcopy(nameless)
    tokenless["submit"]["headers"] = {}
    with pytest.raises(DescriptionError, match=r"token: submit.headers or submit.body must hold"):
        Description.from_mapping(tokenless)
    del tokenless["token"]
    with pytest.raises(DescriptionError, match=r"the submission must carry the \{token\}"):
        Description.from_mapping(tokenless)
