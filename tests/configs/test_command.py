"""The command line, and its check before any process starts."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.__main__ import main
from configs.command import DEFAULT_CONFIG, Command, parse
from utils.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_said_is_the_quickstart_wherever_one_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse([]) == Command(DEFAULT_CONFIG, None, None, ())
    monkeypatch.chdir(ROOT)
    assert parse([]).config == Path("configs/quickstart.yaml")


def test_overrides_may_stand_anywhere():
    command = parse(["a.b=1", "--config", "x.yaml", "c.d=2", "--resume", "auto", "e.f=3"])
    assert command == Command(Path("x.yaml"), "auto", None, ("a.b=1", "c.d=2", "e.f=3"))


def test_one_process_of_many_is_rehearsed():
    command = parse(["--rehearse", "1024", "--rank", "777", "--config", "x.yaml", "a.b=1"])
    assert command == Command(Path("x.yaml"), None, None, ("a.b=1",), 1024, 777)
    assert parse(["--rehearse", "2"])[-2:] == (2, 0)


def test_a_checkpoint_brings_its_configuration():
    assert parse(["--resume", "x.pt", "a.b=1"]) == Command(None, "x.pt", None, ("a.b=1",))
    assert parse(["--evaluate", "x.pt"]) == Command(None, None, Path("x.pt"), ())


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--config", "x.yaml", "--resume", "x.pt"], "x.pt holds its own"),
        (["--config", "x.yaml", "--evaluate", "x.pt"], "x.pt holds its own"),
        (["--resume", "auto", "--evaluate", "x.pt"], "exclude each other"),
        (["--rehearse", "0"], "--rehearse 0: a job has at least 1 process"),
        (["--rehearse", "many"], "invalid int value: 'many'"),
        (["--rehearse", "8", "--rank", "8"], "--rank 8: the ranks of 8 processes are 0 to 7"),
        (["--rehearse", "8", "--rank", "-1"], "--rank -1: the ranks of 8 processes are 0 to 7"),
        (["--rank", "3"], "--rank says which process of --rehearse N is played: give both"),
        (["--rehearse", "8", "--resume", "auto"], "from its beginning: leave out --resume"),
        (["--rehearse", "8", "--evaluate", "x.pt"], "from its beginning: leave out --evaluate"),
        (["--resume"], "expected one argument"),
        (["--resume="], "--resume needs a file"),
        (["--optim.lr=3"], "unknown argument --optim.lr\nusage: "),
        (["--conf", "x.yaml"], "unknown argument --conf; did you mean '--config'?"),
    ],
)
def test_a_command_line_that_says_nothing_sensible_is_bad_input(argv, told):
    with pytest.raises(BadInput, match=r"usage: train\.py") as error:
        parse(argv)
    assert told in str(error.value)


def test_the_preflight_prints_one_message_and_returns_2(tmp_path, capsys):
    assert main(["optim.lr=1"]) == 0
    assert main(["optim.lrr=1"]) == 2
    assert main(["--resume", str(tmp_path / "x.pt")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    first, second = said.err.splitlines()
    assert first.startswith(
        "error: override optim.lrr=1: unknown key optim.lrr; did you mean 'lr'?"
    )
    assert second == f"error: there is no checkpoint file {tmp_path}/x.pt"


def test_the_preflight_checks_overrides_beside_a_checkpoint(tmp_path, capsys):
    file = tmp_path / "x.pt"
    file.touch()
    assert main(["--resume", str(file), "train.epochs=9"]) == 0
    assert main(["--evaluate", str(file), "train.epoch=9"]) == 2
    assert "did you mean 'epochs'?" in capsys.readouterr().err


def test_the_preflight_is_quick_and_imports_no_torch():
    code = """
import json, sys
from configs.__main__ import main
print(json.dumps([main(["optim.lr=1"]), sorted(sys.modules)]))
"""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True)
    assert time.monotonic() - start < 3  # 0.2 s alone; other tests may be running
    returned, modules = json.loads(done.stdout)
    assert returned == 0
    assert not {"torch", "numpy", "torchvision"} & set(modules)


def test_the_preflight_runs_as_a_module():
    command = [sys.executable, "-m", "configs", "optim.lrr=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
