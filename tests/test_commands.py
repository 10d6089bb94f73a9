"""Every command refuses bad input in the same way: `error:` on standard error, and a 2.

./launch.sh test tests/test_commands.py              (launch.sh's own: tests/test_launch.py)
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import report.__main__
from checkpoint import inspect
from configs import __main__ as preflight
from configs import describe
from models import export
from tests.runs import QUICK, finish, start

ROOT = Path(__file__).resolve().parents[1]


def train(argv: Sequence[str]) -> int | None:
    """The exit code of `train.py argv` in a process of its own."""
    [code] = finish(start(1, argv))
    return code


COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "train.py": train,
    "configs": preflight.main,
    "configs.describe": describe.main,
    "checkpoint.inspect": inspect.main,
    "models.export": export.main,
    "report": report.__main__.main,
}


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that must refuse its arguments says behind `error: `."""

    def call(name: str, *argv: str) -> str:
        assert COMMANDS[name](argv) == 2
        said = capfd.readouterr()
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert "Traceback" not in said.err
        return said.err.removeprefix("error: ")

    return call


@pytest.mark.parametrize(
    ("name", "fitting"),
    [
        ("train.py", ["seed=1"]),
        ("configs", ["seed=1"]),
        ("configs.describe", []),
        ("checkpoint.inspect", ["x.pt"]),
        ("models.export", ["x.pt", "y.pt"]),
        ("report", ["x", "y"]),
    ],
)
def test_an_unknown_argument_is_told_with_the_usage(
    name: str, fitting: list[str], refused: Callable[..., str]
) -> None:
    told = refused(name, *fitting, "--nothing-like-it")
    assert told.startswith("unknown argument --nothing-like-it\nusage: ")


@pytest.mark.parametrize(
    ("name", "argv", "near"),
    [
        ("train.py", ["--confg", "x"], "--config"),
        ("configs", ["--confg=x"], "--config"),
        ("models.export", ["x.pt", "y", "--frmat", "onnx"], "--format"),
        ("report", ["x", "--outpt", "y"], "--output"),
    ],
)
def test_of_a_misspelt_option_the_near_one_is_told(
    name: str, argv: list[str], near: str, refused: Callable[..., str]
) -> None:
    assert f"; did you mean '{near}'?\nusage: " in refused(name, *argv)


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("train.py", ["--evaluate", "{}"]),
        ("configs", ["--evaluate", "{}"]),
        ("checkpoint.inspect", ["{}"]),
        ("models.export", ["{}", "out.pt"]),
        ("report", ["{}"]),
    ],
)
def test_a_file_that_is_not_there_is_one_line(
    name: str, argv: list[str], refused: Callable[..., str], tmp_path: Path
) -> None:
    absent = str(tmp_path / "absent")
    told = refused(name, *(word.format(absent) for word in argv))
    assert absent in told
    assert told.count("\n") == 1


def test_a_place_that_cannot_be_written_to_is_one_line(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("run:\n  name: x\n")
    told = refused("report", str(tmp_path), "--output", str(tmp_path / "absent" / "x.html"))
    assert "No such file or directory" in told


def test_a_command_whose_output_nobody_reads_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "configs.describe"]
    done = subprocess.run(
        command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["data.name=image_folder", "data.path=absent"],
            "data.path: image_folder needs the folder",
        ),
        (["optim.lr=1e6"], "the gradient norm is nan"),
    ],
)
def test_what_a_message_tells_is_the_last_thing_said_under_torchrun_and_no_traceback_of_ours(
    options: list[str], message: str, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "train.py"]
    done = subprocess.run(
        [*torchrun, *QUICK, *options, f"run.dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1  # all that torchrun knows
    [told] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in told
    assert f'File "{ROOT}' not in done.stderr
    *_, last, _, _ = done.stderr.splitlines()
    assert message in last
