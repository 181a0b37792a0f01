import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tpssl_hf.data.fingerprints import fingerprint_files
from tpssl_hf.data.reading import decode_image
from tpssl_hf.data.registry import DATASETS
from tpssl_hf.data.sources import load_source
from tpssl_hf.errors import InputError

MakeTable = Callable[..., datasets.Dataset]
MakeFolder = Callable[..., Path]


def values(source: Any) -> list[int]:
    """The first pixel of every image."""
    return [int(decode_image(row[source.image_column])[0, 0, 0]) for row in source.dataset]


def test_digits_have_two_disjoint_stratified_splits() -> None:
    train, test = load_source("digits"), load_source("digits", split="test")
    assert (len(train.dataset), len(test.dataset)) == (1497, 300)
    assert train.class_names == tuple("0123456789")
    assert not train.flip_is_safe and train.fingerprint != test.fingerprint
    counts = np.bincount(test.dataset["label"])
    assert counts.min() >= 29 and counts.max() <= 31
    pixels = np.stack([decode_image(row["image"]) for row in test.dataset])
    assert pixels.shape == (300, 8, 8, 3) and pixels.min() == 0 and pixels.max() == 255


def test_digits_have_no_other_split() -> None:
    with pytest.raises(InputError, match="train, test"):
        load_source("digits", split="validation")


def test_digits_stream() -> None:
    assert len(list(load_source("digits", split="test", streaming=True).dataset)) == 300


def test_registry_knows_which_data_must_not_be_mirrored() -> None:
    assert {name for name, spec in DATASETS.items() if not spec.flip_is_safe} == {
        "digits",
        "digit_scenes",
        "svhn",
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_nested_folder_of_images(tmp_path: Path, image: Any, encode: Any, streaming: bool) -> None:
    for name in ("b/2.PNG", "a/deep/1.jpeg", "0.png", ".hidden.png", ".git/3.png", "notes.txt"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encode(image(1)))
    source = load_source(str(tmp_path / "set"), streaming=streaming)
    found = [Path(row["image"]["path"]).relative_to(tmp_path / "set") for row in source.dataset]
    assert [str(path) for path in found] == ["0.png", "a/deep/1.jpeg", "b/2.PNG"]
    assert source.name == "set" and source.label_column is None and source.class_names is None


def test_linked_folders_are_followed_once(tmp_path: Path, image_folder: MakeFolder) -> None:
    folder = image_folder(3)
    (folder / "circle").symlink_to(folder)
    other = image_folder(2, "other")
    (folder / "more").symlink_to(other)
    assert len(load_source(str(folder)).dataset) == 5


def test_folders_named_like_splits_are_splits(tmp_path: Path, image: Any, encode: Any) -> None:
    for name in ("train/a/0.png", "train/b/1.png", "test/2.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(encode(image(1)))
    assert len(load_source(str(tmp_path / "set")).dataset) == 2
    assert len(load_source(str(tmp_path / "set"), split="test").dataset) == 1
    with pytest.raises(InputError, match="its splits are test, train"):
        load_source(str(tmp_path / "set"), split="validation")


def test_a_folder_named_like_an_embedded_data_set_is_not_passed_over_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_source("digits").notes == ()
    (tmp_path / "digits").mkdir()
    assert load_source("digits").notes == ("a folder 'digits' is here too: ./digits would take it",)


def test_fingerprint_follows_the_files_and_is_that_of_their_copies(image_folder: MakeFolder, tmp_path: Path) -> None:
    folder = image_folder(3)
    before = load_source(str(folder)).fingerprint
    assert load_source(str(folder)).fingerprint == before
    moved = folder.rename(folder.with_name("moved"))
    assert load_source(str(moved)).fingerprint == before
    shutil.copytree(moved, tmp_path / "copy", copy_function=shutil.copyfile)  # as a download to another machine is
    os.utime(tmp_path / "copy" / "0000.png", (1, 1))
    copy = load_source(str(tmp_path / "copy"))
    assert copy.fingerprint == before and copy.times != load_source(str(moved)).times
    content = (moved / "0000.png").read_bytes()
    (moved / "0000.png").write_bytes(content[:-20] + b"x" + content[-19:])
    assert load_source(str(moved)).fingerprint != before


def test_a_pipe_or_an_unreadable_file_among_many_does_not_hold_up_a_fingerprint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "nowhere.png").symlink_to("missing")
    names = [tmp_path / name for name in ("empty.png", "nowhere.png", "pipe.png")]
    content, times = fingerprint_files(tmp_path, names)
    assert content == fingerprint_files(tmp_path, names)[0] != fingerprint_files(tmp_path, names[:2])[0]
    assert times != content


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("place", [".", "data", "plain_text"])
def test_parquet_in_the_layout_of_the_hub(tmp_path: Path, table: MakeTable, place: str, streaming: bool) -> None:
    (tmp_path / "set" / place).mkdir(parents=True)
    for name, first in (("train-00000-of-00002", 0), ("train-00001-of-00002", 4), ("test-00000-of-00001", 8)):
        table(4, first).to_parquet(tmp_path / "set" / place / f"{name}.parquet")
    source = load_source(str(tmp_path / "set"), streaming=streaming)
    assert values(source) == list(range(8))
    assert source.class_names == ("cat", "dog", "fox") and source.label_column == "label"
    test = load_source(str(tmp_path / "set"), split="test", streaming=streaming)
    assert values(test) == list(range(8, 12)) and test.fingerprint != source.fingerprint
    with pytest.raises(InputError, match="test, train"):
        load_source(str(tmp_path / "set"), split="validation", streaming=streaming)


def test_parquet_without_split_names_is_all_train(tmp_path: Path, table: MakeTable) -> None:
    table(2).to_parquet(tmp_path / "part-00000.parquet")
    table(2, 2).to_parquet(tmp_path / "part-00001.parquet")
    assert values(load_source(str(tmp_path))) == [0, 1, 2, 3]


def test_configurations_of_a_folder(tmp_path: Path, table: MakeTable) -> None:
    for number, config in enumerate(("small", "large")):
        (tmp_path / "set" / config).mkdir(parents=True)
        table(1, number).to_parquet(tmp_path / "set" / config / "train.parquet")
    assert values(load_source(str(tmp_path / "set"), dataset_config="large")) == [1]
    with pytest.raises(InputError, match="large, small"):
        load_source(str(tmp_path / "set"))
    with pytest.raises(InputError, match="no configuration 'huge'"):
        load_source(str(tmp_path / "set"), dataset_config="huge")


def test_saved_data_sets(tmp_path: Path, table: MakeTable) -> None:
    table(3).save_to_disk(tmp_path / "one")
    assert values(load_source(str(tmp_path / "one"))) == [0, 1, 2]
    datasets.DatasetDict(train=table(2), test=table(2, 2)).save_to_disk(tmp_path / "two")
    assert values(load_source(str(tmp_path / "two"), split="test", streaming=True)) == [2, 3]
    with pytest.raises(InputError, match="train, test"):
        load_source(str(tmp_path / "two"), split="dev")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("./nowhere/at/all", "not an existing folder"),
        ("/nowhere", "not an existing folder"),
        ("nowhere", "digits, cifar10, cifar100, svhn"),
        ("~/nowhere", "not an existing folder"),
    ],
)
def test_mistyped_path_is_refused_at_once(written: str, message: str) -> None:
    started = time.perf_counter()
    with pytest.raises(InputError, match=message):
        load_source(written)
    assert time.perf_counter() - started < 1


def test_hub_failures_become_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub (LocalEntryNotFoundError)\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="'owner/name' is not an existing folder.*HF_HUB_OFFLINE is set") as caught:
        load_source("owner/name")
    assert "more" not in str(caught.value) and isinstance(caught.value.__cause__, ConnectionError)


def test_hub_is_asked_for_the_registry_entry(monkeypatch: pytest.MonkeyPatch, table: MakeTable) -> None:
    asked = []

    def load(*args: Any, **options: Any) -> datasets.Dataset:
        asked.append((args, options))
        return table(2)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = load_source("svhn")
    assert asked == [(("ufldl-stanford/svhn", "cropped_digits"), {"split": "train", "streaming": False})]
    assert source.name == "svhn" and source.spec is DATASETS["svhn"] and not source.flip_is_safe


def test_columns_are_found_by_type_or_named(tmp_path: Path, table: MakeTable) -> None:
    images = table(2)
    images = images.add_column("fine", [0, 1]).cast_column("fine", datasets.ClassLabel(names=["a", "b"]))
    images.rename_column("image", "photo").to_parquet(tmp_path / "train.parquet")
    source = load_source(str(tmp_path))
    assert source.image_column == "photo" and source.label_column is None  # two columns of class labels
    assert load_source(str(tmp_path), label_column="fine").class_names == ("a", "b")
    with pytest.raises(InputError, match=r"'image' does not exist.*photo \(Image\)"):
        load_source(str(tmp_path), image_column="image")
    with pytest.raises(InputError, match="'label' holds no images"):
        load_source(str(tmp_path), image_column="label")
    with pytest.raises(InputError, match="'coarse' does not exist"):
        load_source(str(tmp_path), label_column="coarse")


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([["cat", "dog"], []], datasets.Value("string")),
        ([[0, 1], [1]], datasets.ClassLabel(names=["cat", "dog"])),
    ],
)
def test_several_labels_an_image_are_refused_with_a_way_out(
    labels: list[Any], kind: Any, tmp_path: Path, table: MakeTable
) -> None:
    images = table(2).add_column("tags", labels, feature=datasets.List(kind))
    images.to_parquet(tmp_path / "train.parquet")
    with pytest.raises(
        InputError, match="'tags' holds lists .* so several labels an image, which `tpssl-hf classify`"
    ):
        load_source(str(tmp_path), label_column="tags")


def test_untyped_bytes_are_found_by_name(tmp_path: Path, image: Any, encode: Any) -> None:
    cells = [encode(image(number)) for number in range(2)]
    datasets.Dataset.from_dict({"img": cells, "note": ["a", "b"]}).to_parquet(tmp_path / "train.parquet")
    for streaming in (False, True):
        source = load_source(str(tmp_path), streaming=streaming)
        decoded = [decode_image(row["img"]) for row in source.dataset]
        assert np.array_equal(decoded[1], image(1))


def test_two_image_columns_must_be_told_apart(tmp_path: Path, image: Any, encode: Any) -> None:
    cell = {"bytes": encode(image(0)), "path": None}
    features = datasets.Features(left=datasets.Image(), right=datasets.Image())
    datasets.Dataset.from_dict({"left": [cell], "right": [cell]}, features=features).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="Set `image_column` to one of left"):
        load_source(str(tmp_path))
    assert load_source(str(tmp_path), image_column="right").image_column == "right"


def test_empty_folder_and_file_are_refused(tmp_path: Path, image_folder: MakeFolder) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load_source(str(tmp_path / "empty"))
    folder = image_folder(1)
    with pytest.raises(InputError, match="is a file"):
        load_source(str(folder / "0000.png"))
    with pytest.raises(InputError, match="no configuration"):
        load_source(str(folder), dataset_config="x")
