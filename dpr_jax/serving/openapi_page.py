"""Renders /docs from the OpenAPI description; the page needs no network."""

import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from dpr_jax import pages

TEMPLATE = Path(__file__).with_name("page") / "docs.html"


def render(openapi: dict[str, Any]) -> str:
    """Returns the page as HTML."""
    schemas = openapi["components"]["schemas"]
    operations = [
        _operation(path, method, about, schemas)
        for path, methods in openapi["paths"].items()
        for method, about in methods.items()
    ]
    template = pages.environment().from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=openapi["info"]["title"], about=openapi["info"], operations=operations
    )


def _operation(
    path: str, method: str, about: dict[str, Any], schemas: dict[str, Any]
) -> dict[str, Any]:
    """Returns the template's values for one operation."""
    body = _schema(about.get("requestBody", {}), schemas)
    ok = about["responses"].get("200", {})
    examples = body.get("examples", [])
    fields = [
        {"name": name, "type": _type(one), "default": json.dumps(one.get("default"))}
        | {"about": one.get("description", "")}
        for name, one in body.get("properties", {}).items()
    ]
    for one in about.get("parameters", []):
        required = '"required"' if one.get("required") else json.dumps(one["schema"].get("default"))
        fields.append(
            {"name": one["name"], "type": _type(one["schema"]), "default": required}
            | {"about": one.get("description", "")}
        )
    data = [json.dumps(example, ensure_ascii=False) for example in examples]
    quote = "'\\''"
    curls = [
        f"curl -s URL{path} -H 'Content-Type: application/json' -d '{one.replace(chr(39), quote)}'"
        for one in data
    ]
    if method == "get":
        curls = [f"curl -s URL{path}"]
    return {
        "path": path,
        "method": method.upper(),
        "summary": about.get("summary", ""),
        "description": about.get("description", ""),
        "fields": fields,
        "curls": curls,
        "answers": [
            json.dumps(one, ensure_ascii=False, indent=1)
            for one in _schema(ok, schemas).get("examples", [])
        ],
        "errors": {
            status: one["description"]
            for status, one in about["responses"].items()
            if status != "200"
        },
        "anchor": Markup.escape(f"{method}{path}".replace("/", "-").strip("-")),
    }


def _schema(about: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a request's or an answer's JSON."""
    schema = about.get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    return schemas.get(name, schema)


def _type(schema: dict[str, Any]) -> str:
    """Returns the type of a field in words."""
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if "enum" in schema:
        return " or ".join(json.dumps(one) for one in schema["enum"])
    return schema.get("type", "object")
