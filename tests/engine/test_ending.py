"""What is left when a run ends: its folder's `exit`, the save under way, the true error.

./launch.sh test tests/engine/test_ending.py
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from checkpoint import writer
from checkpoint.folder import RunFolder, claim
from checkpoint.store import load
from configs.load import load as load_config
from configs.load import to_plain
from ddp.end import tell_launcher
from engine import ending, plan
from engine.restart import NoProgress
from tests.checkpoint.content import content, put

QUICKSTART = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"


@pytest.fixture
def saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run folder with a save under way, which this process closes at its end."""
    write = writer.write

    def slow_write(*args: Any, **kwargs: Any) -> writer.Written:
        time.sleep(1.0)
        return write(*args, **kwargs)

    monkeypatch.setattr(writer, "write", slow_write)
    run = claim(tmp_path, "x", "none")
    run.begin("seed: 0\n")
    (run.path / "starts.jsonl").touch()
    run.store(2).save(content(1), 1)
    monkeypatch.setattr(ending, "_claimed", [run])
    yield run
    with suppress(OSError):  # it was released in the test
        run.release()


def test_a_process_alone_finishes_the_save_under_way_when_it_fails(saving: RunFolder) -> None:
    with pytest.raises(RuntimeError, match="a mistake"), ending.exit_recorded(saving):
        raise RuntimeError("a mistake")
    assert (saving.path / "exit").read_text() == "1 a mistake\n"
    assert (saving.path / "last.pt").exists()


def test_rank_0_finishes_the_save_under_way_when_it_loses_another(
    saving: RunFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    assert ending._failed(RuntimeError("gloo/transport: closed by peer")) == 1
    assert (saving.path / "exit").read_text().startswith("1 lost the connection to another rank")
    assert (saving.path / "last.pt").exists()
    assert "a save is under way, and finished first" in capfd.readouterr().err


def test_a_full_disk_does_not_take_the_place_of_the_error(
    saving: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "finish", full)
    with pytest.raises(RuntimeError, match="a mistake"), ending.exit_recorded(saving):
        raise RuntimeError("a mistake")


def test_half_an_error_is_not_left_for_torchrun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "error.json"
    file.symlink_to("/dev/full")
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    tell_launcher(RuntimeError("a mistake"))
    assert not file.is_symlink()


def test_a_restart_in_vain_leaves_the_folder_as_the_start_before_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "exit").write_text("1 why it failed\n")

    def in_vain(*_: object) -> None:
        raise NoProgress("three restarts without progress")

    monkeypatch.setattr(plan, "note_start", in_vain)
    run = claim(tmp_path, "x", "auto")
    with pytest.raises(NoProgress):
        plan._begun(load_config(QUICKSTART), run, None, {})
    run.release()
    assert (run.path / "exit").read_text() == "1 why it failed\n"
    assert not (run.path / "config.yaml").exists()


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 0.5), ("loss", None)])
def test_the_best_so_far_counts_for_its_own_metric_only(
    metric: str, best: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ending, "_claimed", [])
    run = claim(tmp_path, "x", "auto")
    file = put(run.path, 3)
    saved = load(file) | {"config": to_plain(load_config(QUICKSTART))}
    saved["cursor"]["best"] = 0.5
    config = load_config(QUICKSTART, [f"train.best_metric={metric}"])
    assert plan._begun(config, run, file, saved).cursor["best"] == best
    run.release()
