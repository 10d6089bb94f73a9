"""Every option, on two processes, killed in mid-epoch and resumed: the same bits.

./launch.sh test tests/test_options.py        (tests/test_resume.py has the spine and DDP's options)
"""

from pathlib import Path

import pytest

from tests.runs import QUICK, assert_same_bits, kill_at, outcome, run

NETWORKS = "tests/option_networks.py"
# Five steps an epoch; saved at 3, 6 and 9, killed after 4.
SHORT = (*QUICK, "train.global_batch=240", "save.every_steps=3", "optim.warmup_epochs=0.4")

CASES = {
    "averaged weights, label smoothing, layer-wise rates, channels last, lowest loss as best": (
        "train.ema=700",
        "train.channels_last=true",
        "train.best_metric=loss",
        "task.label_smoothing=0.1",
        "optim.layer_decay=0.7",
        "optim.nesterov=true",
    ),
    "fp16 with steps skipped, accumulation, clipping, averaged weights": (
        f"model.name={NETWORKS}:loud",
        "train.precision=fp16",
        "train.micro_batch=50",
        "optim.clip_norm=1.0",
        "train.ema=500",
    ),
    "frozen stem and block, adamw, polynomial": (
        "model.freeze=[stem.*, blocks.0.*]",
        "train.channels_last=false",
        "optim.name=adamw",
        "optim.lr=0.01",
        "optim.schedule=polynomial",
        "optim.power=2",
    ),
    "rmsprop, linear, deterministic": (
        "optim.name=rmsprop",
        "optim.lr=0.003",
        "optim.alpha=0.9",
        "optim.schedule=linear",
        "optim.min_lr=1e-4",
        "train.deterministic=true",
    ),
    "a network of timm, adafactor, steps": (
        "model.name=timm:test_efficientnet",
        "data.image_size=16",
        "optim.name=adafactor",
        "optim.lr=0.02",
        "optim.schedule=step",
        "optim.milestones=[0.6, 1.4]",
        "optim.gamma=0.5",
    ),
    "a network of torchvision, an optimizer from a file, constant": (
        "model.name=torchvision:shufflenet_v2_x0_5",
        "data.image_size=16",
        f"optim.name={NETWORKS}:nadam",
        "optim.lr=0.01",
        "optim.schedule=constant",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_option_killed_in_mid_epoch_and_resumed_ends_in_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    killed_and_resumed(tmp_path, *CASES[name])


def killed_and_resumed(folder: Path, *options: str) -> None:
    common = (*SHORT, *options, f"run.dir={folder}")
    run(2, *common, "run.name=unbroken")
    kill_at(2, folder / "broken", 4, *common, "run.name=broken")
    run(2, "--resume", "auto", "--config", "configs/quickstart.yaml", *common, "run.name=broken")
    assert_same_bits(outcome(folder / "unbroken"), outcome(folder / "broken"))
