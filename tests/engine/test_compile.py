"""`train.compile`: the same names, the same keys of dropout, the same bits after a kill.

./launch.sh test tests/engine/test_compile.py
"""

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from checkpoint.open import read
from configs.schema import Config, Ddp
from ddp.wrap import wrap
from engine.gradient import key_randomness
from engine.step import step_settings
from tests.ranks import run_ranks
from tests.runs import QUICK, assert_same_bits, kill_at, outcome, run

NETWORKS = "tests/option_networks.py"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code of this session alone, so that no other session's is measured or trusted."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "inductor"))
    logging.getLogger("torch").setLevel(logging.ERROR)


def compiled_dropout(rank: int) -> tuple[bool, bool, list[str], bool]:
    model = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5))
    ddp_model = wrap(model, Ddp(), compiled=True)
    settings = step_settings(Config(), [2], 1, torch.device("cpu"))
    x = torch.ones(2, 4)

    def drawn(step: int, index: int) -> torch.Tensor:
        key_randomness(settings, step, index)
        return ddp_model(x).detach()

    first = drawn(3, 1)
    torch.rand(17)
    return (
        torch.equal(first, drawn(3, 1)),
        torch.equal(first, drawn(3, 2)) or torch.equal(first, drawn(4, 1)),
        list(ddp_model.module.state_dict()),
        ddp_model.module is model,
    )


def test_dropout_of_compiled_code_is_drawn_from_step_and_micro_batch() -> None:
    ((same, different_are_same, names, unwrapped),) = run_ranks(1, compiled_dropout)
    assert same
    assert not different_are_same
    assert names == ["0.weight", "0.bias"]
    assert unwrapped


def test_a_compiled_run_killed_and_resumed_ends_in_the_same_bits_under_bare_names(
    tmp_path: Path,
) -> None:
    options = ("train.compile=true", f"model.name={NETWORKS}:tiny", "train.ema=500")
    common = (*QUICK, "train.global_batch=240", "save.every_steps=3", *options)
    run(2, *common, f"run.dir={tmp_path}", "run.name=unbroken")
    broken = (*common, f"run.dir={tmp_path}", "run.name=broken")
    kill_at(2, tmp_path / "broken", 4, *broken)
    run(2, "--resume", "auto", "--config", "configs/quickstart.yaml", *broken)
    assert_same_bits(outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken"))
    for file in (tmp_path / "broken").glob("*.pt"):
        content = read(file)
        names = {*content["model"], *content["optimizer"]["param_groups"][0]["param_names"]}
        assert not [name for name in names if "_orig_mod" in name]
