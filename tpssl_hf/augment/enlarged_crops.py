"""How many crops of stored images are enlargements."""

import numpy as np
import torch

from tpssl_hf.augment.geometry import CROP_DRAWS, random_resized_crop_boxes
from tpssl_hf.augment.pretrain_views import ViewPolicy

CROPS = 8192  # drawn to find the share that is enlarged


def enlarged_share(sizes: np.ndarray, side: int, crop_scale: tuple[float, float]) -> float:
    """Return the fraction of random resized crops that have fewer pixels than the views they become.

    Args:
        sizes: (N, 2) heights and widths of the images that are cropped.
        side: of the square views.
        crop_scale: least and greatest area of a crop as a share of the image's.
    """
    chosen = torch.from_numpy(sizes[np.linspace(0, len(sizes) - 1, CROPS).round().astype(np.int64)])
    numbers = torch.rand(CROPS, CROP_DRAWS, generator=torch.Generator().manual_seed(0))
    left, top, right, bottom = random_resized_crop_boxes(numbers, chosen, crop_scale, ViewPolicy.crop_ratio).unbind(1)
    return float(((right - left) * (bottom - top) < side * side).double().mean())
