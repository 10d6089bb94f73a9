"""Images that cannot be read: named, or skipped alike on any number of processes.

./launch.sh test tests/test_bad_images.py
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.runs import finish, run, start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty small JPEGs of two classes, three of them damaged."""
    for label, colour in (("light", 200), ("dark", 40)):
        for part, count in (("train", 24), ("val", 6)):
            place = tmp_path / "images" / part / label
            place.mkdir(parents=True)
            for number in range(count):
                grey = (colour + number % 7,) * 3
                Image.new("RGB", (20, 16), grey).save(place / f"{number:02}.jpg")
    for number in (3, 11, 17):
        (tmp_path / "images" / "train" / "dark" / f"{number:02}.jpg").write_bytes(b"\xff\xd8cut")
    return tmp_path


def options(folder: Path, name: str) -> list[str]:
    return [
        "model.weights=null", "data.name=image_folder", f"data.path={folder / 'images'}",
        "data.image_size=16", "data.on_bad_image=skip", "train.epochs=2", "train.global_batch=12",
        "log.every_steps=1", "save.every_steps=null", f"run.dir={folder}", f"run.name={name}",
    ]  # fmt: skip


def counts(folder: Path) -> list[int]:
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["train"].get("bad_images", 0) for row in rows]


def test_skipped_images_are_counted_the_same_on_any_number_of_processes_and_workers(
    folder: Path,
) -> None:
    run(1, *options(folder, "one"))
    run(3, *options(folder, "three"), "data.workers=2")
    assert sum(counts(folder / "one")) == 6  # three files, once in each of two epochs
    assert counts(folder / "one") == counts(folder / "three")


def test_a_bad_image_stops_the_run_and_is_named(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    codes = finish(start(2, [*options(folder, "stop"), "data.on_bad_image=stop"]))
    assert codes[0] != 0 or codes[1] != 0
    assert "dark/" in "".join(capfd.readouterr())
