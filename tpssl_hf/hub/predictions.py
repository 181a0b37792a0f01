"""Publish predicted labels or masks as a data set of the Hub; images stay at home."""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import DatasetCardData, HfApi

from tpssl_hf.files.atomic import TEMPORARY
from tpssl_hf.files.json_file import read_json
from tpssl_hf.hub.commit import Delivery, check_target, deliver, discreet, known_secrets
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.files import CARD, Package
from tpssl_hf.hub.masks import DATA, mask_shards
from tpssl_hf.hub.redaction import without_secrets
from tpssl_hf.tasks.predict.answers import Classification
from tpssl_hf.tasks.predict.config import PredictConfig
from tpssl_hf.tasks.predict.segment import CLASSES
from tpssl_hf.tasks.predict.write import short_name
from tpssl_hf.training.run_dir import RESULTS

TABLE = f"{Classification.name}.parquet"


def check_predictions_target(repo: str) -> None:
    """Check what can be known of the repository's name before anything is predicted.

    Raises:
        InputError: for an id that is not ``owner/name``.
    """
    with discreet(known_secrets(None)):
        check_target(repo, PublishConfig(), name="push_to_hub")


def publish_predictions(
    folder: Path, repo: str, *, private: bool = False, api: HfApi | None = None, say: Callable[[str], None] = print
) -> str:
    """Publish the labels of a classifier, or the masks of a segmenter, and a card that says what they are.

    All is one commit. Labels are ``predictions.parquet``; masks go into ``data/``, in parquet files of a bounded size
    with the other columns beside them, and ``classes.json`` goes along.

    Args:
        folder: finished output folder of ``predict``.
        repo: Hub id ``owner/name`` of the data set; made if it is missing.
        private: whether only the owner may see it.
        api: client of the Hub; the usual one, with the token of ``hf auth login`` or HF_TOKEN, when not given.
        say: where progress goes.

    Returns:
        Address of the commit.

    Raises:
        PushError: if the Hub did not take it, with the reason and the command to push again.
        InputError: for a Hub id that is none, and masks that are not there any more.
    """
    known = known_secrets(api)
    with discreet(known):
        check_target(repo, PublishConfig(), name="push_to_hub")
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    files: Package = {TABLE: folder / TABLE}
    classes = read_json(folder / CLASSES) if (folder / CLASSES).is_file() else None  # of a segmenter
    with TemporaryDirectory(prefix=".", suffix=TEMPORARY, dir=folder) as place:
        if classes is not None:
            files = {**mask_shards(folder / TABLE, Path(place)), CLASSES: folder / CLASSES}
        card = without_secrets(_card(results) if classes is None else _card_of_masks(results, classes, repo), known)
        delivery = Delivery(
            repo,
            {**files, CARD: card.encode()},
            replaced=lambda name: name in (TABLE, CLASSES) or name.startswith(DATA),
            message="Publish predictions of tpssl_hf",
            again=f"The predictions are in {folder}; push them again with\n  {_again(results, folder, repo, private)}",
            kind="dataset",
        )
        return deliver(delivery, PublishConfig(private=private), api=api, say=say)


def _again(results: Mapping[str, Any], folder: Path, repo: str, private: bool) -> str:
    """Return the command that pushes a finished folder again: every key that is not the default."""
    given = {**results["config"], "output_dir": str(folder), "push_to_hub": repo, "hub_private_repo": private}
    words = ["tpssl-hf", "predict"]
    for item in fields(PredictConfig):
        value = given.get(item.name, item.default)
        if value != item.default:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            words += [f"--{item.name}", text]
    return shlex.join(words)


def _card(results: Mapping[str, Any]) -> str:
    """Say what the table is, what made it, and how far it may be trusted."""
    text = (
        f"Labels of {results['images']:,} images of `{short_name(results['config']['dataset'])}`, predicted by the "
        f"classifier `{short_name(results['config']['model'])}` with tpssl_hf; nobody has corrected them. The images "
        "are no part of this data set: `file` and `row` name them."
    )
    return _page("image-classification", TABLE, "Predicted labels", text, _trust(results.get("expected_accuracy")))


def _card_of_masks(results: Mapping[str, Any], classes: Sequence[Mapping[str, Any]], repo: str) -> str:
    """Say what the masks are, which value is which class, what made them, and how far they may be trusted."""
    text = (
        f"Masks of {results['images']:,} images of `{short_name(results['config']['dataset'])}`, predicted by the "
        f"segmenter `{short_name(results['config']['model'])}` with tpssl_hf; nobody has corrected them. The images "
        "are no part of this data set: `file` and `row` name them. A mask has the size of its image, turned as EXIF "
        "says, and each pixel is the number of a class; the colors are a palette for looking at it."
    )
    rows = [
        f"| {entry['value']} | {entry['name'].replace('|', chr(92) + '|')} | {_hexadecimal(entry['color'])} |"
        for entry in classes
    ]
    code = (
        "```python\nimport numpy as np\nfrom datasets import load_dataset\n\n"
        f'masks = load_dataset("{repo}", split="train")\n'
        'mask = np.asarray(masks[0]["mask"])  # (height, width), numbers of classes\n```'
    )
    table = "\n".join(["| value | class | color |", "|---|---|---|", *rows])
    return _page("image-segmentation", f"{DATA}*.parquet", "Predicted masks", text, table, _score(results), code)


def _page(kind: str, data_files: str, title: str, *parts: str) -> str:
    data = DatasetCardData(
        tags=["tpssl_hf", kind, "machine-generated"],
        configs=[{"config_name": "default", "data_files": data_files}],
    )
    return "\n\n".join([f"---\n{data.to_yaml()}\n---", f"# {title}", *parts]) + "\n"


def _hexadecimal(color: Sequence[int] | None) -> str:
    return "" if color is None else "`#{:02x}{:02x}{:02x}`".format(*color)


def _score(results: Mapping[str, Any]) -> str:
    score = results.get("test_score")
    if score is None:
        return "How good they are is not known: what the segmenter scored on test images did not come with it."
    return (
        f"On {score['images']:,} test images its masks had a mean IoU of {100 * score['mean_iou']:.1f} % and "
        f"{100 * score['pixel_accuracy']:.1f} % of the pixels right; expect about that on images like those, and less "
        "on others."
    )


def _trust(expected: Mapping[str, float] | None) -> str:
    if expected is None:
        return "Which accuracy is to be expected is not known: no labels were held out of the finetuning."
    accuracy, low, high = (100 * expected[name] for name in ("accuracy", "low", "high"))
    return (
        f"Expected accuracy {accuracy:.1f} % ({low:.1f} to {high:.1f} %), by labels that were held out of the "
        "finetuning, on images like those."
    )
