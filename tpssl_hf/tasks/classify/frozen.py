"""Classifiers on frozen features of the start: the head that finetuning begins with, and baselines without a step."""

import copy

import numpy as np
import torch
from torch import nn

from tpssl_hf.augment.pretrain_views import ViewSettings
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.evaluation.features import extract_features, finite
from tpssl_hf.evaluation.fitted_head import fit_head
from tpssl_hf.methods.classify import CLASSIFY
from tpssl_hf.methods.classify.label_spreading import MOST_IMAGES
from tpssl_hf.models.timm_network import timm_network
from tpssl_hf.monitoring.collapse import STARTED_FROM
from tpssl_hf.tasks.classify.config import ClassifyArgs
from tpssl_hf.tasks.classify.data import FinetuningData


def head_of(classifier: nn.Module) -> nn.Linear:
    """Return the last layer of a classifier."""
    head = timm_network(classifier).get_classifier()
    assert isinstance(head, nn.Linear)
    return head


def without_head(classifier: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of Φ, images (B, 3, H, W) to the features (B, D) that the classifier's head reads."""
    backbone = copy.deepcopy(classifier)
    timm_network(backbone).reset_classifier(0)
    return backbone.to(device)


def labeled_features(
    classifier: nn.Module, data: FinetuningData, views: ViewSettings, device: torch.device
) -> np.ndarray:
    """Features (N, D) of the labeled images, undistorted; refused with an ``InputError`` if they are not finite."""
    return finite(
        extract_features(without_head(classifier, device), data.store, data.labeled.indices, views, device),
        STARTED_FROM,
    )


def unlabeled_features(
    classifier: nn.Module, data: FinetuningData, views: ViewSettings, device: torch.device, *, most: int = MOST_IMAGES
) -> np.ndarray:
    """Features (M, D) of other training images, undistorted: a fixed random draw, so that with the labeled at most."""
    others = np.arange(len(data.unlabeled))
    if data.unlabeled is data.store:
        others = np.setdiff1d(others, data.labeled.indices)
    room = max(0, min(most, MOST_IMAGES) - len(data.labeled.indices))
    drawn = np.sort(np.random.default_rng(views.seed).permutation(others)[:room])
    if len(drawn) == 0:
        return np.zeros((0, head_of(classifier).in_features), dtype=np.float32)
    return finite(
        extract_features(without_head(classifier, device), data.unlabeled, drawn, views, device), STARTED_FROM
    )


def fit_first_head(
    args: ClassifyArgs, classifier: nn.Module, data: FinetuningData, views: ViewSettings, device: torch.device
) -> None:
    """Fit the head that a run begins with, where ``head_init`` or a learner without steps wants one.

    A single class cannot be fitted to. Where each class comes equally often in the steps, it counts as much here.
    """
    fit_labels, labels = CLASSIFY[args.task.method].fit_labels, data.labeled.labels
    if len(np.unique(labels)) < 2 or (fit_labels is None and args.task.head_init != "probe"):
        return
    features = labeled_features(classifier, data, views, device)
    if fit_labels is None:
        weights = None
        if args.task.labeled_sampling == "classes":
            from sklearn.utils.class_weight import compute_sample_weight

            weights = compute_sample_weight("balanced", labels)
        fit_head(head_of(classifier), features, labels, weights)
        return
    others = unlabeled_features(classifier, data, views, device)
    features, known = np.concatenate([features, others]), np.append(labels, np.full(len(others), UNLABELED))
    fit_head(head_of(classifier), features, *fit_labels(features, known, args.method))
