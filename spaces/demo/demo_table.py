"""What a pair of classifiers answers: classes, how often each model is right, and a table for several images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from demo_models import Classifier
from uploads import UploadError, read_image

MOST_IMAGES = 24  # of one request; each is computed by two networks
HEADERS = ["Image", "Base weights", "Adapted weights", "Same"]
WIDTHS = ["24%", "28%", "28%", "20%"]  # given, or a long name in one column hides the others
NO_IMAGES = "There are no images yet; upload some, at most {most} at a time."
MANY = "These are {count} images and {most} are answered at a time; upload fewer. `tpssl-hf predict` labels folders."


def table_of(uploads: Any, base: Classifier, adapted: Classifier) -> list[list[str]]:
    """Return a row for each upload: its name, both answers and how sure they are, and whether they are the same.

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
        return [name, str(error), "", ""]
    told = [classifier.confidences(image) for classifier in (base, adapted)]
    first, second = (max(one, key=lambda name: one[name]) for one in told)
    answers = [f"{one}, {100 * sure[one]:.0f} %" for one, sure in zip((first, second), told, strict=True)]
    return [name, *answers, "yes" if first == second else "no"]


def answers_of(label: str, top_classes: int) -> tuple[Any, Any]:
    """Lay out the classes that a model names, and below them how often it is right."""
    with gr.Column(min_width=160):
        return gr.Label(label=label, num_top_classes=top_classes, elem_classes="answer"), gr.HTML()


def several_images(answer: Callable[[Any, Any], list[list[str]]], name: Any, concurrency_id: str) -> None:
    """Lay out uploads and table; ``answer`` is given what is uploaded and the chosen pair."""
    with gr.Accordion("Several images at once", open=False):
        files = gr.File(
            label=f"Up to {MOST_IMAGES} images",
            file_count="multiple",
            file_types=["image"],
            type="filepath",
            height=180,
        )
        table = gr.Dataframe(
            headers=HEADERS,
            column_widths=WIDTHS,
            label="Answers",
            show_label=False,
            interactive=False,
            wrap=True,
            buttons=[],
            elem_classes="answers",
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
