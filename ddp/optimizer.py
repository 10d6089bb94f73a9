"""Optimizer state from rank 0 to every rank: DDP broadcasts parameters, never their state."""

import json
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddp.collectives import broadcast_bytes, broadcast_from_rank0

State = dict[int, dict[str, Any]]  # place of the parameter -> name of the quantity -> its value


def receive_optimizer_state(optimizer: Optimizer, loaded: State | None) -> None:
    """Load rank 0's `loaded` state (None on the other ranks) into the optimizer of every rank.

    Only the state travels: hyperparameters are the configuration's. Quantities of a parameter's
    shape get its memory layout too, so that a resumed step runs the kernels of the unbroken one.
    """
    layout = _layout(loaded or {})
    plan: dict[str, Any] = json.loads(broadcast_bytes(json.dumps(layout).encode()))
    if not plan:
        return
    state: State = {}
    for place, quantities in plan.items():
        state[int(place)] = {
            name: _place_for(entry, (loaded or {}).get(int(place), {}).get(name))
            for name, entry in quantities.items()
        }
    broadcast_from_rank0(
        value for entry in state.values() for value in entry.values() if isinstance(value, Tensor)
    )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entry in optimizer.state.items():
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                entry[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _layout(state: State) -> dict[str, dict[str, Any]]:
    """The state without the tensors' content, as JSON can carry it."""
    return {
        str(place): {
            name: {"shape": list(v.shape), "dtype": str(v.dtype).removeprefix("torch.")}
            if isinstance(v, Tensor)
            else {"value": v}
            for name, v in entry.items()
        }
        for place, entry in state.items()
    }


def _place_for(entry: dict[str, Any], loaded: Any) -> Any:
    """Rank 0's value where it has one, else an empty tensor of its shape, or the plain value."""
    if "value" in entry:
        return entry["value"]
    if isinstance(loaded, Tensor):
        return loaded.clone()
    return torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]))
