"""What is wrong with a configuration, said to the person: key, what was given, what is allowed."""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from configs.schema import Config, Section
from utils.names import near

Path = tuple[str, ...]

_KINDS = {"boolean": "true or false", "integer": "a whole number", "number": "a number"}
_RANGES = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
}


def field_at(path: Path) -> FieldInfo | None:
    """The option or section that `path` names; None when there is none."""
    section: type[BaseModel] = Config
    for depth, part in enumerate(path):
        field = section.model_fields.get(part)
        if field is None or depth == len(path) - 1:
            return field
        if not is_section(field):
            return None
        section = field.annotation  # type: ignore[assignment]
    return None


def is_section(field: FieldInfo) -> bool:
    """Whether the field holds further options rather than a value."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def unknown(path: Path) -> str:
    """`unknown key`, with the name probably meant: a sibling, or the same name elsewhere."""
    parent = field_at(path[:-1])
    if parent is not None and not is_section(parent):
        return f"{shown_key(path)}: {'.'.join(path[:-1])} is an option, it holds no further keys"
    section: type[BaseModel] = Config if parent is None else parent.annotation  # type: ignore[assignment]
    hint = near(path[-1], section.model_fields)
    if not hint:
        elsewhere = [".".join(other) for other in options() if other[-1] == path[-1]]
        hint = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else ""
    there = f"{'.'.join(path[:-1]) or 'the top level'} has: {', '.join(section.model_fields)}"
    return f"unknown key {shown_key(path)}; {hint + ' ' if hint else ''}({there})"


def options(section: type[BaseModel] = Config, path: Path = ()) -> Iterator[Path]:
    """The path of every option, in the order of the schema."""
    for name, field in section.model_fields.items():
        if is_section(field):
            yield from options(field.annotation, (*path, name))  # type: ignore[arg-type]
        else:
            yield (*path, name)


def mistakes(error: ErrorDetails, values: Mapping[Any, Any]) -> list[tuple[Path, str]]:
    """(path of the key, what is wrong) for one pydantic error about `values`."""
    if error["type"] == "conflict":
        return [
            (tuple(key.split(".")), f"{key}: {what}") for key, what in error["ctx"]["conflicts"]
        ]
    path = tuple(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return [(path, unknown(path))]
    while path and field_at(path) is None:  # an item of a list: speak of the whole list
        path = path[:-1]
    given: Any = values
    for part in path:
        given = given[part]
    return [(path, f"{shown_key(path)}: given {shown(given)}; allowed: {allowed(path)}")]


def allowed(path: Path) -> str:
    """What an option takes, from its type and range, and what it is for."""
    field = field_at(path)
    if field is None or is_section(field):
        section = Config if field is None else field.annotation
        return f"keys with values ({', '.join(section.model_fields)})"  # type: ignore[union-attr]
    return f"{values(path)} ({field.description})"


def values(path: Path) -> str:
    """What an option takes, from its type and range alone."""
    return ", or ".join(_phrase(kind) for kind in _kinds(path))


def takes_text(path: Path) -> bool:
    """Whether the option `path` may be text: a name, a word or a path."""
    return any(kind["type"] == "string" for kind in _kinds(path))


def _kinds(path: Path) -> list[dict[str, Any]]:
    """The JSON schemas that an option's value may follow."""
    schema = _json_schema()
    properties = schema["properties"]
    for part in path[:-1]:
        (ref,) = (kind["$ref"] for kind in _either(properties[part]) if "$ref" in kind)
        properties = schema["$defs"][ref.rpartition("/")[2]]["properties"]
    return _either(properties[path[-1]])


def _either(entry: dict[str, Any]) -> list[dict[str, Any]]:
    kinds: list[dict[str, Any]] = entry.get("anyOf", [entry])
    return kinds


@cache
def _json_schema() -> dict[str, Any]:
    return Config.model_json_schema()


def _phrase(kind: Mapping[str, Any]) -> str:
    """One JSON schema as words."""
    if "enum" in kind:
        return ", ".join(kind["enum"])
    if kind["type"] == "array":
        count = kind.get("minItems")
        what = {"number": "numbers"}.get(kind.get("items", {}).get("type"), "texts")
        return f"a list of {count} numbers" if count else f"a list of {what}"
    if kind["type"] == "string":
        return "a path" if kind.get("format") == "path" else "text"
    bounds = [
        f"{word} {str(kind[key]).removesuffix('.0')}"
        for key, word in _RANGES.items()
        if key in kind
    ]
    return f"{_KINDS.get(kind['type'], kind['type'])} {' and '.join(bounds)}".rstrip()


def shown_key(path: Path) -> str:
    """The key as it is written, or escaped where it holds what no key holds."""
    if not path:
        return "the configuration"
    return ".".join(part if part.isidentifier() else shown(part) for part in path)


def shown(value: Any) -> str:
    """The value as YAML spells it, in at most 60 characters that are safe to print."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
