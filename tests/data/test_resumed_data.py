"""Whole runs on every kind of data, killed in mid-epoch and resumed: the same bits.

./launch.sh test tests/data/test_resumed_data.py
"""

import textwrap
from pathlib import Path

import pytest

from tests.data.photos import write_photos
from tests.runs import QUICK, assert_same_bits, finish, kill_at, outcome, run, start

ALL_AUGMENTATION = (
    "data.augment.policy=randaugment",
    "data.augment.flip=true",
    "data.augment.erase=0.3",
    "data.augment.mixup=0.2",
    "data.augment.cutmix=1.0",
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    write_photos(folder / "train", {"bird": 20, "cat": 20, "dog": 20})
    write_photos(folder / "val", {"bird": 5, "dog": 5}, seed=1)
    return folder


def of_photos(folder: Path, *options: str) -> tuple[str, ...]:
    return (
        *QUICK,
        "data.name=image_folder",
        f"data.path={folder}",
        "data.image_size=32",
        "data.workers=2",
        "train.global_batch=12",
        "save.every_steps=3",
        *options,
    )


def killed_and_resumed(world_size: int, folder: Path, *options: str) -> dict:
    common = (*options, f"run.dir={folder}")
    config = ("--config", "configs/quickstart.yaml")
    run(world_size, *common, "run.name=unbroken")
    kill_at(world_size, folder / "broken", 7, *common, "run.name=broken")
    run(world_size, "--resume", "auto", *config, *common, "run.name=broken")
    unbroken = outcome(folder / "unbroken")
    assert_same_bits(unbroken, outcome(folder / "broken"))
    return unbroken


def test_image_folder_with_every_augmentation_and_skipped_files_resumes_bit_for_bit(
    photos, tmp_path
):
    for name in ("train/cat/0003.jpg", "train/dog/0007.jpg", "val/dog/0002.jpg"):
        (photos / name).write_bytes(b"no image")
    options = of_photos(photos, "data.on_bad_image=skip", *ALL_AUGMENTATION)
    end = killed_and_resumed(3, tmp_path, *options)
    accuracy = end["rows"][-1]["eval"]["accuracy"]
    assert accuracy * 9 == pytest.approx(round(accuracy * 9))  # nine of ten images count


def test_unreadable_image_ends_every_rank_with_bad_input(photos, tmp_path):
    (photos / "train/cat/0003.jpg").write_bytes(b"no image")
    codes = finish(start(2, (*of_photos(photos), f"run.dir={tmp_path}", "run.name=stops")))
    assert 2 in codes
    assert None not in codes


def test_users_dataset_with_workers_resumes_bit_for_bit(tmp_path):
    file = tmp_path / "stripes.py"
    file.write_text(
        textwrap.dedent("""
            import torch

            class Stripes:
                classes = ["across", "down"]

                def __init__(self, count):
                    self.count = count

                def __len__(self):
                    return self.count

                def __getitem__(self, sample):
                    image = torch.full((1, 12, 12), 7 * sample % 50, dtype=torch.uint8)
                    image[:, ::3] += 100
                    return (image if sample % 2 else image.mT.contiguous()), sample % 2

            def stripes(section, split):
                return Stripes(60 if split == "train" else 10)
        """)
    )
    killed_and_resumed(
        2,
        tmp_path,
        *QUICK,
        f"data.name={file}:stripes",
        "data.workers=1",
        "data.augment.policy=trivialaugment",
        "train.global_batch=12",
        "save.every_steps=3",
    )
