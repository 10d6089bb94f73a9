"""What --help says is short and true."""

import shlex
from pathlib import Path

import pytest

from configs import __main__ as preflight
from configs import describe
from configs.command import parse
from configs.load import check_overrides, load


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        preflight.main(["--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


def examples(text: str) -> list[list[str]]:
    """The arguments behind `train.py` of each example."""
    lines = [line.split("  ")[1] for line in text.splitlines() if line.startswith("  ")]
    lines = [line for line in lines if " train.py" in line and "KEY" not in line]
    return [shlex.split(line.split("train.py", 1)[1]) for line in lines]


def test_every_example_is_a_command_that_train_py_takes(told: str) -> None:
    found = examples(told)
    assert len(found) == 6
    for arguments in found:
        command = parse(arguments)
        if command.config is not None:
            load(command.config, command.overrides)
        check_overrides(command.overrides)


def test_help_fits_a_screen_and_names_every_flag_and_exit_code(told: str) -> None:
    lines = told.splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    for word in (
        "--config",
        "--resume",
        "--evaluate",
        "--rehearse",
        "--rank",
        "KEY=VALUE",
        "75 stopped",
        "launch.sh",
    ):
        assert word in told
    assert Path(describe.OPTIONS).is_file()
    assert "docs/options.md" in told


def test_help_of_the_generator_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(describe, "OPTIONS", tmp_path / "options.md")
    monkeypatch.setattr(describe, "SCHEMA", tmp_path / "schema.json")
    with pytest.raises(SystemExit):
        describe.main(["--help"])
    assert "schema.json" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    describe.main([])
    assert {path.name for path in tmp_path.iterdir()} == {"options.md", "schema.json"}
