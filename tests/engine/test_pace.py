"""Throughput said honestly: waiting, memory, FLOPs, and which process runs where."""

import copy
import os
import socket
import time
from collections.abc import Generator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from data.loader import MicroBatch
from engine import layout
from engine.flops import Flops, device_flops, image_flops, utilisation_base
from engine.pace import Pace
from models.small_resnet import small_resnet
from tasks.classification import Classification
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def slow(count: int, wait_s: float, closed: list[bool]) -> Generator[MicroBatch]:
    try:
        for number in range(count):
            time.sleep(wait_s)
            yield MicroBatch(number, 0, {}, 0)
    finally:
        closed.append(True)


def row(step: int, step_s: float) -> dict[str, Any]:
    return {"step": step, "clock": {"step_s": step_s, "images_per_s": 100.0}}


def paced(rank: int, waits_s: list[float]) -> list[dict[str, float]]:
    """Two rows of ten steps of 20 ms each; rank waits `waits_s[rank]` for each batch."""
    pace, closed = Pace(CPU, 5), list[bool]()
    batches = pace.timed(slow(20, waits_s[rank], closed))
    rows = []
    for step in (15, 25):
        for _ in range(10):
            next(batches)
        rows.append(pace.over_ranks(row(step, 0.02)))
    batches.close()
    assert closed == [True]
    return rows


def test_data_wait_is_the_share_of_the_rank_that_waits_most() -> None:
    answers = run_ranks(2, paced, [0.0, 0.01])
    for first, second in zip(*answers, strict=True):
        assert first["data_wait"] == second["data_wait"]
        assert 0.45 <= first["data_wait"] <= 1  # 0.5, and what the machine is late
        assert first["peak_memory_mb"] == second["peak_memory_mb"] > 50


def test_a_run_that_does_not_wait_says_so() -> None:
    assert all(row["data_wait"] < 0.2 for row in run_ranks(1, paced, [0.0])[0])


def used(rank: int) -> float:
    pace = Pace(CPU, 0, Flops(2e9, 1e12))
    return pace.over_ranks(row(10, 0.1))["mfu"]


def test_model_flops_utilisation_is_of_all_devices_together() -> None:
    # 100 images/s of 2 GFLOP on two devices of 1 TFLOP/s each
    assert run_ranks(2, used) == [0.1, 0.1]


def counted(rank: int) -> tuple[float, float, bool]:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10))
    batch = {
        "image": torch.zeros(4, 1, 8, 8),
        "label": torch.zeros(4, dtype=torch.int64),
        "sample": torch.arange(4),
    }
    task = Classification([str(number) for number in range(10)])
    network = small_resnet(10, 1)
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    of_a_network = image_flops(network, task, batch)
    same = all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    untouched = same and torch.equal(state, torch.get_rng_state())
    untouched &= all(p.grad is None and p.device == CPU for p in network.parameters())
    return image_flops(layers, task, batch), of_a_network, untouched


def test_flops_are_counted_without_touching_the_network() -> None:
    of_layers, of_a_network, untouched = run_ranks(1, counted)[0]
    first, second = 2 * 64 * 32, 2 * 32 * 10
    # Forward and the weights' gradients twice; the gradient of the input for the second layer only.
    assert of_layers == 2 * first + 3 * second
    assert 1e6 < of_a_network < 1e8
    assert untouched


def test_the_peak_depends_on_gpu_and_precision() -> None:
    assert device_flops("NVIDIA H100 80GB HBM3", "bf16") == 989.4e12
    assert device_flops("NVIDIA H100 PCIe", "bf16") == 756e12
    assert device_flops("NVIDIA A100-SXM4-40GB", "fp32") == 156e12
    assert device_flops("NVIDIA L40S", "fp16") == 362e12
    assert device_flops("Tesla T4", "fp32") == 8.1e12
    assert device_flops("GeForce GTX 1080", "fp16") is None


def test_utilisation_is_not_claimed_on_a_cpu() -> None:
    assert utilisation_base(nn.Identity(), Classification(["a"]), {}, CPU, "fp32") is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_utilisation_is_measured_against_the_gpu_that_is_there() -> None:
    batch = {
        "image": torch.zeros(2, 1, 28, 28, device="cuda"),
        "label": torch.zeros(2, dtype=torch.int64, device="cuda"),
        "sample": torch.arange(2),
    }
    network = small_resnet(10, 1).cuda()
    task = Classification([str(number) for number in range(10)])
    found = utilisation_base(network, task, batch, torch.device("cuda", 0), "bf16")
    assert found is None or found.of_the_device > found.of_an_image > 1e6


def described(rank: int, of_a_host: int, listed: int) -> dict[str, Any]:
    """As torchrun starts it on hosts of `of_a_host` processes; the last has what is left."""
    number, local = divmod(rank, of_a_host)
    here = min(of_a_host, dist.get_world_size() - number * of_a_host)
    os.environ |= {"GROUP_RANK": str(number), "LOCAL_RANK": str(local)}
    os.environ["LOCAL_WORLD_SIZE"] = str(here)
    layout.LISTED = listed
    return layout.processes(rank, CPU)


@pytest.mark.parametrize("listed", [64, 1])
def test_every_host_is_counted_and_the_first_are_named_with_their_ranks(listed: int) -> None:
    one = {"host": socket.gethostname(), "device": "cpu"}
    hosts = [{**one, "first": 0, "last": 1}, {**one, "first": 2, "last": 2}]
    expected = {"count": 3, "hosts": 2, "listed": hosts[:listed]}
    assert run_ranks(3, described, 2, listed) == [expected] * 3
