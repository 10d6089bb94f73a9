"""What every task offers to the loop, and the table of tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from configs.schema import Task as Options
from tasks.classification import classification
from utils.names import is_function_path, load_function, pick

Batch = dict[str, Tensor]
Sums = dict[str, Tensor]


class Task(Protocol):
    """A task knows batches and networks, and nothing of ranks or steps."""

    metrics: Mapping[str, bool]  # what `summarise` names -> whether higher is better
    counts_vary: bool  # whether batches of equal size may differ in `count`

    def collate(self, samples: list[Any]) -> Batch:
        """A batch (dict of tensors) of a list of the dataset's samples."""
        ...

    def count(self, batch: Batch) -> Tensor | int:
        """What the loss of `batch` is averaged over: its samples, or its valid pixels, or boxes."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss () summed (not averaged) over what `count` counts."""
        ...

    def measure(self, model: nn.Module, batch: Batch) -> Sums:
        """Integer sums, of any shape, that may be added over batches and ranks.

        An entry named `worst_...` holds rows (N, C) instead, the first column a score and the
        second a sample's number: of all batches and ranks together the N highest are kept. Scores
        are 0 or more; -1 marks a row without a sample.
        """
        ...

    def summarise(self, sums: Sums) -> dict[str, float]:
        """Named metrics of the sums of a whole dataset."""
        ...


TASKS: dict[str, Callable[[Options, Sequence[str]], Task]] = {
    "classification": classification,
}


def require_task(name: str) -> None:
    """BadInput unless there is a task called `name`."""
    if is_function_path(name):
        load_function(name, "task")
    else:
        pick(TASKS, name, "task")


def build_task(options: Options, classes: Sequence[str]) -> Task:
    """The task `options.name`: of the table, or what `path/to/file.py:function` returns."""
    if is_function_path(options.name):
        task: Task = load_function(options.name, "task")(options, classes)
        return task
    return pick(TASKS, options.name, "task")(options, classes)
