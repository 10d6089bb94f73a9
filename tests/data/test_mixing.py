"""Mixing and erasing: right for a pair, fair over many, and the same however a batch is shared."""

from contextlib import closing

import numpy as np
import pytest
import torch

from configs.schema import Augment, Data
from data import erase
from data.datasets import build_dataset
from data.loader import Source, train_batches
from data.mixing import mixed, symmetric_beta
from data.order import TrainOrder
from data.transforms import train_transform
from utils.keyed import mix, uniforms

CPU = torch.device("cpu")


def batch_of(count, size=16):
    """Images whose every pixel is the sample's number, so that a mixture shows its parts."""
    image = torch.arange(count).float().view(-1, 1, 1, 1).expand(-1, 2, size, size).contiguous()
    return {"image": image, "label": torch.arange(count) % 10}


def keys_of(count):
    return mix(9, np.arange(count), 6)


def test_mixup_blends_each_image_with_its_neighbour():
    result = mixed(batch_of(8), keys_of(8), mixup=0.4, cutmix=0)
    share = result["own_share"]
    for number in range(8):
        partner = number ^ 1
        expected = number * share[number] + partner * (1 - share[number])
        assert torch.allclose(result["image"][number], expected)
        assert share[number] == share[partner]
        assert int(result["partner_label"][number]) == partner
    assert share.dtype == torch.float32
    assert len(set(share.tolist())) == 4


def test_cutmix_pastes_one_box_of_the_neighbour_and_counts_its_pixels():
    result = mixed(batch_of(64), keys_of(64), mixup=0, cutmix=1.0)
    for number, image in enumerate(result["image"]):
        pasted = image[0] == (number ^ 1)
        assert ((image == number) | (image == (number ^ 1))).all()
        share = 1 - pasted.double().mean()
        assert float(result["own_share"][number]) == pytest.approx(float(share))
        rows, columns = pasted.any(1).nonzero(), pasted.any(0).nonzero()
        if len(rows):
            inside = pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert inside.all()


def test_with_both_each_pair_draws_which():
    result = mixed(batch_of(400), keys_of(400), mixup=1.0, cutmix=1.0)
    whole = torch.arange(400).view(-1, 1)
    flat = result["image"].flatten(1)
    is_cut = ((flat == whole) | (flat == (whole ^ 1))).all(1)
    assert 130 < int(is_cut.sum()) < 270


def test_last_image_of_an_odd_batch_stays_as_it_is():
    for mixup, cutmix in ((0.5, 0), (0, 0.5), (0.5, 0.5)):
        result = mixed(batch_of(5), keys_of(5), mixup, cutmix)
        assert torch.allclose(result["image"][4], torch.tensor(4.0))
        assert int(result["partner_label"][4]) == 4


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 2.0, 8.0])
def test_shares_have_the_beta_distribution(alpha):
    drawn = symmetric_beta((np.arange(200_000) + 0.5) / 200_000, alpha)
    exact = np.random.default_rng(0).beta(alpha, alpha, 200_000)
    assert drawn.mean() == pytest.approx(0.5, abs=1e-6)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)
    for level in (0.01, 0.1, 0.3, 0.45):
        assert np.mean(exact < np.quantile(drawn, level)) == pytest.approx(level, abs=0.005)


@pytest.mark.parametrize("global_batch", [24, 30])  # shares of 30 begin at odd positions
@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.2, 1.0)])
def test_mixtures_do_not_depend_on_how_the_batch_is_shared(global_batch, mixup, cutmix):
    digits = build_dataset(Data(name="digits"), "train")
    augment = Augment(pad=1, mixup=mixup, cutmix=cutmix, erase=0.3, policy="trivialaugment")
    source = Source(digits, None, train_transform(digits, augment, 3, CPU), CPU)

    def seen(world_size, micro_batch):
        order, items = TrainOrder(len(digits), global_batch, 3), []
        for rank in range(world_size):
            with closing(
                train_batches(source, order, rank, world_size, micro_batch, 46, 50)
            ) as batches:
                items += batches
        items.sort(key=lambda item: (item.step, item.index))
        assert len({len(value) for item in items for value in item.batch.values()}) <= 2
        names = items[0].batch
        return {name: torch.cat([item.batch[name] for item in items]) for name in names}

    alone = seen(1, None)
    assert set(alone) == {"image", "label", "sample", "partner_label", "own_share"}
    assert len(alone["label"]) == 4 * global_batch
    for world_size, micro_batch in ((2, None), (3, 5), (6, 3), (1, 7)):
        shared = seen(world_size, micro_batch)
        for name, value in alone.items():
            assert torch.equal(value, shared[name]), (world_size, name)


def test_erasing_paints_one_box_of_the_right_size_over_the_right_share_of_images():
    count, size = 3000, 32
    drawn = uniforms(mix(1, np.arange(count)), erase.DRAWS)
    images = erase.erased(torch.ones(count, 1, size, size), 0.25, drawn)
    gone = images[:, 0] == 0
    area = gone.double().mean((1, 2))
    hit = area > 0
    assert float(hit.double().mean()) == pytest.approx(0.25, abs=0.03)
    assert float(area[hit].min()) > 0.01
    assert float(area[hit].max()) < 0.36
    assert float(area[hit].mean()) == pytest.approx(0.17, abs=0.02)
    for image in gone[hit][:50]:
        rows, columns = image.any(1).nonzero(), image.any(0).nonzero()
        assert image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
    often = gone.double().mean(0)
    assert torch.allclose(often.mean(0), often.mean(0).flip(0), atol=0.015)
    assert torch.allclose(often.mean(1), often.mean(1).flip(0), atol=0.015)


def test_erasing_nothing_or_tiny_images_is_possible():
    drawn = uniforms(mix(1, np.arange(20)), erase.DRAWS)
    assert (erase.erased(torch.ones(20, 1, 8, 8), 0.0, drawn) == 1).all()
    assert erase.erased(torch.ones(20, 1, 1, 1), 1.0, drawn).shape == (20, 1, 1, 1)
