"""Files made to run code or to fill memory are refused, in one line, by every command that opens
weights: nothing of them is executed, and no more memory is taken than twice the file and 64 MB."""

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint import inspect
from checkpoint.open import read
from configs import command
from engine.plan import settle
from models import export
from models.pretrained import load_pretrained
from tests.checkpoint import hostile
from utils.errors import BadInput

# Events of sys.addaudithook that opening a file of weights has no use for.
FORBIDDEN = (
    *("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork"),
    *("subprocess.Popen", "ctypes.dlopen", "socket.connect", "shutil", "os.remove"),
)


def resume(path: Path) -> None:
    settle(command.parse(["--resume", str(path)]), lambda config: None, lambda config: None)


def evaluate(path: Path) -> None:
    settle(command.parse(["--evaluate", str(path)]), lambda config: None, lambda config: None)


def weights(path: Path) -> None:
    load_pretrained(torch.nn.Linear(2, 2), path, ["a", "b"])


def by_main(main: Callable[[list[str]], int], *more: str) -> Callable[[Path], None]:
    """A command's `main` as a function that raises what it says."""

    def run(path: Path) -> None:
        told = io.StringIO()
        with contextlib.redirect_stderr(told):
            code = main([str(path), *more])
        if code != 0:
            assert code == BadInput.exit_code
            raise BadInput(told.getvalue().removeprefix("error: ").rstrip("\n"))

    return run


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "read": read,
    "--resume": resume,
    "--evaluate": evaluate,
    "model.weights": weights,
    "inspect": by_main(inspect.main),
    "export": by_main(export.main, "out.pt"),
}


def test_no_hostile_file_runs_or_grows_in_any_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker, work = tmp_path / "marker", tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    files = hostile.all_files(marker)
    assert len(files) > 80
    for kind, make in files.items():
        path = tmp_path / ("x.safetensors" if "safetensors" in kind else "x.pt")
        path.write_bytes(make())
        for seen in watched(list(COMMANDS.values()), path):
            assert seen["said"].startswith(str(path)), f"{kind}: {seen}"
            assert "\n" not in seen["said"] and len(seen["said"]) < 500, f"{kind}: {seen}"
            assert seen["forbidden"] == [], kind
            assert seen["grown"] <= 2 * path.stat().st_size + (64 << 20), f"{kind}: {seen}"
        assert not marker.exists() and list(work.iterdir()) == [], kind


def watched(commands: list[Callable[[Path], Any]], path: Path) -> list[dict[str, Any]]:
    """What each way of opening `path` said, used and did, in a process apart."""
    answer, told = os.pipe()
    child = os.fork()
    if child == 0:
        outcomes: list[dict[str, Any]] = []
        events: list[str] = []
        try:
            sys.addaudithook(lambda event, _: event.startswith(FORBIDDEN) and events.append(event))
            for open_it in commands:
                events.clear()
                before = resident(reset=True)
                said = what_it_says(open_it, path)
                grown = resident() - before
                outcomes.append({"said": said, "grown": grown, "forbidden": list(events)})
        finally:
            os.write(told, json.dumps(outcomes).encode())
            os._exit(0)
    os.close(told)
    with os.fdopen(answer) as lines:
        result: list[dict[str, Any]] = json.loads(lines.read())
    os.waitpid(child, 0)
    assert len(result) == len(commands), f"opening {path} ended the process"
    return result


def what_it_says(open_it: Callable[[Path], Any], path: Path) -> str:
    try:
        open_it(path)
    except BadInput as error:
        return str(error)
    except BaseException as error:
        return f"crashed: {error!r}"
    return "opened"


def resident(reset: bool = False) -> int:
    """The most memory this process has held since the last reset, in bytes."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def test_a_good_file_passes_the_same_watch(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(hostile.torch_zip(hostile.one(hostile.tensor())))
    assert [seen["said"] for seen in watched([read], path)] == ["opened"]
    path.write_bytes(hostile.torch_zip(hostile.one(b"cos\nsystem\n(X\x04\x00\x00\x00truetR")))
    [seen] = watched([lambda file: torch.load(file, weights_only=False)], path)
    assert seen["forbidden"] == ["pickle.find_class", "os.system"]
