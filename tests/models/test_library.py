"""Networks and weights of torchvision and timm: by name, fetched once, head and stem fitted.

./launch.sh test tests/models/test_library.py
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision import models as torchvision_models

from checkpoint.open import read
from configs.schema import Model
from ddp.rank0 import is_rank0, on_rank0
from models import library
from models.build import build_model, find_builder
from models.library import fit_stem, published
from models.pretrained import class_names, load_pretrained, load_weights, origin
from tests.ranks import run_ranks
from tests.runs import run
from utils.errors import BadInput

NETWORK = "mobilenet_v3_small"
WEIGHTS = torchvision_models.MobileNet_V3_Small_Weights.IMAGENET1K_V1
SECTION = Model(name=f"torchvision:{NETWORK}", weights=Path("IMAGENET1K_V1"))
ANIMALS = ["cat", "dog", "eel"]
WORDNET = [f"n{number:08d}" for number in range(1000)]


def network(classes: int, channels: int, name: str = SECTION.name, seed: int = 5) -> nn.Module:
    return build_model(find_builder(name), classes, channels, seed=seed, initialise=True)


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A file at the URL of torchvision's weights, as torchvision publishes it; an empty cache."""
    state = network(1000, 3, seed=1).state_dict()
    draft = tmp_path / "draft.pth"
    torch.save(state, draft)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()[:8]
    file = draft.rename(tmp_path / f"mobilenet-{digest}.pth")
    monkeypatch.setattr(type(WEIGHTS), "url", property(lambda _: file.as_uri()))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    return state


def test_a_name_of_the_weights_enum_loads_all_but_the_head_of_other_classes(
    offered: dict[str, torch.Tensor],
) -> None:
    model = network(3, 3)
    report = load_weights(model, SECTION, ANIMALS)
    assert list(report.reinitialised) == ["classifier.3.weight", "classifier.3.bias"]
    assert report.unused == []
    for name, tensor in model.state_dict().items():
        assert name in report.reinitialised or torch.equal(tensor, offered[name])
    assert class_names(SECTION, ANIMALS) == ANIMALS


def test_other_channels_leave_only_head_and_stem_random(offered: dict[str, torch.Tensor]) -> None:
    report = load_weights(network(3, 1), SECTION, ANIMALS)
    assert list(report.reinitialised) == [
        "features.0.0.weight",
        "classifier.3.weight",
        "classifier.3.bias",
    ]


def test_imagenets_own_classes_keep_the_head_and_get_its_class_names(
    offered: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    report = load_weights(network(1000, 3), SECTION, WORDNET)
    assert report.reinitialised == {}
    names = class_names(SECTION, WORDNET)
    assert (len(names), names[0], names[999]) == (1000, "tench", "toilet tissue")
    # A checkpoint of such a run names its classes so, and fits the same folders again.
    torch.save({"state_dict": offered, "labels": names}, tmp_path / "ours.pt")
    assert load_pretrained(network(1000, 3), tmp_path / "ours.pt", WORDNET).reinitialised == {}


def test_a_thousand_other_classes_do_not_keep_the_head(offered: dict[str, torch.Tensor]) -> None:
    others = [f"bolt {number}" for number in range(1000)]
    report = load_weights(network(1000, 3), SECTION, others)
    assert report.reinitialised["classifier.3.bias"] == "the file's classes are others"
    assert class_names(SECTION, others) == others


def test_the_weights_preprocessing_goes_beside_our_own() -> None:
    resnet = Model(name="torchvision:resnet50", weights=Path("IMAGENET1K_V2"))
    assert origin(resnet) == {
        "pretrained": {
            "weights": "IMAGENET1K_V2",
            "image_size": 224,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "centre_crop": 224 / 232,
        }
    }
    assert origin(Model(name="small_resnet", weights=Path("x.pt"))) == {}
    assert origin(Model(name="torchvision:resnet50", weights=Path("some/file.pth"))) == {}


def counted(rank: int) -> tuple[int, str]:
    calls = []
    fetch = torch.hub.download_url_to_file

    def counting(*args: Any, **more: Any) -> None:
        calls.append(args)
        fetch(*args, **more)

    library.torch.hub.download_url_to_file = counting
    offer = published(SECTION.name, SECTION.weights)
    assert offer is not None
    for _ in range(2):
        file = on_rank0(offer.fetch)
    return len(calls), str(file is not None and is_rank0())


def test_rank_0_alone_downloads_and_only_once(offered: dict[str, torch.Tensor]) -> None:
    assert run_ranks(2, counted) == [(1, "True"), (0, "False")]


def test_a_download_that_fails_or_is_damaged_is_bad_input_and_leaves_nothing(
    offered: dict[str, torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer = published(SECTION.name, SECTION.weights)
    assert offer is not None
    file = next(tmp_path.glob("mobilenet-*"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(BadInput, match="invalid hash value"):
        offer.fetch()
    file.unlink()
    with pytest.raises(BadInput, match="put the file there by hand"):
        offer.fetch()
    assert list((tmp_path / "hub").rglob("*.pth*")) == []


def test_a_run_starts_from_the_name_and_its_checkpoint_says_what_the_weights_expect(
    offered: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    names = (f"model.name={SECTION.name}", "model.weights=IMAGENET1K_V1", f"run.dir={tmp_path}")
    small = ("data.image_size=32", "train.global_batch=480", "train.epochs=1", "log.report=false")
    run(2, *names, *small, "optim.lr=0.01")
    content = read(tmp_path / "quickstart" / "last.pt")
    assert content["preprocess"]["pretrained"]["weights"] == "IMAGENET1K_V1"
    assert content["preprocess"]["image_size"] == 32
    report = json.loads((tmp_path / "quickstart" / "load_report.json").read_text())
    assert set(report["reinitialised"]) == {
        "features.0.0.weight", "classifier.3.weight", "classifier.3.bias"
    }  # fmt: skip
    assert len(list((tmp_path / "hub").rglob("*.pth"))) == 1


def test_unknown_names_are_bad_input_with_the_ones_there_are() -> None:
    with pytest.raises(BadInput, match=r"IMAGENET1K_V3.*did you mean 'IMAGENET1K_V"):
        published("torchvision:resnet50", Path("IMAGENET1K_V3"))
    with pytest.raises(BadInput, match="no model 'resnet55'; did you mean 'resnet50'"):
        find_builder("torchvision:resnet55")
    with pytest.raises(BadInput, match="model library 'torchvison'"):
        find_builder("torchvison:resnet50")
    assert published("small_resnet", Path("IMAGENET1K_V1")) is None
    assert published("torchvision:resnet50", None) is None


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "squeezenet1_1", "vit_b_16"])
def test_networks_with_peculiar_heads_return_logits_in_training(name: str) -> None:
    with torch.device("meta"):
        model = find_builder(f"torchvision:{name}")(7, 3)
    size = 299 if name == "inception_v3" else 224
    with torch.no_grad():
        logits = model.train()(torch.zeros(2, 3, size, size, device="meta"))
    assert logits.shape == (2, 7)


def test_a_stem_with_groups_is_refused() -> None:
    with pytest.raises(BadInput, match="has groups"):
        fit_stem(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)), 3)


class FakeTimm:
    """timm's look-ups with weights of our own, as it lists them."""

    def __init__(self, real: Any, cfg: Any) -> None:
        self.is_model, self.create_model = real.is_model, real.create_model
        self.list_models = real.list_models
        self.list_pretrained = lambda _: ["resnet18.ours"]
        self.get_pretrained_cfg = lambda _: cfg


def test_timms_networks_and_weights_load_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm")
    state = network(1000, 3, "timm:resnet18", seed=1).state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    cfg = timm.models.PretrainedCfg(url=(tmp_path / "resnet18.pth").as_uri(), crop_pct=0.95)
    monkeypatch.setattr(library, "_import_timm", lambda: FakeTimm(timm, cfg))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    section = Model(name="timm:resnet18", weights=Path("ours"))
    model = network(3, 3, "timm:resnet18")
    report = load_weights(model, section, ANIMALS)
    assert list(report.reinitialised) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert origin(section)["pretrained"]["centre_crop"] == 0.95
    with pytest.raises(BadInput, match="there are: ours"):
        published("timm:resnet18", Path("a9_in1k"))


def test_without_timm_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(BadInput, match=re.escape("pip install timm")):
        find_builder("timm:resnet18")
