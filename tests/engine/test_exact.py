"""Exact mode: one run, the same bits on 1, 2 and 4 processes, and across a kill between them.

./launch.sh test tests/engine/test_exact.py
"""

from pathlib import Path

import pytest
import torch
from torch import nn

from configs.load import from_plain
from configs.schema import Config
from ddp.exact import TreeSum, rank0s, tree_sum_over_ranks
from engine.exact import forward_cap, require_exact, require_own_statistics, shards
from tests.ranks import run_ranks
from tests.runs import QUICK, assert_same_bits, finish, kill_at, outcome, run, start
from utils.errors import BadInput

# Real digits, BatchNorm, dropout, 56 steps; 8 shards, so that each of 4 ranks runs two.
EXACT = (
    *QUICK,
    "ddp.exact=true",
    "train.epochs=4",
    "optim.name=adamw",
    "optim.lr=0.01",
    "optim.clip_norm=1.0",
    "train.ema=700",
    "save.every_steps=10",
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run on one process."""
    folder = tmp_path_factory.mktemp("exact")
    run(1, *EXACT, f"run.dir={folder}", "run.name=1")
    return folder / "1"


@pytest.mark.parametrize("world_size", [2, 4])
def test_2_and_4_processes_train_to_the_bits_of_one(
    world_size: int, alone: Path, tmp_path: Path
) -> None:
    run(world_size, *EXACT, f"run.dir={tmp_path}", "run.name=x")
    result = outcome(tmp_path / "x")
    assert len(result["rows"]) == 56
    assert_same_bits(outcome(alone), result)


@pytest.mark.parametrize("resumed_on", [1, 2])
def test_a_run_killed_on_4_processes_ends_on_fewer_as_if_never_touched(
    resumed_on: int, alone: Path, tmp_path: Path
) -> None:
    broken = (*EXACT, f"run.dir={tmp_path}", "run.name=x")
    kill_at(4, tmp_path / "x", 25, *broken)
    run(resumed_on, "--resume", "auto", "--config", "configs/quickstart.yaml", *broken)
    assert_same_bits(outcome(alone), outcome(tmp_path / "x"))


def test_fp16_with_its_dynamic_scale_is_exact_too(tmp_path: Path) -> None:
    options = (
        *QUICK,
        "ddp.exact=true",
        "train.precision=fp16",
        "train.epochs=1",
        "train.global_batch=240",
        "model.name=tests/option_networks.py:loud",
    )
    for world_size in (1, 2):
        run(
            world_size,
            *options,
            "optim.warmup_epochs=0.5",
            f"run.dir={tmp_path}",
            f"run.name={world_size}",
        )
    one = outcome(tmp_path / "1")
    assert one["rows"][-1]["train"]["skipped_steps"] > 0
    assert_same_bits(one, outcome(tmp_path / "2"))


def test_without_exact_mode_the_bits_depend_on_the_number_of_processes(
    alone: Path, tmp_path: Path
) -> None:
    plain = [option for option in EXACT if option != "ddp.exact=true"]
    run(2, *plain, f"run.dir={tmp_path}", "run.name=x")
    with pytest.raises(AssertionError):
        assert_same_bits(outcome(alone), outcome(tmp_path / "x"))


def leaves() -> list[torch.Tensor]:
    """Eight leaves whose sum depends on its brackets."""
    drawn = torch.Generator().manual_seed(0)
    return [torch.randn(1000, generator=drawn) * 10.0 ** (k % 5) for k in range(8)]


def block_of_the_tree(rank: int, world_size: int) -> tuple[bytes, bytes]:
    per_rank = 8 // world_size
    tree = TreeSum()
    for leaf in leaves()[rank * per_rank : (rank + 1) * per_rank]:
        # Two types, and a layout that is not the plain one.
        tree.add([leaf.view(10, 4, 5, 5).to(memory_format=torch.channels_last), leaf.double()])
    single, double = tree.total()
    tree_sum_over_ranks([single, double])
    assert single.is_contiguous(memory_format=torch.channels_last)
    return single.numpy().tobytes(), double.numpy().tobytes()


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_the_tree_has_the_same_brackets_on_any_number_of_ranks(world_size: int) -> None:
    (expected,) = run_ranks(1, block_of_the_tree, 1)
    for sums in run_ranks(world_size, block_of_the_tree, world_size):
        assert sums == expected


def test_the_tree_holds_no_more_subtrees_than_its_height() -> None:
    tree, most = TreeSum(), 0
    for leaf in [torch.ones(1) for _ in range(64)]:
        tree.add([leaf])
        most = max(most, len(tree._subtrees))
    assert most <= 6
    assert tree.total()[0].item() == 64


def own_buffers(rank: int) -> list[float]:
    # A byte first: the float then begins where no float can.
    buffers = [
        torch.tensor([rank], dtype=torch.uint8),
        torch.full((2, 3), float(rank)),
        torch.tensor(rank),
    ]
    rank0s(buffers)
    return [float(buffer.sum()) for buffer in buffers]


def test_buffers_of_every_type_become_rank_0s() -> None:
    for buffers in run_ranks(3, own_buffers):
        assert buffers == [0.0, 0.0, 0.0]


def config_of(*overrides: str) -> Config:
    return from_plain({"ddp": {"exact": True}}, overrides, "test")


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        ((), 8),
        (("train.global_batch=100",), 4),
        (("train.global_batch=7",), 1),
        (("ddp.shards=32",), 32),
        (("train.micro_batch=3",), 32),
    ],
)
def test_the_number_of_shards_is_derived_from_the_batch_alone(
    overrides: tuple[str, ...], count: int
) -> None:
    config = config_of(*overrides)
    assert shards(config) == count
    assert forward_cap(config) == config.train.global_batch // count


def test_outside_exact_mode_the_cap_is_the_micro_batch() -> None:
    assert forward_cap(config_of("ddp.exact=false", "train.micro_batch=5")) == 5


@pytest.mark.parametrize("world_size", [3, 6, 16])
def test_processes_that_cannot_share_the_tree_are_refused(world_size: int) -> None:
    with pytest.raises(BadInput, match="they can by 1, 2, 4, 8"):
        require_exact(config_of(), world_size)
    require_exact(config_of("ddp.exact=false"), world_size)


def test_a_cap_that_no_power_of_two_reaches_is_refused() -> None:
    with pytest.raises(BadInput, match=r"at most train\.micro_batch=10; raise .* to 25"):
        shards(config_of("train.global_batch=100", "train.micro_batch=10"))


def test_a_network_with_statistics_over_processes_is_refused() -> None:
    model = nn.Sequential(nn.SyncBatchNorm(3))
    with pytest.raises(BadInput, match="0 is a SyncBatchNorm"):
        require_own_statistics(config_of(), model)


def test_a_parameter_outside_the_loss_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "from models.small_resnet import small_resnet\n"
        "from torch import nn\n"
        "def idle(classes, channels):\n"
        "    model = small_resnet(classes, channels)\n"
        "    model.idle = nn.Linear(2, 2)\n"
        "    return model\n"
    )
    options = (
        *QUICK,
        "ddp.exact=true",
        f"model.name={tmp_path}/net.py:idle",
        f"run.dir={tmp_path}",
    )
    assert finish(start(1, options)) == [2]
    assert "idle.weight took no part in the loss of a shard" in capfd.readouterr().err
