"""First steps of the recipes on synthetic data of the right shape: seconds a step, memory.

python tests/campaigns/recipes.py        (two processes on two CPU cores: about 2 minutes)

The global batch is cut down to what a laptop can do; the shapes of images and classes are kept.
"""

import json
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.runs import finish, start

ROOT = Path(__file__).resolve().parents[2]


def cifar10(folder: Path, count: int = 80) -> None:
    """The binary files of CIFAR-10 with random images: five times `count`, and `count` held out."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name in [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]:
        records = draw.integers(0, 256, (count, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / name).write_bytes(records.tobytes())


def imagenet(folder: Path) -> None:
    """JPEGs of ImageNet's usual 500 x 375 pixels in 1,000 class folders, one each."""
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    picture = folder / "picture.jpg"
    folder.mkdir()
    Image.fromarray(noise).resize((500, 375)).save(picture, quality=90)
    for part, count in (("train", 1000), ("val", 1)):
        for number in range(count):
            place = folder / part / f"n{number:08d}"
            place.mkdir(parents=True)
            (place / "0.jpg").hardlink_to(picture)
    picture.unlink()


def first_steps(recipe: str, data: Path, batch: int, *options: str) -> str:
    """Takes four steps of `batch` samples on two processes, and describes them."""
    with tempfile.TemporaryDirectory() as runs:
        arguments = ["--config", str(ROOT / "configs" / recipe), f"data.path={data}"]
        arguments += [f"run.dir={runs}", "run.name=x", "data.workers=0", "log.every_steps=1"]
        arguments += [f"train.global_batch={batch}", "log.report=false", "save.every_steps=2"]
        processes = start(2, [*arguments, *options])
        rows = Path(runs) / "x" / "metrics.jsonl"
        saved = rows.with_name("step-00000002.pt")
        while not (saved.exists() and rows.read_bytes().count(b"\n") >= 4):
            assert all(process.is_alive() for process in processes), "it ended before its time"
            time.sleep(0.1)
        memory = max(_peak_mib(process.pid) for process in processes)
        for process in processes:
            process.kill()
        finish(processes)
        told = [json.loads(row) for row in rows.read_text().splitlines()[:4]]
        size = saved.stat().st_size
    seconds = sorted(row["clock"]["step_s"] for row in told)[1:3]
    return (
        f"{recipe}: steps of {batch} on 2 processes, {sum(seconds) / 2:.2f} s a step, loss "
        f"{told[0]['train']['loss']:.2f} -> {told[-1]['train']['loss']:.2f}, checkpoint "
        f"{size / 2**20:.0f} MiB, peak of a rank {memory} MiB"
    )


def _peak_mib(pid: int | None) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cifar10(place / "cifar")
        print(first_steps("cifar10_resnet18.yaml", place / "cifar", 32), flush=True)
        imagenet(place / "imagenet")
        for recipe in ("imagenet_resnet50.yaml", "imagenet_resnet50_v2.yaml"):
            print(first_steps(recipe, place / "imagenet", 16), flush=True)


if __name__ == "__main__":
    main()
