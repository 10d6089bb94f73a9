"""One real run, with everything that people look at, for all tests of the report."""

import shutil
import time
from pathlib import Path

import pytest

from tests.runs import QUICK, run

WATCHED = ("log.report=true", "log.tensorboard=true", "save.every_steps=14")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two processes that was gone on with after its second epoch."""
    folder = tmp_path_factory.mktemp("runs")
    run(2, *QUICK, *WATCHED, f"run.dir={folder}", "run.name=x")
    run(2, "--resume", str(folder / "x" / "last.pt"), "train.epochs=3", "log.report=true")
    # Where every processor is busy the run does not wait for its last report, which follows.
    page, limit = folder / "x" / "report.html", time.monotonic() + 60
    while not (page.is_file() and "finished" in page.read_text() and "3 of 3" in page.read_text()):
        assert time.monotonic() < limit, "no last report"
        time.sleep(0.1)
    return folder / "x"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A run folder that a test may change."""
    shutil.copytree(finished, tmp_path / "x")
    return tmp_path / "x"
