"""One rank of a large job, alone: what it takes, the mistakes the job would meet, and nothing left.

./launch.sh test tests/test_rehearsal.py
"""

import multiprocessing
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from checkpoint.open import read
from ddp.collectives import exchange, gather_rows, max_over_ranks, sum_over_ranks
from ddp.exact import tree_sum_over_ranks
from ddp.process import join, rehearse
from ddp.rank0 import on_every_rank, on_rank0
from engine.ending import end
from tests.runs import QUICK
from utils.errors import BadInput

_fork = multiprocessing.get_context("fork")
Told = Callable[..., tuple[int | None, str]]
# A quarter of a million images of 8 x 8 pixels; a network of 10 numbers.
ROOT = Path(__file__).resolve().parent.parent
PLAIN = ("model.weights=null", "data.image_size=null")
MANY = (f"data.name={ROOT}/bench/networks.py:grey", *PLAIN)
NOTHING = f"model.name={ROOT}/bench/networks.py:nothing"
FITS = "train.global_batch=1024"


def _alone(arguments: tuple[str, ...], folder: Path) -> None:
    """`python train.py arguments` in `folder`, which is its folder of temporary files too."""
    os.setsid()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
    os.chdir(folder)
    torch.set_num_threads(1)
    os._exit(end(train.run, list(arguments)))


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Told:
    """Runs `train.py arguments` alone: (exit code, what was printed). It must leave nothing."""

    def call(*arguments: str) -> tuple[int | None, str]:
        capfd.readouterr()
        process = _fork.Process(target=_alone, args=(arguments, tmp_path))
        process.start()
        process.join(60)
        output = capfd.readouterr()
        assert [path.name for path in tmp_path.rglob("*")] == []
        return process.exitcode, output.out + output.err

    return call


def line(output: str, name: str) -> str:
    """What the line `name` of the answer says."""
    [found] = re.findall(rf"^  {name} +(.+)$", output, flags=re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("rank", [0, 777])
def test_one_rank_of_1024_says_what_it_takes(told: Told, rank: int) -> None:
    code, output = told(
        "--rehearse", "1024", "--rank", str(rank), *MANY, "train.global_batch=4096",
        "train.micro_batch=2", "data.workers=1",
    )  # fmt: skip
    assert code == 0, output
    assert f"rank {rank} of 1,024" in output
    assert line(output, "step") == "1024 processes x 2 micro-batches x 2 = global batch 4096"
    assert line(output, "this rank") == "4 samples a step, gradients of 2 added up"
    assert line(output, "epoch") == "64 steps, 262,144 of 262,144 samples; 0 dropped (0.00%)"
    assert line(output, "run") == "6 epochs, 384 steps, 1,572,864 samples"
    assert line(output, "parameters") == "308,074, of which 308,074 are trained"
    assert line(output, "gradients") == "1.23 MB a step, averaged over 1,024 ranks by DDP"
    assert line(output, "optimizer") == "1.23 MB of state"
    assert ("written by this rank" in line(output, "checkpoint")) == (rank == 0)
    assert re.fullmatch(r"[\d.,]+ MB at most, .+", line(output, "memory"))
    assert re.fullmatch(r"[\d.]+ s until the first step: .+", line(output, "start"))
    assert re.fullmatch(r"[\d.,e+]+ ms a step on this machine, .+", line(output, "computing"))
    assert re.fullmatch(r"[\d.,e+-]+ ms a step of waiting for it, .+", line(output, "loader"))


def test_the_size_of_the_checkpoint_is_that_of_a_real_one(told: Told, tmp_path: Path) -> None:
    _, output = told("--rehearse", "2", *PLAIN)
    told_mb = float(line(output, "checkpoint").split()[0])
    process = _fork.Process(target=_alone, args=((*QUICK, "train.epochs=1"), tmp_path))
    process.start()
    process.join(60)
    written = tmp_path / "runs" / "quickstart" / "last.pt"
    assert read(written)
    assert told_mb == pytest.approx(written.stat().st_size / 1e6, rel=0.01)


def test_no_score_no_loss_and_no_agreement_is_told(told: Told) -> None:
    """Neither by the steps, nor at the end of an epoch, of which this run has one in each step."""
    code, output = told("--rehearse", "1024", FITS, "log.every_steps=1", "save.every_steps=1")
    assert code == 0
    assert line(output, "epoch") == "1 step, 1,024 of 1,438 samples; 414 dropped (28.79%)"
    for word in ("accuracy", "loss", "held out", "agree", "images/s"):
        assert word not in output
    assert len(output.splitlines()) == 13


def test_a_rank_of_65536_is_rehearsed_in_a_moment(told: Told) -> None:
    begun = time.monotonic()
    code, output = told(
        "--rehearse", "65536", "--rank", "65535", *MANY, NOTHING, "train.global_batch=65536",
        "train.epochs=1",
    )  # fmt: skip
    assert code == 0, output
    assert line(output, "run") == "1 epoch, 4 steps, 262,144 samples"
    assert line(output, "parameters") == "10, of which 10 are trained"
    assert time.monotonic() - begun < 30


def test_without_a_configuration_the_quickstart_is_rehearsed(told: Told) -> None:
    code, output = told("--rehearse", "2", "--rank", "1")
    assert code == 0, output
    assert line(output, "this rank") == "48 samples a step, no accumulation"


@pytest.mark.parametrize(
    "option",
    [
        "train.precision=fp16",
        "train.ema=500",
        "ddp.find_unused_parameters=true",
        "ddp.static_graph=true",
        "ddp.gradient_as_bucket_view=false",
        "data.augment.mixup=0.2",
    ],
)
def test_every_kind_of_step_is_rehearsed(told: Told, option: str) -> None:
    code, output = told("--rehearse", "16", "--rank", "9", *PLAIN, option)
    assert code == 0, output


def test_exact_mode_is_rehearsed(told: Told) -> None:
    code, output = told("--rehearse", "64", "--rank", "63", "ddp.exact=true", "ddp.shards=128",
                        "train.global_batch=256")  # fmt: skip
    assert code == 0, output
    assert line(output, "gradients").endswith("a step, exchanged 6 times to add up 64 ranks")


BEFORE_RANKS_MEET = {
    "batch": (("train.global_batch=96",), "cannot be divided by 1024 processes; it can by 1, 2, 3"),
    "shards": ((FITS, "ddp.exact=true"), "8 shards cannot be shared by 1024 processes"),
    "weights": ((FITS, "model.weights=none.pt"), "model.weights: there is no file none.pt"),
    "optimizer": ((FITS, "optim.name=sgdd"), "did you mean 'sgd'?"),
    "schedule": ((FITS, "optim.schedule=cosin"), "did you mean 'cosine'?"),
    "model": ((FITS, "model.name=small_resnett"), "did you mean 'small_resnet'?"),
    "key": ((FITS, "optim.lrr=1"), "did you mean 'lr'?"),
}
ON_EVERY_RANK = {
    "dataset": (("train.global_batch=4096",), "has 1438 training samples, fewer than one global"),
    "data": ((FITS, "data.name=image_folder", "data.path=none"), "none is not a folder"),
    "pattern": ((FITS, "model.freeze=[nothing.*]"), "model.freeze: 'nothing.*'"),
    "metric": ((FITS, "train.best_metric=acuracy"), "did you mean 'accuracy'?"),
    "matched": ((FITS, "model.name=cifar_resnet18"), "small_resnet_fashion_mnist.pt"),
}
if not torch.cuda.is_available():
    norm = ((FITS, "ddp.sync_batchnorm=true"), "torch has SyncBatchNorm for GPUs only")
    BEFORE_RANKS_MEET["norm"] = norm


@pytest.mark.parametrize("name", BEFORE_RANKS_MEET)
def test_what_rank_0_would_refuse_is_told_by_any_rank(told: Told, name: str) -> None:
    arguments, expected = BEFORE_RANKS_MEET[name]
    code, output = told("--rehearse", "1024", "--rank", "777", *arguments)
    assert (code, output.count(expected)) == (2, 1), output
    assert "Traceback" not in output


@pytest.mark.parametrize("name", ON_EVERY_RANK)
def test_what_every_rank_meets_is_told_in_the_same_words_by_each(told: Told, name: str) -> None:
    arguments, expected = ON_EVERY_RANK[name]
    answers = {told("--rehearse", "1024", "--rank", rank, *arguments) for rank in ("0", "777")}
    [(code, output)] = answers
    assert (code, output.count(expected)) == (2, 1), output
    assert "Traceback" not in output


def test_a_rehearsal_under_torchrun_is_told_how_it_is_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        BadInput, match=r"without torchrun, as `python train.py --rehearse 8 --rank"
    ):
        rehearse(3, 8)


@pytest.mark.parametrize("written", [".lock", "samples.npz"], ids=["before the steps", "in them"])
def test_a_signal_ends_it_and_leaves_nothing(
    tmp_path: Path, written: str, capfd: pytest.CaptureFixture[str]
) -> None:
    slow = (f"model.name={ROOT}/tests/networks.py:slow", *PLAIN)
    process = _fork.Process(target=_alone, args=(("--rehearse", "8", *slow), tmp_path))
    process.start()
    limit = time.monotonic() + 30
    while not list(tmp_path.glob(f"lockstep-*/rehearsal/{written}")):
        assert time.monotonic() < limit and process.is_alive()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGINT)
    process.join(30)
    assert process.exitcode == 75
    assert capfd.readouterr().out == "the rehearsal was stopped by a signal; nothing was kept\n"
    assert list(tmp_path.iterdir()) == []


def _collectives(rank: int, world_size: int) -> None:
    rehearse(rank, world_size)
    place = join()
    assert (place.rank, place.world_size) == (rank, world_size)
    row = torch.tensor([rank, 7])
    assert sum_over_ranks(row.clone()).tolist() == [rank * world_size, 7 * world_size]
    assert max_over_ranks(row.clone()).tolist() == [rank, 7]
    assert gather_rows(row).tolist() == [[rank, 7]] * world_size
    theirs = torch.full((2,), -1)
    exchange(row, theirs, 0)
    assert theirs.tolist() == row.tolist()
    gradient = torch.tensor([0.5, -2.0])
    tree_sum_over_ranks([gradient])
    assert gradient.tolist() == [0.5 * world_size, -2.0 * world_size]
    assert on_rank0(lambda: 5) == 5
    assert isinstance(on_every_rank(nn.Identity), nn.Identity)
    with pytest.raises(BadInput, match="as it is"):
        on_rank0(_refuse)


def _refuse() -> None:
    raise BadInput("as it is")


def _checked(rank: int, world_size: int) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    try:
        _collectives(rank, world_size)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


@pytest.mark.parametrize("rank", [0, 5])
def test_in_every_collective_the_others_are_twins(rank: int) -> None:
    process = _fork.Process(target=_checked, args=(rank, 8))
    process.start()
    process.join(30)
    assert process.exitcode == 0
