"""YAML without its surprises: one meaning for every text, every key's line, all mistakes at once.

PyYAML's own loader reads `1e-3` as text, `010` as 8 and `on` as true, keeps the last of two equal
keys, and lets 396 bytes of aliases print as 10^9 elements. Here numbers are decimal, truth values
are `true` and `false`, and whatever looks odd stays text, which the schema refuses for a number.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 64 * 1024
MAX_DEPTH = 20

Path = tuple[str, ...]
Problem = tuple[int, str]  # line (counted from 1), what is wrong there

_TAG = "tag:yaml.org,2002:"
_PLAIN: dict[
    str, tuple[str, str]
] = {  # kind -> (what a plain scalar of it looks like, how it starts)
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    "float": (
        r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?",
        "-+.0123456789",
    ),
}
_VALUE: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    # More than 64 bits stay text: Python refuses to read integers of thousands of digits.
    "int": lambda text: int(text) if len(text) <= 20 else text,
    "float": float,
}
_RESOLVERS: dict[str, list[tuple[str, re.Pattern[str]]]] = {"": []}
for _name, (_pattern, _first) in _PLAIN.items():
    for _letter in ["", *_first] if _name == "null" else _first:
        _RESOLVERS.setdefault(_letter, []).append((_TAG + _name, re.compile(f"^(?:{_pattern})$")))


class _Loader(yaml.SafeLoader):
    """Composes nodes; notes anchors, aliases and tags instead of following them."""

    yaml_implicit_resolvers = _RESOLVERS

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.problems: list[Problem] = []
        self.depth = 0

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        if isinstance(event, AliasEvent):
            self.problems.append((line, f"alias *{event.anchor}: write the value out"))
            self.get_event()  # type: ignore[no-untyped-call]
            return ScalarNode(_TAG + "null", "", event.start_mark)  # type: ignore[arg-type]
        if event.anchor is not None:
            self.problems.append((line, f"anchor &{event.anchor}: anchors are not read here"))
            event.anchor = None
        if event.tag is not None:
            self.problems.append((line, f"tag {event.tag}: tags are not read here"))
            event.tag = None
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes text that `_Loader` or any other YAML reader takes for something else; no aliases."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (as PyYAML has it)
        letter: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(letter, []),
            *_RESOLVERS.get(letter, []),
        ]
        for letter in {*yaml.SafeDumper.yaml_implicit_resolvers, *_RESOLVERS}
    }

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(text: str) -> tuple[Any, dict[Path, int], list[Problem]]:
    """(value, line of each key by its path, problems) of a YAML document; an empty one is None."""
    lines: dict[Path, int] = {}
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        return None, {}, [(line, f"character {error.character!r} cannot stand in YAML")]
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        return None, {}, [*loader.problems, (mark.line + 1 if mark else 1, f"not YAML: {what}")]
    finally:
        loader.dispose()
    value = None if node is None else _plain(node, (), lines, loader.problems)
    return value, lines, loader.problems


def _plain(node: Node, path: Path, lines: dict[Path, int], problems: list[Problem]) -> Any:
    """Dicts, lists and scalars of a node; its keys' lines and problems join the given ones."""
    if isinstance(node, ScalarNode):
        kind = node.tag.removeprefix(_TAG)
        return _VALUE[kind](node.value) if kind in _VALUE else node.value
    if isinstance(node, SequenceNode):
        return [_plain(item, path, {}, problems) for item in node.value]
    assert isinstance(node, MappingNode)
    plain: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, ScalarNode):
            problems.append((line, "a key must be one word"))
            continue
        key = str(key_node.value)
        here = (*path, key)
        if key in plain:
            problems.append((line, f"{'.'.join(here)}: already given on line {lines[here]}"))
            continue
        lines[here] = line
        plain[key] = _plain(value_node, here, lines, problems)
    return plain


def write(value: Any) -> str:
    """YAML that `read` reads back equal; value: dicts with text keys, lists, and scalars."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return text
