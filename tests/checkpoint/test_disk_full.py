"""A disk that is really full: the reason is told, the checkpoint before is whole, and the next save
after there is room again succeeds."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from checkpoint import store
from tests.checkpoint.conftest import OpenStore
from tests.checkpoint.content import content, names, put, temporaries


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_and_survived_at_every_amount_of_room(small_disk: Path) -> None:
    put(small_disk, 1)
    told = saved = 0
    filler = small_disk / "filler"
    for pages in range(12):
        fill(filler, leave=pages * 4096)
        failure = attempt(small_disk)
        if failure is None:
            saved += 1
            (small_disk / "step-00000002.pt").unlink()
        else:
            told += 1
            assert failure.errno == 28
            assert "No space left on device" in str(failure) and str(small_disk) in str(failure)
        found = store.newest_good(small_disk)
        assert found is not None and found.content["cursor"]["step"] in (1, 2)
        assert (small_disk / "step-00000001.pt").exists() and temporaries(small_disk) == []
        filler.unlink()
    assert told > 2 and saved > 2


def attempt(folder: Path) -> store.SaveFailed | None:
    try:
        put(folder, 2)
    except store.SaveFailed as error:
        return error
    return None


def test_the_writer_tells_of_a_full_disk_and_goes_on_when_there_is_room(
    small_disk: Path, open_store: OpenStore
) -> None:
    keeper = open_store(small_disk)
    keeper.save(content(1), 1)
    keeper.wait()
    fill(small_disk / "filler", leave=4096)
    keeper.save(content(2), 2)
    with pytest.raises(store.SaveFailed, match="No space left on device"):
        keeper.wait()
    assert names(small_disk) == ["last.pt", "step-00000001.pt"]
    (small_disk / "filler").unlink()
    keeper.save(content(3), 3)
    done = keeper.wait()
    assert done is not None and done.path.name == "step-00000003.pt"


def fill(path: Path, leave: int) -> None:
    """Take all the room of the disk but `leave` bytes."""
    room = os.statvfs(path.parent)
    path.write_bytes(bytes(max(0, room.f_bavail * room.f_frsize - leave)))
