"""Description of a REST API: its requests, the meaning of its responses, and its guarantees.

A description contains three kinds of text:

    path       begins with `/` and is appended to the address; may hold placeholders, which are
               percent-encoded: `/jobs/{handle}`
    place      the position of a value in a JSON document: `data.attributes.state`, `jobs.0.id`;
               `.` is the whole document
    header     the value of a header of the response: `header:Location`
    template   text with placeholders: `reattach-{token}`

Placeholders are `{token}`, `{name}`, `{key}`, `{generation}`, `{namespace}` and `{taskrun}`.
`{token}` is a UUID, the same for every attempt. `{name}` is `reattach-` and the token, a DNS label
of 45 characters. `{handle}` is available once the job is known. Literal braces are doubled.

Create a description in Python, or with `Description.from_mapping` from JSON or YAML, where names
are camelCase.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from string import Formatter
from typing import Any, ClassVar, Final, NamedTuple, Self

import msgspec

SUBMISSION_FIELDS: Final = frozenset({"token", "name", "key", "generation", "namespace", "taskrun"})
IDENTITY_FIELDS: Final = frozenset({"token", "name"})
"""Fields that identify one job."""
HANDLE_FIELDS: Final = frozenset({"handle"})
HEADER_PREFIX: Final = "header:"
URL_HEADERS: Final = ("location", "content-location", "operation-location", "azure-asyncoperation")
ABSENT: Final = "null"
"""Word for a field that is null or absent."""
MARGIN_SECONDS: Final = 5.0
"""Largest delay of a submission beyond its timeout. A token must live longer than both together."""

REFUSED: Final = (400, 402, 404, 405, 411, 413, 414, 415, 417, 421, 422, 426, 428, 431)
"""Statuses with which a server rejects a request without acting on it (RFC 9110, RFC 6585).

401, 403 and 407 are about the credentials, which may be replaced. You may name them here.
406, 408, 409, 410, 412, 425 and 5xx do not guarantee this; for 406, some frameworks act first.
"""
BUSY: Final = (429,)
"""Statuses that reject a request for now.

503 is excluded, because proxies also return it if the connection broke after they forwarded the
request.
"""

_METHOD = re.compile(r"[A-Z]{1,16}")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


class DescriptionError(ValueError):
    """The description is contradictory or incomplete. The message contains the requirement."""


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="camel"):
    """Base of all parts of a description.

    Rejects unknown fields and values of a wrong type. Names in JSON and YAML are camelCase.
    """

    at: ClassVar[str] = ""
    """Place of the part in the description, for messages."""

    def __post_init__(self) -> None:
        """Check the types, which msgspec checks only in JSON. Raises `DescriptionError`."""
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            try:
                if value is not msgspec.UNSET:
                    msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                where = f"{self.at}.{field.name}" if self.at else field.name
                raise DescriptionError(f"{where}: {error}, got {value!r:.100}") from None


class SubmitRequest(Part, frozen=True):
    """The request that submits a job. Its JSON body is the task's request.

    `body`: what Reattach adds to the body. A key is a place, and its value a template; a place that
    ends in `[]` appends to a list. The value may also be an object of templates, whose keys are
    names: `{"labels": {"example.com/token": "{token}"}}`.

    `headers`: name → template. `handle`: the job's id in the response, a place or a header, or a
    template if the client chooses the id (`PUT /jobs/{name}`). With `.`, the whole body is the id,
    as JSON or as text. `handle_path`: what the path of a URL at `handle` ends in, with `{handle}`
    where the id is: `/jobs/{handle}`. `url`: a page about the job for users, a place, a header or a
    template.

    The status code of the response determines the outcome. `accepted`: a new job. `exists`: the
    name or token already has a job, whose handle is at `existing_handle` (by default `handle`).
    `refused`: certainly no job, and the same request never creates one. `busy`: certainly no job;
    Reattach submits again later. 401, 403 and 407, if none of these has them: the
    credentials are refused, and Reattach submits again for an hour. Any other code: the outcome is
    unknown.
    """

    at: ClassVar[str] = "submit"

    path: str
    handle: str
    method: str = "POST"
    body: dict[str, Any] = {}
    headers: dict[str, str] = {}
    handle_path: str | None = None
    url: str | None = None
    accepted: tuple[int, ...] = (200, 201, 202)
    exists: tuple[int, ...] = ()
    existing_handle: str | None = None
    refused: tuple[int, ...] = REFUSED
    busy: tuple[int, ...] = BUSY

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        _check_method("submit.method", self.method)
        check_path("submit.path", self.path, SUBMISSION_FIELDS)
        for place, value in self.body.items():
            check_place("submit.body", place.removesuffix("[]"), whole=False)
            _check_added(f"submit.body[{place!r}]", value, is_item=place.endswith("[]"))
        _check_headers("submit.headers", self.headers, SUBMISSION_FIELDS)
        _check_source("submit.handle", self.handle, SUBMISSION_FIELDS, whole=True)
        if self.existing_handle is not None:
            _check_source("submit.existing_handle", self.existing_handle, SUBMISSION_FIELDS, whole=True)
        _check_handle_path("submit", self.handle_path, self.handle, self.existing_handle)
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
                    # `exists: [200]` is the status of a repeated submission, so it takes
                    # precedence.
                    if {meanings[status], meaning} == {"accepted", "exists"}:
                        continue
                    raise DescriptionError(
                        f"submit: {status} must mean one thing; it is in {meanings[status]} and {meaning}"
                    )
        if not self.accepted:
            raise DescriptionError("submit.accepted must name the status codes by which a job is accepted")

    @property
    def carried(self) -> frozenset[str]:
        """Placeholders in the submission."""
        return self.carried_in_job.union(*(fields_of(text) for text in self.headers.values()))

    @property
    def carried_in_job(self) -> frozenset[str]:
        """Placeholders in path and body."""
        return fields_of(self.path).union(*(fields_of(added.template) for added in additions_of(self.body)))


class States(Part, frozen=True):
    """The API's words for the states of a job, as in its response.

    Write numbers and booleans as in JSON; in `active`, `null` stands for an absent field. `ended`:
    the job has ended, and `status.outcome` reports how. Any other word means that the status is
    unknown.
    """

    at: ClassVar[str] = "status.states"

    active: tuple[str, ...]
    succeeded: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        needed = {"active": self.active}
        if not self.ended:
            needed |= {"succeeded": self.succeeded, "failed": self.failed}
        _check_words(self.at, needed, (self.active, self.succeeded, self.failed, self.cancelled, self.ended))
        if ABSENT in {*self.succeeded, *self.failed, *self.cancelled, *self.ended}:
            raise DescriptionError(
                f"status.states: {ABSENT!r} must not be an end, because any response may lack the field"
            )


class JobOutcome(Part, frozen=True):
    """The field for how a job ended, of an API that has another one for whether it has ended.

    `place`: its place in the response. Write its words as in `States`; `null` stands for an absent
    field.
    """

    at: ClassVar[str] = "status.outcome"

    place: str
    succeeded: tuple[str, ...]
    failed: tuple[str, ...]
    cancelled: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        check_place("status.outcome.place", self.place)
        needed = {"succeeded": self.succeeded, "failed": self.failed}
        _check_words(self.at, needed, (self.succeeded, self.failed, self.cancelled))


class StatusRequest(Part, frozen=True):
    """The request that reads a job's status.

    Places in the response: `state`; `result`, the result of a succeeded job (`.` is the whole
    response); `message`, a text for users. `outcome`: how a job ended that is in one of
    `states.ended`, if the API has a second field for that.

    `not_found`: the status codes for an unknown handle. The response must also contain
    `not_found_says`, a text that no proxy returns. Otherwise a proxy's 404 would count as a missing
    job, and the run would be held or the job submitted again. Empty: the API has no such status.
    """

    at: ClassVar[str] = "status"

    path: str
    state: str
    states: States
    method: str = "GET"
    outcome: JobOutcome | None = None
    result: str | None = None
    message: str | None = None
    not_found: tuple[int, ...] = (404, 410)
    not_found_says: str = ""

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        _check_method("status.method", self.method)
        check_path("status.path", self.path, HANDLE_FIELDS)
        _check_holds("status.path", self.path, HANDLE_FIELDS)
        check_place("status.state", self.state)
        for name, place in {"result": self.result, "message": self.message}.items():
            if place is not None:
                check_place(f"status.{name}", place)
        if (self.outcome is None) is not (not self.states.ended):
            raise DescriptionError("status.outcome and status.states.ended must be set together, or left out")
        _check_statuses("status.not_found", self.not_found)
        if self.not_found and not self.not_found_says.strip():
            raise DescriptionError(
                "status.not_found_says must be what the API itself says about an unknown job, because a proxy also returns 404. "
                "If the API has no such text, leave status.not_found empty; a 404 then means that the status is unknown"
            )


class CancelRequest(Part, frozen=True):
    """The request that cancels a job. `body` is sent unchanged.

    For any response other than a success, the adapter reads the job's status. `status.not_found`
    then decides whether the job is absent.
    """

    at: ClassVar[str] = "cancel"

    path: str
    method: str = "POST"
    body: Any = msgspec.UNSET

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        _check_method("cancel.method", self.method)
        check_path("cancel.path", self.path, HANDLE_FIELDS)
        _check_holds("cancel.path", self.path, HANDLE_FIELDS)


class LookupRequest(Part, frozen=True):
    """The request that finds a job by the token or name that it carries: `/jobs?tag={token}`.

    `items`: the place of the list of jobs in the response; None: the response is one job.
    `carries`: the place in a job of the token or name (whichever the path holds), as text or in a
    list. Jobs that do not carry it are not ours. `handle`: a place in a job. `handle_path`: as in
    `SubmitRequest`.

    `not_found_says`: a 404 means that the job does not exist if the response also contains this
    text, which no proxy returns. Otherwise a proxy's 404 would count as absence and lead to a
    second job. Required if `items` is None; without it, a 404 is an error.

    `next_page`: a place in the response that has a value if there is a next page
    (`nextPageToken`). A page without our job then does not prove absence. `items_omitted`: the API
    omits an empty list, as protobuf's JSON does; otherwise a response without the list is an error.

    `settling_seconds`: an accepted job is found after this time at the latest.
    `retention_seconds`: how long a job is found after its submission, at least, even if it ended at
    once; None (null): forever. `while_open`, in its place: only open jobs are found, so a job that
    is not found may have ended.
    """

    at: ClassVar[str] = "look_up"

    path: str
    carries: str
    handle: str
    settling_seconds: float
    retention_seconds: float | msgspec.UnsetType | None = msgspec.UNSET
    items: str | None = None
    handle_path: str | None = None
    not_found_says: str = ""
    next_page: str | None = None
    items_omitted: bool = False
    while_open: bool = False

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        check_path("look_up.path", self.path, SUBMISSION_FIELDS)
        _check_holds("look_up.path", self.path, IDENTITY_FIELDS)
        check_place("look_up.carries", self.carries, whole=False)
        check_place("look_up.handle", self.handle, whole=False)
        _check_handle_path("look_up", self.handle_path, self.handle)
        if self.items is not None:
            check_place("look_up.items", self.items)
        elif not self.not_found_says.strip():
            raise DescriptionError(
                "look_up.not_found_says must be what the API itself says with 404 if there is no such job, because a proxy also "
                "returns 404; or look_up.items must be the place of the list"
            )
        if self.next_page is not None:
            check_place("look_up.next_page", self.next_page, whole=False)
        if self.items is None and (self.next_page is not None or self.items_omitted):
            raise DescriptionError("look_up.items must be the place of the list if next_page or items_omitted is set")
        _check_seconds("look_up.settling_seconds", self.settling_seconds, least=0)
        _check_duration(
            "look_up", "retention_seconds", self.retention_seconds, self.while_open, least=self.settling_seconds
        )

    @property
    def carried(self) -> str:
        """Field that a job must carry: `token` or `name`."""
        return "token" if "token" in fields_of(self.path) else "name"


class Names(Part, frozen=True):
    """The API rejects a second job with the same name.

    `retention_seconds`: for how long, counted from the submission; None (null): forever.
    `while_open`, in its place: only while the job is open. The name then does not prevent a second
    job, because the first one may have ended.
    """

    at: ClassVar[str] = "names"

    retention_seconds: float | msgspec.UnsetType | None = msgspec.UNSET
    while_open: bool = False

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        _check_duration("names", "retention_seconds", self.retention_seconds, self.while_open, least=0)


class Token(Part, frozen=True):
    """The API returns the first job when a token is repeated.

    `lifetime_seconds`: for how long, counted from the token's first use. `while_open`, in its
    place: only while the job is open. A repeated token then makes a second job after its end.
    """

    at: ClassVar[str] = "token"

    lifetime_seconds: float | msgspec.UnsetType = msgspec.UNSET
    while_open: bool = False

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        _check_duration("token", "lifetime_seconds", self.lifetime_seconds, self.while_open, least=0)


class Credentials(Part, frozen=True):
    """A secret, read for each request from either `env` (a variable) or `file`.

    `template`: the value of the header.
    """

    at: ClassVar[str] = "credentials"

    env: str | None = None
    file: str | None = None
    header: str = "Authorization"
    template: str = "Bearer {secret}"

    def __post_init__(self) -> None:
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        if (self.env is None) == (self.file is None):
            raise DescriptionError("credentials must name one of env, a variable, and file, a path")
        _check_headers("credentials", {self.header: self.template}, frozenset({"secret"}))
        _check_holds("credentials.template", self.template, frozenset({"secret"}))


class Description(Part, frozen=True):
    """One REST API.

    `name`: stored with each job; must differ between the systems of one task. `headers`: sent
    unchanged with each request. `ca_file`: replaces the system's CAs.

    Declare no more of `names`, `token` and `look_up` than the API's documentation promises, because
    each broken promise can duplicate a job.
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
        """Validate the fields. Raises `DescriptionError`."""
        super().__post_init__()
        if not re.fullmatch(r"https?://[^/?#\s@]+(/[^?#\s]*)?", self.address) or self.address.endswith("/"):
            raise DescriptionError(
                f"address must be like https://jobs.example.com/api, without a / at its end and without a password, not {self.address.rpartition('@')[2]!r}"
            )
        if not _NAME.fullmatch(self.name):
            raise DescriptionError(f"name must be a DNS label of at most 63 characters, not {self.name!r}")
        _check_headers("headers", self.headers, frozenset())
        _check_seconds("request_seconds", self.request_seconds, least=1)
        _check_seconds("poll_seconds", self.poll_seconds, least=0.05)
        self._check_promises()

    def _check_promises(self) -> None:
        submit = self.submit
        if self.names is not None:
            if not submit.carried_in_job & IDENTITY_FIELDS:
                raise DescriptionError("names: submit.body or submit.path must hold {name} or {token}")
            if not submit.exists:
                raise DescriptionError("names: submit.exists must name the status by which a taken name is reported")
        if self.token is not None:
            if not submit.carried & IDENTITY_FIELDS:
                raise DescriptionError("token: submit.headers or submit.body must hold {token} or {name}")
            lifetime = self.token.lifetime_seconds
            if lifetime is not msgspec.UNSET and lifetime <= self.request_seconds + MARGIN_SECONDS:
                raise DescriptionError(
                    f"token.lifetime_seconds must be more than request_seconds and {MARGIN_SECONDS:g} s: "
                    "the API may otherwise forget the token during a request; leave token out"
                )
        if self.look_up is not None and self.look_up.carried not in submit.carried:
            raise DescriptionError(
                f"look_up: the submission must carry the {{{self.look_up.carried}}} that look_up.path contains"
            )

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> Self:
        """Create a description from decoded JSON or YAML.

        Raises:
            DescriptionError: the message names the field.
        """
        try:
            return msgspec.convert(mapping, cls)
        except msgspec.ValidationError as error:
            raise DescriptionError(f"the description of the API is wrong: {_with_mapping_names(str(error))}") from error


def _with_mapping_names(message: str) -> str:
    """Return the message with the camelCase names of JSON and YAML, in place of those of Python."""
    names = {field.name: field.encode_name for part in Part.__subclasses__() for field in msgspec.structs.fields(part)}
    return re.sub(r"\b[a-z]+(?:_[a-z]+)+\b", lambda found: names.get(found[0], found[0]), message)


class Addition(NamedTuple):
    """A text that Reattach adds to the body, or appends to the list at this path."""

    path: tuple[str, ...]
    template: str
    is_item: bool = False


def additions_of(body: Mapping[str, Any]) -> Iterator[Addition]:
    """Return what `submit.body` adds."""
    for place, value in body.items():
        path = tuple(place.removesuffix("[]").split("."))
        yield from [Addition(path, value, is_item=True)] if place.endswith("[]") else _additions_in(path, value)


def _additions_in(path: tuple[str, ...], value: Any) -> Iterator[Addition]:
    match value:
        case str():
            yield Addition(path, value)
        case Mapping():
            for name, inner in value.items():
                yield from _additions_in((*path, name), inner)
        case _:
            for item in value:
                yield Addition(path, item, is_item=True)


def fields_of(text: str) -> frozenset[str]:
    """Return the placeholders in a path or template. Raises ValueError if braces do not match."""
    return frozenset(field for _, field, _, _ in Formatter().parse(text) if field is not None)


def check_template(where: str, text: str, allowed: Iterable[str]) -> None:
    """Validate the text. Raises `DescriptionError`."""
    allowed = frozenset(allowed)
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise DescriptionError(
            f"{where}: braces must match, and literal braces must be doubled ({error}): {text!r}"
        ) from error
    for _, field, spec, conversion in parts:
        if field is not None and (field not in allowed or spec or conversion):
            known = ", ".join(f"{{{name}}}" for name in sorted(allowed)) or "none"
            raise DescriptionError(f"{where}: {{{field}}} is not a placeholder here; known are {known}")


def check_path(where: str, path: str, allowed: Iterable[str]) -> None:
    """Validate the text. Raises `DescriptionError`."""
    if not path.startswith("/") or re.search(r"[\s#]", path):
        raise DescriptionError(f"{where} must begin with / and have no spaces and no #, not {path!r}")
    check_template(where, path, allowed)


def check_place(where: str, place: str, *, whole: bool = True) -> None:
    """Validate the text. Raises `DescriptionError`."""
    if place == "." and whole:
        return
    if not all(place.split(".")) or "{" in place:
        raise DescriptionError(f"{where} must be a place like data.id, not {place!r}")


def header_of(source: str) -> str | None:
    """Return the name of the header that a source like `header:Location` means, or None."""
    return source.removeprefix(HEADER_PREFIX) if source.startswith(HEADER_PREFIX) else None


def _check_source(where: str, text: str, allowed: Iterable[str], *, whole: bool = False) -> None:
    if (header := header_of(text)) is not None:
        if not _HEADER.fullmatch(header):
            raise DescriptionError(f"{where} must be like header:Location, not {text!r}")
    elif "{" in text:
        check_template(where, text, allowed)
    else:
        check_place(where, text, whole=whole)


def _check_handle_path(where: str, path: str | None, *sources: str | None) -> None:
    urls = [source for source in sources if source is not None and (header_of(source) or "").lower() in URL_HEADERS]
    if path is None:
        if urls:
            raise DescriptionError(
                f"{where}.handle_path must be like /jobs/{{handle}}: {urls[0]} has the job's URL, and the handle is a part of it"
            )
        return
    check_path(f"{where}.handle_path", path, HANDLE_FIELDS)
    if path.count("{handle}") != 1 or "/{handle}" not in path or "?" in path:
        raise DescriptionError(f"{where}.handle_path must be like /jobs/{{handle}}, not {path!r}")
    if any("{" in source for source in sources if source is not None):
        raise DescriptionError(f"{where}.handle_path must be left out if the handle is a template")


def _check_added(where: str, value: Any, *, is_item: bool) -> None:
    match value:
        case str():
            check_template(where, value, SUBMISSION_FIELDS)
        case Mapping() if value and not is_item:
            for name, inner in value.items():
                if not isinstance(name, str) or not name:
                    raise DescriptionError(f"{where}: names must be texts, not {name!r}")
                _check_added(f"{where}[{name!r}]", inner, is_item=False)
        case list() | tuple() if value and not is_item:
            for index, item in enumerate(value):
                _check_added(f"{where}[{index}]", item, is_item=True)
        case _:
            allowed = "a template" if is_item else "a template, or an object or a list of templates"
            raise DescriptionError(
                f"{where} must be {allowed}, not {value!r:.100}; the task's request has everything else"
            )


def _check_holds(where: str, text: str, wanted: frozenset[str]) -> None:
    if not fields_of(text) & wanted:
        either = " or ".join(f"{{{name}}}" for name in sorted(wanted))
        raise DescriptionError(f"{where} must hold {either}, not be {text!r}")


def _check_words(where: str, needed: Mapping[str, tuple[str, ...]], every: Iterable[tuple[str, ...]]) -> None:
    for meaning, words in needed.items():
        if not words:
            raise DescriptionError(f"{where}.{meaning} must name at least one word of the API")
    counts = Counter(word for words in every for word in words)
    twice = sorted(word for word, count in counts.items() if count > 1)
    if twice:
        raise DescriptionError(f"{where}: each word must have one meaning; {', '.join(twice)} has two")


def _check_method(where: str, method: str) -> None:
    if not _METHOD.fullmatch(method):
        raise DescriptionError(f"{where} must be an HTTP method in capitals, not {method!r}")


def _check_headers(where: str, headers: Mapping[str, str], allowed: Iterable[str]) -> None:
    for name, template in headers.items():
        if not _HEADER.fullmatch(name):
            raise DescriptionError(f"{where}: {name!r} is not a header name")
        if not template.isprintable() or not template.isascii():
            raise DescriptionError(f"{where}: a header must be printable ASCII, but that of {name} is not")
        check_template(f"{where}[{name!r}]", template, allowed)


def _check_statuses(where: str, statuses: tuple[int, ...]) -> None:
    wrong = [status for status in statuses if not 200 <= status <= 599]
    if wrong:
        raise DescriptionError(f"{where} must be status codes from 200 to 599, not {wrong[0]}")


def _check_duration(
    where: str, field: str, seconds: float | msgspec.UnsetType | None, while_open: bool, *, least: float
) -> None:
    if (seconds is msgspec.UNSET) is not while_open:
        raise DescriptionError(
            f"{where} must have one of {field}, which also holds after the job's end, and while_open"
        )
    if seconds is not msgspec.UNSET and seconds is not None:
        _check_seconds(f"{where}.{field}", seconds, least=least)


def _check_seconds(where: str, seconds: float, *, least: float) -> None:
    if not least <= seconds < 1e10:
        raise DescriptionError(f"{where} must be at least {least:g} seconds, not {seconds:g}")
