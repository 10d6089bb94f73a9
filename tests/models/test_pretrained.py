"""Nothing is loaded by accident: files of every make into the network, and the report of it.

./launch.sh test tests/models/test_pretrained.py
"""

import argparse
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from checkpoint.half import encode
from configs.schema import Ddp
from ddp.rank0 import is_rank0, on_rank0
from ddp.wrap import agreement, wrap
from models import pretrained
from models.build import build_model
from models.pretrained import load_pretrained
from models.small_resnet import small_resnet
from tests.ranks import run_ranks
from utils.errors import BadInput

DIGITS = [str(digit) for digit in range(10)]


def network(classes: int = 10, channels: int = 1, seed: int = 0) -> nn.Module:
    return build_model(small_resnet, classes, channels, seed=seed, initialise=True)


@pytest.fixture
def source() -> dict[str, Tensor]:
    """Weights with ordinary statistics, of another seed than the network they go into."""
    return network(seed=1).state_dict()


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_our_checkpoint_restores_every_bit_of_float32(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    coded = encode(source)
    torch.save({"model": coded.half, "residual": coded.residual}, tmp_path / "x.pt")
    model = network()
    report = load_pretrained(model, tmp_path / "x.pt", DIGITS)
    assert same(model, source)
    assert report.reinitialised == {}
    assert report.loaded_parameters == report.model_parameters == 308074


@pytest.mark.parametrize("key", [None, *pretrained.WEIGHT_KEYS])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_state_dicts_under_any_usual_key_and_prefix_load_whole(
    tmp_path: Path, source: dict[str, Tensor], key: str | None, prefix: str
) -> None:
    state = {prefix + name: tensor for name, tensor in source.items()}
    torch.save(state if key is None else {"epoch": 3, key: state}, tmp_path / "x.pth")
    model = network()
    report = load_pretrained(model, tmp_path / "x.pth", DIGITS)
    assert same(model, source)
    assert report.unused == []


def test_a_legacy_file_and_safetensors_load_like_any_other(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    torch.save(source, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file({name: tensor.clone() for name, tensor in source.items()}, tmp_path / "x.safetensors")
    for file in ("old.pth", "x.safetensors"):
        model = network()
        load_pretrained(model, tmp_path / file, DIGITS)
        assert same(model, source)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_widened_into_the_networks_float32(
    tmp_path: Path, source: dict[str, Tensor], dtype: torch.dtype
) -> None:
    halves = {k: v.to(dtype) if v.is_floating_point() else v for k, v in source.items()}
    torch.save(halves, tmp_path / "x.pt")
    model = network()
    load_pretrained(model, tmp_path / "x.pt", DIGITS)
    assert same(model, {k: v.to(source[k].dtype) for k, v in halves.items()})


def test_an_inert_namespace_beside_the_weights_is_no_obstacle(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    arguments = argparse.Namespace(lr=0.1, data_path="/datasets", amp=True)
    torch.save({"model": source, "args": arguments, "epoch": 2}, tmp_path / "x.pth")
    model = network()
    load_pretrained(model, tmp_path / "x.pth", DIGITS)
    assert same(model, source)


def save_half_on_a_gpu(file: Path, state: dict[str, Tensor]) -> None:
    """Write `state` as a machine with a GPU would have: every second tensor tagged cuda:0."""
    on_gpu = {t.untyped_storage().data_ptr() for t in list(state.values())[::2]}
    registry = torch.serialization._package_registry
    before = list(registry)
    torch.serialization.register_package(
        0, lambda storage: "cuda:0" if storage.data_ptr() in on_gpu else None, lambda *_: None
    )
    try:
        torch.save(state, file)
    finally:
        registry[:] = before


def test_tensors_saved_on_a_gpu_load_on_a_machine_without_one(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    save_half_on_a_gpu(tmp_path / "gpu.pt", source)
    pickled = zipfile.ZipFile(tmp_path / "gpu.pt").read("gpu/data.pkl")
    assert b"cuda:0" in pickled and b"cpu" in pickled
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "gpu.pt", weights_only=True)
    model = network()
    load_pretrained(model, tmp_path / "gpu.pt", DIGITS)
    assert same(model, source)
    assert all(tensor.device.type == "cpu" for tensor in model.state_dict().values())


def test_a_head_of_another_size_and_a_stem_of_other_channels_stay_random(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    torch.save(source, tmp_path / "x.pt")
    model = network(classes=7, channels=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_pretrained(model, tmp_path / "x.pt", list("abcdefg"))
    assert set(report.reinitialised) == {"stem.0.weight", "head.weight", "head.bias"}
    assert "shape (10, 128) in the file, (7, 128) here" in report.reinitialised["head.weight"]
    for name, tensor in model.state_dict().items():
        expected = before if name in report.reinitialised else source
        assert torch.equal(tensor, expected[name])


def test_a_head_of_as_many_but_other_classes_stays_random(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    torch.save({"model": source, "labels": [f"shirt {n}" for n in range(10)]}, tmp_path / "x.pt")
    report = load_pretrained(network(), tmp_path / "x.pt", DIGITS)
    assert set(report.reinitialised) == {"head.weight", "head.bias"}
    torch.save({"model": source, "labels": DIGITS}, tmp_path / "y.pt")
    assert load_pretrained(network(), tmp_path / "y.pt", DIGITS).reinitialised == {}


def test_a_file_of_renamed_weights_is_an_error_that_shows_the_nearest_names(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    renamed = {name.replace("blocks", "layers"): tensor for name, tensor in source.items()}
    torch.save(renamed, tmp_path / "x.pt")
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(BadInput, match=r"not in the file; did you mean 'layers\.0\.conv1\.weight'"):
        load_pretrained(model, tmp_path / "x.pt", DIGITS)
    assert same(model, before), "a refused file must leave the network as it was"


def test_entries_that_the_network_has_no_place_for_are_named(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    torch.save({**source, "auxiliary.weight": torch.zeros(3)}, tmp_path / "x.pt")
    report = load_pretrained(network(), tmp_path / "x.pt", DIGITS)
    assert report.unused == ["auxiliary.weight"]
    assert "not used of the file: 1 (auxiliary.weight)" in report.text()


@pytest.mark.parametrize("content", [{"epoch": 3}, {"model": {}}, {"state_dict": [1, 2]}])
def test_a_file_without_weights_says_what_it_holds(
    tmp_path: Path, content: dict[str, object]
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(BadInput, match="holds no weights"):
        load_pretrained(network(), tmp_path / "x.pt", DIGITS)


def load_on_ranks(rank: int, file: Path) -> tuple[int, str]:
    """How often this rank opened the file, and what all ranks agreed on."""
    opened = []
    read = pretrained.read

    def counting(path: Path) -> dict[str, object]:
        opened.append(path)
        return read(path)

    pretrained.read = counting
    model = build_model(small_resnet, 10, 1, seed=5 + rank, initialise=is_rank0())
    on_rank0(load_pretrained, model, file, DIGITS)
    return len(opened), agreement(wrap(model, Ddp()).module)


def test_rank_0_alone_opens_the_file_and_every_rank_has_its_weights(
    tmp_path: Path, source: dict[str, Tensor]
) -> None:
    torch.save(source, tmp_path / "x.pt")
    answers = run_ranks(3, load_on_ranks, tmp_path / "x.pt")
    assert [count for count, _ in answers] == [1, 0, 0]
    assert len({line for _, line in answers}) == 1
