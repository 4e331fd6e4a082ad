"""What a REST API is like: where jobs are submitted, asked for, found and cancelled, what its answers mean, and what it promises.

Three kinds of text occur in it:

    path       begins with `/` and is appended to the address; may hold placeholders, which are percent-encoded: `/jobs/{handle}`
    place      where something is in a JSON document: `data.attributes.state`, `jobs.0.id`; `.` is the whole document
    template   text with placeholders: `reattach-{token}`

Placeholders are `{token}` (a UUID, the same for every attempt), `{name}` (`reattach-` and the token: a DNS label of 45 characters), `{key}`,
`{generation}`, `{namespace}`, `{taskrun}`; and `{handle}`, where the job is known. Literal braces are doubled.

Descriptions are made in Python, or by `Description.from_mapping` from JSON or YAML, where names are camelCase.
"""

import re
from collections.abc import Iterable, Mapping
from string import Formatter
from typing import Any, Final, Self

import msgspec

SUBMISSION_FIELDS: Final = frozenset({"token", "name", "key", "generation", "namespace", "taskrun"})
IDENTITY_FIELDS: Final = frozenset({"token", "name"})
"""Only these are of one job alone."""
HANDLE_FIELDS: Final = frozenset({"handle"})
MARGIN_SECONDS: Final = 5.0
"""How late a submission may be on top of its time-out; a token that lives no longer is of no use."""

REFUSED: Final = (400, 401, 402, 403, 404, 405, 411, 413, 414, 415, 417, 421, 422, 426, 428, 431)
"""What these mean is in RFC 9110 and RFC 6585: the request is not acted on. 406 (some frameworks act first), 408, 409, 410, 412, 425 and
5xx promise no such thing."""
BUSY: Final = (429,)
"""503 is not among them: proxies response it also when the connection broke after the request was passed on."""

_METHOD = re.compile(r"[A-Z]{1,16}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class DescriptionError(ValueError):
    """The description contradicts itself, or leaves out what is needed; the message says what must hold."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """What all parts of a description have in common: names are checked, and camelCase where they come as JSON or YAML."""


class SubmitRequest(Part, frozen=True):
    """How a job is submitted. The request that the task gives is the JSON body.

    `body`: what Reattach adds to it: place → template; a place that ends in `[]` is appended to a list. `headers`: name → template.
    `handle`: the job's id in the response, a place; or a template, where the client chooses it (`PUT /jobs/{name}`). `url`: where people can look
    at it, a place or a template.

    Answers, by status code. `accepted`: it is a new job. `exists`: the name or the token has a job already, whose handle is at
    `existing_handle` (where that is not `handle`). `refused`: surely no job, nor ever by this request. `busy`: surely no job; asked
    again later. Anything else: nobody knows.
    """

    path: str
    handle: str
    method: str = "POST"
    body: dict[str, str] = {}
    headers: dict[str, str] = {}
    url: str | None = None
    accepted: tuple[int, ...] = (200, 201, 202)
    exists: tuple[int, ...] = ()
    existing_handle: str | None = None
    refused: tuple[int, ...] = REFUSED
    busy: tuple[int, ...] = BUSY

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        _check_method("submit.method", self.method)
        check_path("submit.path", self.path, SUBMISSION_FIELDS)
        for place, template in self.body.items():
            check_place("submit.body", place.removesuffix("[]"), whole=False)
            check_template(f"submit.body[{place!r}]", template, SUBMISSION_FIELDS)
        _check_headers("submit.headers", self.headers, SUBMISSION_FIELDS)
        _check_source("submit.handle", self.handle, SUBMISSION_FIELDS)
        if self.existing_handle is not None:
            _check_source("submit.existingHandle", self.existing_handle, SUBMISSION_FIELDS)
        if self.url is not None:
            _check_source("submit.url", self.url, SUBMISSION_FIELDS | HANDLE_FIELDS)
        self._check_statuses()

    def _check_statuses(self) -> None:
        named = {"accepted": self.accepted, "exists": self.exists, "refused": self.refused, "busy": self.busy}
        meanings: dict[int, str] = {}
        for meaning, statuses in named.items():
            _check_statuses(f"submit.{meaning}", statuses)
            for status in statuses:
                if meanings.setdefault(status, meaning) != meaning:
                    # `exists: [200]` says how a repeated submission is answered; it is the more precise word.
                    if {meanings[status], meaning} == {"accepted", "exists"}:
                        continue
                    raise DescriptionError(
                        f"submit: {status} must mean one thing; it is in {meanings[status]} and {meaning}"
                    )
        if not self.accepted:
            raise DescriptionError("submit.accepted must name the status codes by which a job is accepted")

    @property
    def carried(self) -> frozenset[str]:
        """The placeholders that the submission holds."""
        texts = [self.path, *self.body.values(), *self.headers.values()]
        return frozenset().union(*(fields_of(text) for text in texts))


class States(Part, frozen=True):
    """The words of the API for how a job stands, as they are in its response (numbers and booleans as JSON writes them). All others are taken
    as "can't be told".
    """

    active: tuple[str, ...]
    succeeded: tuple[str, ...]
    failed: tuple[str, ...]
    cancelled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        for meaning, words in {"active": self.active, "succeeded": self.succeeded, "failed": self.failed}.items():
            if not words:
                raise DescriptionError(f"status.states.{meaning} must name at least one word of the API")
        every = [*self.active, *self.succeeded, *self.failed, *self.cancelled]
        twice = sorted({word for word in every if every.count(word) > 1})
        if twice:
            raise DescriptionError(f"status.states: each word must have one meaning; {', '.join(twice)} has two")


class StatusRequest(Part, frozen=True):
    """How a job is asked for. `state`: where its state is in the response; `result`: where the result of a job that succeeded is, `.` for all of the
    response; `message`: what to tell people. All are places.

    `not_found`: the status codes by which the API says that it does not know the handle, if the response's text also contains `not_found_says`, which
    no proxy would response: whoever takes a proxy's 404 for a job that is gone holds the run, or submits anew. Empty: it never says so.
    """

    path: str
    state: str
    states: States
    method: str = "GET"
    result: str | None = None
    message: str | None = None
    not_found: tuple[int, ...] = (404, 410)
    not_found_says: str = ""

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        _check_method("status.method", self.method)
        check_path("status.path", self.path, HANDLE_FIELDS)
        _check_holds("status.path", self.path, HANDLE_FIELDS)
        check_place("status.state", self.state)
        for name, place in {"result": self.result, "message": self.message}.items():
            if place is not None:
                check_place(f"status.{name}", place)
        _check_statuses("status.notFound", self.not_found)
        if self.not_found and not self.not_found_says.strip():
            raise DescriptionError(
                "status.notFoundSays must be what the API itself says of a job that it does not know: a proxy answers 404 too. "
                "If it says nothing, status.notFound must be empty, and such an response tells nothing"
            )


class CancelRequest(Part, frozen=True):
    """How a job's end is asked for; `body` is sent as it is. Absent jobs response as in `status.not_found`. After any response but a success the
    job is asked how it stands.
    """

    path: str
    method: str = "POST"
    body: Any = msgspec.UNSET

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        _check_method("cancel.method", self.method)
        check_path("cancel.path", self.path, HANDLE_FIELDS)
        _check_holds("cancel.path", self.path, HANDLE_FIELDS)


class LookupRequest(Part, frozen=True):
    """How a job is found by what its submission carried: `/jobs?tag={token}`.

    `items`: where the list of jobs is in the response; None: the response is one job. `carries`: where in a job the token (or the name, whichever the
    path holds) stands, alone or in a list; jobs that don't carry it are not ours. `handle`: a place in a job.

    `not_found_says`: 404 says that there is none if the response's text also contains this, which no proxy would response: whoever takes a proxy's
    404 for absence makes a second job. Needed where `items` is None; without it 404 is no response.

    `next_page`: where in the response something stands if there are more jobs on a next page (`nextPageToken`): a page without our job is then no
    response. `items_omitted`: the API leaves an empty list out, as protobuf's JSON does; else an response without the list is none.

    `settling_seconds`: a job that was accepted is found at the latest after this time. `retention_seconds`: how long a job is found after its
    submission at least, also when it ended at once; None (null): for ever.
    """

    path: str
    carries: str
    handle: str
    settling_seconds: float
    retention_seconds: float | None
    items: str | None = None
    not_found_says: str = ""
    next_page: str | None = None
    items_omitted: bool = False

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        check_path("lookUp.path", self.path, SUBMISSION_FIELDS)
        _check_holds("lookUp.path", self.path, IDENTITY_FIELDS)
        check_place("lookUp.carries", self.carries, whole=False)
        check_place("lookUp.handle", self.handle, whole=False)
        if self.items is not None:
            check_place("lookUp.items", self.items)
        elif not self.not_found_says.strip():
            raise DescriptionError(
                "lookUp.notFoundSays must be what the API itself says with 404 when there is no such job, or lookUp.items be where the list is: "
                "a proxy answers 404 too"
            )
        if self.next_page is not None:
            check_place("lookUp.nextPage", self.next_page, whole=False)
        if self.items is None and (self.next_page is not None or self.items_omitted):
            raise DescriptionError("lookUp.items must be where the list is if there are nextPage or itemsOmitted")
        _check_seconds("lookUp.settlingSeconds", self.settling_seconds, least=0)
        if self.retention_seconds is not None:
            _check_seconds("lookUp.retentionSeconds", self.retention_seconds, least=self.settling_seconds)

    @property
    def carried(self) -> str:
        """What a job must carry: `token` or `name`."""
        return "token" if "token" in fields_of(self.path) else "name"


class Names(Part, frozen=True):
    """The API refuses a second job of a name. `retention_seconds`: for how long, counted from the submission; None (null): for ever."""

    retention_seconds: float | None

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        if self.retention_seconds is not None:
            _check_seconds("names.retentionSeconds", self.retention_seconds, least=0)


class Token(Part, frozen=True):
    """The API answers a repeated token with the job that it made for it, for `lifetime_seconds` after the first use."""

    lifetime_seconds: float

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        _check_seconds("token.lifetimeSeconds", self.lifetime_seconds, least=0)


class Credentials(Part, frozen=True):
    """A secret, from one of `env` (a variable) and `file`, read anew for each request; `template` says what the header holds of it."""

    env: str | None = None
    file: str | None = None
    header: str = "Authorization"
    template: str = "Bearer {secret}"

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        if (self.env is None) == (self.file is None):
            raise DescriptionError("credentials must name one of env, a variable, and file, a path")
        _check_headers("credentials", {self.header: self.template}, frozenset({"secret"}))
        _check_holds("credentials.template", self.template, frozenset({"secret"}))


class Description(Part, frozen=True):
    """One REST API. `name`: kept with each job; another one for each system, if a task has several. `headers`: sent with each request, as they are.
    `ca_file`: whom to trust instead of the system's CAs.

    Of `names`, `token` and `look_up`, declare what the API's documentation promises, and no more: a duplicate follows from each promise not kept.
    """

    address: str
    submit: SubmitRequest
    status: StatusRequest
    cancel: CancelRequest | None = None
    names: Names | None = None
    token: Token | None = None
    look_up: LookupRequest | None = None
    credentials: Credentials | None = None
    headers: dict[str, str] = {}
    ca_file: str | None = None
    name: str = "http"
    request_seconds: float = 30.0
    poll_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Raises `DescriptionError`."""
        if not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", self.address) or self.address.endswith("/"):
            raise DescriptionError(
                f"address must be like https://jobs.example.com/api, without a / at its end and without a password, not {self.address.rpartition('@')[2]!r}"
            )
        if not _NAME.fullmatch(self.name):
            raise DescriptionError(f"name must be a DNS label of at most 63 characters, not {self.name!r}")
        _check_headers("headers", self.headers, frozenset())
        _check_seconds("requestSeconds", self.request_seconds, least=1)
        _check_seconds("pollSeconds", self.poll_seconds, least=0.05)
        self._check_promises()

    def _check_promises(self) -> None:
        submit = self.submit
        if self.names is not None:
            where = frozenset().union(fields_of(submit.path), *(fields_of(text) for text in submit.body.values()))
            if not where & IDENTITY_FIELDS:
                raise DescriptionError("names: submit.body or submit.path must hold {name} or {token}")
            if not submit.exists:
                raise DescriptionError("names: submit.exists must name the status by which a taken name is answered")
        if self.token is not None:
            if not submit.carried & IDENTITY_FIELDS:
                raise DescriptionError("token: submit.headers or submit.body must hold {token} or {name}")
            if self.token.lifetime_seconds <= self.request_seconds + MARGIN_SECONDS:
                raise DescriptionError(
                    f"token.lifetimeSeconds must be more than requestSeconds and {MARGIN_SECONDS:g} s: "
                    "a token that may be forgotten while a request is under way is of no use; leave it out"
                )
        if self.look_up is not None and self.look_up.carried not in submit.carried:
            raise DescriptionError(
                f"lookUp: the submission must carry the {{{self.look_up.carried}}} that lookUp.path asks for"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """From what JSON or YAML holds.

        Raises:
            DescriptionError: the message says which field.
        """
        try:
            return msgspec.convert(mapping, cls)
        except msgspec.ValidationError as error:
            raise DescriptionError(f"the description of the API is wrong: {error}") from error


def fields_of(text: str) -> frozenset[str]:
    """The placeholders in a path or template. Raises ValueError where braces don't match."""
    return frozenset(field for _, field, _, _ in Formatter().parse(text) if field is not None)


def check_template(where: str, text: str, allowed: Iterable[str]) -> None:
    """Raises `DescriptionError`."""
    allowed = frozenset(allowed)
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise DescriptionError(f"{where}: braces must match, literal ones be doubled ({error}): {text!r}") from error
    for _, field, spec, conversion in parts:
        if field is not None and (field not in allowed or spec or conversion):
            known = ", ".join(f"{{{name}}}" for name in sorted(allowed)) or "none"
            raise DescriptionError(f"{where}: {{{field}}} is no placeholder here; known are {known}")


def check_path(where: str, path: str, allowed: Iterable[str]) -> None:
    """Raises `DescriptionError`."""
    if not path.startswith("/") or re.search(r"[\s#]", path):
        raise DescriptionError(f"{where} must begin with / and have no spaces and no #, not {path!r}")
    check_template(where, path, allowed)


def check_place(where: str, place: str, *, whole: bool = True) -> None:
    """Raises `DescriptionError`."""
    if place == "." and whole:
        return
    if not all(place.split(".")) or "{" in place:
        raise DescriptionError(f"{where} must be a place like data.id, not {place!r}")


def _check_source(where: str, text: str, allowed: Iterable[str]) -> None:
    if "{" in text:
        check_template(where, text, allowed)
    else:
        check_place(where, text, whole=False)


def _check_holds(where: str, text: str, wanted: frozenset[str]) -> None:
    if not fields_of(text) & wanted:
        either = " or ".join(f"{{{name}}}" for name in sorted(wanted))
        raise DescriptionError(f"{where} must hold {either}, not be {text!r}")


def _check_method(where: str, method: str) -> None:
    if not _METHOD.fullmatch(method):
        raise DescriptionError(f"{where} must be an HTTP method in capitals, not {method!r}")


def _check_headers(where: str, headers: Mapping[str, str], allowed: Iterable[str]) -> None:
    for name, template in headers.items():
        if not _HEADER.fullmatch(name):
            raise DescriptionError(f"{where}: {name!r} is no name of a header")
        if not template.isprintable() or not template.isascii():
            raise DescriptionError(f"{where}: a header must be printable ASCII; that of {name} is not")
        check_template(f"{where}[{name!r}]", template, allowed)


def _check_statuses(where: str, statuses: tuple[int, ...]) -> None:
    wrong = [status for status in statuses if not 200 <= status <= 599]
    if wrong:
        raise DescriptionError(f"{where} must be status codes from 200 to 599, not {wrong[0]}")


def _check_seconds(where: str, seconds: float, *, least: float) -> None:
    if not least <= seconds < 1e10:
        raise DescriptionError(f"{where} must be at least {least:g} seconds, not {seconds:g}")
