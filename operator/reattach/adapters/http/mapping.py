"""Between a REST API and Reattach, by its description: what is sent, and what the responses mean. Pure."""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from reattach.adapters.base import (
    Active,
    Cancelled,
    Failed,
    JobStatus,
    NotFound,
    Rejected,
    Submission,
    Submitted,
    Succeeded,
    Unknown,
)
from reattach.adapters.http.description import CancelRequest, LookupRequest, StatusRequest, SubmitRequest
from reattach.adapters.http_client import NO_BODY, CallError, HttpResponse


@dataclass(frozen=True)
class HttpCall:
    """What is to be sent."""

    method: str
    path: str
    body: Any
    headers: Mapping[str, str]


def request_of(submit: SubmitRequest, submission: Submission) -> HttpCall:
    """What submits the job. Raises `Rejected` where the task's request leaves no place for what Reattach must add."""
    fields = fields_of(submission)
    return HttpCall(
        method=submit.method,
        path=_path_of(submit.path, fields),
        body=_body_of(submit, submission.request, fields),
        headers={name: template.format_map(fields) for name, template in submit.headers.items()},
    )


def submitted_of(submit: SubmitRequest, response: HttpResponse, submission: Submission) -> Submitted:
    """The job, by the response to its submission.

    Raises:
        Rejected: there surely is none by this request.
        CallError: nobody knows.
    """
    fields = fields_of(submission)
    if response.status in submit.exists:
        place = submit.existing_handle or submit.handle
        return _submitted(submit, response, place, fields, existed=True)
    if response.status in submit.accepted:
        return _submitted(submit, response, submit.handle, fields, existed=False)
    if response.status in submit.refused:
        raise Rejected(f"the job was refused: {response}")
    if response.status in submit.busy:
        raise Rejected(f"the job was refused for now: {response}", retriable=True)
    if response.status in {307, 308}:
        # The one redirection that says "not done, do it over there".
        raise Rejected(f"the address must be the one that {response.headers.get('location')!r} is under: {response}")
    raise CallError(f"the response does not tell whether the job was accepted: {response}")


def is_taken_by_an_unnamed_job(submit: SubmitRequest, response: HttpResponse) -> bool:
    """Whether the response says that the name or the token has a job, and not which."""
    source = submit.existing_handle or submit.handle
    return response.status in submit.exists and "{" not in source and not _text_of(value_at(response.body, source))


def look_up_path_of(look_up: LookupRequest, submission: Submission) -> str:
    """Where the job is asked for."""
    return _path_of(look_up.path, fields_of(submission))


def found_of(
    look_up: LookupRequest, response: HttpResponse, submission: Submission, submit: SubmitRequest
) -> Submitted | None:
    """The job that carries the token or name; None: there is none.

    Of several, the first: they are of one token, so they are one job made twice, and the API's order is all that there is to go by.

    Raises:
        CallError: the response does not tell.
    """
    if response.status == 404 and look_up.not_found_says and look_up.not_found_says in response.text:
        return None
    if not response.is_success:
        raise CallError(f"the look-up was not answered: {response}")
    jobs = _jobs_in(look_up, response)
    if not isinstance(jobs, list):
        raise CallError(f"lookUp.items ({look_up.items}) must be where the list of jobs is in the response: {response}")
    fields = fields_of(submission)
    ours = [job for job in jobs if _carries(job, look_up.carries, fields[look_up.carried])]
    if not ours and look_up.next_page is not None and value_at(response.body, look_up.next_page):
        raise CallError(f"lookUp.path must select so few jobs that they fit on one page; there are more: {response}")
    if jobs and not ours:
        # Whoever ignores the query and answers the first page of all jobs must not be understood as "there is none".
        raise CallError(
            f"lookUp.path must select the jobs that carry the {look_up.carried}, and lookUp.carries ({look_up.carries}) be where; "
            f"the response has {len(jobs)} that don't: {response}"
        )
    if not ours:
        return None
    handle = _handle_at(ours[0], look_up.handle, response)
    return Submitted(handle, _url_of(submit, ours[0], {**fields, "handle": handle}), existed=True)


def _jobs_in(look_up: LookupRequest, response: HttpResponse) -> Any:
    if look_up.items is None:
        return [response.body]
    jobs = value_at(response.body, look_up.items)
    if jobs is None and look_up.items_omitted and isinstance(response.body, dict):
        return []
    return jobs


def status_of(status: StatusRequest, response: HttpResponse) -> JobStatus:
    """How the job stands."""
    if response.status in status.not_found and status.not_found_says in response.text:
        return NotFound(str(response))
    if not response.is_success:
        return Unknown(str(response))
    word = _text_of(value_at(response.body, status.state))
    message = _text_of(value_at(response.body, status.message)) if status.message is not None else None
    states = status.states
    if word in states.active:
        return Active(message or "")
    if word in states.succeeded:
        return _succeeded(status, response)
    if word in states.failed:
        return Failed(message or f"it ended as {word}")
    if word in states.cancelled:
        return Cancelled(message or "")
    if word is None:
        return Unknown(f"status.state ({status.state}) must be where the job's state is in the response: {response}")
    return Unknown(f"status.states must say what {word!r} means: {response}")


def cancel_body_of(cancel: CancelRequest) -> Any:
    """What is sent, `NO_BODY` for nothing."""
    return NO_BODY if cancel.body is msgspec.UNSET else cancel.body


def handle_path_of(path: str, handle: str) -> str:
    """Where this job is."""
    return _path_of(path, {"handle": handle})


def fields_of(submission: Submission) -> dict[str, str]:
    """What the placeholders stand for."""
    return {
        "token": submission.token,
        "name": submission.name,
        "key": submission.key,
        "generation": str(submission.generation),
        "namespace": submission.namespace,
        "taskrun": submission.taskrun,
    }


def value_at(document: Any, place: str) -> Any:
    """What is at a place of a JSON document; a list is entered by numbers. None if nothing is there."""
    if place == ".":
        return document
    for step in place.split("."):
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and step.isdecimal() and int(step) < len(document):
            document = document[int(step)]
        else:
            return None
    return document


def _succeeded(status: StatusRequest, response: HttpResponse) -> JobStatus:
    if status.result is None:
        return Succeeded()
    return Succeeded(value_at(response.body, status.result))


def _submitted(
    submit: SubmitRequest, response: HttpResponse, source: str, fields: Mapping[str, str], *, existed: bool
) -> Submitted:
    handle = source.format_map(fields) if "{" in source else _handle_at(response.body, source, response)
    return Submitted(handle, _url_of(submit, response.body, {**fields, "handle": handle}), existed=existed)


def _handle_at(document: Any, place: str, response: HttpResponse) -> str:
    handle = _text_of(value_at(document, place))
    if not handle:
        raise CallError(f"the job's id must be at {place!r} of the response: {response}")
    return handle


def _url_of(submit: SubmitRequest, document: Any, fields: Mapping[str, str]) -> str | None:
    if submit.url is None:
        return None
    if "{" in submit.url:
        return submit.url.format_map({name: quote(value, safe="") for name, value in fields.items()})
    return _text_of(value_at(document, submit.url))


def _path_of(path: str, fields: Mapping[str, str]) -> str:
    # `.` and `..` would be taken for folders, by us or by a proxy.
    quoted = {name: quote(value, safe="") for name, value in fields.items()}
    return path.format_map(
        {name: "%2E" * len(value) if set(value) == {"."} else value for name, value in quoted.items()}
    )


def _body_of(submit: SubmitRequest, request: Any, fields: Mapping[str, str]) -> Any:
    if not submit.body:
        return NO_BODY if request is None else request
    body = copy.deepcopy({} if request is None else request)
    for place, template in submit.body.items():
        _add(body, place, template.format_map(fields))
    return body


def _add(body: Any, place: str, text: str) -> None:
    *folders, name = place.removesuffix("[]").split(".")
    for folder in folders:
        body = body.setdefault(folder, {}) if isinstance(body, dict) else None
    if not isinstance(body, dict):
        raise Rejected(
            f"the request must be a JSON object with room for {place!r}, where Reattach writes what finds the job again"
        )
    if place.endswith("[]"):
        found = body.setdefault(name, [])
        if not isinstance(found, list):
            raise Rejected(f"the request must have a list at {place!r}: Reattach adds there what finds the job again")
        found.append(text)
    elif body.setdefault(name, text) != text:
        raise Rejected(f"the request must leave {place!r} out: Reattach writes there what finds the job again")


def _carries(job: Any, place: str, text: str) -> bool:
    found = value_at(job, place)
    return text in found if isinstance(found, list) else found == text


def _text_of(value: Any) -> str | None:
    """Of a JSON scalar; None of anything else."""
    match value:
        case str():
            return value
        case bool() | int() | float():
            return json.dumps(value)
        case _:
            return None
