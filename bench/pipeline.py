"""Whole training pipelines beside the careful loop that a person writes: PIL, a sample at a time.

python -m bench pipeline [--set fashion_mnist|jpeg] [--precision fp32|bf16] [--cycles 7]
fashion_mnist takes 3 minutes a precision on two cores, jpeg (1,200 made-up photographs) 8

`train.py` runs configs/fashion_mnist.yaml at 128 images a rank, or ResNet-18 at 112 pixels at 32 a
rank; the bare loop the same network on the same work with 0, 1 and 2 workers a rank, in fp32. What
counts is the ratio to the best of the three. It has processes of its own, as what ours does to its
memory would otherwise speed it up.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.paired import Block, Times, named, over_ranks, ratios, record
from bench.ranks import Apart, free_port, on_ranks, taking_turns

WORKERS = (0, 1, 2)
SETS: dict[str, dict[str, Any]] = {
    "fashion_mnist": {"batch": 128, "steps": 20, "network": "small_resnet"},
    "jpeg": {"batch": 32, "steps": 8, "network": "torchvision:resnet18"},
}


def run(argv: list[str]) -> None:
    """Measure, record and print a line for each number of workers of the bare loop."""
    options = argparse.ArgumentParser("bench pipeline")
    options.add_argument("--set", choices=SETS, default="fashion_mnist")
    options.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    options.add_argument("--cycles", type=int, default=7)
    options.add_argument("--world-size", type=int, default=2)
    given = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if given.set == "jpeg":
            make_photographs(Path(folder) / "photographs")
        best = float("inf")
        for workers in WORKERS:
            how = (given.set, given.precision, workers, given.cycles, given.world_size, folder)
            times = over_ranks(on_ranks(given.world_size, _one_rank, *how, free_port()))
            faster = ratios(times, "bare", "ours")
            best = min(best, faster["wall"].median)
            about = {"set": given.set, "precision": given.precision, "bare_workers": workers}
            record("pipeline", {**about, **named(faster)})
            print(
                f"pipeline, {given.set}, {given.precision}, bare loop with {workers} workers: ours "
                f"{faster['wall'].told()} x the samples/s, {faster['cpu'].told()} x by CPU time",
                flush=True,
            )
    print(f"pipeline, {given.set}, {given.precision}: {best:.2f} x the best bare loop's samples/s")


def _one_rank(
    rank: int,
    name: str,
    precision: str,
    workers: int,
    cycles: int,
    world_size: int,
    folder: str,
    port: int,
) -> dict[str, Times]:
    from bench.overhead import harness

    case = SETS[name]
    photographs = Path(folder) / "photographs"
    overrides = {
        "fashion_mnist": [],
        "jpeg": [
            "data.name=image_folder",
            f"data.path={photographs}",
            "data.image_size=112",
            "data.workers=1",
            "data.augment.pad=0",
            "model.name=torchvision:resnet18",
            "train.channels_last=true",
        ],
    }[name]
    own = (case, name, photographs, workers, rank, world_size)
    with Apart(rank, world_size, port, _bare, *own) as bare:
        turns = taking_turns(bare, case["steps"], cycles)
        harness(
            turns,
            "configs/fashion_mnist.yaml",
            f"train.global_batch={case['batch'] * world_size}",
            f"train.precision={precision}",
            f"run.dir={folder}/{workers}",
            *overrides,
        )
    return turns.times


def make_photographs(folder: Path, count: int = 1200, classes: int = 10) -> None:
    """JPEGs of about 256 x 256 pixels, as smooth and as noisy as photographs, in class folders."""
    from PIL import Image

    drawn = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class_{number % classes}"
        place.mkdir(parents=True, exist_ok=True)
        width, height = drawn.integers(230, 290, 2)
        coarse = Image.fromarray(drawn.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((int(width), int(height)), Image.Resampling.BICUBIC))
        noisy = smooth + drawn.normal(0, 6, smooth.shape)
        image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(place / f"{number:05d}.jpg", quality=90)


def _bare(
    case: dict[str, Any], name: str, photographs: Path, workers: int, rank: int, world_size: int
) -> Block:
    from torch.utils.data import DataLoader, DistributedSampler

    from bench.bare import from_loader
    from models.build import build_model, find_builder

    dataset: Any = fashion_mnist() if name == "fashion_mnist" else _folder(photographs)
    channels = 1 if name == "fashion_mnist" else 3
    sampler: Any = DistributedSampler(dataset, world_size, rank)
    loader: Any = DataLoader(
        dataset,
        case["batch"],
        sampler=sampler,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
    )
    model = build_model(find_builder(case["network"]), 10, channels, seed=0, initialise=True)
    return from_loader(model, endless(loader, sampler.set_epoch), case["steps"])


def endless(loader: Any, set_epoch: Callable[[int], None]) -> Iterator[Any]:
    """A loader's batches, epoch after epoch."""
    epoch = 0
    while True:
        set_epoch(epoch)
        yield from loader
        epoch += 1


class _Images:
    """Images (H, W) in memory, augmented by PIL as torchvision's references do."""

    def __init__(self, images: Any, labels: Any) -> None:
        from torchvision import transforms

        self._images, self._labels = images.numpy(), labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(28, padding=2),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize((0.286,), (0.353,)),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, number: int) -> tuple[Any, int]:
        from PIL import Image

        return self._transform(Image.fromarray(self._images[number, 0])), self._labels[number]


def fashion_mnist() -> _Images:
    """The 60,000 training images, augmented one by one."""
    from configs.schema import Data
    from data.datasets import build_dataset

    dataset: Any = build_dataset(Data(name="fashion_mnist"), "train")
    return _Images(dataset.images, dataset.labels)


def _folder(photographs: Path) -> Any:
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(112),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    return datasets.ImageFolder(str(photographs), transform)
