"""What editors and validators know of the options is what train.py knows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import describe, explain
from configs.load import load
from utils.errors import BadInput

CONFIGS = Path(describe.SCHEMA).parent
FILES = sorted(CONFIGS.glob("*.yaml"))


def validated(*files: Path) -> subprocess.CompletedProcess[str]:
    """The verdict of a stock validator."""
    command = [sys.executable, "-m", "check_jsonschema", "--schemafile", str(describe.SCHEMA)]
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONWARNINGS": ""}
    return subprocess.run(
        [*command, *map(str, files)], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("file", [describe.SCHEMA, describe.OPTIONS], ids=lambda file: file.name)
def test_generated_files_are_fresh(file: Path) -> None:
    made = describe.schema() if file == describe.SCHEMA else describe.options()
    assert file.read_text(encoding="utf-8") == made, "run `python -m configs.describe`"


def test_every_option_is_in_the_schema_and_in_the_docs() -> None:
    names = {path[-1] for path in explain.options()}
    assert len(names) > 40
    found = json.loads(describe.schema())
    described = [found, *found["$defs"].values()]
    assert names <= {name for part in described for name in part["properties"]}
    assert all(f"| `{name}` |" in describe.options() for name in names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_configuration_names_the_schema_in_its_first_line(file: Path) -> None:
    first, second, *_ = file.read_text(encoding="utf-8").splitlines()
    assert first == "# yaml-language-server: $schema=schema.json"
    assert second.startswith("# ./launch.sh"), "the command follows"


def test_a_stock_validator_accepts_every_configuration(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("save:\n#  every_steps: 50\noptim: {weight_decay: 5e-4, lr: 1}\n")
    load(empty)
    verdict = validated(*FILES, empty)
    assert verdict.returncode == 0, verdict.stdout


@pytest.mark.parametrize(
    ("text", "key"),
    [("optim: {momentun: 0.9}\n", "momentun"), ("data: {augment: {padd: 2}}\n", "padd")],
)
def test_a_stock_validator_and_train_py_name_the_same_misspelt_key(
    text: str, key: str, tmp_path: Path
) -> None:
    file = tmp_path / "misspelt.yaml"
    file.write_text(text)
    verdict = validated(file)
    assert verdict.returncode == 1
    assert f"'{key}' was unexpected" in verdict.stdout
    with pytest.raises(BadInput, match=f"unknown key .*{key}; did you mean"):
        load(file)
    answer = subprocess.run(
        [sys.executable, "-m", "configs", "--config", str(file)],
        capture_output=True,
        text=True,
        cwd=CONFIGS.parent,
        check=False,
    )
    assert answer.returncode == 2
    assert f"misspelt.yaml:1: unknown key {text.split(':')[0]}." in answer.stderr
    assert key in answer.stderr


def test_a_stock_validator_refuses_a_value_out_of_range(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("optim: {lr: -1}\n")
    verdict = validated(file)
    assert verdict.returncode == 1
    assert "optim.lr" in verdict.stdout
