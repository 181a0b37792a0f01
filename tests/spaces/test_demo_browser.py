"""The demo's page in a real browser: images in, answers out, and nothing that a visitor should not see."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from browsers import BROWSER, NO_BROWSER, started_browser
from upload_files import REFUSED, encode

pytest.importorskip("gradio", reason="the demo needs gradio: `uv run --extra demo pytest`")

from tiny_demo import CLASSES, GRADIO_NOISE, image_of

pytestmark = GRADIO_NOISE
if BROWSER is None:
    pytestmark.append(pytest.mark.skip(reason=NO_BROWSER))
PATIENCE = 30_000  # ms


class Watched:
    """A page, what went wrong on it, and whom it asked."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        self.hosts: set[str | None] = set()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).hostname))

    def open_tab(self, name: str) -> Any:
        """Open a tab and return what it shows."""
        self.page.get_by_role("tab", name=name).click()
        return self.page.locator(".tabitem:visible")

    def fits(self) -> bool:
        """Say whether the page is no wider than the window."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started_browser() as started:
        yield started


@pytest.fixture
def visit(browser: Any, demo_url: str) -> Iterator[Any]:
    """Open the demo in a window of a certain width; at the end nothing may have gone wrong there."""
    opened = []

    def at_width(width: int) -> Watched:
        page = Watched(browser.new_page(viewport={"width": width, "height": 900}))
        opened.append(page)
        page.page.goto(demo_url)
        page.page.get_by_role("tab", name="Classification").wait_for()
        return page

    yield at_width
    for page in opened:
        page.page.close()
        assert page.errors == []
        assert page.hosts <= {"127.0.0.1", None, ""}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    path.write_bytes(encode(image_of(5)))
    return path


LOADED = """image => Promise.race([
    image.decode().then(() => image.naturalWidth > 0, () => false),
    new Promise(answer => setTimeout(() => answer(false), 20000)),
])"""  # a busy machine may still be loading it


def loaded(images: Any) -> list[bool]:
    return [image.evaluate(LOADED) for image in images.all()]


def right_edge(part: Any) -> float:
    box = part.bounding_box()
    return float(box["x"] + box["width"])


def send(tab: Any, path: Path) -> None:
    tab.locator("input[type=file]").set_input_files(path)


def test_the_classes_of_an_uploaded_image_appear_with_their_confidences(visit: Any, image: Path) -> None:
    page = visit(1280)
    tab = page.open_tab("Classification")
    send(tab, image)
    labels = tab.get_by_test_id("label-output-value")
    labels.nth(1).wait_for()
    assert labels.count() == 2 and set(labels.all_inner_texts()) <= set(CLASSES)
    told = re.findall(r"(\d+)%", tab.inner_text())
    assert len(told) == 2 * len(CLASSES) and abs(sum(map(int, told)) - 200) <= 3
    assert len(re.findall(r"number \d · [01]\.\d{3}", tab.inner_text())) == 6


def test_another_pair_shows_its_own_images_to_try_and_is_asked(visit: Any, image: Path) -> None:
    page = visit(1280)
    tab = page.open_tab("Classification")
    tab.get_by_text("Images to try").first.wait_for()
    tab.get_by_label("Models").click()
    tab.get_by_role("option", name="pets, turned round").click()
    tab.get_by_text("Images to try").first.wait_for(state="hidden")
    send(tab, image)
    tab.get_by_test_id("label-output-value").nth(1).wait_for()


def test_the_classes_of_the_pixels_appear_over_the_image(visit: Any, image: Path) -> None:
    page = visit(1280)
    tab = page.open_tab("Segmentation")
    send(tab, image)
    masks = tab.locator("img.mask")
    masks.first.wait_for()
    tab.get_by_test_id("imageslider-image").nth(1).wait_for()
    page.page.wait_for_load_state("networkidle")
    assert 1 <= masks.count() <= 2 and all(loaded(masks))
    assert loaded(tab.get_by_test_id("imageslider-image")) == [True, True]
    shares = [float(share) for share in re.findall(r"([\d.]+) %", tab.inner_text())]
    assert len(shares) >= 2 and sum(shares) == pytest.approx(100, abs=0.2)


def test_what_changed_is_there_without_a_image(visit: Any) -> None:
    page = visit(1280)
    tab = page.open_tab("What changed")
    tab.get_by_text("Use the adapted weights.").wait_for()
    page.page.wait_for_load_state("networkidle")
    assert loaded(tab.locator("img")) == [True] * 3
    assert tab.locator("td").all_inner_texts() == ["1", "2"]


@pytest.mark.parametrize("name", ["truncated jpeg", "bomb", "text"])
def test_a_broken_file_is_answered_with_its_sentence_and_the_next_one_is_read(
    name: str, visit: Any, image: Path, tmp_path: Path
) -> None:
    content, sentence = REFUSED[name]
    (tmp_path / "broken.png").write_bytes(content)
    page = visit(1280)
    tab = page.open_tab("Classification")
    send(tab, tmp_path / "broken.png")
    page.page.get_by_text(sentence).wait_for()
    assert "Traceback" not in page.page.inner_text("body")
    tab.get_by_role("button", name="Clear").first.click()
    send(tab, image)
    tab.get_by_test_id("label-output-value").nth(1).wait_for()


def test_on_a_telephone_nothing_is_wider_than_the_screen(visit: Any, image: Path) -> None:
    page = visit(390)
    for name in ("Classification", "Segmentation"):
        tab = page.open_tab(name)
        assert page.fits(), name
        send(tab, image)
        tab.locator("[data-testid=label-output-value], img.mask").first.wait_for()
        assert page.fits(), name
        for answer in tab.locator(".answer").all():
            parts = answer.locator("h2, .text, .confidence").all()
            assert max(right_edge(part) for part in parts) <= right_edge(answer)
    page.open_tab("What changed").get_by_text("Use the adapted weights.").wait_for()
    assert page.fits()
