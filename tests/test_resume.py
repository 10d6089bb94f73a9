"""A run that was killed and resumed ends in the same bits as one that never stopped.

./launch.sh test tests/test_resume.py
"""

from pathlib import Path

import pytest

import train
from tests.runs import QUICK, assert_same_bits, kill_at, outcome, run

# DDP regroups the gradients of this network after the first backward: the hard case.
OUT_OF_ORDER = "model.name=tests/networks.py:out_of_order"

CASES = {
    "1 process": (1, ()),
    "2 processes, 2 workers": (2, ("data.workers=2",)),
    "3 processes": (3, ()),
    "3 processes, buckets regrouped": (3, (OUT_OF_ORDER,)),
    "3 processes, accumulation, static graph": (
        3,
        (OUT_OF_ORDER, "train.micro_batch=12", "ddp.static_graph=true"),
    ),
    "3 processes, bf16, channels last, adamw, 2 workers": (
        3,
        (
            "train.precision=bf16",
            "train.channels_last=true",
            "optim.name=adamw",
            "optim.lr=0.01",
            "data.workers=2",
        ),
    ),
    "3 processes, unused parameters looked for, small buckets, clipping": (
        3,
        ("ddp.find_unused_parameters=true", "ddp.bucket_cap_mb=0.05", "optim.clip_norm=0.5"),
    ),
    "4 processes, accumulation, bf16": (
        4,
        (OUT_OF_ORDER, "train.micro_batch=7", "train.precision=bf16"),
    ),
    "4 processes, static graph, no bucket views": (
        4,
        (OUT_OF_ORDER, "ddp.static_graph=true", "ddp.gradient_as_bucket_view=false"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_killed_in_mid_epoch_and_resumed_ends_in_the_same_bits(
    name: str, tmp_path: Path
) -> None:
    world_size, options = CASES[name]
    common = (*QUICK, "save.every_steps=4", *options)
    run(world_size, *common, f"run.dir={tmp_path}", "run.name=unbroken")
    broken = (*common, f"run.dir={tmp_path}", "run.name=broken")
    kill_at(world_size, tmp_path / "broken", 10, *broken)
    run(world_size, "--resume", "auto", "--config", "configs/quickstart.yaml", *broken)
    assert_same_bits(outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken"))


def test_a_checkpoint_by_name_goes_on_to_more_epochs_on_another_number_of_processes(
    tmp_path: Path,
) -> None:
    run(2, *QUICK, f"run.dir={tmp_path}", "run.name=x", "train.epochs=1")
    run(3, "--resume", str(tmp_path / "x" / "last.pt"), "train.epochs=2")
    last = outcome(tmp_path / "x")
    assert (last["cursor"]["epoch"], last["cursor"]["step"]) == (2, 28)
    assert [row["step"] for row in last["rows"]] == list(range(1, 29))
    run(2, "--resume", str(tmp_path / "x" / "last.pt"))  # nothing is left to do
    assert_same_bits(last, outcome(tmp_path / "x"))


def test_without_the_warm_up_passes_a_resumed_run_would_not_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "warm_up", lambda *_: None)
    common = (*QUICK, OUT_OF_ORDER, "save.every_steps=4")
    run(3, *common, f"run.dir={tmp_path}", "run.name=unbroken")
    broken = (*common, f"run.dir={tmp_path}", "run.name=broken")
    kill_at(3, tmp_path / "broken", 10, *broken)
    run(3, "--resume", "auto", "--config", "configs/quickstart.yaml", *broken)
    with pytest.raises(AssertionError, match=r"rows|differs in some bits"):
        assert_same_bits(outcome(tmp_path / "unbroken"), outcome(tmp_path / "broken"))
