"""What is in a file of weights, without running anything that is in it.

python -m checkpoint.inspect FILE                 sections, tensors, totals, config, cursor, digest
python -m checkpoint.inspect FILE --diff OTHER    which tensors differ, and by how much
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from checkpoint import digest
from checkpoint.open import Contents, look, read, read_unverified
from checkpoint.scan import Stored, plain
from checkpoint.state import decoded
from utils.command import Parser, refusing
from utils.errors import BadInput

_LONGEST = 400  # characters of a value that is not shown whole


@refusing
def main(argv: Sequence[str]) -> int:
    """Print the description; 0, for a difference 1, for a file that is refused 2."""
    parser = Parser(prog="python -m checkpoint.inspect", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("file", type=Path, help="a .pt, .pth or .safetensors file")
    parser.add_argument("--diff", type=Path, metavar="OTHER", help="compare with this file")
    arguments = parser.read(argv)
    try:
        if arguments.diff is None:
            lines, code = described(arguments.file)
        else:
            lines = differences(arguments.file, arguments.diff)
            code = int(bool(lines))
            lines = lines or ["equal, every bit of every tensor and every value"]
    except BadInput as error:
        raise BadInput(printable(str(error))) from error
    for line in lines:
        print(printable(line))
    return code


def printable(text: str) -> str:
    """`text` without the control characters that a stranger's names may hold."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def described(path: Path) -> tuple[list[str], int]:
    """The lines that tell what `path` holds, and 2 when its digest does not match, else 0."""
    content = read_unverified(path)
    contents = look(path)
    verdict, code = "no digest: unverified", 0
    if "digest" in content:
        try:
            digest.check(content)
            verdict = "digest matches"
        except BadInput as error:
            verdict, code = f"DIGEST DOES NOT MATCH, {error}", 2
    lines = [f"{path}: {contents.kind}, {amount(contents.size)}, {verdict}"]
    devices = devices_of(contents)
    parts = {key: value for key, value in content.items() if key != "digest"}
    if not any(isinstance(value, dict) for value in parts.values()):
        parts = {"": parts}  # a bare state dict is one section
    for name, part in parts.items():
        lines += section(name, part, devices)
    lines += ["", *total("all", [t for _, t in digest.walk(content) if isinstance(t, Tensor)])]
    return lines, code


def section(name: Any, part: Any, devices: dict[digest.Path, str]) -> list[str]:
    """A heading, a line for each tensor of `part`, and its other values as JSON."""
    found = list(digest.walk(part))
    tensors = [(path, value) for path, value in found if isinstance(value, Tensor)]
    lines = ["", *total(name or "tensors", [tensor for _, tensor in tensors])] if tensors else []
    for path, tensor in tensors:
        where = devices.get((name, *path) if name else path, "")
        kind = str(tensor.dtype).removeprefix("torch.")
        place = ".".join(map(str, path)) or "(itself)"
        size = f"{amount(tensor.nbytes):>10}  {where}".rstrip()
        lines.append(f"  {place:<44} {kind:<9} {list(tensor.shape)!s:<18}{size}")
    rest = without_tensors(part)
    if rest not in ({}, []):
        whole = name in ("config", "cursor")
        text = json.dumps(rest, indent=2 if whole else None)
        text = text if whole or len(text) <= _LONGEST else text[:_LONGEST] + " ..."
        lines += ["", *f"{name}: {text}".split("\n")]
    return lines


def total(name: Any, tensors: list[Tensor]) -> list[str]:
    values, size = sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors)
    return [f"{name}: {len(tensors)} tensors, {values:,} values, {amount(size)}"]


def without_tensors(value: Any) -> Any:
    """`value` without its tensors, and without the containers that held nothing else."""
    match value:
        case dict():
            kept = {str(key): without_tensors(item) for key, item in value.items()}
            return {key: item for key, item in kept.items() if item not in ({}, [])}
        case list():
            return [item for item in map(without_tensors, value) if item not in ({}, [])]
        case Tensor():
            return {}
    return value


def devices_of(contents: Contents) -> dict[digest.Path, str]:
    """Path -> the device that a tensor was saved on, where the file tells it."""
    if contents.kind == "safetensors":
        return {}
    tree = plain(contents.tree, contents.size, lambda stored: stored)
    found = digest.walk(tree)
    return {path: value.storage.device for path, value in found if isinstance(value, Stored)}


def differences(one: Path, other: Path) -> list[str]:
    """A line for each tensor or value that differs; half precision weights are restored first."""
    left, right = flat(one), flat(other)
    lines = [f"only in {one}: {name}" for name in left if name not in right]
    lines += [f"only in {other}: {name}" for name in right if name not in left]
    for name in left:
        if name in right:
            lines += difference(name, left[name], right[name])
    return lines


def flat(path: Path) -> dict[str, Any]:
    """Dotted name -> tensor or value; half precision weights with their residual as float32."""
    content = {key: value for key, value in read(path).items() if key != "digest"}
    for name, residual in (("model", "residual"), ("ema", "ema_residual")):
        if isinstance(content.get(residual), dict):
            content[name] = decoded(content[name], content.pop(residual))
    leaves = digest.walk(content)
    return {
        ".".join(map(str, k)): value for k, value in leaves if not isinstance(value, dict | list)
    }


def difference(name: str, a: Any, b: Any) -> list[str]:
    """How two values of one name differ; nothing when every bit is equal."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        same = type(a) is type(b) and repr(a) == repr(b)
        return [] if same else [f"{name}: {a!r:.60} and {b!r:.60}"]
    if a.dtype != b.dtype or a.shape != b.shape:
        kinds = [f"{str(t.dtype).removeprefix('torch.')} {list(t.shape)}" for t in (a, b)]
        return [f"{name}: {kinds[0]} and {kinds[1]}"]
    if digest.raw_bytes(a) == digest.raw_bytes(b):
        return []
    gap = (a.double() - b.double()).abs() if not a.is_complex() else (a - b).abs()
    count = int((a != b).sum())
    return [f"{name}: {count:,} of {a.numel():,} values differ, at most by {float(gap.max()):.3g}"]


def amount(size: int) -> str:
    """Bytes in words: `1.2 MB`."""
    units = ["B", "KB", "MB", "GB", "TB"]
    power = min(len(units) - 1, len(str(size)) // 3 if size >= 1000 else 0)
    power -= power > 0 and size < 1000**power
    return f"{size / 1000**power:.3g} {units[power]}"


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    sys.exit(main(sys.argv[1:]))
