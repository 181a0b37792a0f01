import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.label_splits import choose_labels, draw_labels, refuse_test_images, write_labels
from tpssl_hf.data.labeled import hold_out
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.errors import InputError

LABELS = np.repeat(np.arange(3), (30, 20, 10))


def opened(source: Source, tmp_path: Path, limit: int | None = None) -> ImageCache:
    return load_image_cache(
        source,
        image_size=8,
        cache_budget=1 << 30,
        num_workers=1,
        progress=False,
        cache_dir=tmp_path / "cache",
        limit_images=limit,
        allow_unlabeled=True,
    )[0]


@pytest.fixture
def digits(tmp_path: Path) -> tuple[ImageCache, Source]:
    source = load_source("digits")
    return opened(source, tmp_path), source


def folder_of_images(root: Path, count: int = 6, offset: int = 0) -> Path:
    for number in range(count):
        path = root / ("cat" if number % 2 else "dog") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(number + offset)
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return root


def test_balanced_draws_have_the_same_number_of_each_class_and_are_true_to_the_labels() -> None:
    drawn = draw_labels(LABELS, 12, 3, mode="balanced", seed=1)
    assert np.bincount(LABELS[drawn]).tolist() == [4, 4, 4] and len(set(drawn.tolist())) == 12


def test_draws_depend_on_the_seed_alone_and_larger_ones_hold_smaller_ones() -> None:
    one, again, other = (draw_labels(LABELS, 6, 3, mode="balanced", seed=seed) for seed in (1, 1, 2))
    assert one.tolist() == again.tolist() != other.tolist()
    assert set(one.tolist()) <= set(draw_labels(LABELS, 15, 3, mode="balanced", seed=1).tolist())


def test_proportional_draws_follow_the_classes() -> None:
    drawn = draw_labels(LABELS, 12, 3, mode="proportional", seed=1)
    assert np.bincount(LABELS[drawn]).tolist() == [6, 4, 2]


def test_forty_proportional_labels_of_svhn_are_those_of_the_official_rule() -> None:
    counts = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)  # the 73,257 training images by digit
    labels = np.repeat(np.arange(10), counts)
    drawn = draw_labels(labels, 40, 10, mode="proportional", seed=1)
    assert np.bincount(labels[drawn]).tolist() == [3, 7, 6, 4, 4, 4, 3, 3, 3, 3]


def test_unlabeled_images_are_never_drawn() -> None:
    labels = np.where(np.arange(60) % 2 == 0, LABELS, -1)
    assert (labels[draw_labels(labels, 9, 3, mode="balanced", seed=1)] >= 0).all()


@pytest.mark.parametrize(
    ("count", "mode", "sentence"),
    [
        (2, "balanced", "fewer than the 3 classes"),
        (10, "balanced", "give --labels 9 or 12"),
        (61, "proportional", "more than the 60"),
        (36, "balanced", "class 2 has 10 labeled images, and 12 of each"),
    ],
)
def test_numbers_that_do_not_fit_the_classes_are_refused(count: int, mode: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        draw_labels(LABELS, count, 3, mode=mode, seed=1)


def test_written_labels_are_read_again_as_they_were(digits: tuple[ImageCache, Source], tmp_path: Path) -> None:
    drawn = choose_labels("40", *digits, seed=3)
    write_labels(tmp_path / "labels.json", drawn, *digits)
    again = choose_labels(str(tmp_path / "labels.json"), *digits)
    assert again.indices.tolist() == drawn.indices.tolist() and again.labels.tolist() == drawn.labels.tolist()
    assert again.class_names == drawn.class_names


def test_labels_of_other_images_are_refused(digits: tuple[ImageCache, Source], tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.json", choose_labels("40", *digits), *digits)
    other = load_source("digits", split="test")
    with pytest.raises(InputError, match="written for other images"):
        choose_labels(str(tmp_path / "labels.json"), opened(other, tmp_path), other)


def test_labels_by_file_outlive_images_that_come_later(
    image_folder: Callable[..., Path], encode: Callable[..., bytes], image: Callable[..., Any], tmp_path: Path
) -> None:
    folder = image_folder(4)
    (tmp_path / "labels.csv").write_text("file,label\n0001.png,cat\n0003.png,dog\n")
    before = load_source(str(folder))
    drawn = choose_labels(str(tmp_path / "labels.csv"), opened(before, tmp_path), before)
    write_labels(tmp_path / "labels.json", drawn, opened(before, tmp_path), before)
    (folder / "0000_a.png").write_bytes(encode(image(9)))
    after = load_source(str(folder))
    again = choose_labels(str(tmp_path / "labels.json"), opened(after, tmp_path), after)
    assert drawn.indices.tolist() == [1, 3] and again.indices.tolist() == [2, 4]
    assert again.labels.tolist() == drawn.labels.tolist()
    assert any("taken by the names of their files" in note for note in again.notes)


def test_rows_keep_their_meaning_when_only_some_images_are_used(tmp_path: Path) -> None:
    source = load_source("digits")
    whole, part = opened(source, tmp_path), opened(source, tmp_path, limit=700)
    drawn = choose_labels("40", part, source)
    write_labels(tmp_path / "labels.json", drawn, part, source)
    again = choose_labels(str(tmp_path / "labels.json"), whole, source)
    assert whole.rows[again.indices].tolist() == part.rows[drawn.indices].tolist()


def test_a_table_of_files_and_names_labels_a_folder_of_images(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "images")
    table = tmp_path / "mine.csv"
    table.write_text("file,label\ndog/0.png,dog\n1.png,cat\ndog/2.png,\n")  # by path, by name alone, not labeled yet
    source = load_source(str(folder))
    labeled = choose_labels(str(table), opened(source, tmp_path), source)
    assert labeled.class_names == ("cat", "dog") and labeled.labels.tolist() == [0, 1]
    paths = [Path(source.dataset[row]["image"]["path"]).name for row in labeled.indices.tolist()]
    assert paths == ["1.png", "0.png"]


def test_names_of_sub_folders_are_labels_when_asked_for(tmp_path: Path) -> None:
    source = load_source(str(folder_of_images(tmp_path / "images")), label_column="folder")
    labeled = choose_labels("all", opened(source, tmp_path), source)
    assert labeled.class_names == ("cat", "dog") and labeled.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_column_with_nulls_labels_the_others(tmp_path: Path) -> None:
    folder = folder_of_images(tmp_path / "images")
    files = sorted(folder.rglob("*.png"))
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": file.read_bytes(), "path": None} for file in files], "label": [0, None, 1, None, 1, 0]},
        features=datasets.Features(image=datasets.Image(decode=False), label=datasets.ClassLabel(names=["a", "b"])),
    )
    table.to_parquet(tmp_path / "table" / "train.parquet") if (tmp_path / "table").mkdir() is None else None
    source = load_source(str(tmp_path / "table"))
    labeled = choose_labels("all", opened(source, tmp_path), source)
    assert labeled.indices.tolist() == [0, 2, 4, 5] and labeled.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,label\nnowhere.png,cat\n", "'nowhere.png' is no image of the data set"),
        ("name,label\n0.png,cat\n", "has neither `file` nor `row`"),
        ("file,label\n0.png,\n", "labels none of the 6 images"),
        ("row,label\n0,cat\n1,cat\n", "one class only"),
        ("row,label\n0,0\n1,2\n", "no image is labeled 1"),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    source = load_source(str(folder_of_images(tmp_path / "images")))
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        choose_labels(str(tmp_path / "bad.csv"), opened(source, tmp_path), source)


def test_labels_out_of_range_name_the_classes(digits: tuple[ImageCache, Source], tmp_path: Path) -> None:
    entries = [{"row": row, "label": 10} for row in range(3)]
    (tmp_path / "bad.json").write_text(json.dumps({"labels": entries}))
    with pytest.raises(InputError, match="label '10'; a label must be a number from 0 to 9"):
        choose_labels(str(tmp_path / "bad.json"), *digits)


@pytest.mark.parametrize("wanted", ["0", "-3", "forty", "4.5"])
def test_what_is_no_number_of_labels_is_refused(wanted: str, digits: tuple[ImageCache, Source]) -> None:
    with pytest.raises(InputError, match="is not a number above 0"):
        choose_labels(wanted, *digits)


def test_images_without_a_label_column_ask_for_one(tmp_path: Path) -> None:
    source = load_source(str(folder_of_images(tmp_path / "images")))
    with pytest.raises(InputError, match="has no label column"):
        choose_labels("2", opened(source, tmp_path), source)


def test_held_out_labels_leave_every_class_some_and_share_none(digits: tuple[ImageCache, Source]) -> None:
    drawn = choose_labels("40", *digits)
    kept, held = hold_out(drawn, 10, seed=0)
    assert sorted([*kept.indices.tolist(), *held.indices.tolist()]) == drawn.indices.tolist()
    assert np.bincount(kept.labels).tolist() == [3] * 10 and np.bincount(held.labels).tolist() == [1] * 10
    for kind in (kept, held):
        assert all(digits[0].labels[i] == label for i, label in zip(kind.indices, kind.labels, strict=True))
    with pytest.raises(InputError, match="without any to train on"):
        hold_out(drawn, 31, seed=0)


def test_a_labeled_image_in_the_test_set_is_found_by_its_pixels(tmp_path: Path) -> None:
    train = load_source(str(folder_of_images(tmp_path / "train")), label_column="folder")
    store = opened(train, tmp_path)
    labeled = choose_labels("all", store, train)
    other = opened(load_source(str(folder_of_images(tmp_path / "test", offset=100))), tmp_path)
    refuse_test_images(store, labeled.indices, other)
    copied = folder_of_images(tmp_path / "copied", count=1, offset=100)
    (copied / "again.png").write_bytes((tmp_path / "train/dog/2.png").read_bytes())
    with pytest.raises(InputError, match="1 of the 6 labeled images are in the test set"):
        refuse_test_images(store, labeled.indices, opened(load_source(str(copied)), tmp_path))
