"""Options: their defaults hold, they cannot be changed, and each says what it is for."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.explain import field_at, options
from configs.schema import Config, Data, Optim, Run, Train


def test_the_defaults_are_valid():
    assert Config.model_validate(Config().model_dump(mode="json")) == Config()


def test_a_config_is_frozen_all_the_way_down():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.optim.lr = 1.0
    assert isinstance(config.model.freeze, tuple)
    assert isinstance(config.optim.betas, tuple)
    hash(config)


def test_every_option_says_what_it_is_for():
    for path in options():
        field = field_at(path)
        assert field is not None
        assert field.description, path


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (Train, {"epochs": True}),
        (Train, {"epochs": "3"}),
        (Train, {"epochs": 3.0}),
        (Train, {"precision": "fp8"}),
        (Train, {"ema": 0.0}),
        (Optim, {"lr": float("nan")}),
        (Optim, {"lr": float("inf")}),
        (Optim, {"betas": [0.9]}),
        (Optim, {"betas": [0.9, "x"]}),
        (Data, {"download": 1}),
        (Data, {"path": ""}),
        (Data, {"path": "a\0b"}),
        (Data, {"path": 3}),
        (Run, {"name": "../x"}),
        (Run, {"name": ".."}),
        (Run, {"name": "a\n"}),
        (Run, {"name": "x" * 65}),
    ],
)
def test_a_value_of_another_type_or_range_is_refused(section, values):
    with pytest.raises(ValidationError):
        section.model_validate(values)


def test_a_path_below_the_home_folder_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert Data.model_validate({"path": "~/images"}).path == Path("/somewhere/images")
    assert Data.model_validate({"path": "~nobody-of-that-name/x"}).path is not None


@pytest.mark.parametrize(
    ("train", "samples"),
    [
        ({}, 96),
        ({"global_batch": 1024}, 256),
        ({"global_batch": 1024, "micro_batch": 32}, 32),
        ({"micro_batch": 32, "eval_batch": 500}, 500),
    ],
)
def test_the_evaluation_batch_needs_no_world_size(train, samples):
    assert Train.model_validate(train).evaluation_batch == samples


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"train": {"epochs": 1}, "optim": {"warmup_epochs": 2}}, "2 epochs of warm-up"),
        ({"optim": {"nesterov": True, "momentum": 0.0}}, "nesterov needs optim.momentum"),
        ({"optim": {"name": "adamw", "betas": [0.9, 1.0]}}, "below 1"),
        ({"ddp": {"static_graph": True, "find_unused_parameters": True}}, "set one of"),
        ({"optim": {"betas": [0.8, 0.99]}}, "optim.name=sgd does not use it; it is for adamw"),
        ({"optim": {"name": "adafactor", "eps": 1e-3}}, "it is for adamw and rmsprop"),
        ({"optim": {"power": 0.9}}, "optim.schedule=cosine does not use it"),
        ({"optim": {"schedule": "step"}}, "needs the epochs of its steps"),
        ({"optim": {"min_lr": 0.2}}, "above the peak"),
        ({"ddp": {"shards": 4}}, "ddp.exact=true"),
        ({"ddp": {"shards": 7, "exact": True}}, "7 shards make no binary tree"),
        ({"ddp": {"shards": 64, "exact": True}}, "64 equal shards cannot be cut"),
        (
            {"ddp": {"shards": 2, "exact": True}, "train": {"micro_batch": 47}},
            "48 samples, more than train.micro_batch=47",
        ),
        ({"ddp": {"exact": True, "sync_batchnorm": True}}, "runs the bare module"),
        ({"ddp": {"exact": True, "static_graph": True}}, "runs the bare module"),
        ({"data": {"image_size": 8, "augment": {"pad": 8}}}, "shifts of 8 pixels"),
        ({"data": {"augment": {"magnitude": 5}}}, "policy=randaugment"),
        ({"data": {"name": "cifar10", "on_bad_image": "skip"}}, "data.name=cifar10 has none"),
        ({"data": {"augment": {"crop_area": [0.5, 1.0]}}}, "data.name=digits has none"),
        (
            {"data": {"name": "image_folder", "augment": {"crop_area": [0.5, 0.2]}}},
            "[0.5, 0.2] must be [least, most], above 0 and at most 1",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(values, told):
    with pytest.raises(ValidationError) as error:
        Config.model_validate(values)
    [detail] = error.value.errors()
    [(key, what)] = detail["ctx"]["conflicts"]
    assert told in what
    assert field_at(tuple(key.split("."))) is not None
