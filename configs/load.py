"""Configuration from defaults < YAML < `section.key=value`, or one message with all mistakes."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from configs import explain, strict_yaml
from configs.schema import Config
from utils.errors import BadInput
from utils.names import hint


class Mistake(NamedTuple):
    where: str
    what: str


class _Given(NamedTuple):
    """Values as written, and where: `sources` has a key's place, `source` is everything else's."""

    values: dict[str, Any]
    sources: dict[explain.Path, str]
    source: str


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file, overrides on top; BadInput lists all mistakes."""
    values, lines, problems = strict_yaml.read(_text(path))
    found = [Mistake(f"{path}:{line}", what) for line, what in problems]
    if values is None:
        values = {}
    if not isinstance(values, dict):
        found.append(Mistake(f"{path}:1", f"{explain.shown(values)} is no section with keys"))
        values = {}
    if isinstance(values.get("task"), str):  # the short form, before an override goes below it
        values["task"] = {"name": values["task"]}
    sources = {key: f"{path}:{line}" for key, line in lines.items()}
    return _config(_Given(values, sources, str(path)), overrides, found)


def from_plain(values: dict[str, Any], overrides: Sequence[str], source: str) -> Config:
    """The configuration of plain values (a checkpoint's), overrides on top; errors say `source`."""
    return _config(_Given(copy.deepcopy(values), {}, source), overrides, [])


def check_overrides(overrides: Sequence[str]) -> None:
    """BadInput when an override fits no configuration: unknown key, wrong type, out of range."""
    given = _Given({}, {}, "the configuration")
    _refuse(_apply(overrides, given) + _validate(given, conflicts=False)[1])


def to_plain(config: Config) -> dict[str, Any]:
    """Dicts, lists, text, numbers, booleans and None: what JSON and a checkpoint hold."""
    plain: dict[str, Any] = config.model_dump(mode="json")
    return plain


def to_yaml(config: Config) -> str:
    """YAML of every option, which `load` reads back equal."""
    return strict_yaml.write(to_plain(config))


def _text(path: Path) -> str:
    """The file's text; BadInput when it cannot be read, is not UTF-8, or is far too long."""
    try:
        with path.open("rb") as file:
            content = file.read(strict_yaml.MAX_BYTES + 1)
    except FileNotFoundError:
        names = [file.name for file in path.parent.glob("*.yaml")]
        raise BadInput(f"there is no configuration file {path}{hint(path.name, names)}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise BadInput(f"cannot read configuration file {path}: {error}") from None
    if len(content) > strict_yaml.MAX_BYTES:
        limit = strict_yaml.MAX_BYTES // 1024
        raise BadInput(f"{path}: over {limit} KiB, that is no configuration file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise BadInput(f"{path}:{line}: not UTF-8 text") from None


def _config(given: _Given, overrides: Sequence[str], found: list[Mistake]) -> Config:
    """The valid configuration, or BadInput with the mistakes already `found` and all others."""
    found = found + _apply(overrides, given)
    # A line that is misspelt as YAML need not be refused a second time for its value.
    told = {mistake.where for mistake in found}
    config, wrong = _validate(given)
    _refuse(found + [mistake for mistake in wrong if mistake.where not in told])
    assert config is not None
    return config


def _apply(overrides: Sequence[str], given: _Given) -> list[Mistake]:
    """Put the overrides into the given values; those that cannot be are returned as mistakes."""
    found = []
    for text in overrides:
        key, equals, raw = text.partition("=")
        path = tuple(key.split("."))
        where = f"override {text if text.isprintable() else explain.shown(text)}"
        field = explain.field_at(path)
        if not equals:
            found.append(Mistake(where, "not of the form section.key=value"))
        elif field is None:
            found.append(Mistake(where, explain.unknown(path)))
        elif explain.is_section(field):
            found.append(
                Mistake(where, f"{key} is a section; set one of its keys, as {key}.KEY=VALUE")
            )
        else:
            value, problems = _override_value(raw, path)
            found += [Mistake(where, what) for what in problems]
            _put(given.values, path, value)
            given.sources[path] = where
    return found


def _override_value(raw: str, path: explain.Path) -> tuple[Any, list[str]]:
    """(value, problems) of an override; where text is allowed, it is what the shell passed."""
    if explain.takes_text(path):
        return (None if raw in ("", "~", "null") else raw), []
    value, _, problems = strict_yaml.read(raw)
    return value, [what for _, what in problems]


def _put(values: dict[str, Any], path: explain.Path, value: Any) -> None:
    """Set a nested key; a value in the place of a section is left for validation to refuse."""
    section: Any = values
    for part in path[:-1]:
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            return
    section[path[-1]] = value


def _validate(given: _Given, conflicts: bool = True) -> tuple[Config | None, list[Mistake]]:
    """(configuration or None, mistakes), with or without options that are wrong only together."""
    try:
        return Config.model_validate(given.values), []
    except ValidationError as error:
        wrong = [
            Mistake(_place(path, given), what)
            for detail in error.errors(include_url=False, include_input=False)
            if conflicts or detail["type"] != "conflict"
            for path, what in explain.mistakes(detail, given.values)
        ]
        return None, list(dict.fromkeys(wrong))  # each bad item of a list is an error of its own


def _place(path: explain.Path, given: _Given) -> str:
    """Where the key, or the nearest section around it that was written, stands."""
    for end in range(len(path), 0, -1):
        if path[:end] in given.sources:
            return given.sources[path[:end]]
    return given.source


def _refuse(found: list[Mistake]) -> None:
    """Raise all mistakes as one message; do nothing when there are none."""
    lines = [f"{where}: {what}" for where, what in found]
    if len(lines) > 1:
        lines = [f"{len(lines)} mistakes in the configuration", *(f"  {line}" for line in lines)]
    if lines:
        raise BadInput("\n".join(lines))
