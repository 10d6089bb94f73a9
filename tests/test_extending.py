"""docs/extending.md, done as it says: one file and one line for each of one's own.

The dataset is in tests/data/test_docs.py.

./launch.sh test tests/test_extending.py
"""

import json
import re
import shlex
from pathlib import Path

import pytest

from checkpoint.open import read
from tests.runs import run

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = {
    re.match(r"# (\S+\.py)", code).group(1): code  # type: ignore[union-attr]
    for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
}
COMMANDS = re.findall(r"```bash\npython train.py (.*?)\n```", TEXT)


def test_each_is_shown_with_its_command() -> None:
    assert len(COMMANDS) == len(FILES) == 3
    for file, command in zip(FILES, COMMANDS, strict=True):
        assert file in command


@pytest.mark.parametrize("command", COMMANDS)
def test_it_works_as_shown(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "models").symlink_to(ROOT / "models")  # the quickstart's weights
    monkeypatch.chdir(tmp_path)
    run(1, *shlex.split(command), "train.epochs=1", "log.report=false")
    content = read(tmp_path / "runs" / "quickstart" / "last.pt")
    key, _, value = command.partition(" ")[0].partition("=")
    section, _, option = key.partition(".")
    assert content["config"][section][option] == value
    row = json.loads((tmp_path / "runs/quickstart/metrics.jsonl").read_text().splitlines()[-1])
    assert row["eval"]["accuracy"] > 0.15
