"""What docs/data.md shows does what it says."""

import re
import shlex
from pathlib import Path

from data.order import TrainOrder
from tests.runs import run

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the page that are marked with `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_page_knows_where_a_sample_was_trained_on():
    known: dict[str, object] = {}
    [shown] = [block for block in blocks("python") if "TrainOrder" in block]
    exec(shown, known)
    order = known["order"]
    assert isinstance(order, TrainOrder)
    step, rank = order.step_of(3, 12_345), order.rank_of(3, 12_345, 8)
    assert step is not None and rank is not None
    assert 12_345 in order.samples(step, rank, 8)[1]


def test_the_pages_own_dataset_trains_as_shown(tmp_path, monkeypatch):
    [code] = [block for block in blocks("python") if block.startswith("# squares.py")]
    (tmp_path / "squares.py").write_text(code)
    [command] = [line for line in blocks("")[-1].splitlines() if line.startswith("python train.py")]
    options = [
        word.replace("squares.py", str(tmp_path / "squares.py"))
        for word in shlex.split(command)[2:]
    ]
    run(1, *options, f"run.dir={tmp_path}", "run.name=squares")
    last = (tmp_path / "squares" / "metrics.jsonl").read_text().splitlines()[-1]
    assert float(re.search(r'"accuracy": ([0-9.]+)', last)[1]) > 0.95
