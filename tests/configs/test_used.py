"""No option is parsed and ignored.

./launch.sh test tests/configs/test_used.py
"""

import re
from pathlib import Path

import pytest

from configs.explain import options

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("checkpoint", "data", "ddp", "engine", "models", "report", "tasks", "utils")
CODE = "\n".join(
    file.read_text()
    for file in (ROOT / "train.py", *(f for name in FOLDERS for f in (ROOT / name).glob("*.py")))
)
# Read through a property of the section, which train.py asks for.
BY_PROPERTY = {"eval_batch": "evaluation_batch"}


@pytest.mark.parametrize("path", list(options()), ids=".".join)
def test_every_option_is_read_by_the_code_that_it_steers(path: tuple[str, ...]) -> None:
    name = BY_PROPERTY.get(path[-1], path[-1])
    assert re.search(rf"\.{name}\b", CODE), f"{'.'.join(path)} is read nowhere"
