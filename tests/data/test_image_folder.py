"""Image folders: the same crops on any number of processes, and what a bad file does."""

from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image

from configs.schema import Augment, Data
from data.datasets import build_dataset
from data.loader import Source, eval_batches, train_batches
from data.order import TrainOrder
from data.transforms import eval_transform, preprocess, train_transform
from tests.data.photos import write_photos
from utils.errors import BadInput

CPU = torch.device("cpu")
SIZE, BATCH, STEPS = 32, 12, 7  # three steps an epoch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "train", {"bird": 14, "cat": 13, "dog": 12})
    write_photos(folder / "val", {"bird": 3, "dog": 5}, seed=1)
    return folder


@pytest.fixture
def own_photos(tmp_path):
    write_photos(tmp_path / "train", {"bird": 14, "cat": 13, "dog": 12})
    write_photos(tmp_path / "val", {"bird": 3, "dog": 5}, seed=1)
    return tmp_path


def build_datasets(data):
    return build_dataset(data, "train"), build_dataset(data, "val")


def section(folder, **options):
    return Data(name="image_folder", path=folder, image_size=SIZE, **options)


def collate(rows):
    images, labels = zip(*rows, strict=True)
    return {"image": torch.stack(images), "label": torch.tensor(labels)}


def seen(data, world_size=1, workers=0, start=0, seed=4):
    """(step, index) -> (batch, how many were skipped), of all ranks."""
    dataset = build_dataset(data, "train")
    transform = train_transform(dataset, data.augment, seed, CPU)
    source = Source(dataset, collate, transform, CPU, workers)
    order = TrainOrder(len(dataset), BATCH, seed)
    found = {}
    for rank in range(world_size):
        with closing(train_batches(source, order, rank, world_size, 3, start, STEPS)) as batches:
            found |= {(item.step, item.index): (item.batch, item.skipped) for item in batches}
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for place, (batch, skipped) in one.items():
        assert skipped == other[place][1]
        for name, value in batch.items():
            assert torch.equal(value, other[place][0][name]), (place, name)


def test_crops_do_not_depend_on_processes_workers_or_restarts(photos):
    data = section(photos, augment=Augment(flip=True))
    alone = seen(data)
    assert_same(seen(data, world_size=2), alone)
    assert_same(seen(data, world_size=4, workers=2), alone)
    assert_same(seen(data, start=4), {key: value for key, value in alone.items() if key[0] >= 4})


def test_crops_change_with_epoch_and_seed(photos):
    dataset = build_dataset(section(photos), "train")
    first = dataset.in_epoch(1, 0)[5][0]
    assert torch.equal(first, dataset.in_epoch(1, 0)[5][0])
    assert not torch.equal(first, dataset.in_epoch(1, 1)[5][0])
    assert not torch.equal(first, dataset.in_epoch(2, 0)[5][0])


def test_labels_are_the_folders_and_held_out_ones_count_like_the_training_ones(photos):
    train, val = build_datasets(section(photos))
    assert train.classes == val.classes == ["bird", "cat", "dog"]
    assert (len(train), len(val)) == (39, 8)
    assert np.bincount(train.labels).tolist() == [14, 13, 12]
    assert np.bincount(val.labels).tolist() == [3, 0, 5]
    image, label = val[3]
    assert image.shape == (3, SIZE, SIZE)
    assert image.dtype == torch.uint8
    assert label == 2


def test_one_folder_is_split_by_class_and_new_files_leave_old_ones_where_they_were(tmp_path):
    write_photos(tmp_path, {"cat": 30, "dog": 11})

    def parts():
        train, val = build_datasets(section(tmp_path, held_out=0.2))
        return [{part.files.name(int(file)) for file in part.chosen} for part in (train, val)]

    train, val = parts()
    assert len(train) + len(val) == 41
    assert not train & val
    assert sum(name.startswith(b"cat") for name in val) == 6
    assert sum(name.startswith(b"dog") for name in val) == 2
    write_photos(tmp_path / "more", {"cat": 3})
    for number, file in enumerate((tmp_path / "more" / "cat").iterdir()):
        file.rename(tmp_path / "cat" / f"new{number}.jpg")
    (tmp_path / "more" / "cat").rmdir()
    (tmp_path / "more").rmdir()
    moved = parts()[0] & val
    assert len(moved) <= 2


def test_evaluation_takes_the_centre_of_the_image(own_photos):
    across = np.tile(np.arange(200, dtype=np.uint8), (100, 1))
    Image.fromarray(across).save(own_photos / "val" / "bird" / "0000.png")
    (own_photos / "val" / "bird" / "0000.jpg").unlink()
    val = build_dataset(section(own_photos, eval_crop=0.5), "val")
    image = val[0][0].double()
    assert preprocess(val)["centre_crop"] == 0.5
    assert torch.equal(image[0], image[2])
    assert float(image[:, :, 0].mean()) == pytest.approx(
        75.3, abs=1
    )  # the middle 50 of 200 columns
    assert float(image[:, :, -1].mean()) == pytest.approx(123.7, abs=1)


def spoil(folder, *names):
    for name in names:
        (folder / "train" / name).write_bytes(b"no image at all")


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_stops_the_run_and_is_named_with_its_sample(own_photos, workers):
    spoil(own_photos, "cat/0003.jpg")
    with pytest.raises(BadInput) as caught:
        seen(section(own_photos), world_size=2, workers=workers)
    message = str(caught.value)
    for part in ("sample 17", str(own_photos / "train" / "cat" / "0003.jpg")):
        assert part in message
    assert "Traceback" not in message


def test_skipped_images_are_counted_and_replaced_alike_on_any_number_of_processes(own_photos):
    spoil(own_photos, "bird/0003.jpg", "cat/0003.jpg", "dog/0003.jpg")
    data = section(own_photos, on_bad_image="skip")
    alone = seen(data)
    assert_same(seen(data, world_size=4, workers=2), alone)
    places = [(step, index) for step in range(STEPS) for index in range(BATCH // 3)]
    assert sorted(alone) == places
    assert all(len(batch["label"]) == 3 for batch, _ in alone.values())
    order = TrainOrder(39, BATCH, 4)
    bad = {3, 14 + 3, 27 + 3}
    expected = sum(int(s) in bad for step in range(STEPS) for s in order.samples(step, 0, 1)[1])
    assert sum(skipped for _, skipped in alone.values()) == expected > 0


def test_skipped_image_is_told_once_a_run_with_its_rank(own_photos, caplog):
    spoil(own_photos, "bird/0003.jpg")
    seen(section(own_photos, on_bad_image="skip"))
    told = [message for message in caplog.messages if "0003.jpg" in message]
    assert len(told) == 1
    assert told[0].startswith("rank 0 skips sample 3: ")


def test_evaluation_leaves_unreadable_images_out(own_photos):
    for number in (0, 1, 4):
        (own_photos / "val" / "dog" / f"000{number}.jpg").write_bytes(b"")
    val = build_dataset(section(own_photos, on_bad_image="skip"), "val")
    source = Source(val, collate, eval_transform(val, CPU), CPU)
    for world_size in (1, 3):
        batches = [
            b for rank in range(world_size) for b in eval_batches(source, 2, rank, world_size)
        ]
        assert sorted(b["sample"].tolist() for b in batches) == [[0, 1], [2], [5], [6]]
        assert all(len(batch["image"]) == len(batch["sample"]) for batch in batches)


def test_folder_of_nothing_but_unreadable_images_is_an_error_not_a_hang(own_photos):
    for file in (own_photos / "train").rglob("*.jpg"):
        file.write_bytes(b"")
    with pytest.raises(BadInput, match="20 other images can be read"):
        seen(section(own_photos, on_bad_image="skip"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: (folder / "train").rename(folder / "training"), "has a folder val, but no"),
        (lambda folder: (folder / "val" / "dogs").mkdir(), "without an image"),
        (lambda folder: (folder / "val" / "dog").rename(folder / "val" / "dogs"), "mean 'dog'"),
    ],
)
def test_folder_of_another_form_is_told_what_is_wrong_with_it(own_photos, make, message):
    make(own_photos)
    with pytest.raises(BadInput, match=message):
        build_datasets(section(own_photos))


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(BadInput, match="nowhere is not a folder"):
        build_dataset(section(tmp_path / "nowhere"), "train")
