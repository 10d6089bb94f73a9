"""The depth of each parameter in a network, for learning rates that fall towards the input."""

import re
from collections.abc import Sequence

from torch import Tensor

# `blocks.3`, `layer1.0`, `encoder.layers.encoder_layer_5`: up to the first part with a number of
# its own; without any, the outermost part (`conv1`, `fc`, `head`).
_BLOCK = re.compile(r"^(?:.*?\.)??(?:\d+|[^.]*_\d+)(?=\.)")


def depths(named: Sequence[tuple[str, Tensor]]) -> list[int]:
    """The layer of each parameter, from 0 at the input, in the order in which they are defined.

    A layer is a run of parameters of one block; vectors alone (a norm) belong to the layer before.
    """
    layers: list[int] = []
    block, depth = "", -1
    for name, parameter in named:
        here = _block(name)
        if depth < 0 or (here != block and parameter.ndim > 1):
            block, depth = here, depth + 1
        layers.append(depth)
    return layers


def _block(name: str) -> str:
    found = _BLOCK.match(name)
    return found.group() if found else name.partition(".")[0]
