"""Batches: the same samples and bytes whatever fetches them, and from wherever it starts."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import traceback
from contextlib import closing
from pathlib import Path

import pytest
import torch

from configs.schema import Augment, Data
from data import forked
from data.datasets import build_dataset
from data.loader import Source, eval_batches, micro_batches, train_batches, warm_up_batch
from data.order import TrainOrder
from data.transforms import eval_transform, train_transform
from utils.errors import BadInput

CPU = torch.device("cpu")
SEED, GLOBAL_BATCH, STEPS = 3, 24, 70  # 59 steps an epoch: the run crosses into the second


class OneByOne:
    """A dataset as a user would write it: no batches, only samples."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, sample):
        return self.dataset.images[sample], int(self.dataset.labels[sample])


def collate(rows):
    images, labels = zip(*rows, strict=True)
    return {"image": torch.stack(images), "label": torch.tensor(labels)}


@pytest.fixture(scope="module")
def digits():
    return build_dataset(Data(name="digits"), "train")


def source_of(digits, workers=0, by_sample=False, seed=SEED):
    transform = train_transform(digits, Augment(pad=2, flip=True), seed, CPU)
    dataset = OneByOne(digits) if by_sample else digits
    return Source(dataset, collate, transform, CPU, workers)


def run(source, rank=0, world_size=1, micro_batch=None, start=0, stop=STEPS):
    order = TrainOrder(len(source.dataset), GLOBAL_BATCH, SEED)
    batches = train_batches(source, order, rank, world_size, micro_batch, start, stop)
    with closing(batches):
        return list(batches)


def by_step(items):
    """Step -> the tensors of its micro-batches, put together in their order."""
    steps = {}
    for item in sorted(items, key=lambda item: (item.step, item.index)):
        steps.setdefault(item.step, []).append(item.batch)
    return {
        step: {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        for step, batches in steps.items()
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for step, batch in one.items():
        assert batch.keys() == other[step].keys()
        for name, value in batch.items():
            assert value.dtype == other[step][name].dtype
            assert torch.equal(value, other[step][name]), (step, name)


@pytest.fixture(scope="module")
def alone(digits):
    """What one process sees, unbroken, one micro-batch a step."""
    return by_step(run(source_of(digits)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch", [None, 5])
def test_samples_and_bytes_do_not_depend_on_the_number_of_processes(
    digits, alone, world_size, micro_batch
):
    items = [
        item
        for rank in range(world_size)
        for item in run(source_of(digits), rank, world_size, micro_batch)
    ]
    assert_same(by_step(items), alone)
    places = sorted((item.step, item.index) for item in items)
    per_step = len(items) // STEPS
    assert places == [(step, index) for step in range(STEPS) for index in range(per_step)]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("by_sample", [False, True])
def test_samples_and_bytes_do_not_depend_on_workers(digits, alone, workers, by_sample):
    assert_same(by_step(run(source_of(digits, workers, by_sample))), alone)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 58, 59, 60, 69])
def test_run_can_start_at_any_step(digits, alone, workers, start):
    part = by_step(run(source_of(digits, workers), start=start))
    assert_same(part, {step: batch for step, batch in alone.items() if step >= start})


def test_every_epoch_and_seed_augments_a_sample_anew(digits):
    transform = source_of(digits).transform
    other = source_of(digits, seed=SEED + 1).transform
    samples = torch.arange(64).numpy()
    batch = digits.__getitems__(samples)
    first = transform(batch, samples, 0)["image"]
    assert torch.equal(first, transform(batch, samples, 0)["image"])
    assert not torch.equal(first, transform(batch, samples, 1)["image"])
    assert not torch.equal(first, other(batch, samples, 0)["image"])


def test_warm_up_batch_is_the_first_micro_batch_of_the_first_epoch(digits, alone):
    order = TrainOrder(len(digits), GLOBAL_BATCH, SEED)
    batch = warm_up_batch(source_of(digits, workers=2), order, 1, 2, 4)
    for name, value in batch.items():
        assert torch.equal(value, alone[0][name][12:16])


def test_micro_batches_are_few_and_equal():
    assert micro_batches(48, None) == [48]
    assert micro_batches(48, 16) == [16, 16, 16]
    assert micro_batches(48, 100) == [48]
    assert micro_batches(50, 16) == [13, 13, 12, 12]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_sees_every_sample_once_and_in_the_same_batches(digits, workers):
    held_out = build_dataset(Data(name="digits"), "val")
    source = Source(held_out, collate, eval_transform(held_out, CPU), CPU, workers)

    def seen(world_size):
        return [
            batch["sample"].tolist()
            for rank in range(world_size)
            for batch in eval_batches(source, 50, rank, world_size)
        ]

    whole = seen(1)
    assert sum(whole, []) == list(range(len(held_out)))  # noqa: RUF017
    assert sorted(seen(3)) == whole


class Damaged(OneByOne):
    def __getitem__(self, sample):
        if sample == 7:
            raise BadInput("sample 7 is damaged")
        return super().__getitem__(sample)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_input_in_a_worker_arrives_as_its_one_message(digits, workers):
    source = Source(Damaged(digits), collate, source_of(digits).transform, CPU, workers)
    with pytest.raises(BadInput) as caught:
        run(source, stop=59)
    assert str(caught.value) == "sample 7 is damaged"


class Broken(OneByOne):
    def __getitem__(self, sample):
        if sample == 7:
            raise KeyError("caption")
        return super().__getitem__(sample)


@pytest.mark.parametrize("workers", [0, 2])
def test_mistake_in_a_users_dataset_is_told_with_its_sample(digits, workers):
    source = Source(Broken(digits), collate, source_of(digits).transform, CPU, workers)
    with pytest.raises(KeyError) as caught:
        run(source, stop=59)
    assert "while sample 7 was read" in "".join(traceback.format_exception(caught.value))


def children_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in children.split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_start_once_a_run_and_end_when_it_is_closed(digits):
    order = TrainOrder(len(digits), GLOBAL_BATCH, SEED)
    before = set(children_of(os.getpid()))
    batches = train_batches(source_of(digits, workers=2), order, 0, 1, None, 0, 1000)
    next(batches)
    workers = set(children_of(os.getpid())) - before
    assert len(workers) == 2
    for _ in range(120):
        next(batches)
    assert set(children_of(os.getpid())) - before == workers
    batches.close()
    assert not any(is_alive(worker) for worker in workers)


def test_a_worker_that_is_stuck_in_its_fork_is_replaced(digits, monkeypatch):
    forked_pids, fork = [], os.fork

    def fork_of_which_the_first_is_stuck():
        pid = fork()
        if pid == 0 and not forked_pids:
            time.sleep(1000)  # as up to CPython 3.11 on a lock that another thread held
        forked_pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", fork_of_which_the_first_is_stuck)
    monkeypatch.setattr(forked, "_LIVES_AFTER_S", 0.5)
    assert_same(by_step(run(source_of(digits, workers=2))), by_step(run(source_of(digits))))
    assert len(forked_pids) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in forked_pids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu_are_those_on_the_cpu(digits, workers):
    device = torch.device("cuda", 0)
    augment = Augment(pad=2, flip=True, mixup=0.2, cutmix=1.0, erase=0.3, policy="randaugment")

    def source(on, workers):
        transform = train_transform(digits, augment, SEED, on)
        return Source(digits, collate, transform, on, workers)

    on_cpu, on_gpu = run(source(CPU, 0)), run(source(device, workers))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert (one.step, one.index) == (other.step, other.index)
        for name, value in one.batch.items():
            assert other.batch[name].device == device
            assert torch.allclose(value.double(), other.batch[name].cpu().double(), atol=0.02)


PROGRAM = """
    import os, sys, time, torch
    from configs.schema import Augment, Data
    from data.datasets import build_dataset
    from data.loader import Source, train_batches
    from data.order import TrainOrder
    from data.transforms import train_transform

    digits = build_dataset(Data(name="digits"), "train")
    device = torch.device("cpu")
    transform = train_transform(digits, Augment(), 0, device)
    source = Source(digits, None, transform, device, workers=2)
    batches = train_batches(source, TrainOrder(len(digits), 24, 0), 0, 1, None, 0, 10**6)
    next(batches)
    print("ready", flush=True)
    {then}
"""


def start(then):
    program = textwrap.dedent(PROGRAM).format(then=then)
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_workers_ignore_signals_from_their_start_and_die_with_their_process():
    process = start("for item in batches: time.sleep(0.01)")
    assert process.stdout.readline() == "ready\n"
    with process:
        workers = children_of(process.pid)
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGTERM)
            os.kill(worker, signal.SIGINT)
        time.sleep(0.2)
        assert all(is_alive(worker) for worker in workers)
        process.kill()
    wait_until(lambda: not any(is_alive(worker) for worker in workers))


@pytest.mark.parametrize(("then", "code"), [("sys.exit(3)", 3), ("1 / 0", 1)])
def test_process_that_never_closed_its_batches_ends_without_noise(then, code):
    process = start(then)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == code
    assert ("ZeroDivisionError" in errors) if code == 1 else errors == ""
    assert "worker" not in errors
