"""The TaskRun schema, the Python model and the chart's copy agree, and every field has a description."""

import re
import types
import typing
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml

from builders import NEW_STATUS
from controlplane import CHART, CRD, ControlPlane, helm_template
from reattach.api import names
from reattach.api.objects import Condition
from reattach.api.reasons import Budget, Cause, ConditionType, End, Outcome
from reattach.api.state import JobState
from reattach.api.taskrun import AttemptPurpose, TaskRunSpec, TaskRunStatus

Schema = dict[str, Any]
DEFINITION: dict[str, Any] = yaml.safe_load(CRD.read_text())["spec"]
VERSION: dict[str, Any] = DEFINITION["versions"][0]
ROOT: Schema = VERSION["schema"]["openAPIV3Schema"]
SPEC: Schema = ROOT["properties"]["spec"]
STATUS: Schema = ROOT["properties"]["status"]


def fields_of_the_schema(schema: Schema = ROOT, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every field with its path; `[]` stands for the items of a list, `{}` for the values of a map."""
    for name, field in schema.get("properties", {}).items():
        yield f"{path}{name}", field
        yield from fields_of_the_schema(field, f"{path}{name}.")
    if "items" in schema:
        yield path.removesuffix(".") + "[]", schema["items"]
        yield from fields_of_the_schema(schema["items"], path.removesuffix(".") + "[].")
    if isinstance(schema.get("additionalProperties"), dict):
        yield path.removesuffix(".") + "{}", schema["additionalProperties"]


FIELDS = dict(fields_of_the_schema())


def is_refused(field: Schema) -> bool:
    """Whether the field is declared only to refuse it, with the name of ours."""
    return "false" in [rule["rule"] for rule in field.get("x-kubernetes-validations", [])]


def shape_in(annotation: Any) -> tuple[type[msgspec.Struct] | None, str]:
    """The struct that a field holds, and `[]` if it holds many."""
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation, ""
    many = "[]" if typing.get_origin(annotation) is tuple else ""
    if many or isinstance(annotation, types.UnionType):
        for argument in typing.get_args(annotation):
            found, inner = shape_in(argument)
            if found:
                return found, many + inner
    return None, ""


def fields_of_the_model(shape: type[msgspec.Struct], path: str) -> Iterator[tuple[str, Any, Any]]:
    """Every field with its path, as in the schema, its type and its default (NODEFAULT if there is none)."""
    hints = typing.get_type_hints(shape)
    for field in msgspec.structs.fields(shape):
        here = f"{path}.{field.encode_name}"
        yield here, hints[field.name], field.default
        inner, many = shape_in(hints[field.name])
        if inner:
            yield from fields_of_the_model(inner, here + many)


MODEL = {
    path: (kind, default)
    for shape, root in ((TaskRunSpec, "spec"), (TaskRunStatus, "status"))
    for path, kind, default in fields_of_the_model(shape, root)
}


class TestSchemaAndModel:
    """One fact in two places is fine as long as a test holds them together."""

    def test_the_names_are_the_same(self) -> None:
        assert DEFINITION["group"] == names.GROUP
        assert VERSION["name"] == names.VERSION
        assert DEFINITION["names"]["kind"] == names.KIND
        assert DEFINITION["names"]["plural"] == names.PLURAL

    def test_the_longest_name_is_the_same(self) -> None:
        [rule] = [rule["rule"] for rule in ROOT["x-kubernetes-validations"] if "metadata.name.matches" in rule["rule"]]
        pattern = re.search(r"matches\('(.*)'\)", rule)
        assert pattern
        assert re.match(pattern[1], "a" * names.NAME_MAX)
        assert not re.match(pattern[1], "a" * (names.NAME_MAX + 1))

    def test_every_field_of_the_model_is_in_the_schema(self) -> None:
        assert set(MODEL) <= set(FIELDS)

    def test_every_field_of_the_schema_is_in_the_model(self) -> None:
        """A field that is accepted and ignored is worse than none."""
        templates = "spec.template."  # the model keeps the template as it was written
        taken = {path: field for path, field in FIELDS.items() if not is_refused(field)}
        ours = {path for path in taken if path.startswith(("spec.", "status.")) and not path.endswith(("[]", "{}"))}
        assert {path for path in ours if path not in MODEL and not path.startswith(templates)} == set()

    @pytest.mark.parametrize(
        "path, words, more",
        [
            ("status.outcome", Outcome, set()),
            ("status.attempts[].cause", Cause, set()),
            ("status.attempts[].end", End, set()),
            ("status.attempts[].purpose", AttemptPurpose, set()),
            ("status.ending.outcome", Outcome, set()),
            ("status.attempts[].chargedTo", Budget, set()),
            ("status.externalJobs[].state", JobState, set()),
        ],
    )
    def test_the_words_are_the_same(self, path: str, words: type[Outcome], more: set[str]) -> None:
        assert set(FIELDS[path]["enum"]) == set(words) | more

    def test_the_budgets_are_the_same(self) -> None:
        # The budget of cleanup attempts is spec.cleanup.budget.
        assert set(FIELDS["spec.retry.budgets"]["properties"]) == set(Budget) - {Budget.CLEANUP}
        assert set(FIELDS["status.counts.charged"]["properties"]) == set(Budget)

    def test_the_conditions_are_described(self) -> None:
        for condition in ConditionType:
            assert condition in FIELDS["status.conditions[].type"]["description"]
            assert condition in FIELDS["status.conditions"]["description"]
        assert set(FIELDS["status.conditions[]"]["properties"]) == {
            field.encode_name for field in msgspec.structs.fields(Condition)
        }

    @pytest.mark.parametrize(
        "path", [path for path, (_, default) in MODEL.items() if isinstance(default, int | str) and default != ""]
    )
    def test_the_default_in_the_description_is_the_models(self, path: str) -> None:
        if path.startswith("status.") and MODEL[path][1] == 0:
            return  # a count that starts at nought
        said = re.search(r"Default: (\S+)\.(?:\s|$)", FIELDS[path]["description"])
        assert said, f"{path} has the default {MODEL[path][1]!r} in the model and none in its description"
        default = MODEL[path][1]
        assert said[1] == (str(default).lower() if isinstance(default, bool) else str(default))
        assert FIELDS[path].get("enum", [said[1]]).count(said[1]) == 1

    @pytest.mark.parametrize(
        "path", [path for path, field in FIELDS.items() if re.search(r"Default: \w+\.$", field.get("description", ""))]
    )
    def test_no_description_makes_up_a_default(self, path: str) -> None:
        assert path in MODEL
        assert MODEL[path][1] not in (None, msgspec.NODEFAULT)

    @pytest.mark.parametrize(
        "path", [path for path, (_, default) in MODEL.items() if default is None and path.startswith("spec.")]
    )
    def test_what_an_absent_field_means_is_said(self, path: str) -> None:
        assert "Default: " in FIELDS[path]["description"]


class TestConventions:
    """What the Kubernetes API conventions ask of a schema."""

    def test_every_field_has_a_description(self) -> None:
        """`kubectl explain` has something to say about each. `apiVersion`, `kind` and `metadata` are Kubernetes' own."""
        silent = [
            path
            for path, field in FIELDS.items()
            if not field.get("description")
            and path != "metadata"
            and ("properties" in field or not path.endswith(("[]", "{}")))
        ]
        assert silent == []

    def test_every_description_is_sentences_that_begin_with_the_name_of_the_field(self) -> None:
        for path, field in FIELDS.items():
            if description := field.get("description"):
                name = path.rpartition(".")[2]
                begin = r"[A-Z]\w+ is|[A-Z]\w+ specifies" if name.endswith("[]") else f"{name} [a-z]"
                if name in {"limits", "requests"}:  # one YAML anchor for both
                    begin = "Amounts"
                assert re.match(begin, description), path
                assert description.endswith("."), path

    def test_only_the_conditions_have_a_default(self) -> None:
        """A stored object says what its author said. The conditions are the one exception, for tools that wait."""
        defaults = {path: field["default"] for path, field in FIELDS.items() if "default" in field}
        assert msgspec.convert(defaults.pop("status.conditions"), tuple[Condition, ...]) == NEW_STATUS.conditions
        assert defaults == {"status": {}}

    def test_strings_lists_and_maps_are_bounded(self) -> None:
        for path, field in FIELDS.items():
            kind = field.get("type")
            if kind == "string":
                assert (
                    "maxLength" in field
                    or "enum" in field
                    or field.get("format") == "date-time"
                    or path in {"apiVersion", "kind"}
                ), path
            if kind == "array":
                assert "maxItems" in field, path
                assert "x-kubernetes-list-type" in field, path
            if "additionalProperties" in field:
                assert "maxProperties" in field, path

    def test_numbers_of_the_spec_are_bounded_on_both_sides(self) -> None:
        for path, field in FIELDS.items():
            if field.get("type") == "integer":
                assert "format" in field, path
                if path.startswith("spec.") and not path.startswith("spec.template.") and not is_refused(field):
                    assert {"minimum", "maximum"} <= set(field), path
            assert field.get("type") != "number", path

    def test_lists_of_objects_have_keys_where_the_objects_have_names(self) -> None:
        assert FIELDS["status.attempts"]["x-kubernetes-list-map-keys"] == ["number"]
        assert FIELDS["status.externalJobs"]["x-kubernetes-list-map-keys"] == ["key", "generation"]
        assert FIELDS["status.conditions"]["x-kubernetes-list-map-keys"] == ["type"]

    def test_durations_name_their_unit_and_times_end_in_time(self) -> None:
        for path, field in FIELDS.items():
            name = path.rpartition(".")[2]
            assert not re.search(r"(Timeout|Duration|Period|Delay|Stamp|phase)$", name), path
            assert (field.get("format") == "date-time") == name.endswith(("Time", "time", "Deadline")), path

    def test_every_rule_says_what_must_hold(self) -> None:
        rules = [
            rule for _, field in [("", ROOT), *FIELDS.items()] for rule in field.get("x-kubernetes-validations", [])
        ]
        assert len(rules) > 30
        for rule in rules:
            assert re.search(r"\bmust\b|can't be changed|may only", rule["message"]), rule


class TestTheChartsCopy:
    """The chart carries the CRD, since a chart can't read outside its folder."""

    def test_is_the_same_to_the_byte(self) -> None:
        copy = CHART / "files/taskruns.yaml"
        assert copy.read_bytes() == CRD.read_bytes(), "cp crds/taskruns.yaml charts/reattach/files/"

    def test_is_rendered_as_it_is_and_kept(self) -> None:
        [rendered] = yaml.safe_load_all(helm_template("crd.yaml"))
        expected = yaml.safe_load(CRD.read_text())
        expected["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
        assert rendered == expected


def test_kubectl_explain_reads_well(control_plane: ControlPlane) -> None:
    text = " ".join(control_plane.kubectl("explain", "trun.spec.retry.backoff").split())
    assert (
        "initialSeconds <integer> initialSeconds is the wait before the first retry, in seconds. 0 retries immediately."
        in text
    )
    assert "backoff specifies the wait between the end of an attempt and the start of the next one." in text
    text = " ".join(control_plane.kubectl("explain", "trun.spec", "--recursive").split())
    assert "budgets <Object> application <integer> disruption <integer> neverStarted <integer>" in text
