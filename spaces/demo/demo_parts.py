"""What the tabs share: captions, sentences, and lists to choose from."""

from collections.abc import Iterable, Mapping
from typing import Any

import gradio as gr
from demo_config import Changes, ClassifierPair, SegmenterChoice


def caption(text: str, visible: bool = True) -> None:
    """Write what comes next above it; gradio's own labels cover a corner of an image."""
    gr.Markdown(text, elem_classes="caption", visible=visible)


def say(sentences: list[str]) -> None:
    """Write what visitors should know, each sentence by itself."""
    for sentence in sentences:
        gr.Markdown(sentence, elem_classes="notice")


def choice(entries: Iterable[ClassifierPair | SegmenterChoice | Changes], found: dict[str, Any], label: str) -> Any:
    """Show a list to choose from, if there is a choice, and the sentences about what is in it."""
    names = list(found)
    chooser = gr.Dropdown(names, value=names[0], label=label, visible=len(names) > 1)
    about = [(entry.name, getattr(entry, "about", "")) for entry in entries if entry.name in found]
    told = [f"**{name}.** {sentence}" for name, sentence in about if sentence]
    if told:
        gr.Markdown("\n\n".join(told), elem_classes="about")
    return chooser


def chosen(found: dict[str, Any], name: Any) -> Any:
    """Return what ``name`` stands for, which must be one of the names that were offered."""
    if not isinstance(name, str) or name not in found:
        raise gr.Error(
            f"There is no model of that name here; choose one of: {', '.join(found)}.", print_exception=False
        )
    return found[name]


def show_chosen(name: Any, columns: Mapping[str, Any]) -> None:
    """Show the column of the chosen model, and no other."""
    name.change(
        lambda model: [gr.update(visible=one == model) for one in columns],
        name,
        list(columns.values()),
        api_visibility="private",
        show_progress="hidden",
        queue=False,
    )
