"""The tabs of classification and segmentation: what they show, and what happens when an image is given."""

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from demo_config import ClassifierPair, DemoConfig, SegmenterChoice
from demo_examples import TRY, by_agreement, image_input
from demo_looks import OPACITY, accuracy_bar, colors_of, enlarged, is_ground, legend, overlay, shares, shown
from demo_models import Classifier, Neighbors, load_classifier, load_neighbors, load_segmenter
from demo_parts import caption, choice, chosen, say
from demo_table import answers_of, several_images, table_of
from PIL import Image
from uploads import UploadError, read_image

from tpssl_hf.errors import InputError

try:
    from spaces import GPU as on_gpu  # type: ignore[attr-defined, unused-ignore]  # a Space with a shared GPU lends it for the length of a call
except ImportError:

    def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
        """Leave ``function`` as it is: the processor, or the GPU, is ours all the time."""
        return function


TOP_CLASSES = 5
NEIGHBORS_SHOWN = 8
ONE_AT_A_TIME = "models"  # whichever tab asks, one image is computed at a time


@dataclass(frozen=True)
class Pair:
    """The loaded models of a :class:`demo_config.ClassifierPair`."""

    base: Classifier
    adapted: Classifier
    neighbors: Neighbors | None


def classification_tab(config: DemoConfig) -> None:
    """Lay out the first tab."""
    pairs, problems = _loaded(config.classifiers, lambda entry: _load_pair(config, entry))
    say(problems or ([] if pairs else ["No classifiers are named in the demo's YAML file."]))
    if not pairs:
        return

    @on_gpu  # type: ignore[untyped-decorator, unused-ignore]
    def classify(image: Any, model: Any) -> tuple[dict[str, float], dict[str, float], list[tuple[Image.Image, str]]]:
        """Name what is on an image, by both classifiers of a pair, and find the training images most like it."""
        pair, pixels = chosen(pairs, model), _read(image)
        adapted, feature = pair.adapted.confidences_and_feature(pixels)
        near = [] if pair.neighbors is None else pair.neighbors.nearest(feature, NEIGHBORS_SHOWN)
        return pair.base.confidences(pixels), adapted, near

    @on_gpu  # type: ignore[untyped-decorator, unused-ignore]
    def classify_several(images: Any, model: Any) -> list[list[str]]:
        """Name what is on several images, by both classifiers of a pair: a row of a table each."""
        pair = chosen(pairs, model)
        return table_of(images, pair.base, pair.adapted)

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            name = choice(config.classifiers, pairs, "Models")
            rows = {
                entry.name: by_agreement(_there(config, entry), pairs[entry.name].base, pairs[entry.name].adapted)
                for entry in config.classifiers
                if entry.name in pairs
            }
            image, button, clicks = image_input("Classify", name, rows)
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                base, base_bar = answers_of("Base weights", TOP_CLASSES)
                adapted, adapted_bar = answers_of("Adapted weights", TOP_CLASSES)
            has_neighbors = any(pair.neighbors for pair in pairs.values())
            caption("Training images that the adapted network finds most like it; 1 would be the same", has_neighbors)
            gallery = gr.Gallery(
                label="Nearest training images",
                show_label=False,
                columns=4,
                height="auto",
                buttons=[],
                visible=has_neighbors,
                elem_id="nearest",
            )
            several_images(classify_several, name, ONE_AT_A_TIME)
    _connect(classify, "classify", button, image, name, clicks, [base, adapted, gallery])
    bars = {one: [accuracy_bar(pair.base.tested), accuracy_bar(pair.adapted.tested)] for one, pair in pairs.items()}
    shared = {"inputs": name, "outputs": [base_bar, adapted_bar], "api_visibility": "private", "queue": False}
    name.change(lambda model: chosen(bars, model), show_progress="hidden", **shared)
    base_bar.value, adapted_bar.value = next(iter(bars.values()))


def segmentation_tab(config: DemoConfig) -> None:
    """Lay out the second tab."""
    segmenters, problems = _loaded(
        config.segmenters, lambda entry: load_segmenter(str(config.find(entry.model)), entry.shorter_side)
    )
    say(problems or ([] if segmenters else ["No segmenters are named in the demo's YAML file."]))
    if not segmenters:
        return
    colors = colors_of([name for segmenter in segmenters.values() for name in segmenter.class_names])

    @on_gpu  # type: ignore[untyped-decorator, unused-ignore]
    def segment(image: Any, model: Any) -> tuple[Any, tuple[Image.Image, Image.Image], str]:
        """Find the class of each pixel of an image: the image with masks, before and after, and the shares."""
        segmenter, pixels = chosen(segmenters, model), _read(image)
        mask, page = segmenter.mask(pixels), shown(pixels)
        large, found = enlarged(mask, page), shares(mask, segmenter.class_names)
        masks = [(OPACITY * (large == segmenter.class_names.index(one)), one) for one in found if not is_ground(one)]
        return (page, masks), (page, overlay(page, large, segmenter.class_names, colors)), legend(found, colors)

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            name = choice(config.segmenters, segmenters, "Model")
            rows = {
                entry.name: {TRY: _there(config, entry)} for entry in config.segmenters if entry.name in segmenters
            }
            image, button, clicks = image_input("Segment", name, rows)
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                with gr.Column(min_width=240):
                    caption("Classes; point at a name to see it alone")
                    annotated = gr.AnnotatedImage(label="Classes", show_label=False, color_map=colors, buttons=[])
                with gr.Column(min_width=240):
                    caption("Before and after; pull the handle")
                    slider = gr.ImageSlider(label="Before and after", show_label=False, buttons=[])
            caption("Share of the pixels")
            found = gr.HTML(label="Shares", container=True, padding=True)
    _connect(segment, "segment", button, image, name, clicks, [annotated, slider, found])


def _load_pair(config: DemoConfig, entry: ClassifierPair) -> Pair:
    base, adapted = (load_classifier(str(config.find(location))) for location in (entry.base, entry.adapted))
    near = load_neighbors(config.find(entry.neighbors), adapted) if entry.neighbors else None
    return Pair(base, adapted, near)


def _loaded(entries: Iterable[Any], load: Callable[[Any], Any]) -> tuple[dict[str, Any], list[str]]:
    """Load every entry that can be loaded, by name, and return the sentences of the others."""
    found, problems = {}, []
    for entry in entries:
        try:
            found[entry.name] = load(entry)
        except InputError as error:
            problems.append(f"{entry.name}: {error}")
            print(f"warning: {entry.name}: {error}", file=sys.stderr)
    return found, problems


def _there(config: DemoConfig, entry: ClassifierPair | SegmenterChoice) -> list[str]:
    """Return the files of an entry's images to try that are there."""
    return [str(path.resolve()) for path in map(config.find, entry.examples) if path.is_file()]


def _connect(
    function: Callable[..., Any],
    api_name: str,
    button: Any,
    image: Any,
    name: Any,
    clicks: list[Any],
    outputs: list[Any],
) -> None:
    """Answer uploads, the button and images to try; ``preprocess=False`` keeps gradio from opening the file."""
    shared = {"inputs": [image, name], "outputs": outputs, "preprocess": False, "concurrency_id": ONE_AT_A_TIME}
    gr.on([button.click, image.upload], function, api_name=api_name, **shared)
    for click in clicks:
        click.then(function, api_visibility="private", **shared)
    image.clear(lambda: [None] * len(outputs), None, outputs, api_visibility="private", queue=False)


def _read(upload: Any) -> Image.Image:
    if not isinstance(upload, dict) or not upload.get("path"):
        raise gr.Error("There is no image yet; upload one, or choose one of the images to try.", print_exception=False)
    try:
        return read_image(upload["path"])
    except UploadError as error:
        raise gr.Error(str(error), print_exception=False) from error
