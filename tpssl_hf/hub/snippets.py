"""How to load a published model, by task; every snippet runs as it stands beside an image called image.png."""

from importlib.resources import files
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

if TYPE_CHECKING:  # it brings torch with it, which a card does not need
    from tpssl_hf.hub.onnx import Exported

THRESHOLDS = "thresholds"  # in results.json of a classifier of several labels an image
TEMPLATES = files("tpssl_hf.hub").joinpath("templates")
USAGE = {"target_pretrain": "backbone", "ssl_classify": "classifier", "ssl_segment": "segmenter"}


def snippets(results: dict[str, Any], repo: str, *, onnx: bool = False) -> str:
    """Return the section of a card that says how to load the model.

    Args:
        results: results.json of the run.
        repo: Hub id of the model.
        onnx: whether its ONNX file is beside it, of which :func:`onnx_snippets` says more.
    """
    given: dict[str, Any] = {"backbone": results["backbone"].partition(".")[0], "several": THRESHOLDS in results}
    if results["recipe"] == "ssl_segment":
        given |= _pixels(results) | {"windows": results["config"].get("test_mode") == "slide", "onnx": onnx}
    text = _rendered(USAGE[results["recipe"]], repo=repo, **given)
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
    segmenter, exact = results["recipe"] == "ssl_segment", None
    height, width = exported.size or ("height", "width")
    given = " and ".join(f"`{name}`" for name in exported.outputs)
    if exported.size is None:
        given += " of the same height and width, any from 32 pixels on"
    elif segmenter:  # the processor of the others does it
        exact = exported.size
    return _rendered(
        "onnx",
        repo=repo,
        segmenter=segmenter,
        opset=exported.opset,
        shape=f"(batch, 3, {height}, {width})",
        given=given,
        outputs=", ".join(exported.outputs),
        unscored=bool(exact) and results["config"].get("test_mode") != "resize",
        **_pixels(results, exact),
    )


def _pixels(results: dict[str, Any], exact: tuple[int, int] | None = None) -> dict[str, Any]:
    """Return what the template needs that prepares an image for a segmenter, in another height and width or not."""
    return {
        "exact": exact and f"({exact[1]}, {exact[0]})",
        "resized": results["config"].get("test_mode") == "resize",
    }


def _rendered(kind: str, **values: str | int | None) -> str:
    environment = Environment(loader=FunctionLoader(_text), undefined=StrictUndefined)
    return environment.get_template(f"usage_{kind}.md").render(values).strip()


def _text(name: str) -> str:
    return TEMPLATES.joinpath(name).read_text(encoding="utf-8")
