"""Train a network on any number of processes: the story of a run, top to bottom.

torchrun --nproc_per_node=2 train.py --config configs/quickstart.yaml [section.key=value ...]
torchrun --nproc_per_node=2 train.py --resume runs/quickstart/last.pt
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from typing import Any

from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from checkpoint.state import capture
from configs.command import parse
from configs.load import to_plain
from configs.schema import Config
from data.datasets import Dataset, build_dataset, require_dataset
from data.loader import Source, eval_batches, micro_batches, train_batches, warm_up_batch
from data.order import TrainOrder, share
from data.pictures import as_seen, pictures
from data.transforms import eval_transform, preprocess, train_transform
from ddp import watch
from ddp.agree import require_same
from ddp.optimizer import receive_optimizer_state
from ddp.process import Place, join, leave, promised_world_size
from ddp.rank0 import is_rank0, on_every_rank, on_rank0, rank0_only
from ddp.stop import Votes
from ddp.wrap import agreement, require_devices, wrap
from engine.average import Average
from engine.cursor import resumed
from engine.ending import end, exit_recorded
from engine.environment import differences, environment, make_deterministic, started_with
from engine.evaluate import Evaluation, evaluate
from engine.exact import forward_cap, require_exact, require_own_statistics
from engine.flops import utilisation_base
from engine.gradient import StepSettings, mixed_precision
from engine.heap import kept_memory
from engine.layout import processes
from engine.meter import Meter
from engine.optim import build_optimizer, learning_rate, require_fit, require_names
from engine.pace import Pace
from engine.plan import Plan, receive, settle
from engine.progress import Progress, open_console, open_log_file, told
from engine.recorder import Recorder, require_board
from engine.saving import Saver
from engine.step import step_settings, train_step, warm_up
from models.build import build_model, find_builder
from models.freeze import freeze
from models.pretrained import class_names, load_weights, origin, require_weights, restore
from report.background import reported
from tasks.task import Task, build_task, require_task
from utils.durable import write_atomic
from utils.names import pick

log = logging.getLogger("train")


@record
def run(argv: Sequence[str]) -> None:
    """The life of one process."""
    open_console(speaks=is_rank0())
    # Rank 0 settles what the run is before anyone waits for anyone: bad input costs seconds.
    plan = settle(parse(argv), require_known, require_fresh) if is_rank0() else None
    place = join()
    require_same(started_with(argv))
    plan = receive(plan)  # rank 0's, on every rank
    make_deterministic(plan.config)
    if plan.verb == "train":
        open_log_file(plan.path / "logs", place.rank)
        shown = plan.path if plan.folder and plan.config.log.report else None
        with reported(shown), exit_recorded(plan.folder):
            train(plan, place)
    elif plan.verb == "evaluate":
        score(plan, place)
    leave()


def require_known(config: Config) -> None:
    """BadInput when the configuration names what there is not, or does not fit the processes."""
    share(config.train.global_batch, 0, promised_world_size())
    require_exact(config, promised_world_size())
    require_devices(config.ddp)
    find_builder(config.model.name)
    require_names(config.optim)
    require_board(config.log)
    require_dataset(config.data.name)
    require_task(config.task.name)


def require_fresh(config: Config) -> None:
    """BadInput when what a run starts from is not there; a resumed run needs it no more."""
    require_weights(config.model)


def network(plan: Plan, dataset: Dataset) -> nn.Module:
    """The network on the CPU: rank 0's holds its first weights, the others' NaN."""
    config = plan.config
    model = on_every_rank(
        build_model,
        find_builder(config.model.name),
        len(dataset.classes),
        dataset.channels,
        seed=config.seed,
        initialise=is_rank0(),
    )
    on_rank0(fill, model, plan, dataset.classes)
    if config.model.freeze:
        log.info(on_every_rank(freeze, model, config.model.freeze))
    on_every_rank(require_own_statistics, config, model)
    return model


def fill(model: nn.Module, plan: Plan, classes: Sequence[str]) -> None:
    """Weights from the checkpoint or the pretrained file, and a report; on rank 0."""
    if plan.saved:
        restore(model, plan.saved["model"], plan.file)
    elif plan.config.model.weights is not None:
        report = load_weights(model, plan.config.model, classes)
        log.info(report.text())
        write_atomic(plan.path / "load_report.json", report.to_json())


def wrapped(model: nn.Module, config: Config) -> DistributedDataParallel:
    """`model` under DDP, the same on every rank, laid out and compiled as configured."""
    return wrap(
        model,
        config.ddp,
        channels_last=config.train.channels_last,
        compiled=config.train.compile,
    )


def materials(config: Config) -> tuple[Dataset, Dataset, Task, TrainOrder]:
    """What is trained on and held out, what for, and in which order; BadInput where one is not."""
    train_data, val_data = (build_dataset(config.data, split) for split in ("train", "val"))
    task = build_task(config.task, train_data.classes)
    pick(task.metrics, config.train.best_metric, "metric (train.best_metric)")
    order = TrainOrder(len(train_data), config.train.global_batch, config.seed)
    return train_data, val_data, task, order


def train(plan: Plan, place: Place) -> None:
    """From the first step, or from a checkpoint's cursor, to the last epoch."""
    config, device, ranks = plan.config, place.device, (place.rank, place.world_size)
    train_data, val_data, task, order = on_every_rank(materials, config)
    require_same({"training samples": len(train_data), "held-out samples": len(val_data)})
    total_steps = config.train.epochs * order.steps_per_epoch
    cursor = resumed(plan.cursor, order.steps_per_epoch)
    rate_at = partial(
        learning_rate,
        optim=config.optim,
        steps_per_epoch=order.steps_per_epoch,
        total_steps=total_steps,
    )

    # One weight: a file into rank 0's network, the broadcast into every rank's, the optimizer.
    model = network(plan, train_data).to(device)
    ddp_model = wrapped(model, config)
    log.info(agreement(model))
    optimizer = build_optimizer(model, config.optim)
    receive_optimizer_state(optimizer, on_rank0(saved_optimizer_state, plan, optimizer))
    average = Average(model, config.train.ema, config.train.global_batch)
    average.receive(plan.saved.get("ema"))

    # One batch: which samples, read, augmented, on the device.
    cap = forward_cap(config)
    sizes = micro_batches(config.train.global_batch // place.world_size, cap)
    settings = step_settings(config, sizes, place.world_size, device, plan.scaler)
    log.info(settings.described())
    augmented = train_transform(train_data, config.data.augment, config.seed, device)
    source = Source(train_data, task.collate, augmented, device, config.data.workers)
    plain, workers = eval_transform(val_data, device), config.data.workers
    held_out = Source(val_data, task.collate, plain, device, workers)
    first_batch = warm_up_batch(source, order, *ranks, cap)
    with kept_memory(device):
        warm_up(ddp_model, task, first_batch, settings)
    flops = utilisation_base(model, task, first_batch, device, config.train.precision)
    pace = Pace(device, cursor.step, flops)
    batches = pace.timed(train_batches(source, order, *ranks, cap, cursor.step, total_steps))
    batches = watch.marked(batches, "data", "step")

    # What is told and written, by rank 0 alone.
    votes = Votes()
    votes.listen()
    store = plan.folder.store(config.save.keep) if plan.folder else None
    saver = Saver(store, config.save, votes)
    recorder = Recorder(plan.path, config.log, train_data.classes, partial(pictures, held_out))
    record_row = rank0_only(saver.guarded(recorder.row))
    record_evaluation = rank0_only(saver.guarded(recorder.evaluation))
    progress = Progress(total_steps, cursor.step, shown=is_rank0())
    meter = Meter(settings, config.faults.max_skipped_steps, cursor.meter, carries=is_rank0())
    batches = meter.counting(batches)
    about: dict[str, Any] = {
        "ema": average.model if average.kept else None,
        "labels": class_names(config.model, train_data.classes),
        "preprocess": preprocess(train_data) | origin(config.model),
        "config": to_plain(config),
        "environment": environment(place.world_size, device),
    }
    if plan.saved:
        for warning in differences(plan.saved["environment"], about["environment"], config.train):
            log.warning(warning)
    row: dict[str, Any] = dict(plan.saved.get("metrics", {}))
    start = {
        "step": cursor.step,
        "checkpoint": str(plan.file or ""),
        "layout": settings.described(),
        "environment": about["environment"],
        "ranks": processes(place.rank, device),
    }
    rank0_only(recorder.begin)(start, first_batch, as_seen(first_batch, train_data))
    del first_batch  # the steps need its memory

    with closing(batches), closing(progress), closing(recorder):
        while cursor.step < total_steps or cursor.owes_evaluation:
            if not cursor.owes_evaluation:
                rate = rate_at(cursor.step)
                losses, count, norm = train_step(
                    ddp_model, task, batches, optimizer, settings, cursor.step, rate
                )
                average.update()
                meter.add(cursor.step, losses, count, norm)
                cursor.advance(config.train.global_batch, config.train.eval_every, total_steps)
                watch.mark(step=cursor.step)
                progress.step()
                votes.at_boundary()

            found, is_best = None, False
            if cursor.owes_evaluation:
                found = scores(average.model, task, held_out, plan, place, settings, votes)
                cursor.owes_evaluation = found is None  # cut short by a wish to stop
            if found or (cursor.step % config.log.every_steps == 0 and not cursor.owes_evaluation):
                row = meter.row(cursor, rate_at(cursor.step - 1), saver.stall_s())
                row["clock"] |= pace.over_ranks(row)
                if found:
                    row["eval"] = found.metrics
                    record_evaluation(cursor.step, found.sums)
                    best = config.train.best_metric
                    is_best = cursor.improve(found.metrics[best], task.metrics[best])
                record_row(row)
                progress.tell(row)
            if found or saver.is_due(cursor.step, votes.wishes):
                watch.mark("save")
                cursor.meter = meter.totals()
                content = capture(
                    model=model,
                    optimizer=optimizer,
                    scaler=settings.scaler.state_dict() or None,
                    cursor=cursor.to_plain(),
                    metrics=row,
                    **about,
                )
                saver.save(content, best=is_best)
            if votes.wishes.stops:
                on_rank0(saver.close)
                votes.wishes.obey(cursor.step, plan.path)
            meter.restart_clock()
    votes.close()
    watch.mark("save")
    on_rank0(saver.close)
    watch.mark("end")


def scores(
    model: nn.Module,
    task: Task,
    held_out: Source,
    plan: Plan,
    place: Place,
    settings: StepSettings,
    votes: Votes,
) -> Evaluation | None:
    """The metrics of `model` on the held-out data; None when a wish to stop cut them short."""
    size = plan.config.train.evaluation_batch
    batches = eval_batches(held_out, size, place.rank, place.world_size)
    batches = watch.marked(batches, "evaluation", "evaluation")
    common = -(-len(held_out.dataset) // size) // place.world_size  # batches that every rank has
    found = evaluate(model, task, votes.between(batches, common), mixed_precision(settings))
    return None if votes.wishes.stops else found


def saved_optimizer_state(plan: Plan, optimizer: Optimizer) -> dict[int, dict[str, Any]] | None:
    """The checkpoint's optimizer state; None without one, BadInput if it is another's."""
    if not plan.saved:
        return None
    require_fit(optimizer, plan.saved["optimizer"], plan.file)
    state: dict[int, dict[str, Any]] = plan.saved["optimizer"]["state"]
    return state


def score(plan: Plan, place: Place) -> None:
    """The metrics of a checkpoint on the held-out data; trains and writes nothing."""
    config, device = plan.config, place.device
    _, held_out, task, _ = on_every_rank(materials, config)
    model = network(plan, held_out).to(device)
    ddp_model = wrapped(model, config)
    log.info(agreement(model))
    plain, workers = eval_transform(held_out, device), config.data.workers
    source = Source(held_out, task.collate, plain, device, workers)
    settings = step_settings(config, [], place.world_size, device)
    found = scores(ddp_model.module, task, source, plan, place, settings, Votes())
    assert found is not None  # nobody listens for signals here: they end the process
    log.info("%s: %s on %d samples", plan.file, told(found.metrics), len(held_out))


if __name__ == "__main__":
    sys.exit(end(run, sys.argv[1:]))
