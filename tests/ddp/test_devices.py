"""Options that need GPUs: what they do to the network, and what is said where there are none.

./launch.sh test tests/ddp/test_devices.py        (tests/test_options_gpu.py runs them on GPUs)
"""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.load import from_plain
from configs.schema import Ddp
from ddp import wrap as wrapping
from ddp.wrap import agreement, require_devices, wrap
from engine.environment import make_deterministic
from models.build import build_model, find_builder
from models.freeze import freeze
from tests.ranks import run_ranks
from tests.runs import QUICK, finish, start
from utils.errors import BadInput

ON_CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without GPUs")


@ON_CPU
def test_sync_batchnorm_without_a_gpu_is_one_message_and_exit_code_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BadInput, match="SyncBatchNorm for GPUs only"):
        require_devices(Ddp(sync_batchnorm=True))
    options = ("ddp.sync_batchnorm=true", f"run.dir={tmp_path}")
    assert finish(start(1, (*QUICK, *options))) == [2]
    said = capfd.readouterr()
    assert "ddp.sync_batchnorm: torch has SyncBatchNorm for GPUs only" in said.out + said.err
    assert "Traceback" not in said.out + said.err
    assert not (tmp_path / "quickstart").exists()


def converted(rank: int) -> tuple[list[str], list[str], int, bool, bool]:
    builder = find_builder("small_resnet")
    model = build_model(builder, 10, 1, seed=rank, initialise=rank == 0)
    names = list(model.state_dict())
    parameters = {id(parameter) for parameter in model.parameters()}
    freeze(model, ["stem.*"])
    # DDP's own look at where the layers are is left out: the conversion is what is tested here.
    wrapping.DistributedDataParallel._passing_sync_batchnorm_handle = lambda *_: None
    ddp_model = wrap(model, Ddp(sync_batchnorm=True))
    agreement(model)
    kinds = [type(m).__name__ for m in model.modules() if "BatchNorm" in type(m).__name__]
    same = parameters == {id(parameter) for parameter in ddp_model.module.parameters()}
    return names, list(model.state_dict()), len(set(kinds)), same, model.stem[1].training


def test_sync_batchnorm_keeps_names_parameters_and_what_is_frozen() -> None:
    for before, after, kinds, same_parameters, frozen_trains in run_ranks(2, converted):
        assert before == after
        assert kinds == 1
        assert same_parameters
        assert not frozen_trains


def deterministic(rank: int) -> tuple[bool, str | None, bool]:
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    make_deterministic(from_plain({"train": {"deterministic": True}}, [], "the test"))
    model = nn.Linear(2, 2)
    return (
        torch.are_deterministic_algorithms_enabled() and model.weight.requires_grad,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        torch.backends.cudnn.benchmark,
    )


def test_deterministic_asks_for_all_that_equal_bits_on_gpus_take() -> None:
    assert run_ranks(1, deterministic) == [(True, ":4096:8", False)]
