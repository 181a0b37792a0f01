"""Small scenes for segmentation that need no download: handwritten digits on textured ground."""

import hashlib
from typing import Any

import datasets
import numpy as np
from PIL import Image

from tpssl_hf.data.folders import as_png, digit_images

SCENES = {"train": 400, "test": 100}
SIDE = 64
DIGIT_SIDES = (25, 31)
DIGITS_PER_SCENE = (3, 5)
MAX_COVERED = 0.05  # share of an earlier digit that a later one may hide
PLACES_TRIED = 50
SEEDS = {"train": 1, "test": 2}


def load_digit_scenes(split: str) -> tuple[Any, str]:
    """Return scenes of scikit-learn's digits and their fingerprint: 400 in ``train``, 100 in ``test``.

    A scene is (64, 64) pixels: three to five digits of one split of ``digits``, each in a pale color of its own, on a
    dark ground of blotches, a gradient or stripes. Its mask holds 0 for the ground and ``d + 1`` for digit ``d``.
    Scenes are the same every time.
    """
    gray, classes = digit_images(split, "digit_scenes")
    digest = hashlib.sha256()
    columns: dict[str, list[dict[str, Any]]] = {"image": [], "mask": []}
    for number in range(SCENES[split]):
        key = np.array([SEEDS[split], number], dtype=np.uint64)
        pixels, mask = _draw_scene(np.random.Generator(np.random.Philox(key=key)), gray, classes)
        digest.update(pixels.tobytes() + mask.tobytes())
        columns["image"].append({"bytes": as_png(pixels), "path": None})
        columns["mask"].append({"bytes": as_png(mask), "path": None})
    features = datasets.Features(image=datasets.Image(decode=False), mask=datasets.Image(decode=False))
    return datasets.Dataset.from_dict(columns, features=features), digest.hexdigest()[:32]


def _draw_scene(random: np.random.Generator, gray: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a scene (64, 64, 3) and its mask (64, 64), both uint8."""
    ground = _draw_ground(random)
    scene, mask = ground.copy(), np.zeros((SIDE, SIDE), dtype=np.uint8)
    drawn: list[np.ndarray] = []  # where each digit so far is
    wanted = int(random.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1))
    for _ in range(PLACES_TRIED):
        chosen = int(random.integers(len(gray)))
        side = int(random.integers(DIGIT_SIDES[0], DIGIT_SIDES[1] + 1))
        top, left = random.integers(0, SIDE - side + 1, 2).tolist()
        cover = np.zeros((SIDE, SIDE))
        enlarged = Image.fromarray(gray[chosen]).resize((side, side), Image.Resampling.BICUBIC)
        cover[top : top + side, left : left + side] = np.asarray(enlarged) / 255
        shape = cover >= 0.5
        if any((shape & other).sum() > MAX_COVERED * other.sum() for other in drawn):
            continue
        scene += cover[..., None] * (random.uniform(190, 255, 3) - scene)
        mask[shape] = classes[chosen] + 1
        drawn.append(shape)
        if len(drawn) == wanted:
            break
    noisy = scene + random.normal(0, 4, scene.shape)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), mask


def _draw_ground(random: np.random.Generator) -> np.ndarray:
    """Return the ground (64, 64, 3), 0..255: two colors blended along a gradient, in stripes or in blotches."""
    colors = random.uniform(0, 100, (2, 3))
    colors[1] = colors[0] + 0.5 * (colors[1] - colors[0])  # digits are to stand out, not the texture
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    angle = random.uniform(0, np.pi)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    kind = random.integers(3)
    if kind == 0:
        blend = (along - along.min()) / np.ptp(along)
    elif kind == 1:
        blend = 0.5 + 0.5 * np.sin(2 * np.pi * random.uniform(3, 9) * along)
    else:
        coarse = Image.fromarray(random.integers(0, 256, (12, 12), dtype=np.uint8))
        blend = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / 255
    ground: np.ndarray = colors[0] + blend[..., None] * (colors[1] - colors[0])
    return ground
