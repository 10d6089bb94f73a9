"""`python -m configs.describe`: writes configs/schema.json, by which editors complete and check
a configuration, and docs/options.md, from the one source of both, configs/schema.py.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import explain, load
from configs.schema import Config
from utils.command import Parser, refusing

_ROOT = Path(__file__).resolve().parent.parent
SCHEMA, OPTIONS = _ROOT / "configs" / "schema.json", _ROOT / "docs" / "options.md"

_ABOUT = """# Options

Every option of a run: a line of the YAML, as `section:` and below it `  key: value`, or
`section.key=value` on the command line. Made from `configs/schema.py` by
`python -m configs.describe`.
"""


def schema() -> str:
    """JSON schema of a configuration file, for editors and validators.

    A section may also be empty, as when every key of it is commented out.
    """
    plain: dict[str, Any] = Config.model_json_schema()
    plain["title"] = "Lockstep run"
    for described in [plain, *plain["$defs"].values()]:
        for name, value in described["properties"].items():
            if "$ref" in value:
                described["properties"][name] = {
                    "anyOf": [{"$ref": value["$ref"]}, {"type": "null"}],
                    "default": {},
                }
    return (
        json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **plain}, indent=1)
        + "\n"
    )


def options() -> str:
    """Every option with what it takes, its default and what it is for, as Markdown."""
    lines = [_ABOUT]
    section: tuple[str, ...] | None = None
    defaults = load.to_plain(Config())
    for path in explain.options():
        if path[:-1] != section:
            section = path[:-1]
            lines += [
                f"\n## {'.'.join(section) or 'top level'}\n",
                "| option | takes | default | |",
            ]
            lines.append("| --- | --- | --- | --- |")
        default: Any = defaults
        for part in path:
            default = default[part]
        field = explain.field_at(path)
        assert field is not None
        cells = (
            f"`{path[-1]}`",
            explain.values(path),
            f"`{_shown(default)}`",
            str(field.description),
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    """A default as YAML spells it; thirds are not spelt out."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return value if isinstance(value, str) else explain.shown(value)


@refusing
def main(argv: Sequence[str]) -> int:
    """Write both files; 0."""
    Parser(prog="python -m configs.describe", description=__doc__).read(argv)
    SCHEMA.write_text(schema(), encoding="utf-8")
    OPTIONS.parent.mkdir(exist_ok=True)
    OPTIONS.write_text(options(), encoding="utf-8")
    print(f"{SCHEMA}\n{OPTIONS}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
