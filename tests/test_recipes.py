"""Every YAML of configs/ says how to run it, is valid, and starts.

./launch.sh test tests/test_recipes.py        (tests/campaigns/recipes.py has the large ones)
"""

import re
from pathlib import Path

import pytest

from configs.load import load
from models.build import find_builder
from models.library import published
from tests.campaigns.recipes import cifar10
from tests.runs import run

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = sorted(CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_first_comment_has_command_hardware_and_score(file: Path) -> None:
    lines = file.read_text().splitlines()
    comment = " ".join(line.lstrip("# ") for line in lines[: lines.index("run:")])
    command = re.search(r"\./launch\.sh(?: --config (\S+))?", comment)
    assert command is not None
    assert command.group(1) in (None, f"configs/{file.name}")
    assert re.search(r"GPU|CPU cores", comment)
    assert re.search(r"accuracy|top-1|score", comment)
    assert "CPU cores:" in comment or "not run here" in comment


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_names_in_it_exist(file: Path) -> None:
    config = load(file)
    find_builder(config.model.name)
    published(config.model.name, config.model.weights)


def test_cifar_10s_recipe_takes_steps_on_images_of_its_shape(tmp_path: Path) -> None:
    cifar10(tmp_path / "cifar", 8)
    options = ("train.epochs=1", "train.global_batch=20", "train.eval_batch=8")
    few = ("train.precision=fp32", "log.report=false")
    data = (f"data.path={tmp_path / 'cifar'}", f"run.dir={tmp_path}")
    run(2, "--config", str(CONFIGS / "cifar10_resnet18.yaml"), *data, *options, *few)
    assert (tmp_path / "cifar10_resnet18" / "last.pt").exists()
