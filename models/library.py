"""Networks and pretrained weights of other libraries: `torchvision:NAME`, `timm:NAME`."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from utils.errors import BadInput
from utils.names import hint, pick

Builder = Callable[[int, int], nn.Module]  # (num_classes, in_channels) -> network


class Published(NamedTuple):
    """Weights that a library offers under a name: where they are, and what they were made for."""

    name: str
    fetch: Callable[[], Path]  # the file, downloaded when it is not there yet
    classes: list[str] | None  # of their head; None where the library does not say
    preprocess: dict[str, Any]  # image_size, mean, std, centre_crop of their own evaluation


class Library(NamedTuple):
    """How one library makes a network, and finds weights for it by name."""

    builder: Callable[[str], Builder]
    weights: Callable[[str, str], Published]


def published(model: str, weights: Path | None) -> Published | None:
    """What `weights` names in the library of `model`; None when it is a file, or null.

    Opens and downloads nothing. BadInput when the library has no weights of that name.
    """
    library, _, network = model.partition(":")
    if weights is None or library not in LIBRARIES or not network:
        return None
    if weights.exists() or len(weights.parts) > 1 or weights.suffix in (".pt", ".pth"):
        return None
    return LIBRARIES[library].weights(network, str(weights))


def same_classes(ours: Sequence[str], theirs: Sequence[str] | None) -> bool:
    """Whether a dataset's classes are those of published weights, under whatever names.

    ImageNet's folders are named by WordNet identifiers, whose order is that of every library.
    """
    if theirs is None or len(ours) != len(theirs):
        return False
    wordnet = all(re.fullmatch(r"n\d{8}", name) for name in ours)
    return list(ours) == list(theirs) or (wordnet and len(ours) == 1000)


def _torchvision(network: str) -> Builder:
    """The builder of one of torchvision's classification networks, its stem fitted to the data."""
    from torchvision import models  # imported here: 1.3 s that small runs do without

    names = models.list_models(module=models)
    if network not in names:
        raise BadInput(f"torchvision has no model '{network}'{hint(network, names)}")
    # These two return more than logits in training unless told not to.
    more = {"aux_logits": False, "init_weights": True}
    extra = more if network in ("googlenet", "inception_v3") else {}

    def build(num_classes: int, in_channels: int) -> nn.Module:
        model: nn.Module = models.get_model(network, weights=None, num_classes=num_classes, **extra)
        fit_stem(model, in_channels)
        return model

    return build


def _torchvision_weights(network: str, name: str) -> Published:
    from torchvision import models

    offered = models.get_model_weights(network).__members__
    found: Any = pick(offered, name, f"weights of torchvision:{network} (model.weights)")
    settings = found.transforms()
    size = settings.crop_size[0]
    return Published(
        name,
        lambda: download(found.url),
        found.meta.get("categories"),
        {
            "image_size": size,
            "mean": list(settings.mean),
            "std": list(settings.std),
            "centre_crop": size / settings.resize_size[0],
        },
    )


def _timm(network: str) -> Builder:
    """The builder of one of timm's networks."""
    timm = _import_timm()
    if not timm.is_model(network):
        base, _, _ = network.partition(".")
        raise BadInput(f"timm has no model '{network}'{hint(base, timm.list_models())}")

    def build(num_classes: int, in_channels: int) -> nn.Module:
        model: nn.Module = timm.create_model(
            network, pretrained=False, num_classes=num_classes, in_chans=in_channels
        )
        return model

    return build


def _timm_weights(network: str, name: str) -> Published:
    """`DEFAULT`, or a tag such as `a1_in1k`."""
    timm = _import_timm()
    base = network.partition(".")[0]
    tags = {tag.partition(".")[2]: tag for tag in timm.list_pretrained(f"{base}.*")}
    asked = network if name == "DEFAULT" else pick(tags, name, f"weights of timm:{base}")
    found = timm.get_pretrained_cfg(asked)
    if found is None or not (found.hf_hub_id or found.url):
        raise BadInput(f"timm has no pretrained weights for '{asked}'")

    def fetch() -> Path:
        if not found.hf_hub_id:
            return download(found.url)
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(found.hf_hub_id, "model.safetensors"))
        except (OSError, ValueError) as error:
            raise BadInput(f"cannot download {found.hf_hub_id}: {error}") from error

    preprocess = {
        "image_size": found.input_size[-1],
        "mean": list(found.mean),
        "std": list(found.std),
        "centre_crop": found.crop_pct,
    }
    return Published(name, fetch, found.label_names, preprocess)


def _import_timm() -> Any:
    try:
        import timm
    except ImportError:
        raise BadInput("timm:NAME needs the package timm: pip install timm") from None
    return timm


LIBRARIES: dict[str, Library] = {
    "torchvision": Library(_torchvision, _torchvision_weights),
    "timm": Library(_timm, _timm_weights),
}


def download(url: str) -> Path:
    """The file of `url` in torch.hub's cache, fetched when missing; its hash is in its name.

    BadInput when it cannot be had.
    """
    name = url.rpartition("/")[2]
    file = Path(torch.hub.get_dir()) / "checkpoints" / name
    if file.is_file():
        return file
    digest = re.search(r"-([0-9a-f]{8,})\.", name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(file), digest.group(1) if digest else None, progress=sys.stderr.isatty()
        )
    except (OSError, RuntimeError) as error:
        raise BadInput(
            f"cannot download {url}: {error}; or put the file there by hand: {file}"
        ) from error
    return file


def fit_stem(model: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by a random one when the data has other channels."""
    convolutions = (pair for pair in model.named_modules() if isinstance(pair[1], nn.Conv2d))
    name, module = next(convolutions, ("", None))
    if not isinstance(module, nn.Conv2d) or module.in_channels == in_channels:
        return
    if module.groups != 1:
        raise BadInput(f"the first convolution, {name}, has groups: its channels cannot change")
    stem = nn.Conv2d(
        in_channels,
        module.out_channels,
        module.kernel_size,  # type: ignore[arg-type]
        module.stride,  # type: ignore[arg-type]
        module.padding,  # type: ignore[arg-type]
        module.dilation,  # type: ignore[arg-type]
        bias=module.bias is not None,
        padding_mode=module.padding_mode,
    )
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, stem)
