"""Publish the table of a prediction as a data set of the Hub; images and masks stay at home."""

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData, HfApi

from tpssl_hf.hub.commit import Delivery, check_target, deliver, discreet, known_secrets
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.files import CARD
from tpssl_hf.hub.redaction import without_secrets
from tpssl_hf.tasks.predict.answers import Classification
from tpssl_hf.tasks.predict.config import PredictConfig
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
    """Publish ``predictions.parquet`` of a classifier and a card that says what it is, in one commit.

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
        InputError: for a Hub id that is none.
    """
    known = known_secrets(api)
    with discreet(known):
        check_target(repo, PublishConfig(), name="push_to_hub")
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    card = without_secrets(_card(results), known)
    delivery = Delivery(
        repo,
        {TABLE: folder / TABLE, CARD: card.encode()},
        replaced=lambda name: False,
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
    config = results["config"]
    data = DatasetCardData(
        tags=["tpssl_hf", "image-classification", "machine-generated"],
        configs=[{"config_name": "default", "data_files": TABLE}],
    )
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        "# Predicted labels",
        "",
        f"Labels of {results['images']:,} images of `{short_name(config['dataset'])}`, predicted by the classifier "
        f"`{short_name(config['model'])}` with tpssl_hf; nobody has corrected them. The images are no part of this "
        "data set: `file` and `row` name them.",
        "",
        _trust(results.get("expected_accuracy")),
        "",
    ]
    return "\n".join(lines)


def _trust(expected: Mapping[str, float] | None) -> str:
    if expected is None:
        return "Which accuracy is to be expected is not known: no labels were held out of the finetuning."
    accuracy, low, high = (100 * expected[name] for name in ("accuracy", "low", "high"))
    return (
        f"Expected accuracy {accuracy:.1f} % ({low:.1f} to {high:.1f} %), by labels that were held out of the "
        "finetuning, on images like those."
    )
