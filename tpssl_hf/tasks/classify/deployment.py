"""Which network a finished classification deploys, and the baselines that stand beside it."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tpssl_hf.data.labeled import Labeled
from tpssl_hf.data.multilabel_splits import is_known
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.evaluation.calibration import LEAST_LABELS, Calibration
from tpssl_hf.evaluation.features import extract_features
from tpssl_hf.evaluation.fitted_head import fit_head
from tpssl_hf.evaluation.multilabel import choose_thresholds, mean_average_precision, sigmoid
from tpssl_hf.evaluation.multilabel_calibration import MultilabelCalibration
from tpssl_hf.methods.classify.label_spreading import MOST_IMAGES, LabelSpreadingConfig, NeighborGraph
from tpssl_hf.tasks.classify.data import Split
from tpssl_hf.tasks.classify.folds import SMALLEST, answers_of_folds
from tpssl_hf.tasks.classify.frozen import head_of, labeled_features, unlabeled_features, without_head
from tpssl_hf.tasks.classify.run import ClassifyRun, load_start, main_score, probabilities
from tpssl_hf.tasks.classify.selection import (
    FINETUNED,
    PROBE,
    SPREADING,
    Folds,
    choose,
    choose_by_precision,
    compare_precision,
    cross_validated,
)

HELD_OUT, HELD_OUT_IN_TURN = "labels held out of the run", "training labels held out in turn"
Heads = dict[str, nn.Linear]  # baseline -> its fitted head


class Baselines:
    """The start of a run with heads fitted to its frozen features: a probe, and label spreading.

    Labels are spread over no more images than training saw, so that a short run is not mostly this. Of several labels
    an image there is the probe alone.
    """

    def __init__(self, run: ClassifyRun) -> None:
        self.run, self.device = run, run.accelerator.device
        self.classifier, _ = load_start(run.args, run.data)
        most = run.max_steps * run.images_per_step or MOST_IMAGES
        own = labeled_features(self.classifier, run.data, run.views, self.device)
        self.labeled, self.features, self.graph = len(own), own, None
        if run.data.labeled.several:
            return
        others = unlabeled_features(self.classifier, run.data, run.views, self.device, most=most)
        self.features = np.concatenate([own, others])
        config = run.args.method
        self.graph = NeighborGraph(
            self.features, config if isinstance(config, LabelSpreadingConfig) else LabelSpreadingConfig()
        )

    def heads(self, known: np.ndarray) -> Heads:
        """Fit both to the labels of the labeled images, (N,) or (N, K), −1 for those that are held out."""
        given = is_known(known)
        heads = {name: copy.deepcopy(head_of(self.classifier)) for name in (PROBE, SPREADING)}
        fit_head(heads[PROBE], self.features[: self.labeled][given], known[given])
        if self.graph is None:
            return {PROBE: heads[PROBE]}
        spread = self.graph.spread(np.append(known, np.full(len(self.features) - self.labeled, UNLABELED)))
        fit_head(heads[SPREADING], self.features, *spread)
        return heads

    def cross_validate(self, folds: Folds) -> dict[str, np.ndarray]:
        """Return the logits (N, K) of both for each label while its fold was held out.

        Of several labels an image they are the logarithms of probabilities, as those of folds are.
        """
        labeled = self.run.data.labeled
        labels, shape = labeled.labels, (len(labeled.labels), len(labeled.class_names))
        names = (PROBE,) if labeled.several else (PROBE, SPREADING)
        answers = {name: np.full(shape, np.nan) for name in names}
        for number in range(folds.count):
            held = folds.numbers == number
            others = np.where(held.reshape(-1, *[1] * (labels.ndim - 1)), UNLABELED, labels)
            for name, head in self.heads(others).items():
                answers[name][held] = _logits(head, self.features[: self.labeled][held])
        if labeled.several:
            return {name: np.log(np.maximum(sigmoid(logits), SMALLEST)) for name, logits in answers.items()}
        return answers

    def scores(self, heads: Heads, split: Split) -> dict[str, float | None]:
        """Accuracy of both on images that neither has seen, or the mAP of several labels an image."""
        backbone = without_head(self.classifier, self.device)
        features = extract_features(backbone, split.store, split.indices, self.run.views, self.device)
        logits = {name: _logits(head, features) for name, head in heads.items()}
        if self.run.data.labeled.several:
            return {name: mean_average_precision(scores, split.labels) for name, scores in logits.items()}
        found = {name: scores.argmax(axis=1) for name, scores in logits.items()}
        return {name: float((answers == split.labels).mean()) for name, answers in found.items()}

    def network(self, head: nn.Linear) -> nn.Module:
        """Return the start with a fitted head."""
        network = copy.deepcopy(self.classifier)
        head_of(network).load_state_dict(head.state_dict())
        return network.to(self.device)


@dataclass(frozen=True)
class Deployment:
    """What a finished run deploys.

    Attributes:
        network: the classifier in ``model/``.
        saved: which candidate it is and why, for ``results.json``.
        beside: accuracy, or mAP, of the other candidates on the test split, for the report; nothing is chosen by it.
        calibration: what held-out labels say of it; None where none were held out.
        thresholds: (K,) of several labels an image, else None.
    """

    network: nn.Module
    saved: dict[str, Any]
    beside: dict[str, float]
    calibration: Calibration | MultilabelCalibration | None
    thresholds: np.ndarray | None = None


def deploy(run: ClassifyRun, folder: Path) -> Deployment:
    """Compare the finetuned network with the baselines, as ``select`` says; ``folder`` holds the trained folds."""
    labeled, finetuned, folds = run.data.labeled, run.method.deployed, run.folds
    saved = {"candidate": FINETUNED, "select": run.args.task.select, "labels": len(labeled.labels), "usable": True}
    saved |= {"folds": {"count": folds.count, "steps": folds.steps} if folds else None, "cross_validated": {}}
    saved |= {"several_labels": True} if labeled.several else {}
    if run.args.task.select == "last":
        return _deployment(run, finetuned, saved, {}, None)
    baselines, answers = Baselines(run), dict[str, np.ndarray]()
    if folds:
        found = baselines.cross_validate(folds)
        answers = {FINETUNED: answers_of_folds(folder, folds) if run.max_steps else found[SPREADING], **found}
    heads = baselines.heads(labeled.labels)
    if run.max_steps == 0:  # label spreading itself is what the run made
        answers.pop(SPREADING, None)
        del heads[SPREADING]
    usable = is_usable(probabilities(run, finetuned, Split(run.data.store, labeled.indices, labeled.labels)), labeled)
    if labeled.several:
        compared = compare_precision(answers, labeled.labels)
        name = choose_by_precision(compared, usable=usable)
    else:
        right = {name: is_right(logits, labeled.labels) for name, logits in answers.items()}
        name, compared = choose(right, usable=usable), cross_validated(right)
    saved |= {"candidate": name, "usable": usable, "cross_validated": compared}
    beside: dict[str, float | None] = {}
    if test := run.data.test:
        beside = baselines.scores(heads, test)
        if name != FINETUNED:
            beside = {FINETUNED: main_score(run, finetuned, test), **beside}
            del beside[name]
    scored = {candidate: value for candidate, value in beside.items() if value is not None}
    network = finetuned if name == FINETUNED else baselines.network(heads[name])
    return _deployment(run, network, saved, scored, answers.get(name))


def _deployment(
    run: ClassifyRun,
    network: nn.Module,
    saved: dict[str, Any],
    beside: dict[str, float],
    cross_validated: np.ndarray | None,
) -> Deployment:
    """Return what is deployed, with calibrated confidences, and thresholds where images have several labels."""
    several = run.data.labeled.several
    thresholds = thresholds_of(run, network, cross_validated) if several else None
    return Deployment(network, saved, beside, calibrate(run, network, cross_validated), thresholds)


def thresholds_of(run: ClassifyRun, network: nn.Module, cross_validated: np.ndarray | None) -> np.ndarray:
    """Choose the threshold of each label (K,) by labels that were held out in turn, or of the whole run; else 0.5.

    Args:
        run: of several labels an image.
        network: the deployed one.
        cross_validated: as in :func:`calibrate`, logarithms of probabilities.
    """
    held, labels = run.data.validation, run.data.labeled.labels
    if cross_validated is not None and (known := np.isfinite(cross_validated).all(axis=1)).any():
        return choose_thresholds(np.exp(cross_validated[known]), labels[known])
    if held is not None:
        return choose_thresholds(np.nan_to_num(probabilities(run, network, held)), held.labels)
    return np.full(labels.shape[1], 0.5)


def calibrate(
    run: ClassifyRun, network: nn.Module, cross_validated: np.ndarray | None
) -> Calibration | MultilabelCalibration | None:
    """Ask held-out labels how far the deployed network may be believed.

    Labels that were held out of the whole run are asked where there are enough of them: only they have seen the very
    network that is deployed. Else those that were held out in turn answer for networks like it, finetuned with fewer
    labels and, from 25 labels a class on, for fewer steps.

    Args:
        run: the finished run.
        network: the deployed one.
        cross_validated: (N, K) logits of the training labels while they were held out, logarithms of probabilities
            where images have several labels, NaN where a fold failed; None without folds.
    """
    held, labels = run.data.validation, run.data.labeled.labels
    if held is not None and (len(held.labels) >= LEAST_LABELS or cross_validated is None):
        logits = np.log(np.maximum(probabilities(run, network, held), SMALLEST))
        if np.isfinite(logits).all():
            return _measured(logits, held.labels, HELD_OUT)
    if cross_validated is None or not np.isfinite(cross_validated).all():
        return None
    return _measured(cross_validated, labels, HELD_OUT_IN_TURN)


def _measured(logits: np.ndarray, labels: np.ndarray, held_out: str) -> Calibration | MultilabelCalibration:
    if labels.ndim == 2:
        return MultilabelCalibration.measure(np.exp(logits), labels, held_out.replace("labels", "images"))
    return Calibration.measure(logits, labels, held_out)


def is_right(logits: np.ndarray, labels: np.ndarray) -> list[int]:
    """Return 1 for each of labels (N,) that logits (N, K) find, else 0, as for logits that are not finite."""
    right = np.isfinite(logits).all(axis=1) & (logits.argmax(axis=1) == labels)
    return [int(answer) for answer in right]


def is_usable(answers: np.ndarray, labeled: Labeled) -> bool:
    """Whether probabilities (N, K) are finite and name more than one class, or differ from image to image."""
    if labeled.several:
        return bool(np.isfinite(answers).all()) and bool((np.ptp(answers, axis=0) > 0).any())
    return bool(np.isfinite(answers).all()) and len(np.unique(answers.argmax(axis=1))) > 1


@torch.no_grad()
def _logits(head: nn.Linear, features: np.ndarray) -> np.ndarray:
    """Return the logits (N, K) that a head on the CPU gives to features (N, D)."""
    logits: np.ndarray = head(torch.from_numpy(features)).numpy()
    return logits
