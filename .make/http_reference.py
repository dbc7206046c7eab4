"""Describes an OpenAPI document in Markdown, for docs/reference/http.md; and formats tables.

Called by `.make/docs.py`. Tested by tests/meta/test_docs.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_LIMITS = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " entries"),
)


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Format rows as a Markdown table; the first row is its head."""
    head, *body = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *body))


def http_reference(document: dict[str, Any]) -> str:
    """List the routes and the errors; give each route a section, and each body."""
    routes = [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    tags = list(dict.fromkeys(_tag(operation) for _, operation in routes))
    routes.sort(key=lambda route: tags.index(_tag(route[1])))
    rows = [["route", "purpose"]]
    rows += [[f"[`{name}`](#{_anchor(name)})", route["summary"]] for name, route in routes]
    errors = sorted({error for _, operation in routes for error in _errors(operation)})
    parts = [f"## Routes\n\n{markdown(rows)}"]
    parts += [f"## Errors\n\n{markdown([['status', 'code', 'meaning'], *errors])}"]
    for tag in tags:
        parts.append(f"## {tag}\n")
        parts += [_route(name, each) for name, each in routes if _tag(each) == tag]
    parts += ["## Bodies\n"]
    parts += [_body(name, body) for name, body in document["components"]["schemas"].items()]
    return "\n".join(parts)


def _tag(operation: dict[str, Any]) -> str:
    return str(operation.get("tags", ["other"])[0]).capitalize()


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _errors(operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield status, code and meaning of each error that has the usual form."""
    for status, answer in operation["responses"].items():
        if code := _code(answer):
            yield status, f"`{code}`", _one_line(answer["description"])


def _code(answer: dict[str, Any]) -> str:
    example = answer.get("content", {}).get("application/json", {}).get("example")
    error = example.get("error") if isinstance(example, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, str) else ""  # OpenAI's form has a number there


def _route(name: str, operation: dict[str, Any]) -> str:
    """Describe one route: parameters, body, answer and errors."""
    text = [f"### `{name}`\n", f"{_one_line(operation.get('description', ''))}\n"]
    if parameters := operation.get("parameters"):
        rows = [["parameter", "in", "type", "meaning"]]
        for one in parameters:
            kind = _type(one["schema"]) + (", required" if one.get("required") else "")
            told = _one_line(one.get("description", ""))
            rows.append([f"`{one['name']}`", one["in"], kind, told])
        text.append(markdown(rows))
    if body := operation.get("requestBody"):
        told = ". ".join(filter(None, (_contents(body), _one_line(body.get("description", "")))))
        text.append(f"Body: {told}\n")
    answers = sorted(operation["responses"].items())
    by_contents: dict[str, list[str]] = {}
    for status, answer in answers:
        if not _code(answer):
            by_contents.setdefault(_contents(answer) or "no body", []).append(status)
    for contents, statuses in by_contents.items():
        (first, *more) = statuses
        is_told = first != "200" and not more
        told = f" ({_one_line(operation['responses'][first]['description'])})" if is_told else ""
        text.append(f"Answer {', '.join(statuses)}: {contents}{told}\n")
    if codes := [f"{status} `{code}`" for status, one in answers if (code := _code(one))]:
        text.append(f"Errors: {', '.join(codes)}\n")
    return "\n".join(text)


def _contents(holder: dict[str, Any]) -> str:
    """Name the schemas of a body, and the content types that are not JSON."""
    return ", ".join(
        _type(content.get("schema", {}))
        + ("" if media_type == "application/json" else f" as `{media_type}`")
        for media_type, content in holder.get("content", {}).items()
    )


def _body(name: str, schema: dict[str, Any]) -> str:
    """Describe the fields of one JSON object."""
    about = f"### {name}\n\n{_one_line(schema.get('description', ''))}\n"
    rows = [["field", "type", "meaning"]]
    for field, one in schema.get("properties", {}).items():
        required = ", required" if field in schema.get("required", ()) else ""
        rows.append([f"`{field}`", _type(one) + required, _one_line(one.get("description", ""))])
    return f"{about}\n{markdown(rows)}" if len(rows) > 1 else f"{about}\n{_type(schema)}\n"


def _type(schema: dict[str, Any]) -> str:
    """Describe the values that a schema allows, in words."""
    limits = []
    for least, most, unit in _LIMITS:
        low, high = (f"{schema[key]:.10g}" if key in schema else "" for key in (least, most))
        if low or high:
            words = f"{low} to {high}" if low and high else f"at least {low}" if low else ""
            limits.append(f"{words or f'at most {high}'}{unit}")
    if "exclusiveMinimum" in schema:
        limits.append(f"above {schema['exclusiveMinimum']:g}")
    if schema.get("default") not in (None, []):
        limits.append(f"default `{schema['default']}`")
    return _values(schema) + (f" ({', '.join(limits)})" if limits else "")


def _values(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_anchor(name)})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[key])))
    if values := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return " or ".join(f"`{value}`" for value in values)
    kind = str(schema.get("type", "any value"))
    if kind == "array":
        inner = _type(schema.get("items", {}))
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])} by name"
    return "bytes" if schema.get("format") == "binary" else kind


def _one_line(text: str) -> str:
    return " ".join(text.split())
