"""The page of a review in a real browser: keys in, labels out, and no name that becomes markup."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from browsers import BROWSER, NO_BROWSER, started_browser
from finished_predictions import CLASSES, HOSTILE

from tpssl_hf.data.label_files import read_label_file, rows_meant
from tpssl_hf.data.sources import load_source
from tpssl_hf.tasks.predict.config import EmbedConfig
from tpssl_hf.tasks.predict.read import ImageReader
from tpssl_hf.tasks.review.config import ReviewConfig
from tpssl_hf.tasks.review.run import review

pytestmark = pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started_browser() as started:
        yield started


@pytest.fixture
def visit(browser: Any, predictions: Path) -> Iterator[Any]:
    """Make the page and open it; at the end nothing may have gone wrong there, and nobody been asked."""
    errors, addresses, pages = list[str](), list[str](), list[Any]()

    def open_page(width: int = 1280) -> Any:
        result = review(ReviewConfig(str(predictions)), say=[].append, progress=False)
        page = browser.new_page(viewport={"width": width, "height": 800})
        pages.append(page)
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: errors.append("a name became script") or dialog.dismiss())
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(result.page.as_uri())
        page.locator(".tile").first.wait_for()
        return page

    yield open_page
    for page in pages:
        page.close()
    assert not errors and {urlsplit(address).scheme for address in addresses} <= {"file", "blob"}


def press(page: Any, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def saved(page: Any, name: str = "labels.csv") -> list[list[str]]:
    with page.expect_download() as download:
        press(page, "s")
    assert download.value.suggested_filename == name
    with open(download.value.path(), encoding="utf-8", newline="") as text:
        return list(csv.reader(text))


def show_predictions(page: Any) -> list[str]:
    """Open the predictions; returns their files, the least confident first."""
    page.get_by_role("button", name="Predictions").click()
    page.locator("#sheet").focus()
    labels = page.eval_on_selector_all(".tile", "all => all.map(tile => tile.ariaLabel)")
    return [label.split(", ", 2)[2] for label in labels]


def names_in(predictions: Path) -> list[str]:
    """Return the files in the order of their rows."""
    text = (predictions / "review" / "data.js").read_text()
    names: list[str] = json.loads(text[text.index("{") : -2])["predictions"]["files"]
    return names


def names_of(photos: Path) -> list[str]:
    return ImageReader(EmbedConfig(dataset=str(photos))).names.to_pylist()


def test_a_wrong_given_label_is_corrected_and_classify_reads_the_table(
    visit: Any, predictions: Path, photos: Path, tmp_path: Path
) -> None:
    page = visit()
    assert "answered 1 of 3 otherwise" in page.locator("#note").inner_text()
    assert page.locator(".tile").count() == 1
    press(page, "2")
    labels, files = ["cat", "dog", "dog", "cat"], names_in(predictions)
    given = [[file, label] for file, label in zip(files, labels, strict=False)]
    assert saved(page) == [["file", "label"], *given]
    show_predictions(page)
    press(page, "End", "Enter")  # the most confident: row 0, which had a label
    press(page, "Home", "3")  # the least confident: row 5
    table = saved(page)
    assert table == [["file", "label"], *given, [files[5], CLASSES[2]]]
    path = tmp_path / "labels.csv"
    with path.open("w", encoding="utf-8", newline="") as text:
        csv.writer(text).writerows(table)
    found, _ = rows_meant(read_label_file(path), path, load_source(str(photos)))
    assert [(row, label) for row, _, label in found] == [*enumerate(labels), (5, CLASSES[2])]


def test_given_labels_of_other_images_have_a_table_of_their_own(visit: Any, photos: Path, predictions: Path) -> None:
    others = shutil.copytree(photos, photos.parent / "others")
    shutil.copy(others / "plain.png", others / "zebra.png")
    keys = yaml.safe_load((predictions / "config.yaml").read_text()) | {"dataset": str(others)}
    keys["images_fingerprint"] = load_source(str(others)).fingerprint
    (predictions / "config.yaml").write_text(yaml.safe_dump(keys))
    page = visit()
    press(page, "1")
    files = names_in(predictions)
    given = [[file, label] for file, label in zip(files, ["cat", "dog", "cat", "cat"], strict=False)]
    assert saved(page, "given_labels.csv") == [["file", "label"], *given]
    last = show_predictions(page)[-1]
    press(page, "End", "2")
    assert saved(page) == [["file", "label"], [last, "dog"]]


def test_keys_move_accept_correct_undo_and_are_kept(visit: Any, finetuning: Path, predictions: Path) -> None:
    (finetuning / "labels.json").unlink()  # predictions alone
    page = visit()
    assert page.get_by_role("button", name="Given labels").is_disabled()
    files = show_predictions(page)
    assert sorted(files) == sorted(HOSTILE)
    press(page, "Enter", "3", "ArrowLeft", "ArrowLeft", "ArrowRight", "ArrowRight")
    assert page.locator("#sheet").get_attribute("aria-activedescendant") == "tile-2"
    press(page, "1", "u", "/")
    page.keyboard.type("a <b>new</b> one")
    press(page, "Enter")
    progress = page.locator("#progress")
    assert progress.inner_text().startswith("3 of 6 decided")
    page.reload()
    page.locator(".tile").first.wait_for()
    predicted = dict(zip(names_in(predictions), CLASSES * 2, strict=True))
    expected = {files[0]: predicted[files[0]], files[1]: "dog", files[2]: "a <b>new</b> one"}
    assert {file: label for file, label in saved(page)[1:]} == expected
    assert page.get_by_role("button", name="a <b>new</b> one").count() == 1
    press(page, "Shift+Enter")
    assert progress.inner_text().startswith("6 of 6 decided")
    press(page, "u")
    assert progress.inner_text().startswith("3 of 6 decided")


def test_images_are_grouped_by_class_and_one_class_is_a_sheet(visit: Any) -> None:
    page = visit()
    show_predictions(page)
    page.get_by_label("Order").select_option("class")
    assert page.locator(".heading").all_inner_texts() == [f"{name} · 2" for name in CLASSES]
    page.locator("#class").select_option("1")
    assert page.locator(".tile .label").all_inner_texts() == ["dog", "dog"]
    page.wait_for_function("[...document.querySelectorAll('.tile img')].every(image => image.naturalHeight === 128)")
    page.locator("#large[src*=photos]").wait_for()  # the image itself, by its escaped name


def test_near_duplicates_stand_together_and_are_corrected_at_once(
    visit: Any, photos: Path, finetuning: Path, predictions: Path
) -> None:
    rows = [photos / name for name in names_of(photos)]
    for copy, of in ((1, 0), (5, 4)):  # rows 0 and 1 were given a cat and a dog
        shutil.copy(rows[of], rows[copy])
    for path, key in (
        (predictions / "config.yaml", "images_fingerprint"),
        (finetuning / "labels.json", "fingerprint"),
    ):
        keys = yaml.safe_load(path.read_text()) | {key: load_source(str(photos)).fingerprint}
        path.write_text(json.dumps(keys))
    page = visit()
    show_predictions(page)
    assert "Groups of near-duplicates: 2, 1 of them with different given labels" in page.locator("#note").inner_text()
    page.get_by_label("Order").select_option("alike")
    page.locator("#sheet").focus()
    heads = ["2 alike · given cat, dog; predicted cat, dog", f"2 alike · predicted dog, {CLASSES[2]}"]
    assert page.locator(".heading").all_inner_texts() == heads
    press(page, "2", "ArrowLeft", "=", "=")
    assert page.locator("#progress").inner_text().startswith("4 of 6 decided")
    files = names_in(predictions)
    labels = ["dog", "dog", CLASSES[2], "cat", "dog", "dog"]
    assert saved(page)[1:] == [list(pair) for pair in zip(files, labels, strict=True)]
    press(page, "u")
    assert page.locator("#progress").inner_text().startswith("2 of 6 decided")
    page.get_by_label("Order").select_option("doubt")
    page.get_by_role("button", name="Given labels").click()
    assert page.locator("#order [value=alike]").is_disabled() and page.locator("#same").is_hidden()


@pytest.mark.parametrize("width", [390, 820])
def test_nothing_is_wider_than_the_screen(visit: Any, width: int) -> None:
    page = visit(width)
    show_predictions(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#accept").is_visible() and page.locator(".tile").first.is_visible()
