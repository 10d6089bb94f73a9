"""YAML and overrides become one configuration, or one message with every mistake in it."""

import random
from contextlib import suppress
from pathlib import Path

import pytest

from configs.explain import field_at, is_section, options
from configs.load import check_overrides, from_plain, load, to_plain, to_yaml
from configs.schema import Config
from utils.errors import BadInput

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def yaml_file(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(BadInput) as error:
        load(yaml_file(folder, text), overrides)
    return str(error.value)


def test_overrides_win_over_yaml_and_yaml_over_defaults(tmp_path):
    path = yaml_file(tmp_path, "optim: {lr: 0.5, momentum: 0.5}\n")
    config = load(path, ["optim.lr=1e-3", "data.augment.pad=3", "seed=1", "seed=2"])
    assert (config.optim.lr, config.optim.momentum) == (0.001, 0.5)
    assert (config.data.augment.pad, config.seed) == (3, 2)
    assert config.optim.weight_decay == Config().optim.weight_decay


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "optim:\ndata:\n  augment:\n", "\ufeffseed: 0\n"]
)
def test_what_is_left_empty_is_the_default(tmp_path, text):
    assert load(yaml_file(tmp_path, text), ["data.augment.pad=0"]) == Config()


def test_an_override_of_a_text_is_what_the_shell_passed(tmp_path):
    path = yaml_file(tmp_path, "model: {weights: x.pt}\n")
    given = [
        "data.path=/data/a: b [c] #1=2",
        "run.name=010",
        "model.name=true",
        "model.weights=null",
    ]
    config = load(path, given)
    assert str(config.data.path) == "/data/a: b [c] #1=2"
    assert (config.run.name, config.model.name, config.model.weights) == ("010", "true", None)


def test_lists_and_nothing_can_be_given_as_overrides(tmp_path):
    given = [
        "optim.name=adamw",
        "optim.betas=[0.8, 0.99]",
        "model.freeze=[stem, layer1.]",
        "save.every_steps=null",
    ]
    config = load(yaml_file(tmp_path, ""), given)
    assert config.optim.betas == (0.8, 0.99)
    assert config.model.freeze == ("stem", "layer1.")
    assert config.save.every_steps is None


def test_one_mistake_names_file_line_key_what_was_given_and_what_is_allowed(tmp_path):
    said = message(tmp_path, "seed: 0\noptim:\n  lr: fast\n")
    assert said == (
        f"{tmp_path}/my.yaml:3: optim.lr: given 'fast'; allowed: a number above 0"
        " (peak learning rate, for the global batch)"
    )


def test_all_mistakes_of_a_file_and_its_overrides_are_in_one_message(tmp_path):
    text = """\
seed: 010
optim: {momentun: 0.9, lr: .nan}
train:
  precision: fp8
  epochs: 0
  epochs: 1
  lr: 0.1
data: 5
"""
    said = message(tmp_path, text, "lr=1", "optim=3", "optim.lr.x=3", "foo", "=1")
    lines = [line.replace(f"{tmp_path}/", "") for line in said.splitlines()]
    assert lines[0] == "13 mistakes in the configuration"
    for start, told in [
        ("  my.yaml:1: seed: given '010'", "a whole number at least 0"),
        ("  my.yaml:2: unknown key optim.momentun", "did you mean 'momentum'?"),
        ("  my.yaml:2: optim.lr: given '.nan'", "a number above 0"),
        ("  my.yaml:4: train.precision: given 'fp8'", "allowed: fp32, bf16, fp16"),
        ("  my.yaml:5: train.epochs: given 0", "at least 1"),
        ("  my.yaml:6: train.epochs: already given", "on line 5"),
        ("  my.yaml:7: unknown key train.lr", "did you mean optim.lr?"),
        ("  my.yaml:8: data: given 5", "keys with values (name, path,"),
        ("  override lr=1: unknown key lr", "did you mean optim.lr?"),
        ("  override optim=3: optim is a section", "optim.KEY=VALUE"),
        ("  override optim.lr.x=3: optim.lr.x", "holds no further keys"),
        ("  override foo: ", "section.key=value"),
        ("  override =1: unknown key ''", "the top level has: seed"),
    ]:
        [line] = [line for line in lines if line.startswith(start)]
        assert told in line


def test_contradictions_name_the_line_or_the_override(tmp_path):
    text = "optim:\n  warmup_epochs: 5\nddp: {shards: 5}\n"
    said = message(tmp_path, text, "train.epochs=3", "optim.nesterov=true", "optim.momentum=0")
    assert (
        "my.yaml:2: optim.warmup_epochs: 5 epochs of warm-up are more than train.epochs=3" in said
    )
    assert "my.yaml:3: ddp.shards: shards belong to exact mode" in said
    assert "override optim.nesterov=true: optim.nesterov: nesterov needs optim.momentum" in said


def test_a_line_refused_as_yaml_is_not_refused_again_for_its_value(tmp_path):
    said = message(tmp_path, "optim:\n  lr: &a 1\n  eps: *a\n")
    assert said.count("my.yaml:3") == 1


def test_no_configuration_file_names_the_nearest_one(tmp_path):
    yaml_file(tmp_path, "")
    with pytest.raises(BadInput, match=r"there is no configuration file .*mi\.yaml; did you mean"):
        load(tmp_path / "mi.yaml", [])
    with pytest.raises(BadInput, match=r"no configuration file .*other\.json$"):
        load(tmp_path / "other.json", [])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"seed: 0\nrun: {name: \xff}\n", "my.yaml:2: not UTF-8"),
        (b"#" * 70_000, "over 64 KiB"),
        (b"- 1\n", "my.yaml:1: [1] is no section"),
        (b"seed\n", "my.yaml:1: 'seed' is no section"),
        (b"seed: 0\n{", "my.yaml:2: not YAML"),
        (b"1: 2\n", "my.yaml:1: unknown key '1'"),
    ],
)
def test_a_file_that_is_no_configuration_is_bad_input(tmp_path, content, told):
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    with pytest.raises(BadInput) as error:
        load(path, [])
    assert told in str(error.value)


def test_a_folder_is_no_configuration_file(tmp_path):
    with pytest.raises(BadInput, match="cannot read configuration file"):
        load(tmp_path, [])


def test_plain_values_name_their_source_and_are_not_changed():
    values = to_plain(Config())
    before = to_plain(Config())
    assert from_plain(values, ["optim.lr=2"], "runs/x/last.pt").optim.lr == 2.0
    assert values == before
    values["optim"]["lr"] = "x"
    with pytest.raises(BadInput, match=r"^runs/x/last\.pt: optim\.lr: given 'x'"):
        from_plain(values, [], "runs/x/last.pt")


def test_overrides_alone_are_checked_for_names_types_and_ranges_only():
    check_overrides(["optim.warmup_epochs=50", "run.name=x"])  # 50 may fit the checkpoint's epochs
    with pytest.raises(BadInput, match="2 mistakes"):
        check_overrides(["optim.warmup_epoch=50", "train.epochs=0"])


def test_every_option_is_explained_when_it_is_wrong():
    for path in options():
        with pytest.raises(BadInput) as error:
            from_plain(nested(path), [], "file")
        field = field_at(path)
        assert field is not None
        assert not is_section(field)
        assert f"{'.'.join(path)}: given" in str(error.value)
        assert f"({field.description})" in str(error.value)


def nested(path: tuple[str, ...]) -> dict[str, object]:
    values: object = {"a": 1}
    for part in reversed(path):
        values = {part: values}
    assert isinstance(values, dict)
    return values


@pytest.mark.parametrize("name", ["quickstart.yaml", "fashion_mnist.yaml"])
def test_the_configs_of_the_repository_are_valid_and_round_trip(tmp_path, name):
    config = load(CONFIGS / name, ["optim.clip_norm=1e-30", "data.path=on", "task.name=~x"])
    assert load(yaml_file(tmp_path, to_yaml(config)), []) == config
    assert from_plain(to_plain(config), [], "plain") == config


def test_damaged_configs_are_bad_input_never_another_exception(tmp_path):
    draw = random.Random(0)
    text = (CONFIGS / "quickstart.yaml").read_text()
    pieces = [":", "- ", "[", "}", "&a ", "*a", "!!x ", "\t", "\n", "010", "null", "'", "? ", "x: "]
    for _ in range(300):
        damaged = list(text)
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(damaged))
            damaged[place : place + draw.randrange(3)] = draw.choice(pieces)
        with suppress(BadInput):
            load(yaml_file(tmp_path, "".join(damaged)), [])


def test_a_task_may_be_written_by_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("task: segmentation\n")
    assert load(tmp_path / "x.yaml").task.name == "segmentation"
    assert load(tmp_path / "x.yaml", ["task.label_smoothing=0.1"]).task.label_smoothing == 0.1
