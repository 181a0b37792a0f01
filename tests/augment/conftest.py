from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from tpssl_hf.data.image_batch import ImageBatch


@pytest.fixture(scope="session")
def photographs():
    """Two real photographs, 427 x 640, as Pillow images."""
    return [Image.fromarray(scene) for scene in load_sample_images().images]


@pytest.fixture(scope="session")
def images(photographs):
    """The photographs and a smooth color gradient as (3, 3, 48, 48) float32 in 0..255."""
    small = [np.asarray(photograph.resize((48, 48))) for photograph in photographs]
    ramp = np.linspace(0, 255, 48)
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None], ramp[::-1, None]), axis=2)
    return torch.from_numpy(np.stack([*small, smooth])).permute(0, 3, 1, 2).float().contiguous()


@pytest.fixture
def make_images(photographs):
    """Return images of given (height, width) in one batch, padded with a value that would show."""

    @cache
    def resized(number, size):
        return torch.from_numpy(np.array(photographs[number].resize(size)))

    def make(sizes, *, padding=0, epoch=0):
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        pixels = torch.full((len(sizes), height, width, 3), padding, dtype=torch.uint8)
        for row, (rows, columns) in enumerate(sizes):
            pixels[row, :rows, :columns] = resized(row % 2, (columns, rows))
        index = torch.arange(len(sizes))
        return ImageBatch(pixels, torch.tensor(sizes), index, torch.full_like(index, epoch))

    return make
