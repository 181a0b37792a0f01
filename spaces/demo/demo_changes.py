"""The third tab: what adapting has changed, and for what is not there the command that makes it."""

import json
from typing import Any

import gradio as gr
from demo_config import Changes, DemoConfig
from demo_models import BUILD
from demo_parts import caption, choice, chosen, say, show_chosen
from PIL import Image

CAPTIONS = {  # of each image of the third tab, and what it means
    "verdict": (
        "Right answers after a few labels, before and after adapting",
        "A few labels are drawn, and a simple classifier, the *linear probe*, learns from what the network says of "
        "those images. *Base* is the network as it came, *adapted* is what it became by looking at images without "
        "labels. *Statistics only* is the base with nothing new but its averages of what it sees (BatchNorm). The "
        "interval says how much may be the luck of the draw: where it includes 0, no difference is shown.",
    ),
    "tsne": (
        "Images as the network sees them, before and after adapting (t-SNE)",
        "Every dot is an image and its color its class. Images that the network finds alike lie close together: the "
        "better the colors stand apart, the fewer labels it takes to tell them apart.",
    ),
    "drift": (
        "How far each stage of the network has moved",
        "A network works in stages, the first ones on edges and colors, the last ones on whole shapes. On the left, "
        "how far the weights of each have moved; on the right, how alike what it says of images is to what it said "
        "before, 1 being the same. *Re-estimated BatchNorm* is the base with nothing new but its averages.",
    ),
}
VERDICT = "uv run python recipes/verdict.py"
ANALYZE = "uv run python recipes/analyze.py"


def changes_tab(config: DemoConfig) -> None:
    """Lay out the third tab: what was drawn before, and for what is missing the command that draws it."""
    reports = {entry.name: _report(config, entry) for entry in config.changes}
    if not reports:
        say(["Nothing is named under `changes` in the demo's YAML file."])
        return

    def changes(model: str) -> dict[str, Any]:
        """Return the verdict's sentence and table, and what is missing, of one of the adapted models."""
        report = chosen(reports, model)
        return {key: report[key] for key in ("sentence", "table", "missing")}

    gr.api(changes, api_name="changes", concurrency_limit=None)
    name = choice(config.changes, reports, "Model")
    columns: dict[str, Any] = {}
    for number, (entry, report) in enumerate(reports.items()):
        with gr.Column(visible=number == 0) as columns[entry]:
            _lay_out(report)
    show_chosen(name, columns)


def _lay_out(report: dict[str, Any]) -> None:
    if report["sentence"]:
        gr.Markdown(report["sentence"], elem_classes="sentence")
    for name, (title, meaning) in CAPTIONS.items():
        if report[name] is not None:
            caption(title)
            gr.Markdown(meaning, elem_classes="about")
            gr.Image(report[name], label=title, show_label=False, interactive=False, buttons=["fullscreen"])
        if name == "verdict" and report["table"]:
            gr.Markdown(report["table"], elem_classes="table")
    say(report["missing"])


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
