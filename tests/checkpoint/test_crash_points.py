"""Every write-class system call of a save, killed and made to fail: the old checkpoint or the new
one is there, whole, and an error leaves no temporary file and says what the system said."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc) to build the fault shim with")
    built = tmp_path / "faults.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(built), str(HERE / "faults.c"), "-ldl"]
    subprocess.run(command, check=True)
    return built


def test_no_system_call_of_a_save_can_lose_a_checkpoint(shim: Path, tmp_path: Path) -> None:
    root = str(HERE.parents[1])
    environment = os.environ | {"LD_PRELOAD": str(shim), "PYTHONPATH": root}
    command = [sys.executable, str(HERE / "crash_points.py"), str(shim), str(tmp_path)]
    command += ["kill", "ENOSPC", "EIO"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for mode, tally in json.loads(done.stdout).items():
        print(mode, tally)  # for `pytest -s`: the figures of docs/checkpoint.md
        assert tally["bad"] == []
        assert tally["points"] > 20 and tally["old"] + tally["new"] == tally["points"]
        assert tally["old"] > 0 and tally["new"] > 0
