"""Averaged weights: their closed form, their file, their score; frozen parts; the loss scale.

./launch.sh test tests/engine/test_average.py
"""

import json
from pathlib import Path

import pytest
import torch

from checkpoint.open import read
from checkpoint.state import restored
from engine.average import Average
from models.build import build_model, find_builder
from models.freeze import freeze
from tests.runs import QUICK, finish, run, start
from utils.errors import BadInput

NETWORKS = "tests/option_networks.py"
SHORT = (*QUICK, "train.global_batch=240", "train.epochs=1", "optim.warmup_epochs=0.4")


def small_resnet(seed: int = 0) -> torch.nn.Module:
    return build_model(find_builder("small_resnet"), 10, 1, seed=seed, initialise=True)


@pytest.mark.parametrize(("half_life", "global_batch"), [(300.0, 96), (96.0, 96), (5e6, 8192)])
def test_the_average_equals_its_closed_form(half_life: float, global_batch: int) -> None:
    model = small_resnet()
    average = Average(model, half_life, global_batch)
    seen = [{name: t.double().clone() for name, t in model.state_dict().items()}]
    torch.manual_seed(1)
    for _ in range(30):
        for tensor in model.state_dict().values():
            tensor.add_(torch.randn_like(tensor) if tensor.is_floating_point() else 1)
        average.update()
        seen.append({name: t.double().clone() for name, t in model.state_dict().items()})
    decay = 0.5 ** (global_batch / half_life)
    for name, found in average.model.state_dict().items():
        if not found.is_floating_point():
            assert torch.equal(found.double(), seen[-1][name])
            continue
        expected = decay**30 * seen[0][name]
        for step in range(1, 31):
            expected = expected + (1 - decay) * decay ** (30 - step) * seen[step][name]
        assert (found.double() - expected).abs().max() < 1e-6 * max(1, expected.abs().max())


def test_half_of_the_memory_is_gone_after_the_half_life_whatever_the_batch() -> None:
    for global_batch in (10, 100, 1000):
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        average = Average(model, 1000.0, global_batch)
        torch.nn.init.ones_(model.weight)
        for _ in range(1000 // global_batch):
            average.update()
        assert average.model.weight.item() == pytest.approx(0.5, abs=1e-6)


def test_the_average_is_saved_chooses_the_best_and_is_what_a_score_is_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(2, *SHORT, "train.ema=200", f"run.dir={tmp_path}", "run.name=x")
    file = tmp_path / "x" / "last.pt"
    content = read(file)
    saved = restored(content)
    assert set(saved["ema"]) == set(saved["model"])
    assert not torch.equal(saved["ema"]["head.weight"], saved["model"]["head.weight"])
    expected = content["metrics"]["eval"]["loss"]
    assert content["cursor"]["best"] == content["metrics"]["eval"]["accuracy"]
    capfd.readouterr()
    run(2, "--evaluate", str(file))
    said = capfd.readouterr().out
    assert f"loss {expected:.4f}" in said
    assert "scoring the averaged weights" in said
    run(2, "--evaluate", str(file), "train.ema=null")
    assert f"loss {expected:.4f}" not in capfd.readouterr().out


def test_frozen_parameters_and_statistics_do_not_move_by_one_bit(tmp_path: Path) -> None:
    patterns = ["stem.*", "blocks.0.*", "blocks.1.conv?.weight"]
    options = (*SHORT, f"model.freeze={json.dumps(patterns)}", "optim.lr=0.5")
    run(2, *options, f"run.dir={tmp_path}", "run.name=x")
    after = restored(read(tmp_path / "x" / "last.pt"))["model"]
    before = small_resnet().state_dict()
    still = {name for name in before if torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith(("stem.", "blocks.0."))}
    assert still == frozen | {"blocks.1.conv1.weight", "blocks.1.conv2.weight"}
    named = read(tmp_path / "x" / "last.pt")["optimizer"]["param_groups"]
    assert not still & {name for group in named for name in group["param_names"]}


def test_freezing_tells_what_is_frozen_and_refuses_what_makes_no_sense() -> None:
    model = small_resnet()
    said = freeze(model, ["stem.*"])
    assert said == (
        "frozen: 3 of 29 tensors, 352 of 308,074 parameters, 1 BatchNorms in evaluation mode"
    )
    assert not model.stem[1].training
    assert model.blocks[0].norm1.training
    with pytest.raises(BadInput, match=r"matches no parameter; did you mean 'head\.weight'"):
        freeze(small_resnet(), ["head.weigth"])
    with pytest.raises(BadInput, match="every parameter is frozen"):
        freeze(small_resnet(), ["*"])


def rows(folder: Path) -> list[dict[str, dict[str, float]]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_fp16_skips_overflowing_steps_counts_them_and_keeps_its_scale(tmp_path: Path) -> None:
    options = (*SHORT, f"model.name={NETWORKS}:loud", "train.precision=fp16", "optim.lr=0.001")
    run(2, *options, f"run.dir={tmp_path}", "run.name=x")
    told = [row["train"] for row in rows(tmp_path / "x")]
    skipped = told[-1]["skipped_steps"]
    assert 1 <= skipped < len(told)
    assert told[-1]["loss_scale"] == 65536 / 2**skipped
    assert [train["grad_norm"] is None for train in told] == [n < skipped for n in range(len(told))]
    saved = read(tmp_path / "x" / "last.pt")
    assert saved["scaler"]["scale"] == told[-1]["loss_scale"]
    log = (tmp_path / "x" / "logs" / "rank-0.log").read_text()
    assert "step 1 skipped: its gradient overflowed in fp16" in log


def test_too_many_overflowing_steps_in_a_row_stop_the_run(tmp_path: Path) -> None:
    options = (*SHORT, f"model.name={NETWORKS}:loud", "train.precision=fp16")
    options += ("faults.max_skipped_steps=1", f"run.dir={tmp_path}", "run.name=x")
    assert finish(start(2, options)) == [1, 1]
    assert "1 steps in a row overflowed in fp16" in (tmp_path / "x" / "exit").read_text()


def test_a_loss_that_is_not_finite_stops_the_run_before_any_scaling(tmp_path: Path) -> None:
    options = (*SHORT, f"model.name={NETWORKS}:broken", "train.precision=fp16")
    assert finish(start(2, (*options, f"run.dir={tmp_path}", "run.name=x"))) == [1, 1]
    assert (
        "the loss was not finite on ranks 0, 1 by step 1" in (tmp_path / "x" / "exit").read_text()
    )
    assert not list((tmp_path / "x").glob("*.pt"))


def test_the_rank_whose_loss_was_not_finite_is_named_and_nothing_of_it_is_saved(
    tmp_path: Path,
) -> None:
    options = (*SHORT, f"model.name={NETWORKS}:broken_on_rank_1", "save.every_steps=1")
    assert finish(start(2, (*options, f"run.dir={tmp_path}", "run.name=x"))) == [1, 1]
    told = (tmp_path / "x" / "exit").read_text()
    assert "step 4: the gradient norm is nan; the loss was not finite on rank 1; the step" in told
    saved = read(tmp_path / "x" / "last.pt")
    assert saved["cursor"]["step"] == 3
    kept = [*saved["model"].values(), *saved["optimizer"]["state"][0].values()]
    assert all(tensor.isfinite().all() for tensor in kept if isinstance(tensor, torch.Tensor))
