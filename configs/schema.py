"""Every option of a run: its type, default, unit and range. Knows nothing of files or of torch."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


def _as_path(value: Any) -> Any:
    """Written text as a `Path` with `~` expanded; anything else, for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    if not value or "\0" in value:
        raise ValueError("names no file")
    return Path(os.path.expanduser(value))  # noqa: PTH111 (Path's raises on an unknown user)


FilePath = Annotated[Path, BeforeValidator(_as_path, json_schema_input_type=Path)]
# YAML has lists only; kept as tuples, so that a frozen config is frozen all the way down.
Names = Annotated[tuple[str, ...], Field(strict=False)]
Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Pair = Annotated[tuple[float, float], Field(strict=False)]


class Section(BaseModel):
    """Frozen; refuses unknown keys and values of another type ("3" is no number, true is not 1)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_all_defaults(cls, given: Any) -> Any:
        return {} if given is None else given  # a YAML section whose every key is commented out


class Run(Section):
    name: str = Field(
        default="run",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$",
        description="name of the run and of its folder: letters, digits, '.', '_', '-', at most 64",
    )
    dir: FilePath = Field(default=Path("runs"), description="folder that holds the run folders")


class Task(Section):
    name: str = Field(
        default="classification",
        min_length=1,
        description="a name of the TASKS table, or path.py:FUNCTION",
    )
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of the training target that is spread evenly over all classes",
    )


class Model(Section):
    name: str = Field(
        default="small_resnet",
        min_length=1,
        description="a name of the MODELS table, torchvision:NAME, timm:NAME or path.py:FUNCTION",
    )
    weights: FilePath | None = Field(
        default=None,
        description="pretrained weights to start from: a file, or what a library calls them, such "
        "as IMAGENET1K_V2 (torchvision) or DEFAULT; null: random weights",
    )
    freeze: Names = Field(
        default=(),
        description="patterns of names of parameters that are not trained, such as layer1.*",
    )


class Augment(Section):
    pad: int = Field(
        default=0, ge=0, description="largest random shift of a training image, pixels each way"
    )
    flip: bool = Field(
        default=False, description="mirror half of the training images left to right"
    )
    policy: Literal["randaugment", "trivialaugment"] | None = Field(
        default=None, description="operations of colour and shape drawn for each training image"
    )
    operations: int = Field(default=2, ge=1, description="operations an image of randaugment")
    magnitude: int = Field(
        default=9, ge=0, le=30, description="strength of randaugment's operations, 0 to 30"
    )
    erase: float = Field(
        default=0.0, ge=0, le=1, description="share of the training images with a box painted over"
    )
    mixup: float = Field(
        default=0.0,
        ge=0,
        description="Beta parameter of blending each image with its neighbour; 0: off",
    )
    cutmix: float = Field(
        default=0.0,
        ge=0,
        description="Beta parameter of pasting a box of its neighbour into each image; 0: off",
    )
    crop_area: Pair = Field(
        default=(0.08, 1.0),
        description="part of an image file that a training crop covers: [least, most]",
    )
    crop_ratio: Pair = Field(
        default=(0.75, 4 / 3), description="width over height of that crop: [least, most]"
    )


class Data(Section):
    name: str = Field(
        default="digits",
        min_length=1,
        description="a name of the DATASETS table, or path.py:FUNCTION",
    )
    path: FilePath | None = Field(
        default=None,
        description="folder that holds the dataset; null: where the dataset usually lies",
    )
    download: bool = Field(default=False, description="fetch the dataset when it is missing")
    image_size: int | None = Field(
        default=None,
        ge=1,
        description="height and width fed to the model, pixels; null: the dataset's",
    )
    workers: int = Field(
        default=2, ge=0, description="loading processes of each rank; 0: load between steps"
    )
    held_out: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description="share of each class held out of an image folder that has no val/",
    )
    eval_crop: float = Field(
        default=0.875,
        gt=0,
        le=1,
        description="side of evaluation's centre crop as a share of an image file's shorter side",
    )
    on_bad_image: Literal["stop", "skip"] = Field(
        default="stop",
        description="unreadable image file: stop, or train on another and evaluate without it",
    )
    augment: Augment = Augment()


class Train(Section):
    epochs: int = Field(default=6, ge=1, description="passes over the training set")
    global_batch: int = Field(
        default=96, ge=1, description="samples of one optimizer step, over all ranks"
    )
    micro_batch: int | None = Field(
        default=None, ge=1, description="most samples of one forward on one rank; null: no cap"
    )
    eval_batch: int | None = Field(
        default=None,
        ge=1,
        description="samples evaluated at once; null: micro_batch or global_batch, at most 256",
    )
    eval_every: int = Field(default=1, ge=1, description="epochs from one evaluation to the next")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", description="arithmetic of forward and backward (fp16 scales the loss)"
    )
    channels_last: bool = Field(
        default=True,
        description="lay images out as N, H, W, C in memory: convolutions are faster, on a GPU "
        "with tensor cores; false where one runs in plain fp32",
    )
    compile: bool = Field(default=False, description="run the model through torch.compile")
    deterministic: bool = Field(
        default=False, description="deterministic kernels only, so that GPUs resume bit for bit too"
    )
    ema: float | None = Field(
        default=None,
        gt=0,
        description="half-life of the averaged model's memory, samples; null: no averaged model",
    )
    best_metric: str = Field(
        default="accuracy", min_length=1, description="evaluation metric that chooses best.pt"
    )

    @property
    def evaluation_batch(self) -> int:
        """Samples of one evaluation batch, on any world size: the bits of logits depend on it."""
        return self.eval_batch or min(self.micro_batch or self.global_batch, 256)


class Optim(Section):
    name: str = Field(
        default="sgd",
        min_length=1,
        description="a name of the OPTIMIZERS table, or path.py:FUNCTION",
    )
    lr: float = Field(default=0.1, gt=0, description="peak learning rate, for the global batch")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of sgd and rmsprop")
    nesterov: bool = Field(default=False, description="Nesterov's form of sgd's momentum")
    betas: Pair = Field(default=(0.9, 0.999), description="decay rates of adamw's two moments")
    eps: float = Field(
        default=1e-8, gt=0, description="added to the denominator of adamw and rmsprop"
    )
    alpha: float = Field(
        default=0.99, ge=0, lt=1, description="decay rate of rmsprop's mean of squares"
    )
    weight_decay: float = Field(
        default=5e-4, ge=0, description="weight decay; never on norms and biases"
    )
    clip_norm: float | None = Field(
        default=None, gt=0, description="largest norm of all gradients together; null: no clipping"
    )
    layer_decay: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="learning rate of a layer as a share of that of the layer above it",
    )
    schedule: str = Field(
        default="cosine",
        min_length=1,
        description="a name of the SCHEDULES table: constant, cosine, linear, polynomial, step",
    )
    min_lr: float = Field(
        default=0.0, ge=0, description="learning rate that the schedule falls towards"
    )
    milestones: Numbers = Field(
        default=(), description="epochs at which the step schedule lowers the learning rate"
    )
    gamma: float = Field(
        default=0.1, gt=0, description="factor of the step schedule at each milestone"
    )
    power: float = Field(default=1.0, gt=0, description="exponent of the polynomial schedule")
    warmup_epochs: float = Field(
        default=1.0, ge=0, description="epochs in which the learning rate rises to its peak"
    )


class Save(Section):
    every_steps: int | None = Field(
        default=50, ge=1, description="optimizer steps between checkpoints; null: not by steps"
    )
    every_minutes: float | None = Field(
        default=None, gt=0, description="minutes between checkpoints; null: not by time"
    )
    keep: int = Field(default=2, ge=2, description="newest checkpoints kept, beside the best")
    on_error: Literal["stop", "continue"] = Field(
        default="stop", description="what a failed save does to the run"
    )


class Ddp(Section):
    exact: bool = Field(
        default=False,
        description="the same bits on 1, 2, 4, ... processes: gradients of fixed shards, in a tree",
    )
    shards: int | None = Field(
        default=None,
        ge=1,
        description="equal parts of the global batch in exact mode, a power of two and at least as "
        "many as processes; null: 8, fewer where the batch does not divide, more for micro_batch",
    )
    sync_batchnorm: bool = Field(
        default=False, description="BatchNorm statistics over all ranks (GPUs only)"
    )
    static_graph: bool = Field(
        default=False,
        description="promise DDP that every step uses the same graph (one process has no DDP)",
    )
    find_unused_parameters: bool = Field(
        default=False,
        description="let DDP search for parameters that a step does not use, which several "
        "processes else refuse",
    )
    gradient_as_bucket_view: bool = Field(
        default=True, description="gradients live in DDP's buckets: one copy less"
    )
    bucket_cap_mb: float | None = Field(
        default=None,
        gt=0,
        description="size of DDP's gradient buckets, MiB; null: torch's default, on CPUs without "
        "its small first bucket",
    )


class Faults(Section):
    hang_timeout_s: float = Field(
        default=300.0,
        gt=0,
        description="seconds that a process may take for one batch, evaluation batch or save "
        "before the job is ended as hanging",
    )
    start_timeout_s: float = Field(
        default=1800.0,
        gt=0,
        description="the same before the first step: reading and fetching data, meeting, compiling",
    )
    max_skipped_steps: int = Field(
        default=20,
        ge=1,
        description="steps in a row that fp16's overflow may skip before the run stops",
    )


class Log(Section):
    every_steps: int = Field(default=10, ge=1, description="optimizer steps between metrics rows")
    tensorboard: bool = Field(default=False, description="write TensorBoard events as well")
    report: bool = Field(
        default=True, description="keep report.html in the run folder up to date while it trains"
    )


def _named(value: Any) -> Any:
    """`task: classification` as the short form of `task: {name: classification}`."""
    return {"name": value} if isinstance(value, str) else value


class Config(Section):
    seed: int = Field(
        default=0,
        ge=0,
        le=2**63 - 1,
        description="seed of weights, order, augmentation and dropout",
    )
    task: Annotated[Task, BeforeValidator(_named, json_schema_input_type=Task | str)] = Task()
    run: Run = Run()
    model: Model = Model()
    data: Data = Data()
    train: Train = Train()
    optim: Optim = Optim()
    save: Save = Save()
    ddp: Ddp = Ddp()
    faults: Faults = Faults()
    log: Log = Log()

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Config":
        if conflicts := list(_conflicts(self)):
            raise PydanticCustomError(
                "conflict", "options contradict each other", {"conflicts": conflicts}
            )
        return self


def _exact_conflicts(train: Train, ddp: Ddp) -> Iterator[tuple[str, str]]:
    """What exact mode cannot be asked for together with."""
    for name in ("sync_batchnorm", "static_graph", "find_unused_parameters", "bucket_cap_mb"):
        if ddp.exact and getattr(ddp, name):
            yield (
                f"ddp.{name}",
                "exact mode runs the bare module, shard by shard; set one of ddp.exact and this",
            )
    shards = ddp.shards
    if not ddp.exact or shards is None:
        return
    if shards & (shards - 1):
        yield "ddp.shards", f"{shards} shards make no binary tree; use a power of two"
    elif train.global_batch % shards:
        yield (
            "ddp.shards",
            f"{shards} equal shards cannot be cut from train.global_batch={train.global_batch}",
        )
    elif train.micro_batch is not None and train.global_batch > shards * train.micro_batch:
        yield (
            "ddp.shards",
            f"a shard is one forward of {train.global_batch // shards} samples, more than "
            f"train.micro_batch={train.micro_batch}",
        )


# Options that belong to some of our own optimizers and schedules; one of the person's may read any.
_USED_BY: dict[str, dict[str, tuple[str, ...]]] = {
    "name": {
        "momentum": ("sgd", "rmsprop"),
        "nesterov": ("sgd",),
        "betas": ("adamw",),
        "eps": ("adamw", "rmsprop"),
        "alpha": ("rmsprop",),
    },
    "schedule": {"milestones": ("step",), "gamma": ("step",), "power": ("polynomial",)},
}
_OURS = {
    "name": ("sgd", "adamw", "rmsprop", "adafactor"),
    "schedule": ("constant", "cosine", "linear", "polynomial", "step"),
}


def _optim_conflicts(optim: Optim) -> Iterator[tuple[str, str]]:
    """Options of another optimizer or schedule, and what a schedule lacks."""
    for choice, options in _USED_BY.items():
        chosen = getattr(optim, choice)
        for option, users in options.items():
            is_set = getattr(optim, option) != Optim.model_fields[option].default
            if is_set and chosen in _OURS[choice] and chosen not in users:
                yield (
                    f"optim.{option}",
                    f"optim.{choice}={chosen} does not use it; it is for {' and '.join(users)}",
                )
    if optim.schedule == "step" and not optim.milestones:
        yield "optim.milestones", "the step schedule needs the epochs of its steps, as [30, 60]"
    if optim.min_lr > optim.lr:
        yield "optim.min_lr", f"{optim.min_lr:g} is above the peak, optim.lr={optim.lr:g}"


# Of data in memory, which has no files, and is cut by no crop.
_IN_MEMORY = ("digits", "fashion_mnist", "cifar10")
_FOR_FILES = ("held_out", "eval_crop", "on_bad_image", "augment.crop_area", "augment.crop_ratio")


def _data_conflicts(data: Data) -> Iterator[tuple[str, str]]:
    """Options of the data that say nothing to its dataset or policy, or contradict themselves."""
    augment = data.augment
    for option in _FOR_FILES:
        section, name = (augment, option[8:]) if option.startswith("augment.") else (data, option)
        is_set = getattr(section, name) != type(section).model_fields[name].default
        if is_set and data.name in _IN_MEMORY:
            yield f"data.{option}", f"it is for image files, and data.name={data.name} has none"
    for name in ("operations", "magnitude"):
        is_set = getattr(augment, name) != Augment.model_fields[name].default
        if is_set and augment.policy != "randaugment":
            yield f"data.augment.{name}", "it belongs to data.augment.policy=randaugment"
    for name, (least, most), limit in (
        ("crop_area", augment.crop_area, 1.0),
        ("crop_ratio", augment.crop_ratio, math.inf),
    ):
        if not 0 < least <= most <= limit:
            yield (
                f"data.augment.{name}",
                f"[{least:g}, {most:g}] must be [least, most], above 0 and at most {limit:g}",
            )
    if data.image_size is not None and augment.pad >= data.image_size:
        yield (
            "data.augment.pad",
            f"shifts of {augment.pad} pixels empty an image of {data.image_size} pixels",
        )


def _conflicts(config: Config) -> Iterator[tuple[str, str]]:
    """(key, what contradicts what and the way out) of options that are wrong only together."""
    train, optim, ddp, data = config.train, config.optim, config.ddp, config.data
    if optim.warmup_epochs > train.epochs:
        yield (
            "optim.warmup_epochs",
            f"{optim.warmup_epochs:g} epochs of warm-up are more than train.epochs={train.epochs}",
        )
    yield from _optim_conflicts(optim)
    if optim.nesterov and not optim.momentum:
        yield "optim.nesterov", "nesterov needs optim.momentum above 0"
    if not all(0 <= beta < 1 for beta in optim.betas):
        yield "optim.betas", f"both of {list(optim.betas)} must be at least 0 and below 1"
    if ddp.static_graph and ddp.find_unused_parameters:
        yield (
            "ddp.find_unused_parameters",
            "a static graph finds unused parameters by itself; set one of static_graph and this",
        )
    if ddp.shards is not None and not ddp.exact:
        yield "ddp.shards", "shards belong to exact mode; set ddp.exact=true or shards=null"
    yield from _exact_conflicts(train, ddp)
    yield from _data_conflicts(data)
