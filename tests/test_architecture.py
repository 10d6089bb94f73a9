"""The house: which room may know which, and what no room may do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "bench", "checkpoint", "configs", "data", "ddp", "engine", "models", "report", "tasks", "utils",
)  # fmt: skip
ALLOWED = {
    "train": set(ROOMS) - {"bench"},
    "bench": set(ROOMS) | {"train"},
    "engine": {"checkpoint", "configs", "ddp", "utils"},
    "models": {"checkpoint", "configs", "utils"},
    "data": {"configs", "utils"},
    "tasks": {"configs", "utils"},
    "checkpoint": {"utils"},
    "ddp": {"utils"},
    "configs": {"utils"},
    "report": {"utils"},
    "utils": set(),
}


def product_files() -> list[Path]:
    files = [ROOT / "train.py"]
    for room in ROOMS:
        files += sorted((ROOT / room).rglob("*.py"))
    return files


def room_of(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[str]:
    """Every imported module's full name, wherever in the file it stands."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative imports hide the room"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("file", product_files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_arrows_between_rooms_point_one_way(file: Path) -> None:
    room = room_of(file)
    reached = {name.partition(".")[0] for name in imports(file)} & {*ROOMS, "train", "tests"}
    assert reached - {room} <= ALLOWED[room]


def test_only_ddp_imports_torch_distributed() -> None:
    wrong = [
        str(file.relative_to(ROOT))
        for file in product_files()
        if room_of(file) not in ("ddp", "bench")
        for name in imports(file)
        if name.startswith("torch.distributed")
    ]
    assert not wrong


def test_configs_never_import_torch() -> None:
    files = [file for file in product_files() if room_of(file) == "configs"]
    assert not [f for f in files for name in imports(f) if name.partition(".")[0] == "torch"]


def test_rank_0_is_asked_for_in_one_file() -> None:
    asking = {
        str(file.relative_to(ROOT))
        for file in product_files()
        if room_of(file) != "bench"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Compare) and "rank" in ast.unparse(node.left).lower()
        and ast.unparse(node.comparators[0]) in ("0", "'0'")
    }  # fmt: skip
    assert asking <= {"ddp/rank0.py"}


def calls(file: Path) -> Iterator[tuple[str, str]]:
    """(function, whole call) of every call in the file, as written."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), ast.unparse(node)


def test_no_file_of_the_product_runs_what_it_reads() -> None:
    banned = {
        "eval", "exec", "pickle.load", "pickle.loads", "torch.jit.load", "yaml.load", "os.system",
        "yaml.unsafe_load", "yaml.full_load", "torch.hub.load",
    }  # fmt: skip
    for file in product_files():
        for function, call in calls(file):
            assert function not in banned, f"{file}: {call}"
            assert "shell=True" not in call, f"{file}: {call}"
            assert "weights_only=False" not in call, f"{file}: {call}"
            if function == "torch.load":
                assert "weights_only=True" in call, f"{file}: {call}"


def test_the_top_level_holds_what_the_readme_names() -> None:
    known = {"README.md", "runs", "datasets", "shared", "__pycache__"}
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith((".", "slurm-"))}
    readme = (ROOT / "README.md").read_text()
    unknown = [name for name in names - known if name not in readme]
    assert not unknown
