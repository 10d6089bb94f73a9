"""A save leaves the live run alone, and the folder always holds a good checkpoint."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from checkpoint import open as reader
from checkpoint import publish, state, store
from tests.checkpoint.content import captured, content, same, temporaries, trained
from utils.errors import BadInput


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.pt"))


def test_a_saved_run_is_restored_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained()
    live = captured(model, optimizer, 7)
    store.Store(tmp_path, keep=2).save(live, 7)
    again = state.restored(store.load(tmp_path / "last.pt"))
    assert same(again["model"], live["model"])
    assert same(again["optimizer"], live["optimizer"])
    assert again["cursor"] == live["cursor"] and again["config"] == live["config"]
    other_model, other_optimizer = trained(seed=1)
    other_model.load_state_dict(again["model"])
    other_optimizer.load_state_dict(again["optimizer"])
    assert same(captured(other_model, other_optimizer, 7), live)


def test_the_layout_of_optimizer_state_survives(tmp_path: Path) -> None:
    model, optimizer = trained()
    store.Store(tmp_path, keep=2).save(captured(model, optimizer, 1), 1)
    again = state.restored(store.load(tmp_path / "last.pt"))
    for number, entry in optimizer.state_dict()["state"].items():
        assert again["optimizer"]["state"][number]["exp_avg"].stride() == entry["exp_avg"].stride()


def test_the_live_model_is_the_same_before_and_after_a_save(tmp_path: Path) -> None:
    model, optimizer = trained()
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    store.Store(tmp_path, keep=2).save(captured(model, optimizer, 1), 1)
    assert same(dict(model.state_dict()), values)
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == places
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_plain_torch_reads_the_half_precision_model(tmp_path: Path) -> None:
    store.Store(tmp_path, keep=2).save(content(3), 3)
    loaded = torch.load(tmp_path / "last.pt", weights_only=True)
    halves = {name: tensor.dtype for name, tensor in loaded["model"].items()}
    assert halves.pop("1.num_batches_tracked") == torch.int64
    assert set(halves.values()) == {torch.float16}
    assert loaded["labels"] == ["a", "b", "c"] and len(loaded["digest"]) == 64


def test_what_half_would_break_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = trained()
    with torch.no_grad():
        model[1].running_var[0] = 1e6  # type: ignore[index, operator]
    keeper = store.Store(tmp_path, keep=2)
    keeper.save(captured(model, optimizer, 1), 1)
    keeper.save(captured(model, optimizer, 2), 2)
    assert caplog.text.count("model.1.running_var") == 1


def test_last_and_best_are_links_that_move(tmp_path: Path) -> None:
    keeper = store.Store(tmp_path, keep=2)
    keeper.save(content(1), 1, best=True)
    keeper.save(content(2), 2)
    assert (tmp_path / "last.pt").samefile(tmp_path / "step-00000002.pt")
    assert (tmp_path / "best.pt").samefile(tmp_path / "step-00000001.pt")
    keeper.save(content(2, seed=5), 2, best=True)
    assert (tmp_path / "last.pt").samefile(tmp_path / "step-00000002.pt")
    assert (tmp_path / "best.pt").samefile(tmp_path / "step-00000002.pt")
    assert temporaries(tmp_path) == []


def test_where_links_are_refused_last_and_best_are_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    keeper = store.Store(tmp_path, keep=2)
    for step in range(1, 5):
        keeper.save(content(step), step, best=step == 1)
    assert store.load(tmp_path / "last.pt")["cursor"]["step"] == 4
    assert store.load(tmp_path / "best.pt")["cursor"]["step"] == 1
    assert names(tmp_path)[2:] == ["step-00000001.pt", "step-00000003.pt", "step-00000004.pt"]
    assert temporaries(tmp_path) == []


def test_the_oldest_go_but_never_the_best_nor_a_stranger(tmp_path: Path) -> None:
    keeper = store.Store(tmp_path, keep=1)  # two stay at least
    keeper.save(content(10), 10)
    shutil.copy(tmp_path / "step-00000010.pt", tmp_path / "step-00000001.pt")
    keeper.save(content(20), 20, best=True)
    for step in (30, 40, 50):
        keeper.save(content(step), step)
    kept = ["step-00000001.pt", "step-00000020.pt", "step-00000040.pt", "step-00000050.pt"]
    assert names(tmp_path) == ["best.pt", "last.pt", *kept]
    again = store.Store(tmp_path, keep=2)  # another process of the same run
    again.save(content(60), 60, best=True)
    kept = ["step-00000001.pt", "step-00000050.pt", "step-00000060.pt"]
    assert names(tmp_path) == ["best.pt", "last.pt", *kept]


def test_a_refused_deletion_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = store.Store(tmp_path, keep=2)
    for step in (1, 2):
        keeper.save(content(step), step)

    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name == "step-00000001.pt":
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    keeper.save(content(3), 3)
    assert "step-00000001.pt: Permission denied" in caplog.text


def test_the_newest_good_checkpoint_is_found_behind_damaged_ones(tmp_path: Path) -> None:
    keeper = store.Store(tmp_path, keep=5)
    assert store.newest_good(tmp_path) is None
    for step in (1, 2, 3):
        keeper.save(content(step), step)
    flip(tmp_path / "step-00000003.pt")
    (tmp_path / "step-00000002.pt").write_bytes(b"")
    found = store.newest_good(tmp_path)
    assert found is not None and found.path.name == "step-00000001.pt"
    assert found.content["cursor"]["step"] == 1 and len(found.refused) == 2
    assert "damaged" in found.refused[0] and "empty, cut off" in found.refused[1]
    flip(tmp_path / "step-00000001.pt")
    (tmp_path / "last.pt").unlink()
    with pytest.raises(BadInput, match=r"(?s)step-00000003.*step-00000002.*step-00000001"):
        store.newest_good(tmp_path)


def flip(path: Path) -> None:
    """One bit in the middle of a tensor."""
    data = bytearray(path.read_bytes())
    storage = reader.look(path).starts["0"]
    data[storage] ^= 1
    path.write_bytes(data)  # in place: every link of the file is damaged


def test_a_checkpoint_without_a_digest_is_said_to_be_unverified(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    filed, _ = state.encoded(content(1))
    torch.save(filed, tmp_path / "x.pt")
    assert store.load(tmp_path / "x.pt")["cursor"]["step"] == 1
    assert caplog.messages == [f"{tmp_path}/x.pt is unverified: it carries no digest"]


def test_weights_alone_are_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"model": {}}, tmp_path / "x.pt")
    with pytest.raises(BadInput, match="no residual, optimizer"):
        store.load(tmp_path / "x.pt")


def test_a_save_killed_at_random_instants_leaves_the_old_one_or_the_new_one(
    tmp_path: Path,
) -> None:
    contents = {step: content(step, seed=step) for step in range(1, 26)}
    store.Store(tmp_path, keep=2).save(contents[1], 1)
    chance = random.Random(0)
    reached = 1
    for step in range(2, 26):
        child = os.fork()
        if child == 0:
            store.Store(tmp_path, keep=2).save(contents[step], step)
            os._exit(0)
        time.sleep(chance.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = store.newest_good(tmp_path)
        assert found is not None and found.refused == []
        assert found.content["cursor"]["step"] in (reached, step)
        reached = found.content["cursor"]["step"]
        again = state.restored(found.content)
        assert same(again["model"], contents[reached]["model"])
    store.Store(tmp_path, keep=2)
    assert temporaries(tmp_path) == []


def test_a_save_that_fails_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = store.Store(tmp_path, keep=2)
    keeper.save(content(1), 1)
    before = sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir())
    write = os.write
    full = iter([False, False, True])

    def no_space(descriptor: int, data: memoryview) -> int:
        if next(full, True):
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(publish.os, "write", no_space)
    with pytest.raises(store.SaveFailed, match="No space left on device") as caught:
        keeper.save(content(2), 2)
    assert caught.value.errno == 28 and str(tmp_path) in str(caught.value)
    assert sorted((path.name, path.stat().st_size) for path in tmp_path.iterdir()) == before
    monkeypatch.undo()
    assert keeper.save(content(3), 3).path.name == "step-00000003.pt"


def test_what_the_disk_gives_back_is_compared_before_it_gets_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = store.Store(tmp_path, keep=2)
    keeper.save(content(1), 1)
    written = publish._write

    def rotten(path: Path, filed: dict[str, object]) -> None:
        written(path, filed)
        data = bytearray(path.read_bytes())
        data[reader.look(path).starts["0"]] ^= 1
        path.write_bytes(data)

    monkeypatch.setattr(publish, "_write", rotten)
    with pytest.raises(store.SaveFailed, match="not what is read back"):
        keeper.save(content(2), 2)
    assert names(tmp_path) == ["last.pt", "step-00000001.pt"]
    assert temporaries(tmp_path) == []


def test_a_state_that_is_not_plain_is_refused_with_its_place() -> None:
    with pytest.raises(BadInput, match=r"optimizer\.state\.0 holds object"):
        state.plain({"state": {0: object()}}, "optimizer")


def test_an_intact_copy_in_last_counts_when_its_step_file_is_damaged(tmp_path: Path) -> None:
    keeper = store.Store(tmp_path, keep=2)
    for step in (1, 2):
        keeper.save(content(step), step)
    (tmp_path / "last.pt").unlink()
    shutil.copy(tmp_path / "step-00000002.pt", tmp_path / "last.pt")
    flip(tmp_path / "step-00000002.pt")
    found = store.newest_good(tmp_path)
    assert found is not None and found.path.name == "last.pt"
