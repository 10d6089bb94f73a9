"""Datasets as they lie on disk: what is read, and what is said when it is not there or damaged."""

import gzip
import hashlib
import http.server
import struct
import tarfile
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import Data
from data.datasets import build_dataset
from data.fashion_mnist import CLASSES
from data.idx import read_idx
from data.memory import MemoryImages, moments, resized
from utils.errors import BadInput

NAMES = ("images-idx3-ubyte", "labels-idx1-ubyte")


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder, suffix="", count=5):
    """A FashionMNIST of a few random images; returns its training images."""
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    for prefix in ("train", "t10k"):
        for name, array in zip(NAMES, (images, np.arange(count, dtype=np.uint8)), strict=True):
            content = idx(array)
            path = folder / f"{prefix}-{name}{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return images


def test_digits_are_those_of_scikit_learn_in_a_fixed_split_by_class():
    from sklearn.datasets import load_digits

    parts = [build_dataset(Data(name="digits"), split) for split in ("train", "val")]
    assert [len(part) for part in parts] == [1438, 359]
    ours = torch.cat([part.images for part in parts]).flatten(1)
    theirs = np.round(load_digits().data * (255 / 16)).astype(np.uint8)
    assert sorted(map(bytes, ours.numpy())) == sorted(map(bytes, theirs))
    counts = [np.bincount(part.labels.numpy(), minlength=10) for part in parts]
    assert (abs(counts[1] / (counts[0] + counts[1]) - 0.2) < 0.003).all()
    assert parts[0].mean == parts[1].mean
    assert parts[0].classes == [str(digit) for digit in range(10)]


def test_digits_are_resized_once_in_memory():
    dataset = build_dataset(Data(name="digits", image_size=28), "val")
    assert dataset.images.shape == (359, 1, 28, 28)
    assert (dataset.image_size, dataset.channels) == (28, 1)


@pytest.mark.parametrize("inside", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist_is_read_from_either_layout_gzipped_or_not(tmp_path, inside, suffix):
    images = write_fashion(tmp_path / "there" / inside, suffix)
    dataset = build_dataset(Data(name="fashion_mnist", path=tmp_path / "there"), "train")
    assert torch.equal(dataset.images[:, 0], torch.from_numpy(images))
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4]
    assert dataset.classes == CLASSES


def test_missing_fashion_mnist_is_told_with_the_commands_that_get_it(tmp_path):
    with pytest.raises(BadInput) as caught:
        build_dataset(Data(name="fashion_mnist", path=tmp_path), "train")
    for part in (str(tmp_path), "data.download=true", "apt-get install dataset-fashion-mnist"):
        assert part in str(caught.value)


def test_images_and_labels_of_different_number_are_refused(tmp_path):
    write_fashion(tmp_path / "there")
    labels = tmp_path / "there" / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(4, dtype=np.uint8)))
    with pytest.raises(BadInput, match=r"has 5 images and .* 4 labels"):
        build_dataset(Data(name="fashion_mnist", path=tmp_path / "there"), "train")


@pytest.mark.parametrize("kept", [0, 3, 6, 15, 16, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_truncated_idx_file_is_refused_by_name(tmp_path, kept, packed):
    whole = idx(np.zeros((2, 8, 8), dtype=np.uint8))
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(whole)[: min(kept, 30)] if packed else whole[:kept])
    with pytest.raises(BadInput, match=str(path)):
        read_idx(path)


def test_file_of_another_kind_is_no_idx_file(tmp_path):
    path = tmp_path / "images"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(BadInput, match="not an IDX file"):
        read_idx(path)


def test_misspelt_dataset_is_told_the_nearest():
    with pytest.raises(BadInput, match="did you mean 'digits'"):
        build_dataset(Data(name="digit"), "train")


def test_moments_are_those_of_the_pixels():
    images = torch.randint(0, 256, (9, 3, 5, 5), dtype=torch.uint8)
    mean, std = moments(images)
    scaled = images.double().div(255).transpose(0, 1).flatten(1)
    assert torch.allclose(torch.tensor(mean).double(), scaled.mean(dim=1))
    assert torch.allclose(torch.tensor(std).double(), scaled.std(dim=1, unbiased=False))


def test_resizing_keeps_a_flat_image_flat_and_the_same_size_untouched():
    images = torch.full((2, 1, 8, 8), 77, dtype=torch.uint8)
    assert resized(images, 8) is images
    assert (resized(images, 28) == 77).all()


def test_batch_from_memory_is_the_samples_asked_for():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 2, 2)
    dataset = MemoryImages(images.contiguous(), torch.arange(10) % 3, ["a", "b", "c"], (0,), (1,))
    batch = dataset.__getitems__(np.array([7, 2]))
    assert batch["image"][:, 0, 0, 0].tolist() == [7, 2]
    assert batch["label"].tolist() == [1, 2]


def test_a_damaged_copy_of_the_real_dataset_names_its_file(tmp_path):
    real = Path("/usr/share/datasets/fashion-mnist")
    if not real.is_dir():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    for file in real.glob("*.gz"):
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BadInput, match=r"t10k-images-idx3-ubyte\.gz is damaged"):
        build_dataset(Data(name="fashion_mnist", path=tmp_path), "val")


def write_cifar(folder, count=4):
    """CIFAR-10 of a few random images a file; returns the training records."""
    folder.mkdir(parents=True)
    drawn = np.random.default_rng(0)
    records = drawn.integers(0, 256, (6, count, 3073), dtype=np.uint8)
    records[:, :, 0] %= 10
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, part in zip(names, records, strict=True):
        (folder / name).write_bytes(part.tobytes())
    return records[:5].reshape(-1, 3073)


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-bin"])
def test_cifar10_is_read_from_its_binary_files(tmp_path, inside):
    records = write_cifar(tmp_path / "there" / inside)
    dataset = build_dataset(Data(name="cifar10", path=tmp_path / "there"), "train")
    assert torch.equal(dataset.images.flatten(1), torch.from_numpy(records[:, 1:]))
    assert dataset.images.shape == (20, 3, 32, 32)
    assert dataset.labels.tolist() == records[:, 0].tolist()
    assert len(build_dataset(Data(name="cifar10", path=tmp_path / "there"), "val")) == 4


def test_pickled_cifar10_is_not_opened_but_told_apart(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(BadInput, match=r"Python version, made of pickles.*data\.download=true"):
        build_dataset(Data(name="cifar10", path=tmp_path), "train")


@pytest.mark.parametrize("content", [b"", b"\0" * 3000, b"\x0a" + b"\0" * 3072])
def test_damaged_cifar10_file_is_named(tmp_path, content):
    write_cifar(tmp_path / "there")
    (tmp_path / "there" / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(BadInput, match=r"data_batch_3\.bin is damaged"):
        build_dataset(Data(name="cifar10", path=tmp_path / "there"), "train")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def serve(monkeypatch):
    """serve(folder) -> address of a web server of this machine that hands out its files."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ExitStack() as servers:

        def start(folder):
            handler = partial(Quiet, directory=folder)
            server = servers.enter_context(http.server.HTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            servers.callback(thread.join)
            servers.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}"

        yield start


def test_cifar10_is_fetched_checked_and_unpacked_without_trusting_names(
    tmp_path, monkeypatch, serve
):
    records = write_cifar(tmp_path / "origin" / "cifar-10-batches-bin")
    archive = tmp_path / "origin" / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(tmp_path / "origin" / "cifar-10-batches-bin", "cifar-10-batches-bin")
        opened.add(__file__, "../escaped.py")
    monkeypatch.setattr("data.cifar10._URL", f"{serve(archive.parent)}/{archive.name}")
    section = Data(name="cifar10", path=tmp_path / "there", download=True)
    with pytest.raises(BadInput, match="could not be fetched"):  # its md5 is another
        build_dataset(section, "train")
    digest = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr("data.cifar10._MD5", digest)
    dataset = build_dataset(section, "train")
    assert dataset.labels.tolist() == records[:, 0].tolist()
    assert {path.name for path in tmp_path.iterdir()} == {"origin", "there"}
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        ".lock",
        "cifar-10-batches-bin",
    }


USER_FILE = """
import torch

class Stripes:
    classes = ["dark", "bright"]

    def __init__(self, count): self.count = count
    def __len__(self): return self.count
    def __getitem__(self, sample):
        return torch.full((2, 6, 6), 100 * (sample % 2), dtype=torch.uint8), sample % 2

class Float(Stripes):
    def __getitem__(self, sample): return torch.zeros(2, 6, 6), 0

class Wide(Stripes):
    def __getitem__(self, sample): return torch.zeros(2, 6, 9, dtype=torch.uint8), 0

class Mislabelled(Stripes):
    def __getitem__(self, sample): return super().__getitem__(sample)[0], sample

class Nameless:
    def __len__(self): return 1

def stripes(section, split): return Stripes(40 if split == "train" else 10)
def floats(section, split): return Float(4)
def wide(section, split): return Wide(4)
def mislabelled(section, split): return Mislabelled(4)
def nameless(section, split): return Nameless()
def empty(section, split): return Stripes(0)
"""


@pytest.fixture
def user_file(tmp_path):
    (tmp_path / "mine.py").write_text(USER_FILE)
    return tmp_path / "mine.py"


def test_users_dataset_needs_only_samples_a_length_and_classes(user_file):
    section = Data(name=f"{user_file}:stripes")
    train, val = build_dataset(section, "train"), build_dataset(section, "val")
    assert (len(train), len(val)) == (40, 10)
    assert (train.channels, train.image_size, train.centre_crop) == (2, 6, None)
    assert train.mean == train.std == (0.5, 0.5)
    assert train.classes == ["dark", "bright"]
    assert train[3][1] == 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("floats", r"must be a uint8 tensor \(C, H, W\); sample 0 is torch\.float32 \(2, 6, 6\)"),
        ("wide", "must be square, sample 0 is 6 x 9 pixels"),
        ("nameless", "needs `classes`"),
        ("empty", "needs a length above 0"),
        ("stripe", "did you mean 'stripes'"),
    ],
)
def test_users_dataset_that_does_not_fit_is_told_why(user_file, function, message):
    with pytest.raises(BadInput, match=message):
        build_dataset(Data(name=f"{user_file}:{function}"), "train")


def test_label_that_is_no_class_names_its_sample(user_file):
    dataset = build_dataset(Data(name=f"{user_file}:mislabelled"), "train")
    with pytest.raises(BadInput, match=r"mislabelled: sample 3 has label 3 of 2 classes"):
        dataset[3]
