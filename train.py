"""Train a network on any number of processes: the story of a run, top to bottom.

torchrun --nproc_per_node=2 train.py --config configs/quickstart.yaml [section.key=value ...]
torchrun --nproc_per_node=2 train.py --resume runs/quickstart/last.pt
"""

import logging
import sys
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from checkpoint.state import capture
from configs.command import parse
from configs.load import to_plain
from configs.schema import Config
from data.datasets import build_dataset, require_dataset
from data.feed import Feed
from data.order import share
from ddp import watch
from ddp.agree import require_same
from ddp.collectives import await_all
from ddp.optimizer import receive_optimizer_state
from ddp.process import Place, join, leave, promised_world_size
from ddp.rank0 import is_rank0, on_every_rank, on_rank0, rank0_only, stands_for_rank0
from ddp.stop import Votes
from ddp.wrap import Wrapped, agreement, wrap
from engine.average import Average
from engine.cursor import resumed
from engine.ending import end, exit_recorded
from engine.environment import environment, make_deterministic, started_with, warn_of_differences
from engine.evaluate import scores
from engine.exact import forward_cap, require_own_statistics
from engine.flops import utilisation_base
from engine.heap import keep_freed_memory
from engine.journal import Journal
from engine.layout import processes
from engine.optim import build_optimizer, rates, saved_state
from engine.plan import Plan, receive, settle
from engine.progress import Progress, farewell, open_console, open_log_file, told
from engine.recorder import Recorder
from engine.rehearsal import Rehearsal, rehearsed
from engine.saving import Saver
from engine.step import step_settings, train_step, warm_up
from models.build import build_model, find_builder
from models.freeze import freeze
from models.memory_format import lay_out
from models.pretrained import class_names, fill, origin, require_weights
from report.background import reported
from tasks.task import Task, build_task, require_task
from utils.names import pick

log = logging.getLogger("train")


def run(argv: Sequence[str]) -> None:
    """The life of one process."""
    open_console(speaks=is_rank0())
    # Rank 0 settles what the run is before anyone waits for anyone: bad input costs seconds.
    plan = settle(parse(argv), require_known, require_weights) if is_rank0() else None
    place = join()
    require_same(started_with(argv))
    plan = receive(plan)  # rank 0's, on every rank
    make_deterministic(plan.config)
    if plan.verb == "train":
        open_log_file(plan.path / "logs", place.rank)
        await_all()  # the folder of a run whose input turns out bad is removed with all logs
        shown = plan.path if plan.folder and plan.config.log.report else None
        with reported(shown), exit_recorded(plan.folder):
            train(plan, place)
    elif plan.verb == "evaluate":
        score(plan, place)
    elif plan.verb == "rehearse":
        with rehearsed(plan, place) as (short, rehearsal):
            train(short, place, rehearsal)
    leave()


def require_known(config: Config) -> None:
    """BadInput when the configuration names what there is not, or cannot share its batch."""
    share(config.train.global_batch, 0, promised_world_size())
    find_builder(config.model.name)
    require_dataset(config.data.name)
    require_task(config.task.name)


def materials(config: Config, place: Place) -> tuple[Task, Feed]:
    """What for, and on what: the task, and this rank's batches; BadInput where one is not."""
    train_data, held_out = (build_dataset(config.data, split) for split in ("train", "val"))
    task = build_task(config.task, train_data.classes)
    pick(task.metrics, config.train.best_metric, "metric (train.best_metric)")
    where = (place.rank, place.world_size, place.device)
    return task, Feed(config, train_data, held_out, task.collate, where, forward_cap(config))


def network(plan: Plan, place: Place, feed: Feed) -> Wrapped:
    """One weight: a file into rank 0's network on the CPU, the broadcast into every rank's."""
    config, builder = plan.config, find_builder(plan.config.model.name)
    shape = (len(feed.classes), feed.channels)
    model = on_every_rank(
        build_model, builder, *shape, seed=config.seed, initialise=stands_for_rank0()
    )
    on_rank0(fill, model, config.model, feed.classes, plan.path, plan.saved.get("model"), plan.file)
    if config.model.freeze:
        log.info(on_every_rank(freeze, model, config.model.freeze))
    on_every_rank(require_own_statistics, config, model)
    model.to(place.device)
    if config.train.channels_last:
        lay_out(model, place.device, config.train.precision)
    ddp_model = wrap(model, config.ddp, compiled=config.train.compile)
    log.info(agreement(ddp_model.module))
    return ddp_model


def train(plan: Plan, place: Place, rehearsal: Rehearsal | None = None) -> None:
    """From the first step, or from a checkpoint's cursor, to the last epoch."""
    config, device = plan.config, place.device
    task, feed = on_every_rank(materials, config, place)
    require_same(feed.sizes)
    total_steps = config.train.epochs * feed.order.steps_per_epoch
    cursor = resumed(plan.cursor, feed.order.steps_per_epoch)
    rate_at = rates(config.optim, feed.order.steps_per_epoch, total_steps)

    ddp_model = network(plan, place, feed)
    model = ddp_model.module
    optimizer = build_optimizer(model, config.optim)
    receive_optimizer_state(optimizer, on_rank0(saved_state, optimizer, plan.saved, plan.file))
    average = Average(model, config.train.ema, config.train.global_batch)
    average.receive(plan.saved.get("ema"))
    plan.forget_tensors()

    settings = step_settings(config, feed.micro_batches, place.world_size, device, plan.scaler)
    log.info(settings.described())
    first_batch = feed.first()
    keep_freed_memory(device)
    warm_up(ddp_model, task, first_batch, settings)
    flops = utilisation_base(model, task, first_batch, device, config.train.precision)

    # What is told and written: by rank 0 alone.
    votes = Votes()
    votes.listen()
    saver = Saver(plan.folder, config.save, votes)
    recorder = Recorder(plan.path, config.log, feed.classes, feed.pictures)
    record_row = rank0_only(saver.guarded(recorder.record))
    progress = Progress(total_steps, cursor.step, shown=is_rank0() and rehearsal is None)
    journal = Journal(config, settings, cursor, progress, flops, carries=is_rank0())
    here = environment(place.world_size, device)
    warn_of_differences(plan.saved.get("environment"), here, config.train)
    start = {"step": cursor.step, "checkpoint": str(plan.file or ""), "environment": here}
    start |= {"layout": settings.described(), "processes": processes(place.rank, device)}
    best = config.train.best_metric
    start |= {"best_metric": {"name": best, "higher_is_better": task.metrics[best]}}
    rank0_only(recorder.begin)(start, first_batch, feed.as_seen(first_batch))
    del first_batch  # the steps need its memory
    content = partial(
        capture,
        model=model,
        optimizer=optimizer,
        ema=average.model if average.kept else None,
        labels=class_names(config.model, feed.classes),
        preprocess=feed.preprocess() | origin(config.model),
        config=to_plain(config),
        environment=here,
    )

    row = dict(plan.saved.get("metrics", {}))
    batches = journal.counting(feed.training(cursor.step, total_steps))
    if rehearsal is not None:
        batches = rehearsal.observed(batches, ddp_model, optimizer, settings, feed.order.size)
    with closing(batches), closing(journal), closing(recorder):
        while cursor.step < total_steps or cursor.owes_evaluation:
            if not cursor.owes_evaluation:
                rate = rate_at(cursor.step)
                taken = train_step(ddp_model, task, batches, optimizer, settings, cursor.step, rate)
                average.update()
                journal.step(cursor.step, *taken)
                cursor.advance(config.train.global_batch, config.train.eval_every, total_steps)
                votes.at_boundary()

            found, is_best = None, False
            if cursor.owes_evaluation:
                found = scores(average.model, task, feed, settings, votes)
                cursor.owes_evaluation = found is None  # cut short by a wish to stop
            if found or journal.is_due(cursor):
                row = journal.row(cursor, rate_at(cursor.step - 1), saver.stall_s(), found)
                record_row(row, found and found.sums)
            if found:
                is_best = cursor.improve(found.metrics[best], task.metrics[best])
            if found or saver.is_due(cursor.step, votes.wishes):
                watch.mark("save")
                journal.note_in(cursor)
                scaler = settings.scaler.state_dict() or None
                saved = content(scaler=scaler, cursor=cursor.to_plain(), metrics=row)
                saver.save(saved, best=is_best)
            if votes.wishes.stops:
                on_rank0(saver.close)
                votes.wishes.obey(cursor.step, plan.path)
            journal.restart_clock()
    votes.close()
    watch.mark("save")
    on_rank0(saver.close)
    log.info(farewell(plan.path, best, cursor.best))
    watch.mark("end")


def score(plan: Plan, place: Place) -> None:
    """The metrics of a checkpoint on the held-out data; trains and writes nothing."""
    task, feed = on_every_rank(materials, plan.config, place)
    ddp_model = network(plan, place, feed)
    settings = step_settings(plan.config, [], place.world_size, place.device)
    found = scores(ddp_model.module, task, feed, settings, Votes())
    assert found is not None  # nobody listens for signals here: they end the process
    log.info("%s: %s on %d samples", plan.file, told(found.metrics), feed.sizes["held-out samples"])


if __name__ == "__main__":
    sys.exit(end(run, sys.argv[1:]))
