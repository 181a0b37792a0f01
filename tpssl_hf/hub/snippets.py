"""How to load a published model, by task; every snippet runs as it stands beside an image called image.png."""

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import StrictUndefined, Template

if TYPE_CHECKING:  # it brings torch with it, which a card does not need
    from tpssl_hf.hub.onnx import Exported

THRESHOLDS = "thresholds"  # in results.json of a classifier of several labels an image
OWN_PROCESSOR = (
    "import tpssl_hf  # for the processor; without it: RGB / 255, then image_mean and image_std of "
    "preprocessor_config.json\n"
)
TEMPLATES = files("tpssl_hf.hub").joinpath("templates")
USAGE = {"target_pretrain": "backbone", "ssl_classify": "classifier", "ssl_segment": "segmenter"}


def snippets(results: dict[str, Any], repo: str) -> str:
    """Return the section of a card that says how to load the model.

    Args:
        results: results.json of the run.
        repo: Hub id of the model.
    """
    name = results["backbone"].partition(".")[0]
    several = THRESHOLDS in results
    text = _rendered(USAGE[results["recipe"]], repo=repo, backbone=name, several=several)
    found = results.get("published_path")
    if found is not None and any(path["agree_if_read_as_trained"] for path in found["paths"]):
        limits = found.get("wide_range")
        own = "" if limits is None else f", wide_range=({limits[0]:g}, {limits[1]:g})"
        text += "\n\n" + _rendered("read_as_trained", range=own)
    return text


def onnx_snippets(results: dict[str, Any], repo: str, exported: "Exported") -> str:
    """Return what a card says of the ONNX file, to go after the other snippets.

    Args:
        results: results.json of the run.
        repo: Hub id of the model.
        exported: the network as ONNX.
    """
    resized, resized_in_browsers, scored, unshrunk = "", "", "", ""
    height, width = exported.size or ("height", "width")
    given = " and ".join(f"`{name}`" for name in exported.outputs)
    if exported.size is None:
        given += " of the same height and width, any from 32 pixels on"
    elif results["recipe"] == "ssl_segment":  # the processor of the others does it
        if results["config"].get("test_mode") != "resize":
            scored = "; the scores above were not taken on images resized to this"
        unshrunk = ", shorter_side=0"
        resized, resized_in_browsers = f".resize(({width}, {height}))", f".then((it) => it.resize({width}, {height}))"
    return _rendered(
        "onnx",
        repo=repo,
        opset=exported.opset,
        shape=f"(batch, 3, {height}, {width})",
        given=given,
        outputs=", ".join(exported.outputs),
        own_processor=OWN_PROCESSOR if results["recipe"] == "ssl_segment" else "",
        resized=resized,
        resized_in_browsers=resized_in_browsers,
        scored=scored,
        unshrunk=unshrunk,
    )


def _rendered(kind: str, **values: str | int) -> str:
    text = TEMPLATES.joinpath(f"usage_{kind}.md").read_text(encoding="utf-8")
    rendered: str = Template(text, undefined=StrictUndefined).render(values)
    return rendered.strip()
