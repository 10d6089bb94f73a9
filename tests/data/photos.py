"""Image folders of real photographs for the tests: crops of scikit-learn's two samples."""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def write_photos(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    """Write `counts[name]` JPEGs, 48 to 95 pixels wide and tall, into each class folder."""
    drawn = np.random.default_rng(seed)
    photographs = load_sample_images().images
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            photograph = photographs[int(drawn.integers(2))]
            tall, wide = drawn.integers(48, 96, 2)
            top = drawn.integers(photograph.shape[0] - tall)
            left = drawn.integers(photograph.shape[1] - wide)
            pixels = photograph[top : top + tall, left : left + wide]
            Image.fromarray(pixels).save(folder / name / f"{number:04}.jpg", quality=90)
