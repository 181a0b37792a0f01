"""Analyses of the features of Φ_pre and Φ_T: clusters, t-SNE, drift (paper §IV-E.2 and 3; Table VII, Fig. 5)."""

import csv
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from tpssl_hf.analysis.common import (
    AnalysisResult,
    class_count,
    features,
    markdown,
    network_of,
    open_split,
    open_splits,
    weights_of,
)
from tpssl_hf.analysis.config import AnalyzeArgs
from tpssl_hf.analysis.figures import draw_stages
from tpssl_hf.analysis.tsne import draw_tsne, joint_tsne
from tpssl_hf.augment.pretrain_views import eval_view
from tpssl_hf.data.scan import UNLABELED
from tpssl_hf.errors import InputError
from tpssl_hf.evaluation.batchnorm import sample_for_statistics, with_reestimated_batchnorm
from tpssl_hf.evaluation.clustering import cluster, clustering_accuracy
from tpssl_hf.evaluation.drift import IMAGES, stage_distances, stage_features, stage_names
from tpssl_hf.evaluation.feature_metrics import linear_cka
from tpssl_hf.training.run_dir import RunDir


def clustering(args: AnalyzeArgs, accelerator: Accelerator, run: RunDir) -> AnalysisResult:
    """Clustering accuracy of each split (Table VII): k-means with as many clusters as classes, over several starts.

    Raises:
        InputError: if the images have no labels, the splits different classes, or there are too few images.
    """
    config, splits = args.task, open_splits(args, accelerator)
    if config.repeats < 1:
        raise InputError(f"repeats {config.repeats}: give a number from 1; the paper's table takes 5 here.")
    source, training = splits["train"]
    classes = class_count(source, training, "training")
    seeds = range(config.seed, config.seed + config.repeats)
    table = []
    for weights in weights_of(config):
        for split, (own, store) in splits.items():
            if class_count(own, store, split) > classes:
                raise InputError(
                    f"the {split} images have {class_count(own, store, split)} classes and the training images "
                    f"{classes}; give a --test_split with the same classes, or --test_split none."
                )
            assert store.labels is not None  # counted above
            indices = np.flatnonzero(store.labels != UNLABELED)
            if len(indices) < classes:
                raise InputError(f"{len(indices)} labeled {split} images cannot make {classes} clusters; use more.")
            found = features(weights, store, indices, args, accelerator.device, training=training)
            if config.normalize:
                found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
            for seed in seeds:
                value = clustering_accuracy(cluster(found, classes, seed=seed), store.labels[indices])
                row = {"model": weights.key, "title": weights.title, "split": split, "images": len(indices)}
                table.append({**row, "seed": seed, "value": value})
    kind = "length one" if config.normalize else "raw"
    lines = [f"Clustering accuracy, % ({classes} clusters, {kind} features, {config.repeats} k-means starts)", ""]
    lines += markdown(table, "title", "split")
    return AnalysisResult(table, lines, {"clusters": classes, "paper": "Table VII, Eq. 8 and 9"})


def tsne(args: AnalyzeArgs, accelerator: Accelerator, run: RunDir) -> AnalysisResult:
    """Joint t-SNE of the same random images before and after (Fig. 5), as an image and tsne.csv.

    Raises:
        InputError: for fewer than two samples, or backbones of different width.
    """
    config, splits = args.task, open_splits(args, accelerator)
    split = "test" if "test" in splits else "train"
    source, store = splits[split]
    if config.samples < 2:
        raise InputError(f"samples {config.samples}: give a number from 2; there are {len(store):,} {split} images.")
    indices = np.sort(np.random.default_rng(config.seed).permutation(len(store))[: config.samples])
    shown = [weights for weights in weights_of(config) if weights.key != "base_statistics"]
    matrices = [features(w, store, indices, args, accelerator.device, training=splits["train"][1]) for w in shown]
    embedded = joint_tsne(matrices, perplexity=config.perplexity, seed=config.seed)
    labels = store.labels[indices] if store.labels is not None else np.full(len(indices), UNLABELED)
    names = source.class_names or tuple(str(number) for number in range(int(labels.max()) + 1))
    with (run.path / "tsne.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "index", "label", "x", "y"])
        for weights, points in zip(shown, embedded, strict=True):
            for row, label, (x, y) in zip(store.rows[indices].tolist(), labels.tolist(), points.tolist(), strict=True):
                writer.writerow([weights.key, row, label, f"{x:.4f}", f"{y:.4f}"])
    draw_tsne(run.path / "tsne.png", embedded, [weights.title for weights in shown], labels, names)
    table = [{"model": w.key, "title": w.title, "seed": config.seed, "value": "tsne.csv"} for w in shown]
    lines = [f"t-SNE of {len(indices)} {split} images: {run.path / 'tsne.png'}, {run.path / 'tsne.csv'}"]
    return AnalysisResult(table, lines, {"split": split, "class_names": list(names), "paper": "Fig. 5"})


def drift(args: AnalyzeArgs, accelerator: Accelerator, run: RunDir) -> AnalysisResult:
    """How far each stage has moved from the base, in its weights and in its features of 256 training images.

    Raises:
        InputError: for adapted weights of another architecture than the base.
    """
    config, device = args.task, accelerator.device
    _, store = open_split(args.data, accelerator)
    everything = weights_of(config)
    network, views, _ = network_of(everything[0], args.data.image_size, config.seed, device)
    some = np.sort(np.random.default_rng(config.seed).permutation(len(store))[:IMAGES])
    images = store.gather(some, epoch=0).to(device)
    stages, start = stage_names(network), dict(network.named_parameters())
    before = stage_features(network, eval_view(images, views), stages)
    table: list[dict[str, Any]] = []
    for weights in everything[1:]:
        if weights.architecture != everything[0].architecture:
            raise InputError(
                f"{weights.title} is a {weights.backbone} and the base a {everything[0].backbone}; drift is between "
                "weights of one architecture."
            )
        other, own_views, _ = network_of(weights, args.data.image_size, config.seed, device)
        if weights.key == "base_statistics":
            other = with_reestimated_batchnorm(other, sample_for_statistics(store), views, device)
        moved = {n: (_squared(p - start[n]), _squared(start[n])) for n, p in other.named_parameters()}
        after = stage_features(other, eval_view(images, own_views), stages)
        shared = {"model": weights.key, "title": weights.title, "images": len(some), "seed": config.seed}
        for stage, value in stage_distances(moved, stages).items():
            table.append({**shared, "measure": "drift", "stage": stage, "value": value})
        for stage in stages:
            value = linear_cka(after[stage].numpy(), before[stage].numpy())
            table.append({**shared, "measure": "cka", "stage": stage, "value": value})
    by_model: dict[str, dict[str, dict[str, float]]] = {"drift": {}, "cka": {}}
    for entry in table:
        by_model[entry["measure"]].setdefault(entry["title"], {})[entry["stage"]] = entry["value"]
    draw_stages(run.path / "drift.png", by_model["drift"], by_model["cka"])
    lines = [f"Drift of weights and linear CKA of features by stage: {run.path / 'drift.png'}", ""]
    for measure, rows in by_model.items():
        for title, values in rows.items():
            lines.append(f"  {measure:5} {title}: " + ", ".join(f"{s} {v:.3f}" for s, v in values.items()))
    return AnalysisResult(table, lines)


def _squared(tensor: torch.Tensor) -> float:
    return float(tensor.detach().double().square().sum())
