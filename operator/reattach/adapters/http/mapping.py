"""Requests to a REST API and the meaning of its responses, by its description. Pure."""

import copy
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

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
from reattach.adapters.http.description import (
    ABSENT,
    Addition,
    CancelRequest,
    JobOutcome,
    LookupRequest,
    States,
    StatusRequest,
    SubmitRequest,
    additions_of,
    header_of,
)
from reattach.adapters.http_client import CREDENTIALS_REFUSED, NO_BODY, CallError, HttpResponse, path_segment


@dataclass(frozen=True)
class HttpCall:
    """A request to send."""

    method: str
    path: str
    body: Any
    headers: Mapping[str, str]


def request_of(submit: SubmitRequest, submission: Submission) -> HttpCall:
    """Return the request that submits the job.

    Raises `Rejected` if the task's request has no room for the fields that Reattach adds.
    """
    fields = fields_of(submission)
    return HttpCall(
        method=submit.method,
        path=_path_of(submit.path, fields),
        body=_body_of(submit, submission.request, fields),
        headers={name: template.format_map(fields) for name, template in submit.headers.items()},
    )


def submitted_of(submit: SubmitRequest, response: HttpResponse, submission: Submission) -> Submitted:
    """Return the job from the response to its submission.

    Raises:
        Rejected: this request certainly created no job.
        CallError: the outcome is unknown.
    """
    fields = fields_of(submission)
    if response.status in submit.exists:
        return _submitted(submit, response, submit.existing_handle or submit.handle, fields, existed=True)
    if response.status in submit.accepted:
        return _submitted(submit, response, submit.handle, fields, existed=False)
    if response.status in submit.refused:
        raise Rejected(f"the job was refused: {response}")
    if response.status in submit.busy:
        raise Rejected(f"the job was refused for now: {response}", retriable=True, retry_after=response.retry_after)
    if response.status in CREDENTIALS_REFUSED:
        raise Rejected(f"the credentials were refused: {response}", credentials=True, retry_after=response.retry_after)
    if response.status in {307, 308}:
        # Only these redirects mean that the server did not act and the client must repeat the
        # request.
        raise Rejected(f"the address must be the one that {response.headers.get('location')!r} is under: {response}")
    raise CallError(
        f"the response does not show whether the job was accepted: {response}", retry_after=response.retry_after
    )


def is_taken_by_an_unnamed_job(submit: SubmitRequest, response: HttpResponse) -> bool:
    """Return whether the name or token has a job, but the response does not contain its id."""
    source = submit.existing_handle or submit.handle
    return response.status in submit.exists and "{" not in source and _id_of(_value_of(source, response)) is None


def look_up_path_of(look_up: LookupRequest, submission: Submission) -> str:
    """Return the path of the lookup."""
    return _path_of(look_up.path, fields_of(submission))


def found_of(
    look_up: LookupRequest, response: HttpResponse, submission: Submission, submit: SubmitRequest
) -> Submitted | None:
    """Return the job that carries the token or name, or None if it certainly does not exist.

    Return the first of several jobs. They share one token, so they are duplicates of one job, and
    only the API's order distinguishes them.

    Raises:
        CallError: the response does not show whether the job exists.
    """
    if response.status == 404 and look_up.not_found_says and look_up.not_found_says in response.text:
        return None
    if not response.is_success:
        raise CallError(f"the lookup failed: {response}", retry_after=response.retry_after)
    jobs = _jobs_in(look_up, response)
    if not isinstance(jobs, list):
        raise CallError(
            f"`items` of the lookup ({look_up.items}) must be where the list of jobs is in the response: {response}"
        )
    fields = fields_of(submission)
    ours = [job for job in jobs if _carries(job, look_up.carries, fields[look_up.carried])]
    if not ours and look_up.next_page is not None and value_at(response.body, look_up.next_page):
        raise CallError(
            f"`path` of the lookup must select so few jobs that they fit on one page; there are more: {response}"
        )
    if jobs and not ours:
        # An API that ignores the query returns the first page of all jobs. This must not count as
        # absence.
        raise CallError(
            f"`path` of the lookup must select the jobs that carry the {look_up.carried}, and `carries` ({look_up.carries}) "
            f"must be its place; the response has {len(jobs)} jobs without it: {response}"
        )
    if not ours:
        return None
    handle = _handle_of(value_at(ours[0], look_up.handle), look_up.handle, look_up.handle_path, response)
    url = _url_of(submit.url, lambda place: value_at(ours[0], place), {**fields, "handle": handle})
    return Submitted(handle, url, existed=True)


def _jobs_in(look_up: LookupRequest, response: HttpResponse) -> Any:
    if look_up.items is None:
        return [response.body]
    jobs = value_at(response.body, look_up.items)
    if jobs is None and look_up.items_omitted and isinstance(response.body, dict):
        return []
    return jobs


def status_of(status: StatusRequest, response: HttpResponse) -> JobStatus:
    """Return the status of the job."""
    if response.status in status.not_found and status.not_found_says in response.text:
        return NotFound(str(response))
    if not response.is_success:
        return Unknown(str(response), response.retry_after)
    words: States | JobOutcome = status.states
    where, place = "status.state", status.state
    word = _word_at(response, place)
    if word in status.states.active:
        return Active(_message_of(status, response))
    if word in status.states.ended and status.outcome is not None:
        where, place, words = "status.outcome.place", status.outcome.place, status.outcome
        word = _word_at(response, place)
    if word in words.succeeded:
        return _succeeded(status, response)
    if word in words.failed:
        return Failed(_message_of(status, response) or f"the job ended as {word}")
    if word in words.cancelled:
        return Cancelled(_message_of(status, response))
    if word is None or word == ABSENT:
        return Unknown(f"{where} ({place}) must be where the job's state is in the response: {response}")
    return Unknown(f"{words.at} must contain {word!r}: {response}")


def _message_of(status: StatusRequest, response: HttpResponse) -> str:
    return "" if status.message is None else _text_of(value_at(response.body, status.message)) or ""


def cancel_body_of(cancel: CancelRequest) -> Any:
    """Return the body of the cancellation, or `NO_BODY`."""
    return NO_BODY if cancel.body is msgspec.UNSET else cancel.body


def handle_path_of(path: str, handle: str) -> str:
    """Return the path with the handle inserted."""
    return _path_of(path, {"handle": handle})


def fields_of(submission: Submission) -> dict[str, str]:
    """Return the values of the placeholders."""
    return {
        "token": submission.token,
        "name": submission.name,
        "key": submission.key,
        "generation": str(submission.generation),
        "namespace": submission.namespace,
        "taskrun": submission.taskrun,
    }


def value_at(document: Any, place: str) -> Any:
    """Return the value at a place of a JSON document, or None. Numbers select items of a list."""
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
    result = value_at(response.body, status.result)
    if result is None:
        # No error, because the job has succeeded, and the same request returns the same response.
        return Succeeded(None, f"no result, because status.result ({status.result}) has no value in: {response}")
    return Succeeded(result)


def _submitted(
    submit: SubmitRequest, response: HttpResponse, source: str, fields: Mapping[str, str], *, existed: bool
) -> Submitted:
    if "{" not in source:
        handle = _handle_of(_value_of(source, response), source, submit.handle_path, response)
    elif response.is_html:
        # A login page or a portal: the API itself would not have returned a page.
        raise CallError(f"the response must be the API's, not a page: {response}")
    else:
        handle = source.format_map(fields)
    url = _url_of(submit.url, lambda source: _value_of(source, response), {**fields, "handle": handle})
    return Submitted(handle, url, existed=existed)


def _value_of(source: str, response: HttpResponse) -> Any:
    """Return the value at a place or in a header of a response, or None."""
    if (header := header_of(source)) is not None:
        return response.headers.get(header)
    if source == "." and response.is_plain_text and not _is_json_word(response.text):
        return response.text.strip()
    return value_at(response.body, source)


def _is_json_word(text: str) -> bool:
    """Return whether a plain text is a JSON string or word, and not an id without quotes."""
    text = text.strip()
    return text.startswith('"') or text in {"null", "true", "false"}


def _handle_of(value: Any, source: str, path: str | None, response: HttpResponse) -> str:
    handle = _id_of(value)
    if handle is None:
        raise CallError(f"the job's id must be at {source!r} of the response, a text or an integer: {response}")
    if source == "." and any(character.isspace() for character in handle):
        raise CallError(f"the whole body must be the job's id, without spaces: {response}")
    if path is None or "/" not in handle:
        return handle
    found = _segment_in(handle, path)
    if found is None:
        raise CallError(f"the job's URL at {source!r} must end in {path}, not be {handle!r:.200}")
    return found


def _segment_in(url: str, path: str) -> str | None:
    """Return the part of the URL's path at `{handle}`, or None if it does not end in `path`."""
    before, after = (re.escape(text.format()) for text in path.split("{handle}"))
    found = re.search(rf"{before}([^/]+){after}/?$", "/" + url.partition("#")[0].partition("?")[0].lstrip("/"))
    handle = unquote(found[1]) if found else "\ufffd"
    return None if "\ufffd" in handle else handle


def _url_of(source: str | None, value_of: Callable[[str], Any], fields: Mapping[str, str]) -> str | None:
    if source is None:
        return None
    if "{" in source:
        return source.format_map({name: path_segment(value) for name, value in fields.items()})
    return _text_of(value_of(source))


def _path_of(path: str, fields: Mapping[str, str]) -> str:
    return path.format_map({name: path_segment(value) for name, value in fields.items()})


def _body_of(submit: SubmitRequest, request: Any, fields: Mapping[str, str]) -> Any:
    if not submit.body:
        return NO_BODY if request is None else request
    body = copy.deepcopy({} if request is None else request)
    for added in additions_of(submit.body):
        _add(body, added, added.template.format_map(fields))
    return body


def _add(body: Any, added: Addition, text: str) -> None:
    *folders, name = added.path
    place = ".".join(added.path)
    for folder in folders:
        body = body.setdefault(folder, {}) if isinstance(body, dict) else None
    if not isinstance(body, dict):
        raise Rejected(
            f"the request must be a JSON object with room for {place!r}, where Reattach writes what identifies the job"
        )
    if added.is_item:
        found = body.setdefault(name, [])
        if not isinstance(found, list):
            raise Rejected(
                f"the request must have a list at {place!r}, because Reattach appends what identifies the job"
            )
        found.append(text)
    elif body.setdefault(name, text) != text:
        raise Rejected(f"the request must leave {place!r} out, because Reattach writes there what identifies the job")


def _carries(job: Any, place: str, text: str) -> bool:
    found = value_at(job, place)
    return text in found if isinstance(found, list) else found == text


def _text_of(value: Any) -> str | None:
    """Return the text of a JSON scalar, or None for any other value."""
    match value:
        case str():
            return value
        case bool() | int():
            return json.dumps(value)
        case float() if math.isfinite(value):
            return json.dumps(value)
        case _:
            return None


def _id_of(value: Any) -> str | None:
    """Return the text of an id, a text or an integer, or None for any other value."""
    is_id = (isinstance(value, str) and value.strip()) or (isinstance(value, int) and not isinstance(value, bool))
    return str(value) if is_id else None


def _word_at(response: HttpResponse, place: str) -> str | None:
    """Return the word at a place, and `null` for an absent field of JSON.

    Return None for an object, a list, or a response that is not JSON.
    """
    value = _value_of(place, response)
    return ABSENT if value is None and response.body is not None else _text_of(value)
