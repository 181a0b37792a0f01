"""Which images a review takes for near-duplicates, and which groups it shows first."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tpssl_hf.commands.review import main
from tpssl_hf.tasks.review.alike import near_duplicates, prints_of, telling_first
from tpssl_hf.tasks.review.thumbnails import thumbnail_path


def photo(seed: int, side: int = 400) -> Image.Image:
    """Return smooth colors under fine noise."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    noisy = (pixels + random.integers(-20, 21, (side, side, 1))).clip(0, 255)
    return Image.fromarray(noisy.astype(np.uint8))


def saved_again(image: Image.Image, quality: int = 30) -> Image.Image:
    kept = io.BytesIO()
    image.save(kept, "JPEG", quality=quality)
    return Image.open(io.BytesIO(kept.getvalue())).convert("RGB")


def plain(*color: int) -> Image.Image:
    return Image.new("RGB", (90, 60), color)


def groups_of(images: list[Image.Image], folder: Path) -> list[list[int]]:
    for number, image in enumerate(images):
        path = thumbnail_path(folder, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        image = image.copy()
        image.thumbnail((128, 128))
        image.save(path, quality=80)
    there, prints = prints_of(folder, len(images), 2)
    assert there.tolist() == list(range(len(images)))
    return near_duplicates(prints)


COPIES = {
    "saved again": saved_again,
    "smaller": lambda image: image.resize((90, 90)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "paler": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "cut": lambda image: image.crop((8, 8, 392, 392)),
}


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES.keys())
def test_a_copy_is_alike_and_other_images_are_not(copy: Any, tmp_path: Path) -> None:
    images = [photo(seed) for seed in range(12)]
    assert groups_of([*images, copy(images[3])], tmp_path) == [[3, 12]]


def test_what_is_turned_or_another_color_is_not_alike(tmp_path: Path) -> None:
    images = [photo(0), ImageOps.mirror(photo(0)), photo(0).rotate(90), ImageOps.invert(photo(0))]
    assert groups_of([*images, plain(160, 90, 120), plain(200, 90, 120), plain(0, 0, 0)], tmp_path) == []


def test_plain_images_are_alike_whatever_the_noise(tmp_path: Path) -> None:
    assert groups_of([plain(0, 0, 0), plain(250, 250, 250), saved_again(plain(3, 3, 3))], tmp_path) == [[0, 2]]


def test_all_of_a_group_are_alike_to_its_first_and_in_no_other() -> None:
    steps = np.linspace(0, 1, 16)[:, None, None] * np.ones((16, 16, 3))
    bent = [steps * 200 + 25 * strength * np.sin(9 * steps.transpose(1, 0, 2)) for strength in range(7)]
    prints = np.stack(bent).clip(0, 255).astype(np.uint8)
    found = near_duplicates(prints)
    assert len(found) > 1 and sorted(sum(found, [])) == sorted(set(sum(found, [])))
    assert near_duplicates(np.concatenate([prints[:1]] * 600)) == [list(range(600))], "more than one block"


def test_a_missing_thumbnail_is_in_no_group(tmp_path: Path) -> None:
    groups_of([photo(0), photo(0)], tmp_path)
    there, prints = prints_of(tmp_path, 4, 1)
    assert there.tolist() == [0, 1] and len(prints) == 2
    assert near_duplicates(prints[:1]) == [] == near_duplicates(prints[:0])


def test_groups_that_were_labeled_differently_come_first() -> None:
    groups, given, labels = [[0, 1], [2, 3], [4, 5, 6], [7, 8]], [-1, 1, -1, -1, -1, -1, -1, 0, 1], [0] * 9
    labels[3] = 1
    assert telling_first(groups, given, labels) == [[7, 8], [2, 3], [4, 5, 6], [0, 1]]


def test_the_command_counts_groups_and_the_page_has_them(
    photos: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path for path in photos.rglob("*.png"))
    for path, seed in zip(names, (0, 0, 1, 2, 3, 3), strict=True):
        photo(seed, 100).save(path)
    predictions = request.getfixturevalue("predictions")  # of the images as they are now
    assert main([str(predictions), "--num_workers", "1"]) == 0
    said = capsys.readouterr().out
    script = (predictions / "review" / "data.js").read_text()
    found = json.loads(script[script.index("{") : -2])["predictions"]
    files = [[found["files"][number] for number in group] for group in found["groups"]]
    assert sorted(map(len, files)) == [2, 2] and "2 groups of near-duplicates (1 with different given labels)" in said
    assert found["disagreeing"] == 1
