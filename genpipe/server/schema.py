"""JSON schemas of bodies for the page at /docs, made of the fields of `Request`."""

from typing import Any

from genpipe.fields import Choice, Flag, Kind, Number, Pair, Sides, Text, Whole, defaults_of, settings_of
from genpipe.inputs import ArgumentList, ControlList, ImageInput, LoraList
from genpipe.request import Request
from genpipe.server.reading import OWN

_IMAGE = {"type": "string", "format": "byte", "description": "the image's file in base64"}
_HELP = {
    "model": "its name, of those that /api/models lists",
    "n": "how many images, with seeds counted on from the first",
    "seconds": "after which what is not done is let go of (default: as long as the server allows)",
}


def schema_of(kind: Kind) -> dict[str, Any]:
    """Describe what values a field takes."""
    if isinstance(kind, Whole):
        return {"type": "integer", "minimum": kind.low, "maximum": kind.high}
    if isinstance(kind, Number):
        return {"type": "number", "minimum": kind.low, "maximum": kind.high}
    if isinstance(kind, Flag):
        return {"type": "boolean"}
    if isinstance(kind, Choice):
        return {"type": "string", "enum": [*kind.words]}
    if isinstance(kind, Pair):
        return {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
    if isinstance(kind, Sides):
        return {"type": "array", "items": {"type": "integer"}, "minItems": 4, "maxItems": 4}
    if isinstance(kind, ImageInput):
        return dict(_IMAGE)
    if isinstance(kind, ControlList):
        numbers = {name: {"type": "number"} for name in ("scale", "start", "end")}
        item = {"type": "object", "properties": {"image": _IMAGE, "preprocessor": {"type": "string"}, **numbers}}
        return {"type": "array", "items": item}
    if isinstance(kind, ArgumentList):
        return {"type": "object", "additionalProperties": {"type": ["number", "boolean", "string"]}}
    return {"type": "string"} if isinstance(kind, Text) else {}


def drawing_schema() -> dict[str, Any]:
    """Describe a body that asks for images."""
    defaults = defaults_of(Request)
    properties: dict[str, Any] = {}
    for name, described in settings_of(Request).items():
        if not isinstance(described.kind, LoraList):
            shown = {"description": described.help, **schema_of(described.kind)}
            if isinstance(defaults.get(name), str | int | float):
                shown["default"] = defaults[name]
            properties[name] = shown
    for name, kind in OWN.items():
        properties[name] = {**({"description": _HELP[name]} if name in _HELP else {}), **schema_of(kind)}
    return {"type": "object", "properties": properties, "required": ["prompt"], "additionalProperties": False}


def body(schema: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """Describe a route whose body is JSON of a schema, as FastAPI's `openapi_extra`."""
    content = {"application/json": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}}
