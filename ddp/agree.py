"""All ranks were started alike: the same arguments, configuration, code and data."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddp.collectives import broadcast_bytes, gather_rows, same_on_all_ranks
from ddp.mail import is_elastic
from ddp.wrap import Disagreement

_TOLD_BYTES = 240


def require_same(facts: Mapping[str, Any]) -> None:
    """Raise Disagreement, which names facts and ranks, unless all ranks give the same `facts`.

    The facts (JSON types) travel as their digests, in one small collective; what differs is only
    exchanged when something does. Every rank gives the same names in the same order. From an
    elastic job those that differ from rank 0 are turned away, and the others go on.
    """
    digests = torch.stack([_digest(value) for value in facts.values()])
    if same_on_all_ranks(digests):
        return
    theirs = json.loads(broadcast_bytes(json.dumps(facts).encode()))
    mine = [_difference(name, theirs[name], facts[name]) for name in facts]
    told = gather_rows(_as_row("; ".join(one for one in mine if one)))
    everyone = [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in told]
    lines = [f"  rank {rank}: {text}" for rank, text in enumerate(everyone) if text]
    more = f"\n  and {len(lines) - 8} ranks more" if len(lines) > 8 else ""
    error = Disagreement("the ranks were not started alike; other than on rank 0:\n"
                         + "\n".join(lines[:8]) + more)  # fmt: skip
    if is_elastic():
        error.exit_code = 2 if any(mine) else 75
    raise error


def _digest(value: Any) -> Tensor:
    """() int64 whose negation cannot overflow."""
    text = json.dumps(value, sort_keys=True).encode()
    return torch.tensor(int(np.frombuffer(hashlib.sha256(text).digest(), np.int64)[0] >> 1))


def _difference(name: str, theirs: Any, mine: Any) -> str:
    """`name x, not y`, with the keys of what is nested; empty when both are equal."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        prefix = "" if name == "configuration" else f"{name}."
        keys = sorted({*theirs, *mine})
        parts = [_difference(f"{prefix}{key}", theirs.get(key), mine.get(key)) for key in keys]
        return "; ".join(part for part in parts if part)
    return "" if theirs == mine else f"{name} {mine}, not {theirs}"


def _as_row(text: str) -> Tensor:
    """`text`, cut to `_TOLD_BYTES`, as bytes (_TOLD_BYTES,) uint8."""
    told = text.encode()[:_TOLD_BYTES].ljust(_TOLD_BYTES, b"\0")
    return torch.tensor(list(told), dtype=torch.uint8)
