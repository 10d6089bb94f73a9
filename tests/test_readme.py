"""The README's commands work as they stand there, in its order, in a fresh copy of the project.

./launch.sh test tests/test_readme.py
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from configs.schema import Data
from data.digits import digits

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
SKIPPED = {"./launch.sh test": "it is what runs this test"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = [
        line.partition("#")[0].strip() for block in blocks("bash") for line in block.split("\n")
    ]
    return [line for line in lines if line and line not in SKIPPED]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the repository holds, without runs, and its own folder of runs."""
    target = tmp_path_factory.mktemp("clone") / "lockstep"
    ignored = shutil.ignore_patterns("runs", ".venv", ".git", "__pycache__", ".*_cache", "datasets")
    shutil.copytree(ROOT, target, ignore=ignored)
    return target


def environment() -> dict[str, str]:
    """This environment's programs first, one thread a process, and no launcher around us."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NPROC")
    kept = {key: value for key, value in os.environ.items() if key not in launcher}
    programs = str(Path(sys.executable).parent)
    return {
        **kept,
        "PATH": f"{programs}{os.pathsep}{kept['PATH']}",
        "VIRTUAL_ENV": sys.prefix,
        "OMP_NUM_THREADS": "1",
    }


def test_every_command_of_the_readme_works_in_its_order(copy: Path) -> None:
    for command in commands():
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=copy,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command == "./launch.sh":
            check_main_job(copy, done.stdout)
    check_prediction(copy)


def check_main_job(copy: Path, said: str) -> None:
    """The main job is as good as the README says, and its checkpoint is in half precision."""
    accuracy = float(re.findall(r"held out: accuracy ([\d.]+)", said)[-1])
    assert accuracy >= 0.98
    assert "2 ranks agree on 56 tensors" in said
    file = torch.load(copy / "runs" / "quickstart" / "last.pt", weights_only=True)
    floats = {name: t.dtype for name, t in file["model"].items() if t.is_floating_point()}
    assert set(floats.values()) == {torch.float16}
    assert "stem.0.weight" in floats


def check_prediction(copy: Path) -> None:
    """The README's plain PyTorch runs as it stands there, and tells what an image file shows: of
    the one that comes with it, and of others that the network has not seen either."""
    (snippet,) = blocks("python")
    assert predicted(snippet, copy) == "3"
    held_out = digits(Data(name="digits"), "val")
    for label in (7, 0):
        sample = int((held_out.labels == label).nonzero()[0])
        Image.fromarray(held_out.images[sample, 0].numpy()).save(copy / "docs" / "digit.png")
        assert predicted(snippet, copy) == str(label)


def predicted(snippet: str, copy: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", snippet], cwd=copy, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_first_commands_and_what_they_print_stand_by_line_30() -> None:
    lines = README.split("\n")
    assert any(line.startswith("./launch.sh ") for line in lines[:30])
    assert any("held out: accuracy" in line for line in lines[:30])
