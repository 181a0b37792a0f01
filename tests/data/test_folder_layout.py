"""Folders of images as people have them: what is read, what is a split and what is a class."""

from pathlib import Path
from typing import Any

import pytest

from tpssl_hf.data import reading
from tpssl_hf.data.image_cache import load_image_cache
from tpssl_hf.data.label_splits import choose_labels
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.errors import InputError


@pytest.fixture
def made(tmp_path: Path, image: Any, encode: Any) -> Any:
    """Make a folder with these files, all of them images but for those whose content is given."""

    def make(*names: str, **contents: bytes) -> Path:
        for number, name in enumerate((*names, *contents)):
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(contents.get(name, encode(image(number))))
        return tmp_path / "set"

    return make


def labels_of(source: Source) -> dict[str, str | None]:
    """Class of each image by its path."""
    names = source.class_names or ()
    assert source.folder is not None
    found = {Path(row["image"]["path"]): row["folder"] for row in source.dataset}
    return {
        str(path.relative_to(source.folder)): None if label is None else names[label] for path, label in found.items()
    }


def scan(source: Source, tmp_path: Path) -> Any:
    options: dict[str, Any] = {"cache_budget": 1 << 30, "num_workers": 1, "progress": False, "allow_unlabeled": True}
    return load_image_cache(source, image_size=8, cache_dir=tmp_path / "cache", **options)


def test_a_image_above_the_class_folders_is_unlabeled_and_said(made: Any, tmp_path: Path) -> None:
    source = load_source(str(made("cat/0.png", "dog/0.png", "overview.png")), label_column="folder")
    assert labels_of(source) == {"cat/0.png": "cat", "dog/0.png": "dog", "overview.png": None}
    report = scan(source, tmp_path)[1]
    assert report.labels == {"cat": 1, "dog": 1, "unlabeled": 1}
    assert "1 images lie above the class folders and are unlabeled: overview.png" in report.summary()
    assert "classes are the 2 folders in 'set': cat, dog" in report.summary()


def test_images_that_are_not_read_are_counted_and_listed(made: Any, tmp_path: Path) -> None:
    folder = made("cat/0.png", "dog/0.png")
    for name in ("cat/a.HEICS", "cat/b.heics", "dog/c.jxr", "dog/d.svg", "bird/e.NEF", "dog/f.pdf"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "cat" / "no_suffix").write_bytes((folder / "cat" / "0.png").read_bytes())
    for name in ("notes.txt", "Thumbs.db", "cat/._0.png", "labels.csv"):
        (folder / name).write_bytes(b"something else")
    source = load_source(str(folder), label_column="folder")
    report = scan(source, tmp_path)[1]
    assert len(report.left_out) == 7 and "notes.txt" not in report.left_out
    assert "7 files that look like images are not read (.heics 2" in report.summary()
    assert "no classes, because none of their files is read: bird" in report.summary()
    assert source.class_names == ("cat", "dog")


def test_images_of_a_missing_plug_in_are_left_out_with_its_name_or_stop_the_run(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FORMATS", ("PNG",))
    folder = made(*(f"{number}.png" for number in range(19)))
    (folder / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    assert "IMG_1.HEIC: HEIC, which Pillow reads by a plug-in: pip install pillow-heif" in (
        scan(load_source(str(folder)), tmp_path)[1].summary()
    )
    (folder / "IMG_2.jxl").write_bytes(b"\xff\x0a")
    with pytest.raises(InputError, match="2 of 21 images .* pip install pillow-jxl-plugin"):
        scan(load_source(str(folder)), tmp_path)


def test_a_folder_of_unread_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for number in range(9):
        (tmp_path / "set" / f"{number}.heics").write_bytes(b"x")
    with pytest.raises(InputError, match="9 files look like images and are not read: 0.heics, .* and 4 more"):
        load_source(str(tmp_path / "set"))


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("TRAIN", "TEST"), ("Training", "Testing")])
def test_splits_are_told_in_any_case(train: str, test: str, made: Any) -> None:
    folder = made(f"{train}/cat/0.png", f"{train}/dog/1.png", f"{test}/cat/2.png", "Val/dog/3.png")
    source = load_source(str(folder), label_column="folder")
    assert labels_of(source) == {f"{train}/cat/0.png": "cat", f"{train}/dog/1.png": "dog"}
    assert len(load_source(str(folder), split="test").dataset) == 1
    assert len(load_source(str(folder), split="validation").dataset) == 1
    assert source.class_names == ("cat", "dog")


def test_the_class_is_the_first_level_below_the_split(made: Any) -> None:
    names = [f"{kind}/{year}/0.png" for kind in ("cat", "dog") for year in (2023, 2024)]
    source = load_source(str(made(*names)), label_column="folder")
    assert source.class_names == ("cat", "dog") and set(labels_of(source).values()) == {"cat", "dog"}
    assert any("folders in them are no classes" in note and "2023, 2024" in note for note in source.notes)


def test_a_folder_called_unlabeled_is_no_class_and_one_called_none_is(made: Any) -> None:
    source = load_source(str(made("none/0.png", "crack/0.png", "Unlabeled/0.png")), label_column="folder")
    assert source.class_names == ("crack", "none") and labels_of(source)["Unlabeled/0.png"] is None


def test_hidden_folders_and_what_systems_leave_are_passed_over(made: Any) -> None:
    folder = made("cat/0.png", "dog/1.png", "__MACOSX/cat/0.png", ".ipynb_checkpoints/0.png", "@eaDir/cat/0.png")
    source = load_source(str(folder), label_column="folder")
    assert len(source.dataset) == 2 and source.class_names == ("cat", "dog") and not source.left_out


def test_one_class_folder_is_one_sentence_that_names_the_level_below(made: Any, tmp_path: Path) -> None:
    source = load_source(str(made("images/cat/0.png", "images/dog/1.png")), label_column="folder")
    with pytest.raises(InputError, match="one class only .images.*give the folder that holds the class folders.*cat"):
        choose_labels("all", scan(source, tmp_path)[0], source)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["train/cat/0.png", "test/cat/0.png", "docs/0.png"], "named like splits, and also docs"),
        (["train/cat/0.png", "test/cat/0.png", "0.png"], "1 images beside the folders test, train"),
        (["cat/train/0.png", "cat/test/0.png", "dog/train/0.png"], "classes .cat, dog. with splits in them"),
    ],
)
def test_folders_that_can_be_understood_in_two_ways_are_refused(names: list[str], sentence: str, made: Any) -> None:
    with pytest.raises(InputError, match=sentence):
        load_source(str(made(*names)), label_column="folder")


def test_a_flat_folder_has_no_labels_and_a_table_may_name_its_classes(made: Any, tmp_path: Path) -> None:
    source = load_source(str(made("0.png", "1.png")), label_column="folder")
    store, report = scan(source, tmp_path)
    assert report.labels == {"unlabeled": 2} and source.class_names is None
    with pytest.raises(InputError, match="none of the 2 images .*no folders in 'set' whose names could be classes"):
        choose_labels("all", store, source)
    (tmp_path / "mine.csv").write_text("file,label\n0.png,cat\n1.png,dog\n")
    assert choose_labels(str(tmp_path / "mine.csv"), store, source).class_names == ("cat", "dog")


def test_a_class_called_like_a_split_is_a_class(made: Any) -> None:
    source = load_source(str(made("car/0.png", "train/1.png")), label_column="folder")
    assert source.class_names == ("car", "train") and len(source.dataset) == 2


def test_images_beside_tables_are_counted(tmp_path: Path, table: Any, image: Any, encode: Any) -> None:
    table(2).to_parquet(tmp_path / "Train-0.parquet")
    table(2).to_parquet(tmp_path / "more.parquet")
    (tmp_path / "loose.png").write_bytes(encode(image(0)))
    source = load_source(str(tmp_path))
    assert source.left_out == ("loose.png",) and "more.parquet" in source.notes[0] and len(source.dataset) == 2


def test_names_that_are_no_text_are_counted(made: Any) -> None:
    folder = made("0.png")
    Path(str(folder) + "/\udcff.png").write_bytes(b"x")
    assert len(load_source(str(folder)).dataset) == 1 and load_source(str(folder)).left_out == ("?.png",)
