"""One process of the job: which one it is, on which device, and how it joins and leaves."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from utils.errors import BadInput


@dataclass(frozen=True)
class Place:
    """Where this process stands: its rank of `world_size`, its rank on this host, its device."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device


def promised_world_size() -> int:
    """The number of processes that the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


JOIN_TIMEOUT_S = 300.0


def join(timeout_s: float = JOIN_TIMEOUT_S) -> Place:
    """Join the process group that the launcher describes, or a group of one without a launcher.

    The device is set before the group starts, and NCCL is bound to it, so that nothing of this
    process lands on another process's GPU. `timeout_s` bounds the meeting and every collective.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), promised_world_size()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = _device(local_rank)
    on_gpu = device.type == "cuda"
    alone = "RANK" not in os.environ
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=timeout_s),
        rank=rank if alone else -1,
        world_size=world_size if alone else -1,
        store=HashStore() if alone else None,  # no port is opened for one process
        device_id=device if on_gpu else None,
    )
    return Place(rank, local_rank, world_size, device)


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if local_rank >= gpus:
        raise BadInput(
            f"this host has {gpus} GPU(s), but local rank {local_rank} was started on it; "
            f"use --nproc_per_node={gpus} (NPROC={gpus} with launch.sh)"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def leave() -> None:
    """Leave after success, all ranks together; after a failure a process just ends."""
    dist.barrier()
    dist.destroy_process_group()
