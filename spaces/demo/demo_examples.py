"""The image that a visitor gives, and images to try, in rows: where two classifiers differ, and where they agree."""

from collections.abc import Mapping
from typing import Any

import gradio as gr
from demo_models import Classifier
from demo_parts import show_chosen
from PIL import Image
from uploads import UploadError, read_image

TRY = "Images to try"
DIFFER = f"{TRY}: the two differ on these"
AGREE = f"{TRY}: they agree on these"


def agree(base: Classifier, adapted: Classifier, image: Image.Image) -> bool:
    """Whether two classifiers think the same class of an image the likeliest."""
    first, second = (classifier.confidences(image) for classifier in (base, adapted))
    return max(first, key=lambda one: first[one]) == max(second, key=lambda one: second[one])


def by_agreement(images: list[str], base: Classifier, adapted: Classifier) -> dict[str, list[str]]:
    """Group files of images by whether two classifiers agree on them; what cannot be read is left out."""
    found: dict[str, list[str]] = {DIFFER: [], AGREE: []}
    for location in images:
        try:
            image = read_image(location)
        except UploadError:
            continue
        found[AGREE if agree(base, adapted, image) else DIFFER].append(location)
    return found


def image_input(action: str, name: Any, rows: Mapping[str, Mapping[str, list[str]]]) -> tuple[Any, Any, list[Any]]:
    """Lay out a place for an image, a button, and the images to try of the chosen model.

    Args:
        action: what the button says.
        name: the list from which a model is chosen.
        rows: of each model, files of images by what stands above them.

    Returns:
        The image, the button, and the events of clicks on images to try.
    """
    image = gr.Image(
        label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=280, buttons=[]
    )
    button = gr.Button(action, variant="primary")
    clicks, columns = [], {}
    for number, (model, groups) in enumerate(rows.items()):
        with gr.Column(visible=number == 0) as columns[model]:
            for label, images in groups.items():
                if images:
                    shown = gr.Examples(images, image, label=label, cache_examples=False, api_visibility="private")
                    clicks.append(shown.load_input_event)
    show_chosen(name, columns)
    return image, button, clicks
