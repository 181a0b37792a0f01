"""Near-duplicates among many images, by small prints of their thumbnails.

A print has 16 x 16 colors. Its mean is taken off and its contrast (the standard deviation over the cells, about the
mean color) is made 1, so that brighter or paler copies of an image are alike, and other colors are not. Two images are
alike where their prints then differ by at most a fifth, as a root mean square, and their means by at most 32 of 255.
Copies that were saved again, made smaller, or cut by 2 % at each side are; turned, mirrored and more closely cropped
ones are not.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from tpssl_hf.tasks.review.thumbnails import thumbnail_path

SIDE, COARSE = 16, 8  # cells of a print, and of the coarser one that is compared first
DIFFERENCE, BRIGHTNESS = 0.2, 32.0
LEAST_CONTRAST = 8.0  # of 255: what is fainter is not made stronger, or noise would tell plain images apart
BLOCK = 256  # images that are compared with all others at once


def prints_of(folder: Path, count: int, num_workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the prints of thumbnails.

    Args:
        folder: of the thumbnails.
        count: of images N.
        num_workers: threads that decode.

    Returns:
        Which images have a thumbnail (M,) int64, and their prints (M, 16, 16, 3) uint8.
    """
    with ThreadPoolExecutor(num_workers, "tpssl-prints") as pool:
        found = list(pool.map(lambda number: _print_of(thumbnail_path(folder, number)), range(count), chunksize=64))
    there = np.array([number for number, one in enumerate(found) if one is not None], dtype=np.int64)
    prints = [one for one in found if one is not None]
    return there, np.stack(prints) if prints else np.zeros((0, SIDE, SIDE, 3), dtype=np.uint8)


def _print_of(path: Path) -> np.ndarray | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # decodes a quarter of the pixels or less
            return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))
    except (FileNotFoundError, UnidentifiedImageError):
        return None


def near_duplicates(prints: np.ndarray) -> list[list[int]]:
    """Group images that are alike; all of a group are alike to its first one.

    Args:
        prints: (N, 16, 16, 3) uint8.

    Returns:
        Groups of two or more numbers of images, ascending; an image is in one group at most.
    """
    if len(prints) < 2:
        return []
    means = prints.reshape(len(prints), -1).mean(axis=1)
    fine = _standardized(prints, means)
    step = SIDE // COARSE
    coarse = fine.reshape(-1, COARSE, step, COARSE, step, 3).mean(axis=(2, 4)).reshape(len(prints), -1)
    fine = fine.reshape(len(prints), -1)
    taken, groups = np.zeros(len(prints), dtype=bool), []
    for start in range(0, len(prints), BLOCK):
        # means of cells differ by no more than the cells themselves, so that no pair is missed
        firsts, others = np.nonzero(_squares(coarse[start : start + BLOCK], coarse[start:]) <= DIFFERENCE**2)
        later = others > firsts
        firsts, others = firsts[later] + start, others[later] + start
        bounds = np.searchsorted(firsts, np.arange(start, min(start + BLOCK, len(prints)) + 1))
        for number, (low, high) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True), start):
            rest = others[low:high]
            rest = rest[~taken[rest]]
            if taken[number] or len(rest) == 0:
                continue
            alike = ((fine[rest] - fine[number]) ** 2).mean(axis=1) <= DIFFERENCE**2
            alike &= np.abs(means[rest] - means[number]) <= BRIGHTNESS
            if alike.any():
                taken[rest[alike]] = True
                groups.append([number, *rest[alike].tolist()])
    return groups


def _standardized(prints: np.ndarray, means: np.ndarray) -> np.ndarray:
    values = prints.astype(np.float32)
    variances = values.var(axis=(1, 2)).mean(axis=1)
    contrast = np.maximum(np.sqrt(variances), LEAST_CONTRAST)
    scaled: np.ndarray = (values - means[:, None, None, None].astype(np.float32)) / contrast[:, None, None, None]
    return scaled


def _squares(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return mean squared differences (A, B) of the rows of (A, D) and (B, D)."""
    products = left @ right.T
    squares: np.ndarray = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1) - 2 * products
    squares /= left.shape[1]
    return squares


def telling_first(groups: Sequence[Sequence[int]], given: Sequence[int], labels: Sequence[int]) -> list[list[int]]:
    """Order groups: those with different given labels first, then those with different predictions; large ones first.

    Args:
        groups: of numbers of images.
        given: (N,) the class each image was given, -1 for none.
        labels: (N,) the class predicted for each.
    """

    def rank(group: Sequence[int]) -> tuple[bool, bool, int]:
        return not disagree(group, given), len({labels[number] for number in group}) == 1, -len(group)

    return [list(group) for group in sorted(groups, key=rank)]


def disagree(group: Sequence[int], given: Sequence[int]) -> bool:
    """Whether the given labels of a group differ, as far as there are any."""
    return len({given[number] for number in group} - {-1}) > 1
