"""Decoding: every kind of image comes out as 8-bit RGB, and a damaged one is refused by name."""

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from data.crop import centre_box, random_box
from data.decode import cropped_image
from data.fetch import BadImage
from utils.keyed import mix

PHOTO = load_sample_images().images[0]  # (427, 640, 3)


def whole(width, height):
    return 0, 0, width, height


def saved(path, image, **options):
    image.save(path, **options)
    return path


def jpeg(quality=90):
    content = io.BytesIO()
    Image.fromarray(PHOTO).save(content, "JPEG", quality=quality)
    return content.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1", "LA"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    kind = "tiff" if mode == "CMYK" else "png"
    path = saved(tmp_path / f"image.{kind}", Image.fromarray(PHOTO[:64, :64]).convert(mode))
    image = cropped_image(path, whole, 64)
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.uint8
    brightness = Image.fromarray(PHOTO[:64, :64]).convert("L")
    error = image.double().mean(0) - torch.from_numpy(np.array(brightness)).double()
    assert float(error.abs().mean()) < (90 if mode == "1" else 12)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = cropped_image(saved(tmp_path / "deep.png", Image.fromarray(grey)), whole, 64)
    assert torch.equal(image[0], torch.from_numpy((grey >> 8).astype(np.uint8)))


def test_crop_is_what_cutting_and_resizing_give(tmp_path):
    path = saved(tmp_path / "photo.png", Image.fromarray(PHOTO))
    image = cropped_image(path, lambda width, height: (100, 50, 300, 250), 50)
    cut = Image.fromarray(PHOTO[50:250, 100:300]).resize((50, 50), Image.Resampling.BILINEAR)
    error = image.permute(1, 2, 0).double() - torch.from_numpy(np.array(cut)).double()
    assert float(error[1:-1, 1:-1].abs().max()) <= 1  # at the border, beyond it is looked at too


def test_large_jpeg_is_scaled_while_decoding_and_looks_the_same(tmp_path):
    path = saved(tmp_path / "photo.jpg", Image.fromarray(PHOTO), quality=95)
    image = cropped_image(path, lambda width, height: (0, 0, 427, 427), 56)
    with Image.open(path) as opened:
        full = opened.convert("RGB").resize((56, 56), Image.Resampling.BILINEAR, (0, 0, 427, 427))
    error = image.permute(1, 2, 0).double() - torch.from_numpy(np.array(full)).double()
    assert 0 < float(error.abs().mean()) < 3


@pytest.mark.parametrize("kept", [0, 10, 200, 5000, -2000])
def test_truncated_image_is_refused_by_name(tmp_path, kept):
    path = tmp_path / "photo.jpg"
    path.write_bytes(jpeg()[:kept])
    with pytest.raises(BadImage, match=str(path)):
        cropped_image(path, whole, 32)


def test_missing_file_a_folder_and_a_text_are_refused_by_name(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in (
        ("none", "No such file"),
        ("folder", "Is a dir"),
        ("text", "not an image"),
    ):
        with pytest.raises(BadImage, match=rf"{name}\.jpg .*{reason}"):
            cropped_image(tmp_path / f"{name}.jpg", whole, 32)


def test_image_of_a_billion_pixels_is_refused_before_it_takes_memory(tmp_path):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
    with pytest.raises(BadImage, match=r"bomb\.png .*1600000000 pixels"):
        cropped_image(path, whole, 32)


def test_damaged_images_are_read_or_refused_and_nothing_else(tmp_path):
    drawn = np.random.default_rng(0)
    for kind in ("jpeg", "png", "webp", "tiff", "bmp"):
        content = io.BytesIO()
        Image.fromarray(PHOTO[:40, :40]).save(content, kind)
        for _ in range(60):
            spoilt = bytearray(content.getvalue())
            for place in drawn.integers(len(spoilt), size=3):
                spoilt[place] = drawn.integers(256)
            path = tmp_path / f"image.{kind}"
            path.write_bytes(spoilt)
            with suppress(BadImage):
                assert cropped_image(path, whole, 16).shape == (3, 16, 16)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (48, 95), (1, 1), (3, 900)])
def test_random_boxes_lie_inside_and_cover_the_part_asked_for(width, height):
    for number in range(200):
        box = random_box(width, height, mix(1, number), (0.2, 0.6), (0.75, 4 / 3))
        left, top, right, bottom = box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        if (width, height) == (500, 375):
            assert 0.19 < (right - left) * (bottom - top) / (width * height) < 0.61
            assert 0.74 < (right - left) / (bottom - top) < 1.35


def test_random_boxes_are_spread_over_the_image_and_follow_their_key():
    boxes = [random_box(500, 375, mix(1, n), (0.08, 1.0), (0.75, 4 / 3)) for n in range(2000)]
    assert boxes[7] == random_box(500, 375, mix(1, 7), (0.08, 1.0), (0.75, 4 / 3))
    left, top, right, bottom = np.array(boxes).T
    assert abs(((left + right) / 2).mean() - 250) < 6
    assert abs(((top + bottom) / 2).mean() - 187.5) < 5
    assert abs(np.log((right - left) / (bottom - top)).mean()) < 0.06
    # Large boxes fit less often, so that the mean is below (0.08 + 1) / 2: torchvision's is 0.43.
    assert 0.41 < ((right - left) * (bottom - top)).mean() / (500 * 375) < 0.46


def test_centre_box_is_a_square_in_the_middle():
    assert centre_box(500, 400, 0.5) == (150, 100, 350, 300)
    assert centre_box(400, 500, 1.0) == (0, 50, 400, 450)
