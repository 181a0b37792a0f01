"""Several labels an image, as tables, JSON files and columns of lists give them; their draws and parts."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.label_splits import choose_labels, write_labels
from tpssl_hf.data.label_values import LabelWarning
from tpssl_hf.data.labeled import Labeled, hold_out, hold_out_share
from tpssl_hf.data.multilabel_splits import deal, draw_images, fewest
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.errors import InputError

Read = Callable[..., Labeled]
Pets = tuple[ImageCache, Source]
NAMED = "file,labels\n0.png,cat;dog\n1.png,dog\n2.png,;\n3.png,\n"


def opened(source: Source, tmp_path: Path) -> Pets:
    options: dict[str, Any] = {"cache_budget": 1 << 30, "num_workers": 1, "progress": False}
    store = load_image_cache(source, image_size=8, cache_dir=tmp_path / "cache", allow_unlabeled=True, **options)[0]
    return store, source


@pytest.fixture
def pets(tmp_path: Path) -> Pets:
    (tmp_path / "pets").mkdir()
    for number in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(tmp_path / "pets" / f"{number}.png")
    return opened(load_source(str(tmp_path / "pets"), several_labels=True), tmp_path)


@pytest.fixture
def read(pets: Pets, tmp_path: Path) -> Read:
    def from_text(text: str, suffix: str = "csv", several: bool = True) -> Labeled:
        path = tmp_path / f"mine.{suffix}"
        path.write_text(text, encoding="utf-8")
        return choose_labels(str(path), *pets, several=several)

    return from_text


@pytest.mark.parametrize(
    "text",
    [
        NAMED,
        "file;labels\n0.png;cat|dog\n1.png;dog|\n2.png;|\n3.png;unlabeled\n",
        'file,Labels\n0.png,"dog ; cat;dog"\n1.png,dog\n2.png, ; \n',
        "file,cat,dog\n0.png,1,1\n1.png,0,1\n2.png,0,0\n3.png,,\n4.png,-1,\n",
        "number,row,digest,cat,dog\n1,0,,1.0,true\n2,1,,false,yes\n3,2,,no,0.0\n",
    ],
)
def test_names_and_columns_say_the_same(text: str, read: Read) -> None:
    labeled = read(text)
    assert labeled.several and labeled.class_names == ("cat", "dog") and labeled.indices.tolist() == [0, 1, 2]
    assert labeled.labels.tolist() == [[1, 1], [0, 1], [0, 0]]
    assert labeled.counts(6) == "cat 1, dog 2, none of them 1, unlabeled 3"


def test_a_cell_that_says_nothing_is_another_thing_than_0(read: Read) -> None:
    labeled = read("file,Cat,dog\n0.png,1,\n1.png,0,1\n2.png,NA,0\n3.png,,\n")
    assert labeled.class_names == ("Cat", "dog") and labeled.labels.tolist() == [[1, -1], [0, 1], [-1, 0]]


def test_what_is_written_is_read_again(read: Read, pets: Pets, tmp_path: Path) -> None:
    labeled = read("file,cat,dog\n0.png,1,\n1.png,0,1\n2.png,,0\n")
    write_labels(tmp_path / "labels.json", labeled, *pets)
    again = choose_labels(str(tmp_path / "labels.json"), *pets, several=True)
    assert again.labels.tolist() == labeled.labels.tolist() and again.class_names == labeled.class_names


def test_json_takes_lists_of_names(read: Read) -> None:
    said: list[Any] = [["dog"], [], None, ["cat", "dog"]]
    labels = [{"file": f"{number}.png", "label": label} for number, label in enumerate(said)]
    labeled = read(json.dumps({"labels": labels}), "json")
    assert labeled.indices.tolist() == [0, 1, 3] and labeled.labels.tolist() == [[0, 1], [0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,cat,dog\n0.png,1,2\n", "line 2 says '2' in the column 'dog'; .* which says 1, 0, or nothing"),
        ("file,cat,Cat\n0.png,1,0\n", "has the column `cat` twice"),
        ("file,labels,labels\n0.png,a,b\n", "has the column `labels` twice"),
        ("image,labels\n0.png,a\n", "has neither `file` nor `row`"),
        ("file,cat\n0.png,1\n", "has no column `label` .* or a column for each label"),
        ("file,labels\n0.png,cat\n1.png,;\n", "there is one label only .cat."),
        ("file,cat,dog\n0.png,1,1\n1.png,0,1\n", "no image is without the label dog"),
        ("file,cat,dog\n0.png,1,0\n1.png,0,0\n", "no image has the label dog"),
        ("file,labels\n0.png,cat\n0.png,dog\n", "gives the label .'dog',. to an image that .* gives .'cat',."),
        ("file,labels\n7.png,cat;dog\n", "'7.png' is no image of the data set"),
        ("file,labels\n0.png,cat;dog,dog\n", "3 cells in 2 columns"),
        ("file,labels\n0.png,\n", "labels none of the 6 images"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str, read: Read) -> None:
    with pytest.raises(InputError, match=said):
        read(text)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[1, 0], [0]], "gives the labels .0.; a list of labels holds names, or 1, 0 or null for each .* .2."),
        ([[1, 0], "cat"], "gives the label 'cat' where others give lists"),
        ([[1, 3], [0, 1]], "gives the labels .1, 3."),
        ([["cat"], ["owl"]], "gives the label 'owl'; a label must be one of cat, dog"),
    ],
)
def test_lists_in_json_that_do_not_fit_are_refused(labels: Any, said: str, read: Read) -> None:
    entries = [{"file": f"{number}.png", "label": label} for number, label in enumerate(labels)]
    with pytest.raises(InputError, match=said):
        read(json.dumps({"class_names": ["cat", "dog"], "labels": entries}), "json")


def test_whoever_takes_one_label_an_image_says_who_takes_several(read: Read) -> None:
    with pytest.raises(InputError, match="several labels an image, which `tpssl-hf classify` .* give one label"):
        read(NAMED, several=False)


def test_one_label_an_image_stays_what_it_was_and_a_list_in_it_is_a_warning(read: Read) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        labeled = read("file,label,labels\n0.png,a;b,x\n1.png,c,y\n")
    assert not labeled.several and labeled.class_names == ("a;b", "c")
    with pytest.warns(LabelWarning, match="'cat;dog' is a class of its own .* name the column `labels`"):
        read("file,label\n0.png,cat;dog\n1.png,dog\n")


@pytest.fixture
def of_lists(tmp_path: Path, table: Callable[..., datasets.Dataset]) -> Callable[..., Pets]:
    def make(values: list[Any], kind: Any, column: str | None = None) -> Pets:
        images = table(len(values)).remove_columns("label").add_column("tags", values, feature=datasets.List(kind))
        (tmp_path / "lists").mkdir()
        images.to_parquet(tmp_path / "lists" / "train.parquet")
        return opened(load_source(str(tmp_path / "lists"), label_column=column, several_labels=True), tmp_path)

    return make


VALUES: list[Any] = [[0, 1], [1], [], None]


def test_a_column_of_lists_of_classes_is_found(of_lists: Callable[..., Pets]) -> None:
    store, source = of_lists(VALUES, datasets.ClassLabel(names=["cat", "dog"]))
    assert source.label_lists == "tags" and source.label_column is None and store.labels is None
    labeled = choose_labels("all", store, source, several=True)
    assert labeled.class_names == ("cat", "dog") and labeled.labels.tolist() == [[1, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        ([["dog", "cat"], ["dog"], [], None], datasets.Value("string"), ("cat", "dog")),
        (VALUES, datasets.Value("int64"), ("0", "1")),
    ],
)
def test_other_lists_must_be_named(
    values: list[Any], kind: Any, names: tuple[str, ...], of_lists: Callable[..., Pets]
) -> None:
    store, source = of_lists(values, kind, "tags")
    labeled = choose_labels("all", store, source, several=True)
    assert labeled.class_names == names and labeled.labels.tolist() == [[1, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize("values", [[[0, -1], [1]], [[0.5], [1.0]]])
def test_lists_of_other_things_are_refused(values: list[Any], of_lists: Callable[..., Pets]) -> None:
    kind = datasets.Value("float64" if isinstance(values[0][0], float) else "int64")
    store, source = of_lists(values, kind, "tags")
    with pytest.raises(InputError, match="'tags' holds .* in a list; a list must hold the names"):
        choose_labels("all", store, source, several=True)


def random_labels(count: int, seed: int = 0) -> np.ndarray:
    shares = np.array([0.94, 0.3, 0.06])
    return (np.random.default_rng(seed).random((count, 3)) < shares).astype(np.int64)


def test_draws_hold_smaller_ones_and_an_image_of_each_label() -> None:
    labels = random_labels(200)
    labels[:20] = -1
    small, large = (set(draw_images(labels, count, seed=3).tolist()) for count in (6, 30))
    assert len(small) == 6 and len(large) == 30 and small < large and min(large) >= 20
    assert fewest(labels[sorted(small)]).all()
    assert small != set(draw_images(labels, 6, seed=4).tolist())
    with pytest.raises(InputError, match="201 labeled images are more than the 180"):
        draw_images(labels, 201, seed=3)


@pytest.mark.parametrize("sizes", [(50, 50, 50, 50), (160, 40)])
def test_parts_have_their_sizes_and_each_label_in_proportion(sizes: tuple[int, ...]) -> None:
    labels = random_labels(200)
    parts = deal(labels, sizes, seed=1)
    assert np.bincount(parts).tolist() == list(sizes)
    for number, size in enumerate(sizes):
        expected = labels.sum(axis=0) * size / 200
        assert np.abs(labels[parts == number].sum(axis=0) - expected).max() < 1.5


def test_labels_held_out_leave_both_answers_to_train_on() -> None:
    labeled = Labeled(np.arange(60), random_labels(60, seed=2), ("a", "b", "c"), "all")
    kept, held = hold_out(labeled, 12, seed=0)
    assert len(held.indices) == 12 and sorted([*kept.indices, *held.indices]) == list(range(60))
    assert fewest(kept.labels).all()
    with pytest.raises(InputError, match="validation_labels 59 of 60 labeled images would leave a label without"):
        hold_out(labeled, 59, seed=0)
    assert hold_out_share(labeled, least=30, parts=5, seed=0) is None
    parts = hold_out_share(labeled, least=2, parts=5, seed=0)
    assert parts is not None and len(parts[1].indices) == 12
