"""Every format by name, and which predictions go into it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tpssl_hf.errors import InputError
from tpssl_hf.files.atomic import replacing_folder
from tpssl_hf.tasks.predict.exports import coco, cvat, imagefolder, label_studio
from tpssl_hf.tasks.predict.exports.predicted import Predicted

EXPORTS = "exports"
FORMATS: dict[str, Callable[[Predicted, Path], None]] = {
    "imagefolder": imagefolder.write,
    "coco": coco.write,
    "label_studio": label_studio.write,
    "cvat": cvat.write,
}
TO_LOOK_AT = ("label_studio", "cvat")  # tools of people; the others are data sets
OF_CLASSIFIERS = ("imagefolder",)


def formats_named(names: str | None, *, segmenter: bool) -> list[str]:
    """Return the formats that ``names`` lists with commas between.

    Raises:
        InputError: for an unknown one, and for one that a segmenter's masks do not fit.
    """
    named = [name for name in (names or "").split(",") if name]
    for name in named:
        if name not in FORMATS:
            raise InputError(f"export {name!r} is not one of {', '.join(FORMATS)}.")
        if segmenter and name in OF_CLASSIFIERS:
            raise InputError(
                f"export {name} holds no masks; give coco, label_studio or cvat, or take the PNGs in masks/ as they "
                "are."
            )
    return list(dict.fromkeys(named))


def write_exports(
    predicted: Predicted, names: list[str], accept: dict[str, Any] | None, say: Callable[[str], Any]
) -> None:
    """Write each format to a folder of its own in ``exports/``.

    Args:
        predicted: all predictions.
        names: of formats.
        accept: what :func:`split_predictions` returned, if some are to be accepted: data sets then hold the accepted
            predictions, and tools of people those to look at.
        say: called with each sentence for people.
    """
    for name in names:
        part, which = predicted, "all predictions"
        if accept is not None and name in TO_LOOK_AT:
            part, which = replace(predicted, below=accept["threshold"]), "predictions to look at"
        elif accept is not None:
            least = float("inf") if accept["threshold"] is None else accept["threshold"]
            part, which = replace(predicted, least=least), "accepted predictions"
        folder = predicted.table.parent / EXPORTS / name
        folder.parent.mkdir(exist_ok=True)
        with replacing_folder(folder) as temporary:
            temporary.mkdir()
            FORMATS[name](part, temporary)
        say(f"{folder}: {which} for {name}")
