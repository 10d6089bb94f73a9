"""The order of samples: a bijection of any size, uniform, seekable, shared without remainder."""

import numpy as np
import pytest
import torch
from torch import nn

from configs.schema import Data
from data.datasets import build_dataset
from data.order import Permutation, TrainOrder, eval_batches, share
from utils.errors import BadInput


def assert_bijection(size: int, key: int = 7) -> None:
    positions = np.arange(size)
    order = Permutation(size, key)
    samples = order(positions)
    counts = np.bincount(samples, minlength=size)
    assert counts.shape == (size,) and (counts == 1).all(), size
    assert (order.inverse(samples) == positions).all(), size


def test_every_size_up_to_4096_is_permuted_without_loss():
    for size in range(1, 4097):
        assert_bijection(size)


def test_sizes_around_powers_of_two_are_permuted_without_loss():
    for exponent in range(12, 21):
        for size in (2**exponent - 1, 2**exponent, 2**exponent + 1):
            assert_bijection(size)


@pytest.mark.parametrize("size", [10**9 + 7, 2**40, 2**62])
def test_huge_sizes_come_back_from_the_inverse(size):
    positions = np.random.default_rng(0).integers(0, size, 100_000)
    order = Permutation(size, key=3)
    samples = order(positions)
    assert samples.min() >= 0 and samples.max() < size
    assert (order.inverse(samples) == positions).all()
    assert abs(samples.mean() / size - 0.5) < 0.01


def test_a_sample_is_equally_likely_at_every_position():
    size, keys = 101, 4000
    counts = np.zeros((size, size))
    for key in range(keys):
        counts[np.arange(size), Permutation(size, key)(np.arange(size))] += 1
    expected = keys / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    freedom = (size - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)


def test_neighbours_are_equally_likely_to_be_any_pair():
    size, keys = 16, 4000
    counts = np.zeros((size, size))
    for key in range(keys):
        first, second = Permutation(size, key)(np.arange(2))
        counts[first, second] += 1
    pairs = counts[~np.eye(size, dtype=bool)]
    expected = keys / len(pairs)
    chi_square = ((pairs - expected) ** 2 / expected).sum()
    assert abs(chi_square - len(pairs)) < 5 * np.sqrt(2 * len(pairs))


@pytest.mark.parametrize("size", [1437, 60_000, 65_537, 1_000_003])
def test_order_has_no_rank_correlation_with_position_or_with_the_next_epoch(size):
    positions = np.arange(size)
    orders = [Permutation(size, key)(positions) for key in range(4)]
    limit = 5 / np.sqrt(size)
    for order in orders:
        assert abs(np.corrcoef(positions, order)[0, 1]) < limit
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < limit
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < limit


def accuracy_on_digits(train, val, seed, keyed):
    """Per cent of the held-out digits that a small network gets right after five epochs."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    order = TrainOrder(len(train), 32, seed)
    for step in range(5 * order.steps_per_epoch):
        if step % order.steps_per_epoch == 0:
            shuffled = torch.randperm(len(train))
        place = step % order.steps_per_epoch * 32
        samples = torch.from_numpy(order.samples(step, 0, 1)[1])
        chosen = samples if keyed else shuffled[place : place + 32]
        logits = network(train.images[chosen] / 255)
        nn.functional.cross_entropy(logits, train.labels[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    right = network(val.images / 255).argmax(1) == val.labels
    return 100 * float(right.double().mean())


def test_network_learns_as_well_in_this_order_as_in_that_of_torch():
    digits = [build_dataset(Data(name="digits"), split) for split in ("train", "val")]
    keyed, shuffled = (
        np.array([accuracy_on_digits(*digits, seed, keyed) for seed in range(10)])
        for keyed in (True, False)
    )
    error = np.sqrt((keyed.var(ddof=1) + shuffled.var(ddof=1)) / 10)
    assert keyed.mean() > 94
    assert abs(keyed.mean() - shuffled.mean()) < 3.5 * error


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_shares_of_all_ranks_are_the_global_batch(world_size):
    order = TrainOrder(size=100, global_batch=12, seed=5)
    for step in (0, 7, 8, 100):
        epoch, whole = order.samples(step, 0, 1)
        parts = [order.samples(step, rank, world_size) for rank in range(world_size)]
        assert [part_epoch for part_epoch, _ in parts] == [epoch] * world_size
        assert epoch == step // 8
        assert (np.concatenate([samples for _, samples in parts]) == whole).all()


def test_an_epoch_shows_no_sample_twice_and_another_epoch_or_seed_another_order():
    order = TrainOrder(size=100, global_batch=12, seed=5)
    epoch = [np.concatenate([order.samples(8 * e + s, 0, 1)[1] for s in range(8)]) for e in (0, 1)]
    assert all(len(set(samples.tolist())) == 96 for samples in epoch)
    assert (epoch[0] != epoch[1]).any()
    assert (TrainOrder(100, 12, 6).samples(0, 0, 1)[1] != order.samples(0, 0, 1)[1]).any()


def test_many_steps_at_once_are_the_steps_one_by_one():
    order = TrainOrder(size=100, global_batch=12, seed=5)
    table = order.table(9, 5, share(12, 1, 3))
    assert (table == [order.samples(step, 1, 3)[1] for step in range(9, 14)]).all()


def test_inverse_names_the_step_and_rank_that_saw_a_sample():
    order = TrainOrder(size=100, global_batch=12, seed=5)
    seen = {
        int(sample): (step, rank)
        for step in range(8, 16)
        for rank in range(3)
        for sample in order.samples(step, rank, 3)[1]
    }
    for sample in range(100):
        place = (order.step_of(1, sample), order.rank_of(1, sample, 3))
        assert place == seen.get(sample, (None, None))


def test_processes_that_do_not_divide_the_global_batch_are_told_which_would():
    with pytest.raises(
        BadInput, match=r"96 cannot be divided by 5 .* 1, 2, 3, 4, 6, 8, .* 95 or 100"
    ):
        share(96, 0, 5)


def test_dataset_smaller_than_a_global_batch_is_refused():
    with pytest.raises(BadInput, match="95 training samples, fewer than one global batch of 96"):
        TrainOrder(95, 96, 0)


def test_evaluation_counts_every_sample_once_on_any_number_of_ranks():
    for size in range(1, 102):
        whole = [batch.tolist() for batch in eval_batches(size, 8, 0, 1)]
        for world_size in range(1, 9):
            parts = [list(eval_batches(size, 8, rank, world_size)) for rank in range(world_size)]
            together = [batch.tolist() for part in parts for batch in part]
            assert sorted(together) == whole
            assert sorted(sample for batch in together for sample in batch) == list(range(size))
