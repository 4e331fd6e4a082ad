"""Write docs/reference/taskrun-fields.md from the CRD: `python hack/crd_reference.py`."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs/reference/taskrun-fields.md"
CRD = REPOSITORY / "crds/taskruns.yaml"
Schema = dict[str, Any]

HEAD = """# Fields of the TaskRun

`{version}`, kind `{kind}`, short name `{short}`. [The TaskRun reference](taskrun.md) explains causes, conditions and reasons, and
[Concepts](../concepts.md) how the fields work together. `kubectl explain {short}.spec --recursive` describes the same fields.
`make docs` writes this page from `crds/taskruns.yaml`.

A field is optional, unless its type contains *required*. The API server rejects an object that breaks one of the rules below a table, and its
response contains the message that is listed there.

"""
COLUMNS = """## Columns of `kubectl get`

| column | shown | value | meaning |
| --- | --- | --- | --- |
"""
_DEFAULT = re.compile(r"\s*Default: (.+)\.$")
_BOUNDS = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " items"),
    ("minProperties", "maxProperties", " entries"),
)
_NO_DESCRIPTION = "Metadata of the object, as in all kinds of Kubernetes."
_FORMATS = {"date-time": "time", "int32": "integer", "int64": "integer"}


@dataclass
class Section:
    """One object of the schema: the tables and rules under one heading."""

    path: str
    schema: Schema
    rules: list[str] = field(default_factory=list)


def _text(text: str) -> str:
    return re.sub(r"([*<\[])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _anchor(path: str) -> str:
    return "#" + re.sub(r"[^a-z0-9-]", "", path.lower())


def _element(schema: Schema) -> Schema | None:
    """Return the schema of the elements of a list or map."""
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            element: Schema = schema[name]
            return element
    return None


def _is_object(schema: Schema) -> bool:
    return "properties" in schema


def _rules_of(name: str, schema: Schema) -> Iterator[str]:
    if "pattern" in schema and _kind(schema) != "quantity":
        yield f"`{name}` must match `{schema['pattern']}`"
    for rule in schema.get("x-kubernetes-validations", ()):
        message = _text(rule["message"])
        yield f"`{name}`: {message}" if name else message


def _bounds(schema: Schema) -> Iterator[str]:
    for low, high, unit in _BOUNDS:
        least, most = schema.get(low), schema.get(high)
        if least is not None and most is not None:
            yield f"{least} to {most}{unit}" if least != most else f"{least}{unit}"
        elif most is not None:
            yield f"at most {most}{unit}"
        elif least is not None:
            yield f"at least {least}{unit}"


def _kind(schema: Schema) -> str:
    if schema.get("x-kubernetes-int-or-string") or "type" not in schema:
        return "quantity"
    kind = _FORMATS.get(schema.get("format", ""), str(schema["type"]))
    element = _element(schema)
    if element is None:
        return kind
    inner = "object" if _is_object(element) else _kind(element)
    return f"list of {inner}s" if kind == "array" else f"map of string to {inner}"


def _type(schema: Schema, *, required: bool) -> str:
    parts = [_kind(schema), *_bounds(schema)]
    if schema.get("nullable"):
        parts.append("or null")
    for where, one in (("", schema), ("each ", _element(schema) or {})):
        if where and not _is_object(one):
            parts += [f"each {bound}" for bound in _bounds(one)]
        if values := one.get("enum"):
            parts.append(f"{where}one of " + ", ".join(f"`{value}`" for value in values))
    if keys := schema.get("x-kubernetes-list-map-keys"):
        parts.append("unique by " + " and ".join(f"`{key}`" for key in keys))
    return ", ".join([*parts, *(["*required*"] if required else [])])


def _described(schema: Schema) -> tuple[str, str]:
    """Return the description without its default, and the default."""
    text = " ".join(schema.get("description", "").split())
    found = _DEFAULT.search(text)
    if found is None:
        return text, ""
    return text[: found.start()], found[1]


def _sections(path: str, schema: Schema, known: dict[str, str]) -> Iterator[Section]:
    """Yield one section for each object, and add its path to `known`. Equal objects share one."""
    section = Section(path, schema, list(_rules_of("", schema)))
    yield section
    for name, child in schema["properties"].items():
        inner, suffix = child, ""
        section.rules += _rules_of(name, child) if not _is_object(child) else ()
        while not _is_object(inner) and (element := _element(inner)) is not None:
            suffix += "[]"
            inner = element
            section.rules += _rules_of(name + suffix, inner) if not _is_object(inner) else ()
        if _is_object(inner) and str(inner) not in known:
            known[str(inner)] = where = f"{path}.{name}{suffix}".removeprefix("TaskRun.")
            yield from _sections(where, inner, known)


def _link(schema: Schema, known: dict[str, str]) -> str:
    while not _is_object(schema):
        element = _element(schema)
        if element is None:
            return ""
        schema = element
    where = known[str(schema)]
    return f" See [{where.replace('[', chr(92) + '[')}]({_anchor(where)})."


def _render(section: Section, known: dict[str, str]) -> str:
    parts = [f"## {section.path}", _text(_described(section.schema)[0])]
    rows = ["| field | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = section.schema.get("required", ())
    for name, child in section.schema["properties"].items():
        text, default = _described(child)
        meaning = re.sub(rf"^{name}\b", f"`{name}`", _text(text or _NO_DESCRIPTION)) + _link(child, known)
        cells = (f"`{name}`", _type(child, required=name in required), _text(default), meaning)
        rows.append(f"| {' | '.join(_cell(cell.strip()) for cell in cells)} |")
    parts.append("\n".join(rows))
    if section.schema.get("x-kubernetes-preserve-unknown-fields"):
        parts.append("Other fields of this object are kept. The API server validates them when it creates the pod.")
    if section.rules:
        parts.append("Rules:\n\n" + "\n".join(f"* {rule}" for rule in section.rules))
    return "\n\n".join(part for part in parts if part)


def _columns(version: Schema) -> str:
    rows = [
        f"| {column['name'].upper()} | {'with `-o wide`' if column.get('priority') else 'always'} | `{column['jsonPath']}` | "
        f"{_text(column.get('description', 'The time since the creation.')).removesuffix(' Shown with -o wide.')} |"
        for column in version["additionalPrinterColumns"]
    ]
    paths = ", ".join(f"`{one['jsonPath'].removeprefix('.')}`" for one in version["selectableFields"])
    return f"{COLUMNS}" + "\n".join(rows) + f"\n\n`--field-selector` accepts {paths}."


def render() -> str:
    """Return the page."""
    crd: Schema = yaml.safe_load(CRD.read_text())
    names = crd["spec"]["names"]
    [version] = crd["spec"]["versions"]
    root = version["schema"]["openAPIV3Schema"]
    known: dict[str, str] = {}
    sections = list(_sections("TaskRun", root, known))
    head = HEAD.format(
        version=f"{crd['spec']['group']}/{version['name']}", kind=names["kind"], short=names["shortNames"][0]
    )
    return head + "\n\n".join([*(_render(one, known) for one in sections), _columns(version)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render())
