"""A save takes a copy and leaves the live run alone; the writer does the rest, or says why not."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from checkpoint import folder, snapshot, state, store
from tests.checkpoint.conftest import OpenStore
from tests.checkpoint.content import captured, content, names, put, same, temporaries, trained
from utils.errors import BadInput


def test_a_saved_run_is_restored_bit_for_bit(tmp_path: Path, open_store: OpenStore) -> None:
    model, optimizer = trained()
    live = captured(model, optimizer, 7)
    keeper = open_store(tmp_path)
    keeper.save(live, 7)
    keeper.wait()
    again = state.restored(store.load(tmp_path / "last.pt"))
    assert same(again["model"], live["model"])
    assert same(again["optimizer"], live["optimizer"])
    assert again["cursor"] == live["cursor"] and again["config"] == live["config"]
    other_model, other_optimizer = trained(seed=1)
    other_model.load_state_dict(again["model"])
    other_optimizer.load_state_dict(again["optimizer"])
    assert same(captured(other_model, other_optimizer, 7), live)


def test_what_the_writer_saves_is_what_this_process_would(
    tmp_path: Path, open_store: OpenStore
) -> None:
    keeper = open_store(tmp_path)
    odd = content(1)
    odd["metrics"] = {
        "nan": float("nan"),
        "huge": 1 << 80,
        "text": "ä\n",
        "none": None,
        "0": [True],
    }
    odd["model"]["empty"], odd["model"]["scalar"] = torch.empty(0, 3), torch.tensor(0.3)
    odd["model"]["slice"] = torch.arange(12.0).view(3, 4)[:, 1:3]
    keeper.save(odd, 1)
    saved = keeper.wait()
    assert saved is not None
    by_writer = store.load(saved.path)
    (tmp_path / "other").mkdir()
    here = store.load(store.write(tmp_path / "other", odd, best=False, keep=2).path)
    assert by_writer["digest"] == here["digest"]
    assert saved.size_bytes == saved.path.stat().st_size


def test_the_layout_of_optimizer_state_survives(tmp_path: Path, open_store: OpenStore) -> None:
    model, optimizer = trained()
    keeper = open_store(tmp_path)
    keeper.save(captured(model, optimizer, 1), 1)
    keeper.wait()
    again = state.restored(store.load(tmp_path / "last.pt"))
    for number, entry in optimizer.state_dict()["state"].items():
        assert again["optimizer"]["state"][number]["exp_avg"].stride() == entry["exp_avg"].stride()


def test_the_live_model_is_the_same_before_and_after_a_save(
    tmp_path: Path, open_store: OpenStore
) -> None:
    model, optimizer = trained()
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    keeper = open_store(tmp_path)
    keeper.save(captured(model, optimizer, 1), 1)
    keeper.wait()
    put(tmp_path, 2)  # and written by this process itself
    assert same(dict(model.state_dict()), values)
    assert {name: t.data_ptr() for name, t in model.state_dict().items()} == places
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


def test_what_changes_after_save_returns_is_not_in_the_file(
    tmp_path: Path, open_store: OpenStore
) -> None:
    model, optimizer = trained()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keeper = open_store(tmp_path)
    keeper.save(captured(model, optimizer, 1), 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    keeper.wait()
    assert same(state.restored(store.load(tmp_path / "last.pt"))["model"], before)


def test_plain_torch_reads_the_half_precision_model(tmp_path: Path) -> None:
    put(tmp_path, 3)
    loaded = torch.load(tmp_path / "last.pt", weights_only=True)
    halves = {name: tensor.dtype for name, tensor in loaded["model"].items()}
    assert halves.pop("1.num_batches_tracked") == torch.int64
    assert set(halves.values()) == {torch.float16}
    assert loaded["labels"] == ["a", "b", "c"] and len(loaded["digest"]) == 64


def test_what_half_would_break_is_named_once(
    tmp_path: Path, open_store: OpenStore, caplog: pytest.LogCaptureFixture
) -> None:
    model, optimizer = trained()
    with torch.no_grad():
        model[1].running_var[0] = 1e6  # type: ignore[index, operator]
    keeper = open_store(tmp_path)
    for step in (1, 2):
        keeper.save(captured(model, optimizer, step), step)
    keeper.wait()
    assert caplog.text.count("model.1.running_var") == 1


def test_a_save_still_running_delays_the_next_and_the_end(
    tmp_path: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, 0.3)
    keeper = open_store(tmp_path)
    first = keeper.save(content(1), 1)
    assert first.stall_s < 0.2 and first.write_s is None and keeper.done() is None
    second = keeper.save(content(2), 2)
    assert second.stall_s > 0.2
    done = keeper.done()
    assert done is not None and done.path == first.path and done.stall_s == first.stall_s
    assert done.write_s is not None and done.write_s > 0.3 and done.size_bytes
    keeper.close()
    assert names(tmp_path) == ["last.pt", "step-00000001.pt", "step-00000002.pt"]


def slow(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Every save of writers made from here on takes at least `seconds`."""
    fsync = os.fsync

    def slow_fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name.startswith(".step"):
            time.sleep(seconds)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow_fsync)


def test_a_failed_save_is_told_at_once_and_the_next_one_succeeds(
    tmp_path: Path, open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "blocked"
    write = os.write

    def refuse(descriptor: int, data: memoryview) -> int:
        if blocked.exists():
            blocked.unlink()
            raise OSError(28, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", refuse)
    keeper = open_store(tmp_path)
    keeper.save(content(1), 1)
    keeper.wait()
    blocked.touch()
    keeper.save(content(2), 2)
    with pytest.raises(store.SaveFailed, match="No space left on device") as caught:
        keeper.wait()
    assert caught.value.errno == 28 and "step-00000002.pt" in str(caught.value)
    blocked.touch()
    keeper.save(content(3), 3)
    with pytest.raises(store.SaveFailed, match=r"step-00000003\.pt"):
        keeper.save(content(4), 4)
    done = keeper.wait()
    assert done is not None and done.path.name == "step-00000004.pt"
    assert names(tmp_path) == ["last.pt", "step-00000001.pt", "step-00000004.pt"]
    assert temporaries(tmp_path) == []


def test_a_killed_writer_is_told_and_saving_goes_on(
    tmp_path: Path,
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow(monkeypatch, 5)
    keeper = open_store(tmp_path)
    monkeypatch.undo()
    keeper.save(content(1), 1)
    assert keeper._writer is not None
    os.kill(keeper._writer.pid, signal.SIGKILL)
    with pytest.raises(store.SaveFailed, match="killed by signal 9"):
        keeper.save(content(2), 2)
    assert keeper.save(content(3), 3).write_s is not None
    assert names(tmp_path) == ["last.pt", "step-00000002.pt", "step-00000003.pt"]
    assert caplog.text.count("the loop stops while checkpoints are written") == 1


def test_with_too_little_memory_the_loop_waits_and_is_told_why_once(
    tmp_path: Path,
    open_store: OpenStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(store, "free_memory", lambda: 1 << 20)
    keeper = open_store(tmp_path)
    for step in (1, 2):
        saved = keeper.save(content(step), step)
        assert saved.write_s is not None and saved.path.exists()
    assert caplog.text.count("MB of memory") == 1


def test_free_memory_is_a_plausible_figure() -> None:
    assert 1 << 24 < snapshot.free_memory() < 1 << 50


def test_the_folder_stays_locked_until_a_dying_writer_is_gone(tmp_path: Path) -> None:
    ready, go = os.pipe()
    owner = os.fork()
    if owner == 0:
        run = folder.claim(tmp_path, "x", "none")
        assert run.writer is not None
        run.lock.release()  # the writer alone holds it now
        os.write(go, f"{run.writer.pid:10}".encode())
        signal.pause()
    writer = int(os.read(ready, 10))
    with pytest.raises(BadInput, match="in use"):
        folder.claim(tmp_path, "x", "auto")
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    folder.claim(tmp_path, "x", "auto").release()
    end = time.monotonic() + 5
    while Path(f"/proc/{writer}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{writer}").exists()
    os.close(ready)
    os.close(go)


def test_the_writer_holds_nothing_of_its_owner_but_what_it_needs(
    tmp_path: Path, open_store: OpenStore
) -> None:
    with (tmp_path / "open").open("w"):
        keeper = open_store(tmp_path)
        assert keeper._writer is not None
        keeper.save(content(1), 1)
        keeper.wait()
        held = [path.readlink() for path in Path(f"/proc/{keeper._writer.pid}/fd").iterdir()]
    assert tmp_path / "open" not in held
    assert any("lockstep-snapshot" in str(path) for path in held)


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


def test_a_state_that_is_not_plain_is_refused_with_its_place() -> None:
    with pytest.raises(BadInput, match=r"optimizer\.state\.0 holds object"):
        state.plain({"state": {0: object()}}, "optimizer")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_what_lies_on_a_gpu_is_saved_as_from_the_cpu(tmp_path: Path, open_store: OpenStore) -> None:
    keeper = open_store(tmp_path)
    model, optimizer = trained()
    here = captured(model, optimizer, 1)
    there = state.plain(to_gpu(here), "run")
    for step in (1, 2):  # the second goes into memory that is pinned already
        there["cursor"]["step"] = step
        keeper.save(there, step)
        keeper.wait()
    assert same(state.restored(store.load(tmp_path / "step-00000001.pt"))["model"], here["model"])
    assert store.write(tmp_path, there, best=False, keep=2).path.exists()  # and without the writer


def to_gpu(value: object) -> object:
    match value:
        case torch.Tensor():
            return value.cuda()
        case dict():
            return {key: to_gpu(item) for key, item in value.items()}
        case list():
            return [to_gpu(item) for item in value]
    return value
