"""The same work through Lightning, accelerate and ignite, as their guides write it, and ours.

python -m bench peers [--peer NAME] [--cycles 7]     4 minutes on two cores;
needs pip install -r requirements-bench.txt

FashionMNIST, the quickstart's network, 128 images a rank, PIL transforms in one worker a rank. Each
takes turns with the same bare loop, so that the ratios can be set beside each other.
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from bench.paired import Block, Done, Times, Turns, named, over_ranks, ratios, record
from bench.ranks import Apart, free_port, on_ranks, taking_turns

BATCH, STEPS = 128, 15


def run(argv: list[str]) -> None:
    """Measure, record and print a line for each."""
    options = argparse.ArgumentParser("bench peers")
    options.add_argument("--peer", choices=PEERS, action="append")
    options.add_argument("--cycles", type=int, default=7)
    options.add_argument("--world-size", type=int, default=2)
    given = options.parse_args(argv)
    for name in given.peer or PEERS:
        with tempfile.TemporaryDirectory() as folder:
            case = (name, given.cycles, given.world_size, folder, free_port())
            answers = on_ranks(given.world_size, _one_rank, *case)
        ratio = ratios(over_ranks(answers), "ours", "bare")
        record("peers", {"peer": name, "world_size": given.world_size, **named(ratio)})
        print(
            f"peers, {name:10} takes {ratio['wall'].told()} x the bare loop's time, "
            f"{ratio['cpu'].told()} x its CPU time",
            flush=True,
        )


def _one_rank(
    rank: int, name: str, cycles: int, world_size: int, folder: str, port: int
) -> dict[str, Times]:
    from bench.overhead import Terminal

    with Apart(rank, world_size, port, _bare, rank, world_size) as bare:
        turns = taking_turns(bare, STEPS, cycles)
        sys.stdout, sys.stderr = Terminal(), Terminal()
        warnings.simplefilter("ignore")
        with suppress(Done):
            PEERS[name](turns, rank, world_size, folder)
    return turns.times


def _bare(rank: int, world_size: int) -> Block:
    from bench.bare import from_loader
    from bench.pipeline import endless

    loader, sampler = _loader(rank, world_size)
    return from_loader(_network(), endless(loader, sampler.set_epoch), STEPS)


def _loader(rank: int, world_size: int) -> tuple[Any, Any]:
    from torch.utils.data import DistributedSampler

    dataset = _dataset()
    sampler: Any = DistributedSampler(dataset, world_size, rank)
    return _plain_loader(dataset, sampler=sampler), sampler


def _plain_loader(dataset: Any, **options: Any) -> Any:
    from torch.utils.data import DataLoader

    return DataLoader(
        dataset,
        BATCH,
        num_workers=1,
        drop_last=True,
        persistent_workers=True,
        multiprocessing_context="fork",
        **options,
    )


def _dataset() -> Any:
    from bench.pipeline import fashion_mnist

    return fashion_mnist()


def _network() -> Any:
    from models.build import build_model, find_builder

    return build_model(find_builder("small_resnet"), 10, 1, seed=0, initialise=True)


def _sgd(parameters: Any) -> Any:
    import torch

    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def _ours(turns: Turns, rank: int, world_size: int, folder: str) -> None:
    from bench.overhead import harness

    harness(
        turns,
        "configs/fashion_mnist.yaml",
        f"train.global_batch={BATCH * world_size}",
        f"run.dir={folder}",
    )


def _lightning(turns: Turns, rank: int, world_size: int, folder: str) -> None:
    lightning: Any = import_module("lightning")
    from torch.nn.functional import cross_entropy

    class Classifier(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = _network()

        def training_step(self, batch: Any, _: int) -> Any:
            images, labels = batch
            loss = cross_entropy(self.model(images), labels)
            self.log("train_loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return _sgd(self.parameters())

    class TakesTurns(lightning.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, *_: Any) -> None:
            turns.step()

    trainer = lightning.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=world_size,
        max_epochs=-1,
        callbacks=[TakesTurns()],
        default_root_dir=folder,
    )
    trainer.fit(Classifier(), _plain_loader(_dataset(), shuffle=True))


def _accelerate(turns: Turns, rank: int, world_size: int, folder: str) -> None:
    accelerate: Any = import_module("accelerate")
    from torch.nn.functional import cross_entropy

    accelerator = accelerate.Accelerator(cpu=True)
    model = _network()
    model, optimizer, loader = accelerator.prepare(
        model, _sgd(model.parameters()), _plain_loader(_dataset(), shuffle=True)
    )
    model.train()
    while True:
        for images, labels in loader:
            turns.step()
            optimizer.zero_grad()
            loss = cross_entropy(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()


def _ignite(turns: Turns, rank: int, world_size: int, folder: str) -> None:
    idist, engine, handlers = (
        import_module(f"ignite.{part}") for part in ("distributed", "engine", "handlers")
    )
    from torch.nn.functional import cross_entropy

    idist.initialize("gloo")
    model = idist.auto_model(_network())
    optimizer = idist.auto_optim(_sgd(model.parameters()))
    loader, _ = _loader(rank, world_size)

    def update(_: Any, batch: Any) -> float:
        images, labels = batch
        model.train()
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    trainer = engine.Engine(update)
    trainer.add_event_handler(engine.Events.ITERATION_STARTED, lambda: turns.step())
    if rank == 0:
        handlers.ProgressBar().attach(trainer, output_transform=lambda loss: {"loss": loss})
    trainer.run(loader, max_epochs=1000)


PEERS: dict[str, Callable[[Turns, int, int, str], None]] = {
    "ours": _ours,
    "lightning": _lightning,
    "accelerate": _accelerate,
    "ignite": _ignite,
}
