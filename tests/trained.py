"""What ranks really trained on: each writes down, as it takes a step, the samples of its batch.

A run notes with `NOTES` among its arguments, into the folder that the environment's TRAINED names.
A host that LACKS something there cannot take part.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Optim
from configs.schema import Task as Options
from tasks.classification import Classification
from utils.errors import BadInput

NOTES = ("task.name=tests/trained.py:noted", "optim.name=tests/trained.py:counted")
STATE: dict[str, list[int]] = {}  # of this process: the samples of its newest batch


class Noted(Classification):
    """Images of one label; as slow as the folder's file `slow` says, in seconds a batch."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        STATE["samples"] = batch["sample"].tolist()
        slow = Path(os.environ["TRAINED"]) / "slow"
        if slow.exists():
            time.sleep(float(slow.read_text()))
        return super().loss(model, batch)


class Counted(torch.optim.SGD):
    """Knows, from its state, which step it takes, and writes down on what; the one that the
    folder's file `fails` names cannot be taken."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            before = self.state[parameter].get("step", torch.zeros(()))
            self.state[parameter]["step"] = before + 1
        step, samples = int(before) + 1, STATE.pop("samples", None)
        if samples is not None:  # else it is a trial step, of which nothing is kept
            fails = Path(os.environ["TRAINED"]) / "fails"
            if fails.exists() and step == int(fails.read_text()):
                raise ArithmeticError(f"step {step} always fails")
            with _notes().open("a") as file:
                file.write(json.dumps([step, samples]) + "\n")


def _notes() -> Path:
    start = os.environ.get("LOCKSTEP_START", "0")
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    return Path(os.environ["TRAINED"]) / f"{int(start):03d} of {size} rank {rank}.notes"


def noted(options: Options, classes: Sequence[str]) -> Noted:
    from tests.trained import Noted  # not the copy that was loaded as somebody's file

    if "LACKS" in os.environ:
        raise BadInput(f"this host lacks {os.environ['LACKS']}")
    return Noted(classes)


def counted(groups: list[dict[str, Any]], optim: Optim) -> torch.optim.Optimizer:
    from tests.trained import Counted

    return Counted(groups, lr=optim.lr, momentum=optim.momentum)


class Start:
    """The steps of one start of a job: what each of its ranks trained on."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.ranks: dict[int, dict[int, list[int]]] = defaultdict(dict)  # step -> rank -> samples

    def steps(self) -> Iterator[tuple[int, list[int]]]:
        """(step, the samples of the global batch) of the steps that every rank wrote down."""
        for step, ranks in sorted(self.ranks.items()):
            if len(ranks) == self.size:
                yield step, [sample for rank in range(self.size) for sample in ranks[rank]]


def starts(folder: Path) -> list[Start]:
    """Every start that noted into `folder`, in order."""
    found: dict[str, Start] = {}
    for path in sorted(folder.glob("*.notes")):
        number, _, size, _, rank = path.stem.split()
        start = found.setdefault(f"{number} {size}", Start(int(size)))
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # a kill may have cut it off
                step, samples = json.loads(line)
                assert int(rank) not in start.ranks[step], "a start took a step twice"
                start.ranks[step][int(rank)] = samples
    return list(found.values())


def sequence(some: Sequence[Start]) -> list[list[int]]:
    """The samples of every step, from the first on; AssertionError where starts that took the same
    step took it on other samples."""
    steps: dict[int, list[int]] = {}
    for start in some:
        for step, samples in start.steps():
            assert steps.setdefault(step, samples) == samples, f"step {step}"
    assert sorted(steps) == list(range(1, len(steps) + 1))
    return [samples for _, samples in sorted(steps.items())]
