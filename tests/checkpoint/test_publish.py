"""The protocol of one save: links, retention, and what a failure or a kill leaves behind."""

import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from checkpoint import publish, store
from checkpoint.writer import write
from tests.checkpoint.content import content, flip, names, put, same, temporaries
from utils.errors import BadInput


def test_last_and_best_are_links_that_move(tmp_path: Path) -> None:
    put(tmp_path, 1, best=True)
    put(tmp_path, 2)
    assert (tmp_path / "last.pt").samefile(tmp_path / "step-00000002.pt")
    assert (tmp_path / "best.pt").samefile(tmp_path / "step-00000001.pt")
    put(tmp_path, 2, best=True, seed=5)
    assert (tmp_path / "last.pt").samefile(tmp_path / "step-00000002.pt")
    assert (tmp_path / "best.pt").samefile(tmp_path / "step-00000002.pt")
    assert temporaries(tmp_path) == []


def test_where_links_are_refused_last_and_best_are_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for step in range(1, 5):
        put(tmp_path, step, best=step == 1)
    assert store.load(tmp_path / "last.pt")["cursor"]["step"] == 4
    assert store.load(tmp_path / "best.pt")["cursor"]["step"] == 1
    assert names(tmp_path)[2:] == ["step-00000001.pt", "step-00000003.pt", "step-00000004.pt"]
    assert temporaries(tmp_path) == []


def test_the_oldest_go_but_never_the_best_nor_a_stranger(tmp_path: Path) -> None:
    put(tmp_path, 10, keep=1)  # two stay at least
    shutil.copy(tmp_path / "step-00000010.pt", tmp_path / "step-00000001.pt")
    put(tmp_path, 20, keep=1, best=True)
    for step in (30, 40, 50):
        put(tmp_path, step, keep=1)
    kept = ["step-00000001.pt", "step-00000020.pt", "step-00000040.pt", "step-00000050.pt"]
    assert names(tmp_path) == ["best.pt", "last.pt", *kept]
    put(tmp_path, 60, best=True)
    kept = ["step-00000001.pt", "step-00000050.pt", "step-00000060.pt"]
    assert names(tmp_path) == ["best.pt", "last.pt", *kept]


def test_a_file_that_someone_replaced_is_not_ours_to_delete(tmp_path: Path) -> None:
    for step in (1, 2):
        put(tmp_path, step)
    (tmp_path / "step-00000001.pt").write_bytes(b"notes")
    for step in (3, 4, 5):
        put(tmp_path, step)
    assert (tmp_path / "step-00000001.pt").read_bytes() == b"notes"


def test_a_refused_deletion_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        put(tmp_path, step)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "step-00000001.pt":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    written = publish.publish(tmp_path, store.load(put(tmp_path, 3)), best=False, keep=2)
    assert len(written.warnings) == 1
    assert written.warnings[0].endswith("step-00000001.pt: Permission denied")


def test_a_save_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 1)
    before = sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir())

    def no_space(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(publish.os, "write", no_space)
    with pytest.raises(store.SaveFailed, match="No space left on device") as caught:
        put(tmp_path, 2)
    assert caught.value.errno == 28 and str(tmp_path) in str(caught.value)
    assert sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir()) == before
    monkeypatch.undo()
    assert put(tmp_path, 3).exists()


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(publish.os, "write", lambda fd, data: write(fd, data[:1000]))
    put(tmp_path, 1)
    monkeypatch.undo()
    assert same(store.load(tmp_path / "last.pt"), store.load(put(tmp_path, 1)))


def test_a_limit_on_the_size_of_files_is_named(tmp_path: Path) -> None:
    put(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 4096, 10_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(store.SaveFailed, match="File too large"):
                put(tmp_path, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert temporaries(tmp_path) == [] and names(tmp_path) == ["last.pt", "step-00000001.pt"]
    put(tmp_path, 2)


def test_what_the_disk_gives_back_is_compared_before_it_gets_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, 1)
    written = publish._write

    def rotten(path: Path, filed: dict[str, object]) -> None:
        written(path, filed)
        flip(path)

    monkeypatch.setattr(publish, "_write", rotten)
    with pytest.raises(store.SaveFailed, match="not what is read back"):
        put(tmp_path, 2)
    assert names(tmp_path) == ["last.pt", "step-00000001.pt"]
    assert temporaries(tmp_path) == []


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = tmp_path / ".step-00000001.pt.tmp"
    place.symlink_to(victim)
    monkeypatch.setattr(publish, "_temporary", lambda path: place)
    with pytest.raises(store.SaveFailed, match="File exists"):
        put(tmp_path, 1)
    assert victim.read_text() == "precious"


def test_a_save_killed_at_random_instants_leaves_the_old_one_or_the_new_one(
    tmp_path: Path,
) -> None:
    chance = random.Random(0)
    put(tmp_path, 1)
    reached = 1
    for step in range(2, 26):
        child = os.fork()
        if child == 0:
            put(tmp_path, step)
            os._exit(0)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = store.newest_good(tmp_path)
        assert found is not None and found.refused == []
        assert found.content["cursor"]["step"] in (reached, step)
        reached = found.content["cursor"]["step"]
        assert store.load(tmp_path / "last.pt")["cursor"]["step"] <= reached
    publish.clear_temporaries(tmp_path)
    assert temporaries(tmp_path) == []


def test_the_newest_good_checkpoint_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    assert store.newest_good(tmp_path) is None
    for step in (1, 2, 3):
        put(tmp_path, step, keep=5)
    flip(tmp_path / "step-00000003.pt")
    (tmp_path / "step-00000002.pt").write_bytes(b"")
    found = store.newest_good(tmp_path)
    assert found is not None and found.path.name == "step-00000001.pt"
    assert found.content["cursor"]["step"] == 1 and len(found.refused) == 2
    assert "damaged" in found.refused[0] and "empty, cut off" in found.refused[1]
    flip(tmp_path / "step-00000001.pt")
    with pytest.raises(BadInput, match=r"(?s)step-00000003.*step-00000002.*step-00000001"):
        store.newest_good(tmp_path)


def test_an_intact_copy_in_last_counts_when_its_step_file_is_damaged(tmp_path: Path) -> None:
    for step in (1, 2):
        put(tmp_path, step)
    (tmp_path / "last.pt").unlink()
    shutil.copy(tmp_path / "step-00000002.pt", tmp_path / "last.pt")
    flip(tmp_path / "step-00000002.pt")
    found = store.newest_good(tmp_path)
    assert found is not None and found.path.name == "last.pt"


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path, 1)
    left = [
        ".step-00000002.pt.host.12.0a1b2c3d.tmp",
        ".last.pt.host.12.0a1b2c3d.tmp",
        "..written.json.12.tmp",
        ".metrics.jsonl.12.tmp",
        ".report.html.12.tmp",
    ]
    for name in [*left, "notes.tmp", ".mine.tmp", ".step-00000002.pt"]:
        (tmp_path / name).touch()
    assert sorted(publish.clear_temporaries(tmp_path)) == sorted(left)
    assert temporaries(tmp_path) == [".mine.tmp", "notes.tmp"]
    assert names(tmp_path) == [".step-00000002.pt", "last.pt", "step-00000001.pt"]


def test_a_slice_of_something_large_is_saved_alone(tmp_path: Path) -> None:
    large = content(1)
    large["optimizer"]["state"][0]["exp_avg"] = torch.zeros(1000, 1000)[3:5, ::2]
    large["model"]["slice"] = torch.zeros(1_000_000, dtype=torch.int64)[5:]
    large["model"]["slice"] = large["model"]["slice"][:7]
    written = write(tmp_path, large, best=False, keep=2)
    assert written.size_bytes < 50_000
    assert same(store.load(written.path)["optimizer"], large["optimizer"])


def test_rows_are_on_the_disk_before_the_checkpoint_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def noted_fsync(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def noted_rename(path: Path, target: Path) -> Path:
        done.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    put(tmp_path, 1)
    assert done.index("metrics.jsonl") < done.index("rename to step-00000001.pt")
