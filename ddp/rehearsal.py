"""One rank of a job whose other ranks are not there: each of them is taken for this rank's twin.

torch's `fake` group moves nothing: a maximum, a broadcast and a gather end as twins would make
them. A sum over ranks, an exchange and DDP's average do not, and ask here.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel


def begin(rank: int, world_size: int) -> None:
    """Become `rank` of a job of `world_size` processes."""
    dist.init_process_group("fake", rank=rank, world_size=world_size)


def is_rehearsal() -> bool:
    """Whether the other ranks are not there."""
    return dist.is_initialized() and dist.get_backend() == "fake"


def average_with_twins(ddp_model: DistributedDataParallel) -> None:
    """Have DDP take its own gradients for the average over ranks, which the group cannot give."""
    ddp_model.register_comm_hook(None, _own_bucket)


def _own_bucket(_state: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
    result: torch.futures.Future[Tensor] = torch.futures.Future()
    result.set_result(bucket.buffer())
    return result
