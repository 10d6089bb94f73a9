"""A newcomer's case: their folder of photographs, our configurations, overrides, nothing else.

./launch.sh test tests/test_newcomer.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from checkpoint.open import read
from checkpoint.state import restored
from models.build import build_model, find_builder
from tests.runs import run

ROOT = Path(__file__).resolve().parent.parent
NETWORK = "torchvision:shufflenet_v2_x0_5"
# Where in which photograph (0: a temple, 1: a flower) a class is: top, bottom, left, right.
CLASSES = {
    "petals": (1, (110, 300, 250, 430)),
    "roofs": (0, (200, 420, 60, 560)),
    "sky": (0, (0, 130, 0, 640)),
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 JPEG crops of 56 to 80 pixels for each of three classes, a folder a class."""
    folder = tmp_path_factory.mktemp("photos")
    images = load_sample_images().images
    draw = np.random.default_rng(0)
    for name, (photo, (top, bottom, left, right)) in CLASSES.items():
        (folder / name).mkdir()
        for number in range(120):
            side = int(draw.integers(56, 81))
            y, x = draw.integers(top, bottom - side), draw.integers(left, right - side)
            crop = images[photo][y : y + side, x : x + side]
            Image.fromarray(crop).save(folder / name / f"{number:03d}.jpg", quality=90)
    return folder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def train(folder: Path, config: str, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The load report and the last checkpoint of a run on two processes."""
    common = (f"run.dir={folder}", "run.name=mine", "log.report=false", "data.workers=0")
    run(2, "--config", str(ROOT / "configs" / config), *common, *overrides)
    report = json.loads((folder / "mine" / "load_report.json").read_text())
    return report, read(folder / "mine" / "best.pt")


def test_photographs_are_learnt_from_the_quickstarts_own_weights(
    photos: Path, tmp_path: Path
) -> None:
    report, best = train(
        tmp_path,
        "quickstart.yaml",
        "data.name=image_folder",
        f"data.path={photos}",
        "data.augment.flip=true",
        "train.global_batch=48",
        "train.epochs=5",
        "optim.lr=0.05",
        "data.augment.crop_area=[0.5, 1.0]",
    )
    assert set(report["reinitialised"]) == {"stem.0.weight", "head.weight", "head.bias"}
    assert best["labels"] == list(CLASSES)
    assert best["preprocess"]["channels"] == 3
    assert best["metrics"]["eval"]["accuracy"] >= 0.9


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A .pth of a thousand classes for a torchvision network, as it is found on the web."""
    model = build_model(find_builder(NETWORK), 1000, 3, seed=1, initialise=True)
    torch.save(model.state_dict(), tmp_path / "shufflenet.pth")
    return tmp_path / "shufflenet.pth"


SMALL = ("train.precision=fp32", "data.image_size=32", "train.epochs=1", "train.ema=100")


def test_a_torchvision_network_is_fine_tuned_from_a_file(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    names = (f"model.name={NETWORK}", f"model.weights={weights}", f"data.path={photos}")
    report, best = train(tmp_path, "finetune_image_folder.yaml", *names, *SMALL)
    assert set(report["reinitialised"]) == {"fc.weight", "fc.bias"}
    assert best["labels"] == list(CLASSES)
    assert "ema" in best


def test_frozen_features_of_it_stay_as_they_were_in_the_file(
    photos: Path, weights: Path, tmp_path: Path
) -> None:
    names = (f"model.name={NETWORK}", f"model.weights={weights}", f"data.path={photos}")
    freeze = "model.freeze=[conv1.*, stage2.*, stage3.*, stage4.*, conv5.*]"
    _, best = train(tmp_path, "features_frozen.yaml", *names, freeze, *SMALL[:3])
    before, after = read(weights), restored(best)["model"]
    assert all(torch.equal(after[n], before[n]) for n in after if not n.startswith("fc."))
    assert [group["param_names"] for group in best["optimizer"]["param_groups"]] == [
        ["fc.weight"],
        ["fc.bias"],
    ]
