"""The operations of the augmentation policies: torchvision's, image by image."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_images
from torchvision.transforms.v2 import functional as reference

from data import operations, policies


@pytest.fixture(scope="module")
def images():
    """(12, 3, 40, 40) uint8: crops of the photographs, one flat, one of two values."""
    drawn = np.random.default_rng(0)
    photographs = load_sample_images().images
    crops = []
    for number in range(12):
        top, left = drawn.integers(0, 380), drawn.integers(0, 590)
        crops.append(photographs[number % 2][top : top + 40, left : left + 40])
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous()
    batch[0] = 77
    batch[1] = (batch[1] > 120) * 200
    return batch


STRENGTH = torch.linspace(-0.9, 0.9, 12)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (operations.brightness, reference.adjust_brightness),
        (operations.color, reference.adjust_saturation),
        (operations.contrast, reference.adjust_contrast),
        (operations.sharpness, reference.adjust_sharpness),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_blends_are_those_of_torchvision(images, ours, theirs, channels):
    images = images[:, :channels]
    for image, changed, strength in zip(images, ours(images, STRENGTH), STRENGTH, strict=True):
        expected = theirs(image, 1 + float(strength))
        assert (changed.int() - expected.int()).abs().max() <= 1


def test_posterize_solarize_autocontrast_and_equalize_are_those_of_torchvision(images):
    bits = torch.arange(12).float() % 7
    for image, changed, dropped in zip(
        images, operations.posterize(images, bits), bits, strict=True
    ):
        assert torch.equal(changed, reference.posterize(image, 8 - int(dropped)))
    share = torch.linspace(0, 1, 12)
    for image, changed, part in zip(images, operations.solarize(images, share), share, strict=True):
        assert torch.equal(changed, reference.solarize(image, 255 * (1 - float(part))))
    for image, changed in zip(images, operations.equalize(images, STRENGTH), strict=True):
        assert torch.equal(changed, reference.equalize(image))
    for image, changed in zip(images, operations.autocontrast(images, STRENGTH), strict=True):
        assert (changed.int() - reference.autocontrast(image).int()).abs().max() <= 1


@pytest.mark.parametrize("warp", range(5))
def test_warps_are_those_of_torchvision(images, warp):
    signed = np.linspace(-1, 1, 12)
    widest = policies.WIDEST["randaugment"]
    maps = policies._maps(np.full(12, warp), signed, widest, images.shape[2:])
    changed = operations.warped(images, torch.from_numpy(maps))
    for image, ours, amount in zip(images, changed, signed.tolist(), strict=True):
        shear = math.degrees(math.atan(widest.shear * amount))
        shift = int(widest.shift_share * 40 * amount)
        expected = reference.affine(
            image,
            angle=-amount * widest.turn if warp == 4 else 0.0,
            translate=[-shift if warp == 2 else 0, -shift if warp == 3 else 0],
            scale=1.0,
            shear=[shear if warp == 0 else 0.0, shear if warp == 1 else 0.0],
            center=[0, 0] if warp < 2 else None,
        )
        # Places halfway between two pixels go either way, and shears differ by half a pixel.
        same = (ours == expected).double().mean()
        assert same > (0.65 if warp < 2 and amount else 0.97)


def test_sample_is_treated_alike_in_whatever_batch_it_comes(images):
    drawn = np.random.default_rng(1).random((12, 3))
    for policy, magnitude in (("randaugment", 9), ("trivialaugment", None)):
        whole = policies.augmented(images, policy, magnitude, drawn)
        for part in ([3], [11, 0, 5], list(range(1, 12))):
            alone = policies.augmented(images[part], policy, magnitude, drawn[part])
            assert torch.equal(alone, whole[part])


def test_every_operation_is_drawn_equally_often_and_changes_images(images):
    count = 2800
    drawn = np.random.default_rng(2).random((count, 3))
    operation = (drawn[:, 0] * 14).astype(int)
    assert (abs(np.bincount(operation, minlength=14) - count / 14) < 70).all()
    many = images[2:3].expand(count, -1, -1, -1).contiguous()
    result = policies.augmented(many, "trivialaugment", None, drawn)
    changed = (result != many).flatten(1).any(1).numpy()
    for number in range(13):
        assert changed[operation == number].mean() > 0.6, number
    assert not changed[operation == 13].any()


def test_grey_images_go_through_every_operation(images):
    drawn = np.random.default_rng(3).random((12, 3))
    drawn[:, 0] = (np.arange(12) + 0.5) / 14
    result = policies.augmented(images[:, :1].contiguous(), "trivialaugment", None, drawn)
    assert result.shape == (12, 1, 40, 40)
    assert result.dtype == torch.uint8


def test_no_strength_changes_nothing(images):
    drawn = np.random.default_rng(4).random((12, 3))
    drawn[:, 0] = (np.arange(12) % 6 + 0.5) / 14  # the operations that have a strength
    result = policies.augmented(images, "randaugment", 0, drawn)
    assert (result.int() - images.int()).abs().max() <= 1
