"""One process of the job: which one it is, on which device, and how it joins and leaves."""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore, PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ddp import rehearsal, watch
from ddp.mail import connect, has_launcher_store, start_name
from ddp.rehearsal import is_rehearsal
from utils.errors import BadInput


@dataclass(frozen=True)
class Place:
    """Where this process stands: its rank of `world_size`, its rank on this host, its device."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device


def promised_world_size() -> int:
    """The number of processes that the launcher started; 1 without a launcher, unless one rank of a
    larger job is rehearsed."""
    if is_rehearsal():
        return dist.get_world_size()
    return int(os.environ.get("WORLD_SIZE", "1"))


def own_host(rank: int) -> tuple[int, int]:
    """(number of this host, processes on it), as the launcher says: torchrun gives a host its
    ranks in a row."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return int(os.environ.get("GROUP_RANK", rank // here)), here


def rehearse(rank: int, world_size: int) -> None:
    """Be `rank` of a job of `world_size` processes, here and alone; `join` then gives its place."""
    if promised_world_size() > 1:
        raise BadInput(
            "--rehearse plays one rank of a job in a single process: start it without torchrun, as "
            f"`python train.py --rehearse {world_size} --rank {rank} ...`"
        )
    rehearsal.begin(rank, world_size)


# A rank that waits is not at fault, and the watch names the one that is, after far less: this only
# bounds what no watch can see.
_COLLECTIVE_TIMEOUT_S = 6 * 3600.0


def join(timeout_s: float = _COLLECTIVE_TIMEOUT_S) -> Place:
    """Join the process group that the launcher describes, or a group of one without a launcher.

    The device is set before the group starts, and NCCL is bound to it, so that nothing of this
    process lands on another process's GPU. `timeout_s` bounds the meeting and every collective.
    """
    watch.mark("meeting")
    if is_rehearsal():
        return Place(dist.get_rank(), 0, dist.get_world_size(), _device(0))
    rank, world_size = int(os.environ.get("RANK", "0")), promised_world_size()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    device = _device(local_rank)
    on_gpu = device.type == "cuda"
    alone = "RANK" not in os.environ
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        timeout=timedelta(seconds=timeout_s),
        rank=rank,
        world_size=world_size,
        store=HashStore() if alone else _store(timeout_s),  # no port is opened for one process
        device_id=device if on_gpu else None,
    )
    watch.met()
    return Place(rank, local_rank, world_size, device)


def _store(timeout_s: float) -> Store:
    """The launcher's store, with keys of this start alone: torchrun's outlives a restart, and a
    quick rank would find the address that its peer had before."""
    store: Store
    if has_launcher_store():
        store = connect(timeout_s)
    else:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    return PrefixStore(f"start{start_name()}", store)


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
    watch.mark("end")
    dist.barrier()
    watch.close()
    dist.barrier()  # rank 0 may hold the store: it stays until nobody uses it
    dist.destroy_process_group()


def is_peer_loss(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone, through no fault of this one."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo/" in str(error)
