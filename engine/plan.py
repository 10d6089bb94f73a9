"""What a run is, settled by rank 0 before the ranks meet, and known to all afterwards."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from checkpoint.folder import Resume, RunFolder, claim
from checkpoint.state import restored
from checkpoint.store import load, newest_good
from configs.command import Command
from configs.load import from_plain, to_plain, to_yaml
from configs.load import load as load_config
from configs.schema import Config, Model
from ddp import watch
from ddp.collectives import broadcast_bytes
from ddp.process import promised_world_size, rehearse
from ddp.wrap import require_devices
from engine.ending import close_at_end
from engine.exact import require_exact
from engine.optim import require_names
from engine.recorder import require_board
from engine.restart import earlier_folder, note_sizes, note_start
from utils.errors import BadInput

log = logging.getLogger(__name__)

# Sections and options that a resumed run may change and still end in the same bits.
FREE = ("run.", "save.", "log.", "faults.", "data.workers", "data.path", "data.download")


class Plan(NamedTuple):
    """`path`, `cursor`, `config`, `scaler` are known to every rank; the rest stays with rank 0."""

    verb: Literal["train", "evaluate", "rehearse", "nothing"]
    config: Config
    path: Path  # of the run folder
    cursor: dict[str, Any]
    saved: dict[str, Any]  # the checkpoint, weights in float32; empty without one
    folder: RunFolder | None = None
    file: Path | None = None
    scaler: Mapping[str, Any] | None = None  # the checkpoint's loss scale, known to every rank

    def forget_tensors(self) -> None:
        """Let go of the checkpoint's tensors: network and optimizer have copies of their own."""
        for name in ("model", "ema", "optimizer"):
            self.saved.pop(name, None)


def settle(
    command: Command, require: Callable[[Config], None], require_fresh: Callable[[Model], None]
) -> Plan:
    """The run that the command line, its folder and its checkpoint make; BadInput when they don't.

    `require` raises BadInput for a configuration that names what there is not, `require_fresh` for
    weights that a run needs only when it starts from the beginning. A process that its launcher has
    started again goes on in the folder of its earlier start, whatever the command.
    """
    if command.rehearse is not None:
        return _rehearsed(command, command.rehearse, require, require_fresh)
    earlier = None if command.evaluate else earlier_folder()
    if command.evaluate is not None:
        saved = load(command.evaluate)
        config = from_plain(saved["config"], command.overrides, str(command.evaluate))
        _require(config, require)
        run = restored(saved)
        if config.train.ema is not None and "ema" in run:
            log.info("scoring the averaged weights; train.ema=null scores the live ones")
            run["model"] = run["ema"]
        return Plan("evaluate", config, Path(), {}, run, file=command.evaluate)
    if command.config is None:
        assert command.resume is not None
        return _resume_file(Path(command.resume), command.overrides, require, earlier is not None)
    config = load_config(command.config, command.overrides)
    _require(config, require)
    if earlier is not None:
        folder = _claimed(earlier, "auto")
    else:
        path = config.run.dir / config.run.name
        folder = _claimed(path, "auto" if command.resume else "none")
    named = config.run.model_copy(update={"name": folder.path.name})
    config = config.model_copy(update={"run": named})
    found = newest_good(folder.path) if command.resume or earlier else None
    if found is None:
        require_fresh(config.model)
        return _begun(config, folder, None, {})
    for reason in found.refused:
        log.warning("passed over: %s", reason)
    return _begun(config, folder, found.path, found.content)


def _resume_file(
    file: Path, overrides: tuple[str, ...], require: Callable[[Config], None], restarted: bool
) -> Plan:
    if restarted and not file.is_file():  # retention may have deleted it since the first start
        file = file.with_name("last.pt")
    try:
        saved = load(file)
    except BadInput as error:
        raise BadInput(f"{error}{_alternative(file)}") from error
    config = from_plain(saved["config"], overrides, str(file))
    _require(config, require)
    folder = _claimed(config.run.dir / config.run.name, "file")
    found = newest_good(folder.path) if restarted else None
    return _begun(config, folder, *((found.path, found.content) if found else (file, saved)))


def _claimed(path: Path, resume: Resume) -> RunFolder:
    """The run folder, which the end of this process closes or removes, if it is new; an older one
    says how its last run ended until this one begins in it."""
    folder = claim(path.parent, path.name, resume)
    if folder.is_new:
        close_at_end(folder)
    return folder


def _rehearsed(
    command: Command,
    world_size: int,
    require: Callable[[Config], None],
    require_fresh: Callable[[Model], None],
) -> Plan:
    """A run that claims no folder; from here on this process is one of `world_size`."""
    rehearse(command.rank, world_size)
    assert command.config is not None
    config = load_config(command.config, command.overrides)
    _require(config, require)
    require_fresh(config.model)
    return Plan("rehearse", config, Path(), {}, {})


def _require(config: Config, require: Callable[[Config], None]) -> None:
    """The rest of the start is watched by the configuration's limits, if it is a usable one."""
    watch.limit(config.faults.start_timeout_s, config.faults.hang_timeout_s)
    note_sizes(config)
    require(config)
    require_exact(config, promised_world_size())
    require_devices(config.ddp)
    require_names(config.optim)
    require_board(config.log)


def _alternative(file: Path) -> str:
    """The newest good checkpoint beside a damaged one, as the end of a sentence."""
    if not file.is_file():
        return ""
    try:
        found = newest_good(file.parent)
    except BadInput:
        return "; no checkpoint beside it is intact"
    return f"; the newest good one is {found.path}" if found else ""


def _begun(config: Config, folder: RunFolder, file: Path | None, saved: dict[str, Any]) -> Plan:
    cursor = saved.get("cursor", {})
    sizes = [c["train"]["global_batch"] for c in (saved.get("config"), to_plain(config)) if c]
    if len(set(sizes)) > 1:
        raise BadInput(
            f"train.global_batch was {sizes[0]} and is {sizes[1]}: steps are counted in it, so "
            "this is another run; start it with model.weights=FILE and another run.name"
        )
    if saved and saved["config"]["train"]["best_metric"] != config.train.best_metric:
        cursor = cursor | {"best": None}  # the best so far is of another metric
    done = saved and cursor["epoch"] >= config.train.epochs
    if done and not cursor.get("owes_evaluation"):  # an evaluation that a signal cut short
        log.info(
            "%s is already finished: %d epochs are done, train.epochs=%d are asked for",
            folder.path,
            cursor["epoch"],
            config.train.epochs,
        )
        if not folder.withdraw():
            folder.finish(0, "finished")
        folder.release()
        return Plan("nothing", config, folder.path, {}, {})
    note_start(folder.path, cursor.get("step", 0))
    close_at_end(folder)
    for name in folder.rewind(cursor.get("step", 0)):
        log.warning("set aside %s, which is newer than what is gone on from", name)
    folder.begin(to_yaml(config))
    if saved:
        log.info("going on from %s at step %d", file, cursor["step"])
        changed = _changes(saved["config"], to_plain(config))
        if changed:
            log.warning("no longer the run that was saved, bit for bit: %s", "; ".join(changed))
    run = restored(saved) if saved else {}
    return Plan("train", config, folder.path, cursor, run, folder, file, run.get("scaler"))


def _changes(before: Any, now: Any, name: str = "") -> list[str]:
    """`key: old -> new` of the options that differ and matter to the bits."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        return [line for k in keys for line in _changes(before.get(k), now.get(k), f"{name}.{k}")]
    key = name.removeprefix(".")
    return [] if before == now or key.startswith(FREE) else [f"{key} {before} -> {now}"]


def receive(plan: Plan | None) -> Plan:
    """Rank 0's plan on every rank, but of the checkpoint only the cursor and the loss scale."""
    told = b""
    if plan is not None:
        values = [plan.verb, to_plain(plan.config), str(plan.path), plan.cursor, plan.scaler]
        told = json.dumps(values).encode()
    verb, config, path, cursor, scaler = json.loads(broadcast_bytes(told))
    config = from_plain(config, (), "rank 0")
    watch.limit(config.faults.start_timeout_s, config.faults.hang_timeout_s)
    return plan or Plan(verb, config, Path(path), cursor, {}, scaler=scaler)
