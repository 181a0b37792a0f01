"""What a pair of classifiers answers: classes, how often each model is right, and a table for several images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from demo_models import Classifier
from uploads import UploadError, read_image

MOST_IMAGES = 24  # of one request; each is computed by two networks
HEADERS = ["Image", "Base weights", "sure", "Adapted weights", "sure ", "Same"]
NO_IMAGES = "There are no images yet; upload some, at most {most} at a time."
MANY = "These are {count} images and {most} are answered at a time; upload fewer. `tpssl-hf predict` labels folders."


def table_of(uploads: Any, base: Classifier, adapted: Classifier) -> list[list[str]]:
    """Return a row for each upload: its name, both answers with their confidences, and whether they are the same.

    An image that cannot be read has the sentence that says why in place of its answers.

    Raises:
        gr.Error: if there are no uploads, or too many.
    """
    files = [one for one in uploads or [] if isinstance(one, dict) and one.get("path")]
    if not files:
        raise gr.Error(NO_IMAGES.format(most=MOST_IMAGES), print_exception=False)
    if len(files) > MOST_IMAGES:
        raise gr.Error(MANY.format(count=len(files), most=MOST_IMAGES), print_exception=False)
    return [_row(file, base, adapted) for file in files]


def _row(file: dict[str, Any], base: Classifier, adapted: Classifier) -> list[str]:
    name = Path(str(file.get("orig_name") or file["path"])).name
    try:
        image = read_image(file["path"])
    except UploadError as error:
        return [name, str(error), "", "", "", ""]
    (first, sure), (second, surer) = (_answer(classifier.confidences(image)) for classifier in (base, adapted))
    return [name, first, sure, second, surer, "yes" if first == second else "no"]


def _answer(confidences: dict[str, float]) -> tuple[str, str]:
    name = max(confidences, key=lambda one: confidences[one])
    return name, f"{100 * confidences[name]:.0f} %"


def answers_of(label: str, top_classes: int) -> tuple[Any, Any]:
    """Lay out the classes that a model names, and below them how often it is right."""
    with gr.Column(min_width=160):
        return gr.Label(label=label, num_top_classes=top_classes), gr.HTML()


def several_images(answer: Callable[[Any, Any], list[list[str]]], name: Any, concurrency_id: str) -> None:
    """Lay out uploads and table; ``answer`` is given what is uploaded and the chosen pair."""
    with gr.Accordion("Several images at once", open=False):
        files = gr.File(
            label=f"Up to {MOST_IMAGES} images", file_count="multiple", file_types=["image"], type="filepath"
        )
        table = gr.Dataframe(
            headers=HEADERS, label="Answers", show_label=False, interactive=False, wrap=True, buttons=[]
        )
    gr.on(
        [files.upload],
        answer,
        inputs=[files, name],
        outputs=[table],
        preprocess=False,
        concurrency_id=concurrency_id,
        api_name="classify_several",
    )
    files.clear(lambda: None, None, table, api_visibility="private", queue=False)
