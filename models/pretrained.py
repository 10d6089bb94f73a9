"""Weights from a file into a network on the CPU, and the report of what came of each of them."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from checkpoint.open import read
from checkpoint.state import decoded
from configs.schema import Model
from models.library import published, same_classes
from utils.durable import write_atomic
from utils.errors import BadInput
from utils.names import hint

log = logging.getLogger(__name__)

WEIGHT_KEYS = ("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema", "ema")
PREFIXES = ("module.", "_orig_mod.", "model.")
_PROJECT = Path(__file__).resolve().parent.parent
LEAST_MATCHED = 0.5  # of the backbone's parameters; less is taken for a mistake


@dataclass(frozen=True)
class LoadReport:
    """What became of a weights file; counts are of parameters (numbers), not of tensors."""

    file: str
    loaded: list[str]
    loaded_parameters: int
    model_parameters: int
    reinitialised: dict[str, str]  # name in the network -> why it stayed random
    unused: list[str]  # names in the file that the network did not take

    def text(self) -> str:
        """The report for a person, a few lines."""
        total = self.model_parameters
        lines = [
            f"weights {self.file}: {len(self.loaded)} tensors, {self.loaded_parameters:,} of "
            f"{total:,} parameters loaded"
        ]
        lines += [f"  stays random: {name} ({why})" for name, why in self.reinitialised.items()]
        if self.unused:
            names = ", ".join(self.unused[:6]) + (", ..." if len(self.unused) > 6 else "")
            lines.append(f"  not used of the file: {len(self.unused)} ({names})")
        return "\n".join(lines)

    def to_json(self) -> bytes:
        """The whole report as JSON."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def fill(
    model: nn.Module,
    section: Model,
    classes: Sequence[str],
    folder: Path,
    saved: Mapping[str, Tensor] | None = None,
    file: Path | None = None,
) -> None:
    """Give `model` its first weights: a checkpoint's (`saved`, from `file`), or, with a report in
    the run's `folder`, those that `section.weights` names. BadInput where they do not fit."""
    if saved is not None:
        restore(model, saved, file)
    elif section.weights is not None:
        report = load_weights(model, section, classes)
        log.info(report.text())
        write_atomic(folder / "load_report.json", report.to_json())


def load_weights(model: nn.Module, section: Model, classes: Sequence[str]) -> LoadReport:
    """`load_pretrained` of `section.weights`: a file, or what the model's library calls them."""
    assert section.weights is not None
    offer = published(section.name, section.weights)
    if offer is None:
        return load_pretrained(model, _found(section.weights), classes)
    theirs = classes if same_classes(classes, offer.classes) else offer.classes
    return load_pretrained(model, offer.fetch(), classes, theirs)


def require_weights(section: Model) -> None:
    """BadInput unless `section.weights`, if any, is a file, or a name in the model's library."""
    if section.weights is not None and published(section.name, section.weights) is None:
        _found(section.weights)


def _found(file: Path) -> Path:
    """`file` from the working folder, or else from the folder of this project."""
    for place in (file, _PROJECT / file):
        if place.is_file():
            return place
    raise BadInput(f"model.weights: there is no file {file}")


def class_names(section: Model, classes: Sequence[str]) -> list[str]:
    """The names of a dataset's classes, in the words of the library's weights where it has some."""
    offer = published(section.name, section.weights)
    if offer is None or offer.classes is None or not same_classes(classes, offer.classes):
        return list(classes)
    return offer.classes


def origin(section: Model) -> dict[str, Any]:
    """`pretrained`: what a library's weights were made with, to go beside our own preprocessing."""
    offer = published(section.name, section.weights)
    return {} if offer is None else {"pretrained": {"weights": offer.name, **offer.preprocess}}


def load_pretrained(
    model: nn.Module,
    file: Path,
    classes: Sequence[str],
    file_classes: Sequence[str] | None = None,
) -> LoadReport:
    """Copy what fits of `file` into `model`, in place, on the CPU; float types become the model's.

    A head of other classes (by size, or by the class names that the file carries or, without any,
    `file_classes`) and a stem of other channels stay random. Raises BadInput when less than half of
    the backbone's parameters would be loaded: such a file is a mistake.
    """
    content = read(file)
    source = _bare_names(weights_of(content, file), set(model.state_dict()))
    target = model.state_dict()
    head, stem = _head_and_stem(model)
    theirs = content.get("labels", file_classes)
    other_classes = theirs is not None and not same_classes(classes, theirs)
    loaded: list[str] = []
    reinitialised: dict[str, str] = {}
    for name, tensor in target.items():
        why = _why_not(name, tensor, source)
        if why is None and other_classes and name.rpartition(".")[0] == head:
            why = "the file's classes are others"
        if why is None:
            loaded.append(name)
        else:
            reinitialised[name] = why
    _require_backbone(target, loaded, {head, stem}, source, file)
    with torch.no_grad():
        for name in loaded:
            target[name].copy_(source[name])
    parameters = dict(model.named_parameters())
    return LoadReport(
        file=str(file),
        loaded=loaded,
        loaded_parameters=sum(parameters[name].numel() for name in loaded if name in parameters),
        model_parameters=sum(p.numel() for p in parameters.values()),
        reinitialised=reinitialised,
        unused=[name for name in source if name not in target],
    )


def weights_of(content: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """The state dict in a file's content: ours (exact float32), a training script's, or bare."""
    if "model" in content and "residual" in content:
        return decoded(content["model"], content["residual"])
    for key in WEIGHT_KEYS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(v, Tensor) for v in inner.values()):
            return {name: value for name, value in inner.items() if isinstance(value, Tensor)}
    bare = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not bare:
        keys = ", ".join(map(str, list(content)[:8]))
        raise BadInput(
            f"{file} holds no weights: none of {', '.join(WEIGHT_KEYS)} is a dict of tensors, "
            f"and no entry is a tensor (its entries: {keys})"
        )
    return bare


def _bare_names(source: Mapping[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """`source` without the prefixes that wrappers add, where the network has no such name."""
    return {_bare_name(name, wanted): tensor for name, tensor in source.items()}


def _bare_name(name: str, wanted: set[str]) -> str:
    bare = name.replace("_orig_mod.", "") if name not in wanted else name
    while bare not in wanted:
        prefix = next((p for p in PREFIXES if bare.startswith(p)), None)
        if prefix is None:
            return bare
        bare = bare.removeprefix(prefix)
    return bare


def _why_not(name: str, tensor: Tensor, source: Mapping[str, Tensor]) -> str | None:
    if name not in source:
        return "not in the file"
    if source[name].shape != tensor.shape:
        return f"shape {tuple(source[name].shape)} in the file, {tuple(tensor.shape)} here"
    return None


def _head_and_stem(model: nn.Module) -> tuple[str, str]:
    """The names of the last and the first module with weights of their own."""
    owners = [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    return (owners[-1], owners[0]) if owners else ("", "")


def _require_backbone(
    target: Mapping[str, Tensor],
    loaded: Sequence[str],
    ends: set[str],
    source: Mapping[str, Tensor],
    file: Path,
) -> None:
    backbone = [name for name in target if name.rpartition(".")[0] not in ends]
    total = sum(target[name].numel() for name in backbone)
    matched = sum(target[name].numel() for name in set(loaded) & set(backbone))
    if not total or matched >= LEAST_MATCHED * total:
        return
    missing = [name for name in backbone if name not in loaded][:4]
    nearest = "\n".join(
        f"  {name}: {_why_not(name, target[name], source)}{hint(name, source)}" for name in missing
    )
    raise BadInput(
        f"{file} does not fit the network: {matched:,} of the backbone's {total:,} parameters "
        f"match (at least half must). For example\n{nearest}\n"
        f"The file has {', '.join(list(source)[:4])}, ..."
    )


def restore(model: nn.Module, state: Mapping[str, Tensor], file: Path | None) -> None:
    """Load a checkpoint's own state dict; BadInput names keys and shapes if another model's."""
    target = model.state_dict()
    wrong = [f"  {n}: {why}" for n, t in target.items() if (why := _why_not(n, t, state))]
    wrong += [f"  {name}: only in the file" for name in state if name not in target]
    if wrong:
        rest = f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise BadInput(f"{file} is a checkpoint of another model:\n" + "\n".join(wrong[:8]) + rest)
    model.load_state_dict(state)
