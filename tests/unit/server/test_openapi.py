"""docs/reference/openapi.yaml says what the state API does: its routes, its messages, its errors."""

import re
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
import pytest
import yaml

from reattach.api import messages
from reattach.api.objects import Shape
from reattach.api.state import JobOrigin, JobState
from reattach.api.taskrun import AttemptPurpose
from reattach.server.bodies import BODY_BYTES_MAX
from reattach.server.problems import PROBLEMS
from reattach.server.routes import Routes
from reattach.state.job_operations import STRAYS_MAX
from reattach.state.job_record import JOBS_BYTES_MAX
from reattach.state.operations import REMEMBERED_BYTES_MAX, RETENTION_SECONDS_MAX

FILE = Path(__file__).parents[3] / "docs/reference/openapi.yaml"
DOCUMENT = yaml.safe_load(FILE.read_text())
SCHEMAS = DOCUMENT["components"]["schemas"]
NOT_OF_THE_API = {"TerminationMessage"}
ENUMS: dict[str, type[StrEnum]] = {
    "EndKind": messages.EndKind,
    "Grounds": messages.Grounds,
    "Decision": messages.Decision,
    "JobState": JobState,
    "JobOrigin": JobOrigin,
    "AttemptPurpose": AttemptPurpose,
}
MESSAGES = {struct.__name__: struct for struct in Shape.__subclasses__() if struct.__module__ == messages.__name__}


def routes() -> set[tuple[str, str]]:
    table = Routes(None, default_retention_seconds=0).table()  # type: ignore[arg-type]
    return {(route.method.lower(), re.sub(r"\{(\w+):[^}]*\}", r"{\1}", route.path)) for route in table}


def test_every_route_is_described_and_no_other() -> None:
    described = {
        (method, path) for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"
    }
    assert described == routes()


def test_every_message_is_described_and_no_other() -> None:
    assert set(SCHEMAS) - {"Id", "Value", "Version"} - set(ENUMS) == set(MESSAGES) - NOT_OF_THE_API


@pytest.mark.parametrize("name", sorted(ENUMS))
def test_an_enumeration_has_the_words_that_are_described(name: str) -> None:
    assert SCHEMAS[name]["enum"] == list(ENUMS[name])


@pytest.mark.parametrize("name", sorted(set(MESSAGES) - NOT_OF_THE_API))
def test_a_message_has_the_fields_that_are_described(name: str) -> None:
    schema, struct = SCHEMAS[name], MESSAGES[name]
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    assert set(schema["properties"]) == set(fields)
    # An answer always has all of its fields; a request those without a default.
    always = {
        name
        for name, field in fields.items()
        if field.required or not (struct.__struct_config__.omit_defaults or msgspec.UnsetType in get_args(field.type))
    }
    assert set(schema.get("required", ())) == always
    assert schema.get("additionalProperties", True) is not struct.__struct_config__.forbid_unknown_fields
    for field_name, field in fields.items():
        assert_same_type(schema["properties"][field_name], field.type)


def assert_same_type(schema: dict[str, Any], kind: Any) -> None:
    schema = resolved(schema)
    if get_origin(kind) is Literal:
        assert schema["enum"] == list(get_args(kind))
        return
    if kind is Any or Any in get_args(kind):
        assert "properties" not in schema
        return
    options = [
        option
        for option in (get_args(kind) if isinstance(kind, UnionType) else (kind,))
        if option is not msgspec.UnsetType
    ]
    assert types_in(schema) == {json_type_of(option) for option in options}


def types_in(schema: dict[str, Any]) -> set[str]:
    schema = resolved(schema)
    if "oneOf" in schema:
        return set[str]().union(*(types_in(option) for option in schema["oneOf"]))
    given = schema.get("type", "string")
    return set(given if isinstance(given, list) else [given])


def json_type_of(kind: Any) -> str:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return "object"
    if get_origin(kind) is Annotated:
        return json_type_of(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return "array"
    if get_origin(kind) is dict:
        return "object"
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return "string"
    names = {str: "string", int: "integer", bool: "boolean", NoneType: "null", datetime: "string"}
    return names[kind]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    return SCHEMAS[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def test_every_error_is_described_with_its_status() -> None:
    code = SCHEMAS["Problem"]["properties"]["code"]
    rows = re.findall(r"^\| ([a-z-]+) \| (\d{3}) \|", code["description"], flags=re.MULTILINE)
    assert {name: int(status) for name, status in rows} == {
        code.value: status for code, (status, _) in PROBLEMS.items()
    }
    assert set(code["enum"]) == set(messages.ProblemCode)
    assert len(code["enum"]) == len(messages.ProblemCode)


def test_every_error_has_the_status_that_the_messages_name() -> None:
    source = Path(messages.__file__).read_text()
    named = dict(re.findall(r'^    [A-Z_]+ = "([a-z-]+)"  # (\d{3})', source, flags=re.MULTILINE))
    assert {name: int(status) for name, status in named.items()} == {
        code.value: status for code, (status, _) in PROBLEMS.items()
    }


def test_the_limits_are_those_that_are_held() -> None:
    key = DOCUMENT["paths"]["/v1/state/{key}"]["parameters"][0]["schema"]
    assert key["maxLength"] == messages.KEY_CHARACTERS_MAX
    assert SCHEMAS["Operation"]["properties"]["key"]["maxLength"] == messages.KEY_CHARACTERS_MAX
    assert SCHEMAS["BatchRequest"]["properties"]["operations"]["maxItems"] == messages.BATCH_OPERATIONS_MAX
    for schema in ("SetRequest", "Operation"):
        assert SCHEMAS[schema]["properties"]["retentionSeconds"]["maximum"] == RETENTION_SECONDS_MAX
    assert messages.SESSION_CHARACTERS_MAX == messages.REQUEST_ID_CHARACTERS_MAX == 64
    assert "{1,64}" in SCHEMAS["Id"]["pattern"]
    job_key = DOCUMENT["components"]["parameters"]["JobKey"]["schema"]
    assert job_key["maxLength"] == messages.JOB_KEY_CHARACTERS_MAX
    intent = SCHEMAS["IntentRequest"]["properties"]
    assert intent["adapter"]["maxLength"] == messages.ADAPTER_CHARACTERS_MAX
    assert intent["digest"]["maxLength"] == messages.DIGEST_CHARACTERS_MAX
    assert intent["tokenSeconds"]["maximum"] == RETENTION_SECONDS_MAX
    assert SCHEMAS["JobList"]["properties"]["items"]["maxItems"] == messages.JOBS_MAX
    assert messages.HANDLE_BYTES_MAX == messages.URL_BYTES_MAX == 1024
    assert f"at most {STRAYS_MAX}" in SCHEMAS["Job"]["properties"]["strays"]["description"].lower()
    text = SCHEMAS["Problem"]["properties"]["code"]["description"]
    assert f"more than {messages.JOBS_MAX} external jobs, or {JOBS_BYTES_MAX // 1024} KiB of them" in text
    assert (
        f"up to {REMEMBERED_BYTES_MAX // 1024} KiB" in DOCUMENT["components"]["parameters"]["RequestId"]["description"]
    )
    assert f"at most {messages.NESTING_MAX} levels" in SCHEMAS["Value"]["description"]


def test_every_body_has_the_limit_that_is_described_and_no_other_route_takes_one() -> None:
    described = {
        (method.upper(), path): operation["requestBody"]["description"]
        for path, item in DOCUMENT["paths"].items()
        for method, operation in item.items()
        if method != "parameters" and "requestBody" in operation
    }
    assert described == {route: f"At most {limit} bytes." for route, limit in BODY_BYTES_MAX.items()}


def test_every_reference_leads_somewhere() -> None:
    for reference in re.findall(r'\$ref: "#/([^"]+)"', FILE.read_text()):
        at: Any = DOCUMENT
        for part in reference.split("/"):
            at = at[part]
