"""Names a person writes in a config: looked up in a table, or as `path/to/file.py:function`."""

import difflib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from utils.errors import BadInput

T = TypeVar("T")


def near(name: str, names: Iterable[str]) -> str:
    """`did you mean 'x'?` for the closest of `names`, or an empty string when none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


def hint(name: str, names: Iterable[str]) -> str:
    """`near` as the rest of a sentence: `; did you mean 'x'?`, or an empty string."""
    found = near(name, names)
    return f"; {found}" if found else ""


def pick(table: Mapping[str, T], name: str, kind: str) -> T:
    """The entry `name` of `table`; BadInput names the nearest entry, and all of them, otherwise."""
    if name in table:
        return table[name]
    known = ", ".join(sorted(table))
    raise BadInput(f"unknown {kind} '{name}'{hint(name, table)} (there are: {known})")


def is_function_path(name: str) -> bool:
    """Whether `name` has the form `path/to/file.py:function`."""
    return ".py:" in name


def load_function(name: str, kind: str) -> Callable[..., Any]:
    """The function that `path/to/file.py:function` names; importing it runs the user's own file."""
    path_text, _, function_name = name.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise BadInput(f"{kind} '{name}': there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"lockstep_user_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = {key: value for key, value in vars(module).items() if callable(value)}
    if function_name not in functions:
        lacks = f"{path} has no function '{function_name}'{hint(function_name, functions)}"
        raise BadInput(f"{kind} '{name}': {lacks}")
    function: Callable[..., Any] = functions[function_name]
    return function
