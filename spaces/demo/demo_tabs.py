"""The three tabs: what they show, and what happens when an image is given."""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr
from demo_config import Changes, ClassifierPair, DemoConfig, SegmenterChoice
from demo_looks import OPACITY, accuracy_bar, colors_of, enlarged, is_ground, legend, overlay, shares, shown
from demo_models import (
    BUILD,
    Classifier,
    Neighbors,
    load_classifier,
    load_neighbors,
    load_segmenter,
)
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
CAPTIONS = {
    "verdict": "Right answers after a few labels, before and after adapting",
    "tsne": "Features before and after adapting, in one plane (t-SNE)",
    "drift": "How far each stage has moved, in its weights and in its features",
}
VERDICT = "uv run python recipes/verdict.py"
ANALYZE = "uv run python recipes/analyze.py"


@dataclass(frozen=True)
class Pair:
    """The loaded models of a :class:`demo_config.ClassifierPair`."""

    base: Classifier
    adapted: Classifier
    neighbors: Neighbors | None


def classification_tab(config: DemoConfig) -> None:
    """Lay out the first tab."""
    pairs, problems = _loaded(config.classifiers, lambda entry: _load_pair(config, entry))
    _say(problems or ([] if pairs else ["No classifiers are named in the demo's YAML file."]))
    if not pairs:
        return

    @on_gpu  # type: ignore[untyped-decorator, unused-ignore]
    def classify(image: Any, model: Any) -> tuple[dict[str, float], dict[str, float], list[tuple[Image.Image, str]]]:
        """Name what is on an image, by both classifiers of a pair, and find the training images most like it."""
        pair, pixels = _chosen(pairs, model), _read(image)
        adapted, feature = pair.adapted.confidences_and_feature(pixels)
        near = [] if pair.neighbors is None else pair.neighbors.nearest(feature, NEIGHBORS_SHOWN)
        return pair.base.confidences(pixels), adapted, near

    @on_gpu  # type: ignore[untyped-decorator, unused-ignore]
    def classify_several(images: Any, model: Any) -> list[list[str]]:
        """Name what is on several images, by both classifiers of a pair: a row of a table each."""
        pair = _chosen(pairs, model)
        return table_of(images, pair.base, pair.adapted)

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            name = _choice(config.classifiers, pairs, "Models")
            image, button, examples = _image_input("Classify", config, config.examples.classification)
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                base, base_bar = answers_of("Base weights", TOP_CLASSES)
                adapted, adapted_bar = answers_of("Adapted weights", TOP_CLASSES)
            has_neighbors = any(pair.neighbors for pair in pairs.values())
            _caption("Nearest training images, by the adapted features; the number is their cosine", has_neighbors)
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
    _connect(classify, "classify", button, image, name, examples, [base, adapted, gallery])
    bars = {one: [accuracy_bar(pair.base.tested), accuracy_bar(pair.adapted.tested)] for one, pair in pairs.items()}
    shared = {"inputs": name, "outputs": [base_bar, adapted_bar], "api_visibility": "private", "queue": False}
    name.change(lambda chosen: _chosen(bars, chosen), show_progress="hidden", **shared)
    base_bar.value, adapted_bar.value = next(iter(bars.values()))


def segmentation_tab(config: DemoConfig) -> None:
    """Lay out the second tab."""
    segmenters, problems = _loaded(
        config.segmenters, lambda entry: load_segmenter(str(config.find(entry.model)), entry.shorter_side)
    )
    _say(problems or ([] if segmenters else ["No segmenters are named in the demo's YAML file."]))
    if not segmenters:
        return
    colors = colors_of([name for segmenter in segmenters.values() for name in segmenter.class_names])

    @on_gpu  # type: ignore[untyped-decorator, unused-ignore]
    def segment(image: Any, model: Any) -> tuple[Any, tuple[Image.Image, Image.Image], str]:
        """Find the class of each pixel of an image: the image with masks, before and after, and the shares."""
        segmenter, pixels = _chosen(segmenters, model), _read(image)
        mask, page = segmenter.mask(pixels), shown(pixels)
        large, found = enlarged(mask, page), shares(mask, segmenter.class_names)
        masks = [(OPACITY * (large == segmenter.class_names.index(one)), one) for one in found if not is_ground(one)]
        return (page, masks), (page, overlay(page, large, segmenter.class_names, colors)), legend(found, colors)

    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            name = _choice(config.segmenters, segmenters, "Model")
            image, button, examples = _image_input("Segment", config, config.examples.segmentation)
        with gr.Column(scale=3, min_width=300):
            with gr.Row():
                with gr.Column(min_width=240):
                    _caption("Classes; point at a name to see it alone")
                    annotated = gr.AnnotatedImage(label="Classes", show_label=False, color_map=colors, buttons=[])
                with gr.Column(min_width=240):
                    _caption("Before and after; pull the handle")
                    slider = gr.ImageSlider(label="Before and after", show_label=False, buttons=[])
            _caption("Share of the pixels")
            found = gr.HTML(label="Shares", container=True, padding=True)
    _connect(segment, "segment", button, image, name, examples, [annotated, slider, found])


def changes_tab(config: DemoConfig) -> None:
    """Lay out the third tab: what was drawn before, and for what is missing the command that draws it."""
    reports = {entry.name: _report(config, entry) for entry in config.changes}
    if not reports:
        _say(["Nothing is named under `changes` in the demo's YAML file."])
        return

    def changes(model: str) -> dict[str, Any]:
        """Return the verdict's sentence and table, and what is missing, of one of the adapted models."""
        report = _chosen(reports, model)
        return {key: report[key] for key in ("sentence", "table", "missing")}

    gr.api(changes, api_name="changes", concurrency_limit=None)
    name = _choice(config.changes, reports, "Model")
    columns = []
    for number, report in enumerate(reports.values()):
        with gr.Column(visible=number == 0) as column:
            _lay_out(report)
        columns.append(column)
    name.change(
        lambda chosen: [gr.update(visible=one == chosen) for one in reports],
        name,
        columns,
        api_visibility="private",
        show_progress="hidden",
        queue=False,
    )


def _lay_out(report: dict[str, Any]) -> None:
    if report["sentence"]:
        gr.Markdown(report["sentence"], elem_classes="sentence")
    for name, caption in CAPTIONS.items():
        if report[name] is not None:
            _caption(caption)
            gr.Image(report[name], label=caption, show_label=False, interactive=False, buttons=["fullscreen"])
        if name == "verdict" and report["table"]:
            gr.Markdown(report["table"], elem_classes="table")
    _say(report["missing"])


def _report(config: DemoConfig, entry: Changes) -> dict[str, Any]:
    """Read images, sentence and table once; they are never read again while the demo runs."""
    missing: list[str] = []

    def original(location: str | None, what: str, command: str) -> Image.Image | None:
        if location is None:
            return None
        try:
            with Image.open(config.find(location)) as image:
                return image.convert("RGB")
        except OSError:  # Pillow's own errors are among them
            missing.append(f"{what} is not there yet; `{command}`, or `{BUILD}`, draws it.")
            return None

    sentence = table = ""
    if entry.verdict is not None:
        folder = config.find(entry.verdict)
        try:
            sentence = json.loads((folder / "results.json").read_text(encoding="utf-8"))["sentence"]
            lines = (folder / "verdict.md").read_text(encoding="utf-8").splitlines()
            table = "\n".join(line for line in lines if line.startswith("|"))
        except (OSError, ValueError, KeyError, TypeError):
            missing.append(f"The verdict is not there yet; `{VERDICT}`, or `{BUILD}`, makes it.")
    images = {
        "verdict": original(f"{entry.verdict}/verdict.png", "The image of the verdict", VERDICT) if sentence else None,
        "tsne": original(entry.tsne, "The image of the features", f"{ANALYZE} --analysis tsne"),
        "drift": original(entry.drift, "The image of the drift", f"{ANALYZE} --analysis drift"),
    }
    return {"sentence": sentence, "table": table, "missing": missing, **images}


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


def _caption(text: str, visible: bool = True) -> None:
    """Write what comes next above it; gradio's own labels cover a corner of an image."""
    gr.Markdown(text, elem_classes="caption", visible=visible)


def _say(sentences: list[str]) -> None:
    for sentence in sentences:
        gr.Markdown(sentence, elem_classes="notice")


def _choice(entries: Iterable[ClassifierPair | SegmenterChoice | Changes], found: dict[str, Any], label: str) -> Any:
    """Show a list to choose from, if there is a choice, and the sentences about what is in it."""
    names = list(found)
    chooser = gr.Dropdown(names, value=names[0], label=label, visible=len(names) > 1)
    about = [(entry.name, getattr(entry, "about", "")) for entry in entries if entry.name in found]
    told = [f"**{name}.** {sentence}" for name, sentence in about if sentence]
    if told:
        gr.Markdown("\n\n".join(told), elem_classes="about")
    return chooser


def _image_input(action: str, config: DemoConfig, examples: list[str]) -> tuple[Any, Any, Any]:
    image = gr.Image(
        label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=280, buttons=[]
    )
    button = gr.Button(action, variant="primary")
    there = [str(path.resolve()) for path in map(config.find, examples) if path.is_file()]
    clicked = None
    if there:
        clicked = gr.Examples(
            there, image, label="Images to try", cache_examples=False, api_visibility="private"
        ).load_input_event
    return image, button, clicked


def _connect(
    function: Callable[..., Any],
    api_name: str,
    button: Any,
    image: Any,
    name: Any,
    examples: Any,
    outputs: list[Any],
) -> None:
    """Answer uploads, the button and images to try; ``preprocess=False`` keeps gradio from opening the file."""
    shared = {"inputs": [image, name], "outputs": outputs, "preprocess": False, "concurrency_id": ONE_AT_A_TIME}
    gr.on([button.click, image.upload], function, api_name=api_name, **shared)
    if examples is not None:
        examples.then(function, api_visibility="private", **shared)
    image.clear(lambda: [None] * len(outputs), None, outputs, api_visibility="private", queue=False)


def _chosen(found: dict[str, Any], name: Any) -> Any:
    """Return what ``name`` stands for, which must be one of the names that were offered."""
    if not isinstance(name, str) or name not in found:
        raise gr.Error(
            f"There is no model of that name here; choose one of: {', '.join(found)}.", print_exception=False
        )
    return found[name]


def _read(upload: Any) -> Image.Image:
    if not isinstance(upload, dict) or not upload.get("path"):
        raise gr.Error("There is no image yet; upload one, or choose one of the images to try.", print_exception=False)
    try:
        return read_image(upload["path"])
    except UploadError as error:
        raise gr.Error(str(error), print_exception=False) from error
