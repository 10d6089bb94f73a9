"""The whole command: what it says, what it leaves, and what it does with input it cannot use.

./launch.sh test tests/test_train.py
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from checkpoint.open import read
from tests.runs import QUICK, finish, run, start

ROOT = Path(__file__).resolve().parents[1]
Said = Callable[..., tuple[list[int | None], str]]


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    """Runs `train.py arguments` and returns (exit codes, what was printed)."""

    def call(world_size: int, *arguments: str) -> tuple[list[int | None], str]:
        capfd.readouterr()
        codes = finish(start(world_size, arguments))
        output = capfd.readouterr()
        return codes, output.out + output.err

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short finished run on two processes."""
    folder = tmp_path_factory.mktemp("runs")
    run(2, *QUICK, f"run.dir={folder}", "run.name=x", "train.epochs=1")
    return folder / "x"


def test_a_run_folder_holds_all_that_the_readme_names(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "last.pt", "best.pt", "logs", "exit"} <= names
    assert (finished / "exit").read_text().startswith("0 ")
    assert {path.name for path in (finished / "logs").iterdir()} >= {"rank-0.log", "rank-1.log"}
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert set(rows[-1]) >= {"step", "epoch", "samples", "train", "eval", "clock"}
    assert {"loss", "lr", "grad_norm"} <= set(rows[-1]["train"])


def test_the_checkpoint_holds_every_key_of_the_contract_and_bare_names(finished: Path) -> None:
    file = torch.load(finished / "last.pt", weights_only=True)
    assert set(file) >= {
        "model", "residual", "optimizer", "scaler", "cursor", "labels", "preprocess", "config",
        "metrics", "environment", "digest",
    }  # fmt: skip
    assert not [name for name in file["model"] if "module." in name or "_orig_mod" in name]
    floats = [tensor for tensor in file["model"].values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float16}
    assert file["labels"] == [str(digit) for digit in range(10)]
    assert file["environment"]["world_size"] == 2


def test_a_score_is_the_same_on_any_number_of_processes(finished: Path, said: Said) -> None:
    expected = read(finished / "last.pt")["metrics"]["eval"]["accuracy"]
    for world_size in (1, 2, 3):
        codes, output = said(world_size, "--evaluate", str(finished / "last.pt"))
        assert codes == [0] * world_size
        assert f"accuracy {expected:.4f}" in output
        assert "on 359 samples" in output


def test_a_finished_run_is_said_to_be_finished_and_trains_nothing(
    finished: Path, said: Said
) -> None:
    before = (finished / "metrics.jsonl").read_bytes()
    codes, output = said(2, "--resume", str(finished / "last.pt"))
    assert codes == [0, 0]
    assert "already finished" in output
    assert (finished / "metrics.jsonl").read_bytes() == before


def test_a_changed_option_that_breaks_exactness_is_said_in_one_line(
    finished: Path, said: Said
) -> None:
    _, output = said(
        2, "--resume", str(finished / "last.pt"), "train.epochs=2", "optim.lr=0.05",
        f"run.dir={finished.parent / 'other'}",
    )  # fmt: skip
    (line,) = [line for line in output.splitlines() if "bit for bit" in line]
    assert "optim.lr 0.1 -> 0.05" in line
    assert "run.dir" not in line


BAD = {
    "misspelt key": (["train.epoch=3"], "did you mean 'epochs'"),
    "wrong type": (["train.epochs=many"], "given 'many'"),
    "misspelt model": (["model.name=smal_resnet"], "did you mean 'small_resnet'"),
    "unknown optimizer": (["optim.name=sdg"], "did you mean 'sgd'"),
    "unknown schedule": (["optim.schedule=cosinus"], "did you mean 'cosine'"),
    "unknown metric": (["train.best_metric=acuracy"], "did you mean 'accuracy'"),
    "missing weights": (["model.weights=nowhere.pt"], "nowhere.pt"),
    "missing configuration": (["--config", "configs/quikstart.yaml"], "quickstart.yaml"),
    "missing checkpoint": (["--resume", "nowhere/last.pt"], "nowhere/last.pt"),
    "indivisible batch": (["train.global_batch=97"], "cannot be divided by 2 processes"),
    "batch larger than the data": (["train.global_batch=9600"], "fewer than one global batch"),
    "missing dataset": (
        ["data.name=fashion_mnist", "data.path=nowhere"],
        "apt-get install dataset-fashion-mnist",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_message_and_exit_code_2(name: str, tmp_path: Path, said: Said) -> None:
    arguments, message = BAD[name]
    quick = [] if "--resume" in arguments else [*QUICK, f"run.dir={tmp_path}"]
    codes, output = said(2, *quick, *arguments)
    assert codes[0] == 2
    assert message in output
    assert "Traceback" not in output
    assert output.count(message) == 1, output
    assert not list(tmp_path.iterdir()), "a folder is left of a run that never began"


LATE = "train.best_metric=acuracy"  # found with the data, when all ranks have met


def test_bad_input_found_late_leaves_a_folder_that_was_there_before(
    tmp_path: Path, said: Said
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "notes.txt").touch()
    options = [*QUICK, f"run.dir={tmp_path}", "run.name=x"]
    assert said(2, *options, LATE)[0][0] == 2
    assert (tmp_path / "x" / "notes.txt").exists()
    assert (tmp_path / "x" / "exit").read_text().startswith("2 unknown metric")
    codes, _ = said(2, *options, "train.epochs=1")  # it does not look begun
    assert codes == [0, 0]


def test_bad_input_found_late_by_another_rank_leaves_no_folder(tmp_path: Path, said: Said) -> None:
    file = tmp_path / "lacking.py"
    file.write_text(
        "import os\n"
        "from data.digits import digits\n"
        "from utils.errors import BadInput\n"
        "def data(section, split):\n"
        "    if os.environ['RANK'] == '2':\n"
        "        raise BadInput('this host lacks the samples')\n"
        "    return digits(section, split)\n"
    )
    codes, output = said(3, *QUICK, f"run.dir={tmp_path / 'runs'}", f"data.name={file}:data")
    assert codes[2] == 2
    assert "[rank 2] error: this host lacks the samples" in output
    assert not list((tmp_path / "runs").iterdir())


def test_bad_input_costs_a_run_that_is_gone_on_with_no_checkpoint_and_no_row(
    finished: Path, tmp_path: Path, said: Said
) -> None:
    run_folder = shutil.copytree(finished, tmp_path / "x")
    weights = {path.name: path.read_bytes() for path in run_folder.glob("*.pt")}
    again = ["--resume", str(run_folder / "last.pt"), f"run.dir={tmp_path}", "train.epochs=2"]
    assert said(2, *again, "train.global_batch=48")[0][0] == 2
    assert (run_folder / "exit").read_text() == "0 finished\n"  # found before it began again
    assert said(2, *again, LATE)[0][0] == 2
    assert {path.name: path.read_bytes() for path in run_folder.glob("*.pt")} == weights
    assert len((run_folder / "metrics.jsonl").read_text().splitlines()) == 14


def test_a_checkpoint_of_another_model_names_keys_and_shapes(finished: Path, said: Said) -> None:
    codes, output = said(
        2, "--resume", str(finished / "last.pt"), "train.epochs=3",
        "model.name=tests/networks.py:out_of_order", f"run.dir={finished.parent / 'another'}",
    )  # fmt: skip
    assert codes == [2, 2]
    assert "checkpoint of another model" in output
    assert "conv1.weight: not in the file" in output


def test_an_unfinished_run_is_not_overwritten_and_names_the_way_on(
    tmp_path: Path, said: Said
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "metrics.jsonl").write_text('{"step": 1}\n')
    codes, output = said(1, *QUICK, f"run.dir={tmp_path}", "run.name=x")
    assert codes == [2]
    assert "--resume auto" in output


def test_a_run_whose_output_nobody_reads_any_more_goes_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    script = [sys.executable, "train.py", *QUICK, f"run.dir={tmp_path}", "run.name=deaf"]
    process = subprocess.Popen(script, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.close(reader)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert (tmp_path / "deaf" / "exit").read_text() == "0 finished\n"
