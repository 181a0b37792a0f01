"""Colors, theme and the few lines of HTML of the demo; system fonts, so that no page asks another server."""

import colorsys
from html import escape

import gradio as gr
import numpy as np
from PIL import Image

GROUND = "#8a8f98"  # of classes that are no thing
GROUND_NAMES = ("background", "ground")
# Far apart for most kinds of color vision, and neither too pale for a white page nor too dark for a black one.
COLORS = (
    *("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4"),
    *("#f032e6", "#bfa800", "#469990", "#9a6324", "#7cb518", "#ff8fab"),
)
SHOWN_SIDES = (320, 1024)  # pixels: smaller images are enlarged to the first, larger ones shrunk to the second
OPACITY = 0.6
CSS = """
.gradio-container > main { width: 100% !important; max-width: 1200px !important; margin: 0 auto !important; }
#heading h1 { margin: 0.4em 0 0.1em; font-size: 1.7em; line-height: 1.2; }
#heading p, .about p, .caption p { color: var(--body-text-color); opacity: 0.8; max-width: 75ch; }
#nearest .grid-wrap { height: auto; min-height: 0; max-height: none; }
#nearest .grid-container { grid-template-columns: repeat(4, minmax(0, 1fr)); }
#nearest .caption-label { font-size: 11px; padding: 1px 4px; left: auto; max-width: 100%; }
@media (max-width: 480px) {
  .tab-container button { padding: 0 6px; font-size: 0.9em; }
  #nearest .caption-label { font-size: 10px; padding: 0 2px; }
}
.caption p { font-size: 0.9em; font-weight: 600; }
.notice { border-left: 3px solid var(--color-accent); padding-left: 12px !important; }
.notice code { white-space: normal; overflow-wrap: anywhere; }
.sentence p { font-size: 1.1em; max-width: 80ch; }
.table { overflow-x: auto; }
.table :is(th, td) { white-space: nowrap; word-break: normal; overflow-wrap: normal; font-size: 0.9em; }
.answer .output-class { padding: 28px 8px 16px; font-size: 1.3em; overflow-wrap: anywhere; text-align: center; }
.answer .confidence-set { font-family: inherit; font-size: 0.9em; }
.answer .text, .answers td { overflow-wrap: anywhere; }
.answers :is(th, td) { font-family: var(--font); }
.right { font-size: 0.9em; }
.right .track { display: block; height: 8px; border-radius: 4px; margin-top: 4px;
  background: var(--border-color-primary); }
.right .track span { display: block; height: 8px; border-radius: 4px; background: var(--color-accent); }
.shares { display: grid; grid-template-columns: 16px minmax(3em, max-content) 1fr max-content; gap: 6px 10px;
  align-items: center; padding: 4px 2px; }
.shares .color { width: 16px; height: 16px; border-radius: 4px; }
.shares .name { overflow-wrap: anywhere; }
.shares .bar { height: 8px; border-radius: 4px; min-width: 2px; }
.shares .value { text-align: right; font-variant-numeric: tabular-nums; }
"""


def theme() -> gr.themes.Base:
    """Return gradio's own theme with the fonts of the visitor's system."""
    return gr.themes.Default(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"),
        font_mono=("ui-monospace", "Consolas", "monospace"),
    )


def colors_of(class_names: list[str]) -> dict[str, str]:
    """Return one color for each class, the same for the same list; beyond twelve, evenly spread hues."""
    things = [name for name in dict.fromkeys(class_names) if not is_ground(name)]
    found = {name: GROUND for name in class_names if is_ground(name)}
    for number, name in enumerate(things):
        if number < len(COLORS):
            found[name] = COLORS[number]
        else:
            rgb = colorsys.hsv_to_rgb(number * 0.618034 % 1, 0.55 + 0.4 * (number % 2), 0.85)
            found[name] = "#" + "".join(f"{round(255 * part):02x}" for part in rgb)
    return found


def shown(image: Image.Image) -> Image.Image:
    """Enlarge a small image, or shrink a large one, to a size for the page."""
    least, most = SHOWN_SIDES
    factor = min(max(1.0, least / min(image.size)), most / max(image.size))
    width, height = (max(1, round(length * factor)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3 if factor < 1 else None)


def enlarged(mask: np.ndarray, image: Image.Image) -> np.ndarray:
    """Return a class map (h, w) at the size of ``image``, each pixel with the class of the nearest one."""
    if mask.dtype != np.uint8:
        return np.asarray(Image.fromarray(mask.astype(np.int32)).resize(image.size, Image.Resampling.NEAREST))
    return np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))


def is_ground(name: str) -> bool:
    """Whether a class is what is left when all things are taken away; it is counted, but not painted over."""
    return name.lower() in GROUND_NAMES


def overlay(image: Image.Image, mask: np.ndarray, class_names: list[str], colors: dict[str, str]) -> Image.Image:
    """Lay the colors of a class map (H, W) over an image of that size."""
    table = np.array([[int(colors[name][at : at + 2], 16) for at in (1, 3, 5)] for name in class_names])
    opacity = np.array([0 if is_ground(name) else OPACITY for name in class_names])[mask][..., None]
    mixed = (1 - opacity) * np.asarray(image) + opacity * table[mask]
    return Image.fromarray(mixed.round().astype(np.uint8))


def shares(mask: np.ndarray, class_names: list[str]) -> dict[str, float]:
    """Return the classes that are there and their shares of the pixels, the largest first."""
    counts = np.bincount(mask.ravel(), minlength=len(class_names))
    order = np.argsort(-counts, kind="stable")
    return {class_names[number]: float(counts[number] / mask.size) for number in order.tolist() if counts[number]}


def accuracy_bar(tested: tuple[float, int] | None) -> str:
    """Return HTML that says how often a model is right, with a bar."""
    if tested is None:
        return '<div class="right">How often it is right is not known.</div>'
    share, count = tested
    return (
        f'<div class="right">Right on {100 * share:.1f} % of {count:,} test images'
        f'<span class="track"><span style="width:{100 * share:.1f}%"></span></span></div>'
    )


def legend(found: dict[str, float], colors: dict[str, str]) -> str:
    """Return HTML with color, name, bar and share of each class."""
    largest = max(found.values())
    cells = [
        f'<span class="color" style="background:{colors[name]}"></span><span class="name">{escape(name)}</span>'
        f'<span class="bar" style="background:{colors[name]};width:{100 * share / largest:.1f}%"></span>'
        f'<span class="value">{100 * share:.1f} %</span>'
        for name, share in found.items()
    ]
    return f'<div class="shares">{"".join(cells)}</div>'
