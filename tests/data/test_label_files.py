"""Files of labels as people and spreadsheets write them, and what they must not be taken for."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tpssl_hf.data.image_cache import ImageCache, load_image_cache
from tpssl_hf.data.image_names import row_digests
from tpssl_hf.data.label_splits import choose_labels, read_labels, write_labels
from tpssl_hf.data.label_values import LabelWarning, is_unlabeled, number_column
from tpssl_hf.data.labeled import Labeled, hold_out_share
from tpssl_hf.data.sources import Source, load_source
from tpssl_hf.errors import InputError

NAMES = [f"{place}/Größe {number}.PNG" for place in ("here", "there") for number in range(4)]
Read = Callable[..., Labeled]


def opened(source: Source, tmp_path: Path) -> ImageCache:
    options: dict[str, Any] = {"cache_budget": 1 << 30, "num_workers": 1, "progress": False}
    return load_image_cache(source, image_size=8, cache_dir=tmp_path / "cache", allow_unlabeled=True, **options)[0]


def save(path: Path, number: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 3 * number, dtype=np.uint8)).save(path, "PNG")
    return path.read_bytes()


@pytest.fixture
def pets(tmp_path: Path) -> tuple[ImageCache, Source]:
    """Eight images in two folders, their names in decomposed Unicode and with a suffix in capitals."""
    for number, name in enumerate(NAMES):
        save(tmp_path / "pets" / unicodedata.normalize("NFD", name), number)
    source = load_source(str(tmp_path / "pets"))
    return opened(source, tmp_path), source


@pytest.fixture
def read(pets: tuple[ImageCache, Source], tmp_path: Path) -> Read:
    """Read a file of labels with this content."""

    def from_file(content: str | bytes, suffix: str = "csv") -> Labeled:
        path = tmp_path / f"mine.{suffix}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return choose_labels(str(path), *pets)

    return from_file


def table(labels: dict[int, str], header: str = "file,label", mark: str = ",") -> str:
    lines = [header.replace(",", mark), *(f"{NAMES[number]}{mark}{label}" for number, label in labels.items())]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("none", ["-1", "nan", "NaN", "NA", "n/a", "null", "None", "", "   ", "-1.0", "<NA>", "#N/A"])
def test_every_word_for_no_label_means_the_same_in_tables_and_json(none: str, read: Read) -> None:
    labeled = read(table({0: "cat", 1: "dog", 2: none, 3: none}))
    assert labeled.class_names == ("cat", "dog") and labeled.indices.tolist() == [0, 1]
    assert labeled.counts(8) == "cat 1, dog 1, unlabeled 6"
    said = none.strip()
    assert any(f"2 entries say {said!r}" in note for note in labeled.notes) == bool(said)
    entries = [
        {"file": NAMES[number], "label": ("cat", "dog", none, None, float("nan"), -1)[number]} for number in range(6)
    ]
    assert read(json.dumps({"labels": entries}), "json").indices.tolist() == [0, 1]


def test_a_class_that_is_known_by_such_a_name_stays_a_class(read: Read, tmp_path: Path) -> None:
    entries = [{"file": NAMES[number], "label": ("none", "crack", "")[number]} for number in range(3)]
    content = {"class_names": ["crack", "none"], "labels": entries}
    assert read(json.dumps(content), "json").labels.tolist() == [1, 0]
    for number in range(4):
        save(tmp_path / "folders" / ("none" if number % 2 else "crack") / f"{number}.png", number)
    source = load_source(str(tmp_path / "folders"), label_column="folder")
    (tmp_path / "words.csv").write_text("file,label\ncrack/0.png,crack\nnone/1.png,none\n")
    assert choose_labels(str(tmp_path / "words.csv"), opened(source, tmp_path), source).labels.tolist() == [0, 1]
    with pytest.raises(InputError, match="one class only .crack.*1 entries say 'none', which means unlabeled"):
        read(table({0: "crack", 1: "none"}))


def test_only_what_says_so_is_unlabeled() -> None:
    assert not any(is_unlabeled(value) for value in (0, 1, "0", "cat", False, True, "nanny", 0.0, "no"))
    assert is_unlabeled("none") and not is_unlabeled("none", ("none",))


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("header", ["file,label", " File , LABEL ", "number,label,FILE"])
def test_tables_are_read_however_spreadsheets_write_them(mark: str, encoding: str, header: str, read: Read) -> None:
    text = table({0: "cat", 1: " dog", 2: "cat  ", 5: "dog\u00a0"}, header, mark)
    if header.startswith("number"):
        lines = [line.split(mark) for line in text.splitlines()[1:]]
        text = "\n".join([header.replace(",", mark), *(mark.join(["1", label, file]) for file, label in lines)])
    labeled = read(text.replace("\n", "\r\n").encode(encoding))
    assert labeled.class_names == ("cat", "dog") and labeled.labels.tolist() == [0, 1, 0, 1]
    assert labeled.indices.tolist() == [0, 1, 2, 5]
    assert ("Windows-1252" in "".join(labeled.notes)) == (encoding == "cp1252")


@pytest.mark.parametrize(
    "name",
    [
        "here\\Größe 0.PNG",
        "./here/Größe 0.PNG",
        "pets/here/Größe 0.PNG",
        "C:\\data\\pets\\here\\Größe 0.PNG",
        "/elsewhere/pets/here/Größe 0.PNG",
        "HERE/größe 0.png",
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_files_are_found_as_other_systems_write_them(name: str, form: Any, read: Read) -> None:
    labeled = read(f"file,label\n{unicodedata.normalize(form, name)},a\n{NAMES[5]},b\n")
    assert labeled.indices.tolist() == [0, 5]


def test_labels_in_either_form_of_unicode_are_one_class(read: Read) -> None:
    both = [unicodedata.normalize(form, "Käfer") for form in ("NFC", "NFD")]
    assert read(table({0: both[0], 1: both[1], 2: "Biene"})).class_names == ("Biene", "Käfer")


def test_classes_that_differ_in_case_only_are_warned_of(read: Read) -> None:
    with pytest.warns(LabelWarning, match="'Cat' and 'cat' are the same but for upper and lower case"):
        assert read(table({0: "cat", 1: "Cat", 2: "dog"})).class_names == ("Cat", "cat", "dog")


def test_numbers_with_a_point_are_numbers(read: Read) -> None:
    labeled = read(table({0: "0.0", 1: "1.0", 2: "", 3: "1"}))  # how a column with empty cells is often written
    assert labeled.class_names == ("0", "1") and labeled.labels.tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty; it needs a header"),
        ("\ufeff\n", "is empty; it needs a header"),
        ("file,label\n", "labels none of the 8 images"),
        ("name;class\na.png;cat\n", "has no column `label` .the header is 'name, class'"),
        ("image,label\na.png,cat\n", "has neither `file` nor `row` .the header is 'image, label'"),
        ("file,label,Label\na.png,cat,cat\n", "has the column `label` twice"),
        (table({0: "cat", 1: "dog"}) + "a,b.png,cat\n", "line 4 has 3 cells in 2 columns"),
        ('file,label\n"here/a.png,cat\nb,c\n', "a quote that does not end"),
        (table({0: "cat", 1: "dog"}) + f"{NAMES[0]},dog\n", "'dog' to an image that .*line 2 gives 'cat'"),
        ("file,label\nGröße 0.PNG,cat\n", "is the name of several images.*here/"),
        (table({0: "0.5", 1: "1"}), "the label '0.5'; numbers stand for classes and must be whole"),
        (table({0: "-2", 1: "1"}), "the label '-2'; numbers stand for classes"),
        (table({0: "999999999", 1: "1"}), "must be whole, from 0 to 100,000"),
        ("file,label\nx.png,cat\ny.png,dog\n", "'x.png' is no image of the data set .1 more of 2 are none either"),
        ("row,label\n0,cat\n8,dog\n", "row '8' is no row of the data set; its rows are .* 0 to 7"),
        ("row,label\n0,cat\n1.5,dog\n", "row '1.5' is no row"),
        ("PK\x03\x04 and so on", "it is a spreadsheet, not text; save it as CSV"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence(text: str, sentence: str, read: Read) -> None:
    with pytest.raises(InputError, match=sentence):
        read(text)


def test_entries_of_files_that_are_not_read_are_counted(read: Read) -> None:
    labeled = read(table({0: "cat", 1: "dog"}) + "here/IMG_1.NEF,cat\n")
    assert len(labeled.indices) == 2 and "1 entries of mine.csv name files in a format" in labeled.notes[0]


def test_a_image_named_twice_alike_is_labeled_once(read: Read) -> None:
    assert read(table({0: "cat", 1: "dog"}) + f"{NAMES[0]},cat \n{NAMES[1]},\n").indices.tolist() == [0, 1]


def shards(folder: Path, first: int, count: int, name: str) -> None:
    cells = [{"bytes": save(folder.parent / "x.png", first + number), "path": None} for number in range(count)]
    features = datasets.Features(image=datasets.Image(decode=False))
    folder.mkdir(exist_ok=True)
    datasets.Dataset.from_dict({"image": cells}, features=features).to_parquet(folder / name)


def test_rows_are_not_taken_for_those_of_other_data(tmp_path: Path) -> None:
    shards(tmp_path / "set", 0, 6, "2025-02.parquet")
    source = load_source(str(tmp_path / "set"))
    digests = row_digests(source, range(4))
    path = tmp_path / "to_label.csv"
    lines = [f"{row},{digest},{('cat', 'dog')[row % 2]}" for row, digest in enumerate(digests)]
    path.write_text("\n".join(["row,digest,label", *lines]))
    assert choose_labels(str(path), opened(source, tmp_path), source).labels.tolist() == [0, 1, 0, 1]
    assert not choose_labels(str(path), opened(source, tmp_path), source).notes
    shards(tmp_path / "set", 20, 3, "2025-01.parquet")  # sorts first
    changed = load_source(str(tmp_path / "set"))
    with pytest.raises(InputError, match="row 0 of 'set' holds another image than when this list was written"):
        choose_labels(str(path), opened(changed, tmp_path), changed)
    path.write_text("row,label\n0,cat\n1,dog\n")
    by_hand = choose_labels(str(path), opened(changed, tmp_path), changed)
    assert "2 labels of to_label.csv name rows and nothing else: they are taken as rows of 'set'" in by_hand.notes[0]


@pytest.mark.parametrize(
    ("values", "numbers", "names"),
    [
        (["dog", "cat ", None, "NA", "cat"], [1, 0, None, None, 0], ("cat", "dog")),
        ([True, False, None], [1, 0, None], ("False", "True")),
        ([0.0, 1.0, float("nan"), None, -1.0], [0, 1, None, None, None], None),
        ([0, 1, -1, None], [0, 1, None, None], None),
        ([7, 3, 3, -1], [1, 0, 0, None], ("3", "7")),
        ([1.0, 2.0, float("nan")], [0, 1, None], ("1", "2")),
        ([None, float("nan")], [None, None], None),
    ],
)
def test_label_columns_of_any_type_are_numbered(values: list[Any], numbers: list[Any], names: Any) -> None:
    assert number_column(values, "label") == (numbers, names)


@pytest.mark.parametrize("value", [0.5, -2, float("inf"), [1], {"a": 1}, b"cat"])
def test_what_is_no_label_is_refused_with_its_column(value: Any) -> None:
    with pytest.raises(InputError, match="Label column 'kind' holds"):
        number_column([0, value], "kind")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("values", "counts"),
    [
        (["b", "a", None, "NA"], {"a": 1, "b": 1, "unlabeled": 2}),
        ([True, False, None, True], {"False": 1, "True": 2, "unlabeled": 1}),
        ([1.0, 0.0, None, float("nan")], {"0": 1, "1": 1, "unlabeled": 2}),
        (["2", "1", "3", "1"], {"1": 2, "2": 1, "3": 1}),
    ],
)
def test_tables_with_such_columns_are_scanned_and_their_labels_written_and_read_again(
    kind: str, values: list[Any], counts: dict[str, int], tmp_path: Path
) -> None:
    cells = [{"bytes": save(tmp_path / "x.png", number), "path": None} for number in range(4)]
    made = datasets.Dataset.from_dict({"image": cells, "kind": values}).cast_column("image", datasets.Image())
    (tmp_path / "set").mkdir()
    made.to_parquet(tmp_path / "set" / "a.parquet") if kind == "parquet" else made.save_to_disk(tmp_path / "set")
    source = load_source(str(tmp_path / "set"), label_column="kind")
    options: dict[str, Any] = {"cache_budget": 1 << 30, "num_workers": 1, "progress": False, "allow_unlabeled": True}
    store, report = load_image_cache(source, image_size=8, cache_dir=tmp_path / "cache", **options)
    assert report.labels == counts
    labeled = choose_labels("all", store, source)
    write_labels(tmp_path / "labels.json", labeled, store, source)
    again = choose_labels(str(tmp_path / "labels.json"), store, source)
    assert again.labels.tolist() == labeled.labels.tolist() and again.class_names == labeled.class_names


def test_a_column_without_any_label_is_one_sentence(tmp_path: Path, table: Any) -> None:
    table(4, label_of=lambda number: None).to_parquet(tmp_path / "a.parquet")
    source = load_source(str(tmp_path))
    with pytest.raises(InputError, match="none of the 4 images of .* has a label in its column 'label'"):
        choose_labels("all", opened(source, tmp_path), source)


def test_a_share_of_each_class_is_held_out_if_each_has_enough() -> None:
    labels = np.repeat([0, 1], (10, 40))
    labeled = Labeled(np.arange(50), labels, ("a", "b"), "all")
    parts = hold_out_share(labeled, least=10, parts=5, seed=0)
    assert parts is not None and np.bincount(parts[1].labels).tolist() == [2, 8]
    assert sorted([*parts[0].indices, *parts[1].indices]) == list(range(50))
    assert hold_out_share(labeled, least=11, parts=5, seed=0) is None


def test_labels_so_far_may_leave_classes_out(pets: tuple[ImageCache, Source], tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text(table({3: "cat"}))
    assert read_labels(tmp_path / "few.csv", *pets).class_names == ("cat",)
