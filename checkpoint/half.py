"""float32 tensors as float16 plus what half precision lost, restored bit for bit.

For a float32 value x and h = float16(x), the residual is the difference of the two bit patterns,
`bits(x) - bits(float32(h))`. Rounding away 13 of 23 mantissa bits leaves a difference of at most
4096, so an ordinary weight's residual fits int16; what does not fit (values that are subnormal in
half precision, out of its range, or NaN) is listed with its exact bits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import BadInput

# Elements worked on at a time: 1 MB of float32, so that the passes over a chunk stay in the cache.
_CHUNK = 1 << 18
# A listed value costs 12 bytes (index and bits); with more than a sixth listed, the 2 bytes an
# element of `low` cost more than the whole float32 tensor.
_LISTED_SHARE = 6


@dataclass(frozen=True)
class Encoded:
    """`half`: the state with float32 as float16; `residual`: what that lost; `kept`: the names
    that stay float32 in `half` because half precision would break them."""

    half: dict[str, Tensor]
    residual: dict[str, Any]
    kept: list[str]


@dataclass(frozen=True)
class _Coded:
    half: Tensor  # flat float16
    index: Tensor  # int64 (K,), positions of the listed values
    bits: Tensor  # int32 (K,), their float32 bit patterns
    broken: bool  # a finite value became inf, or a flush to zero that matters


def encode(state: Mapping[str, Tensor]) -> Encoded:
    """The float32 tensors of `state` in half precision with their residual; others as they are.

    residual = {"names": names in order, "low": int16 (N,), "index": int64 (K,), "bits": int32 (K,),
    "whole": {name: float32}}. N counts the elements of the named tensors, row-major, one tensor
    after the other; `index` counts in the same order. A name in `whole` has no part in `low`.
    """
    floats = {name: tensor for name, tensor in state.items() if tensor.dtype == torch.float32}
    low = torch.empty(sum(tensor.numel() for tensor in floats.values()), dtype=torch.int16)
    half: dict[str, Tensor] = {}
    names: list[str] = []
    kept: list[str] = []
    whole: dict[str, Tensor] = {}
    indices: list[Tensor] = []
    bits: list[Tensor] = []
    used = 0
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        if name not in floats:
            half[name] = plain
            continue
        coded = _encode_one(name, plain, low[used : used + plain.numel()])
        if coded.broken:
            half[name] = plain
            kept.append(name)
            continue
        half[name] = coded.half.view(plain.shape)
        if len(coded.index) * _LISTED_SHARE > plain.numel():
            whole[name] = plain
            continue
        names.append(name)
        indices.append(coded.index + used)
        bits.append(coded.bits)
        used += plain.numel()
    residual = {
        "names": names,
        # A slice would be saved with the storage behind it.
        "low": low if used == len(low) else low[:used].clone(),
        "index": torch.cat([torch.empty(0, dtype=torch.int64), *indices]),
        "bits": torch.cat([torch.empty(0, dtype=torch.int32), *bits]),
        "whole": whole,
    }
    return Encoded(half, residual, kept)


def _encode_one(name: str, tensor: Tensor, low: Tensor) -> _Coded:
    """One contiguous float32 tensor; fills `low` (numel,) int16."""
    flat = tensor.view(-1)
    half = torch.empty(flat.shape, dtype=torch.float16)
    back = torch.empty(min(len(flat), _CHUNK), dtype=torch.float32)
    indices: list[Tensor] = []
    flushed = False
    for start in range(0, len(flat), _CHUNK):
        part = slice(start, start + _CHUNK)
        exact, rounded, fits = flat[part], half[part], low[part].numpy()
        rounded.copy_(exact)
        # numpy compares several times faster than torch does on one thread.
        difference = back[: len(exact)].copy_(rounded).view(torch.int32).numpy()
        np.subtract(exact.view(torch.int32).numpy(), difference, out=difference)
        fits[:] = difference  # wraps around where the difference does not fit
        listed = difference != fits
        # What bits a NaN keeps in half precision depends on the processor: always listed. The sum
        # is NaN wherever one is, and costs less than a look at each.
        if exact.sum().isnan():
            listed |= exact.isnan().numpy()
        # Magnitudes below 2**-134 are flushed too, and their difference fits.
        zero = rounded.view(torch.int16).numpy() << 1 == 0
        flushed = flushed or bool((zero & (fits != 0)).any())
        positions = np.flatnonzero(listed)
        if len(positions):
            fits[positions] = 0
            indices.append(torch.from_numpy(positions + start))
    index = torch.cat([torch.empty(0, dtype=torch.int64), *indices])
    return _Coded(
        half=half,
        index=index,
        bits=flat.view(torch.int32)[index],
        broken=_broken(name, tensor, half, index, flushed),
    )


def _broken(name: str, tensor: Tensor, half: Tensor, index: Tensor, flushed: bool) -> bool:
    """Whether half precision would break this tensor, so that it must stay float32:

    a finite value would become inf; a non-zero variance (`*running_var`) would become 0; or a
    whole channel (a slice of the first dimension; the whole tensor when it has one dimension or
    none) that is not zero would become zero. A single small weight may become 0.
    """
    exact, rounded = tensor.view(-1)[index], half[index]
    if bool((exact.isfinite() & rounded.isinf()).any()):
        return True
    if not flushed and not bool(((exact != 0) & (rounded == 0)).any()):
        return False
    if name.endswith("running_var"):
        return True
    channels = len(tensor) if tensor.dim() > 1 else 1
    before, after = tensor.view(channels, -1), half.view(channels, -1)
    # A channel that became zero starts with a zero: few rows are looked at whole.
    suspects = (after[:, 0] == 0).nonzero().view(-1)
    vanished = (before[suspects] != 0).any(dim=1) & ~(after[suspects] != 0).any(dim=1)
    return bool(vanished.any())


def decode(half: Mapping[str, Tensor], residual: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state that `encode` was given, every bit; BadInput when the parts do not fit together."""
    names, whole = set(residual["names"]), residual["whole"]
    low, index, bits = residual["low"], residual["index"], residual["bits"]
    expected = sum(half[name].numel() for name in residual["names"] if name in half)
    if not names <= set(half) or not set(whole) <= set(half) or expected != len(low):
        raise BadInput("the residual belongs to other weights: names or sizes differ")
    state: dict[str, Tensor] = {}
    used = 0
    for name, tensor in half.items():
        if name in whole:
            state[name] = whole[name].clone()
        elif name in names:
            count = tensor.numel()
            first, last = torch.searchsorted(index, torch.tensor([used, used + count])).tolist()
            pattern = tensor.contiguous().view(-1).to(torch.float32).view(torch.int32)
            pattern += low[used : used + count]
            pattern[index[first:last] - used] = bits[first:last]
            state[name] = pattern.view(torch.float32).view(tensor.shape)
            used += count
        else:
            state[name] = tensor.clone()
    return state
