import json
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpssl_hf.errors import InputError
from tpssl_hf.losses.contrastive import normalized_std
from tpssl_hf.methods.pretrain.byol import BYOL, BYOLConfig
from tpssl_hf.monitoring.collapse import CollapseWarning, HealthMonitor, HealthReport
from tpssl_hf.monitoring.early_stopping import settled

SPREAD = np.random.default_rng(0).normal(size=(100, 32)).astype(np.float32)
NEAR_A_POINT = 10.0 + 0.7 * SPREAD  # as of a random ReLU network: a large common mean, and not collapsed


def begun(features: np.ndarray) -> HealthMonitor:
    monitor = HealthMonitor()
    monitor.begin(features)
    return monitor


def on_a_line(features: np.ndarray) -> np.ndarray:
    direction = np.array([1, -1] * (features.shape[1] // 2), dtype=np.float32)  # across the common mean
    return features.mean(axis=0) + np.outer(features[:, 0] - features[:, 0].mean(), direction)


def test_a_check_of_unchanged_features_agrees_with_the_start() -> None:
    report = begun(SPREAD).check(7, SPREAD, (SPREAD, SPREAD), 0.9, knn=0.5)
    assert report.neighbor_agreement_previous == report.neighbor_agreement_start == 1.0
    assert report.cka_start == pytest.approx(1.0) and report.alignment == 0.0
    assert (report.step, report.knn_accuracy, report.collapsed, report.reason) == (7, 0.5, False, None)
    entries = report.entries()
    assert entries["health_effective_rank"] == report.effective_rank and entries["health_collapsed"] == 0.0
    assert "health_step" not in entries and all(isinstance(value, float) for value in entries.values())
    assert "health_knn_accuracy" not in replace(report, knn_accuracy=None).entries()


def test_previous_is_the_check_before_and_start_stays_the_start() -> None:
    other = SPREAD @ np.random.default_rng(1).normal(size=(32, 3)).astype(np.float32)
    monitor = begun(SPREAD)
    first = monitor.check(1, other, (other, other))
    second = monitor.check(2, other, (other, other))
    assert first.neighbor_agreement_previous == first.neighbor_agreement_start < 0.5
    assert second.neighbor_agreement_previous == 1.0
    assert second.neighbor_agreement_start == first.neighbor_agreement_start


@pytest.mark.parametrize("start", [SPREAD, NEAR_A_POINT])
@pytest.mark.parametrize(
    "change", [lambda f: f, lambda f: 1.5 * f, lambda f: f[:, ::-1], lambda f: f + 5, lambda f: f.clip(0)]
)
def test_changed_features_are_no_collapse(start: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> None:
    features = change(start)
    assert not begun(start).check(1, features, (features, features), 0.7).collapsed


@pytest.mark.parametrize("start", [SPREAD, NEAR_A_POINT])
@pytest.mark.parametrize(
    "collapse, measured",
    [
        (lambda f: f.mean(axis=0) + 10 + 0.005 * (f - f.mean(axis=0)), "std"),
        (lambda f: np.ones_like(f), "std"),
        (lambda f: np.zeros_like(f), "std"),
        (on_a_line, "effective rank"),
        (lambda f: f * np.float32("nan"), "finite"),
    ],
)
def test_collapsed_features_warn_within_one_check(
    start: np.ndarray, collapse: Callable[[np.ndarray], np.ndarray], measured: str
) -> None:
    features = collapse(start)
    with pytest.warns(CollapseWarning, match=f"step 5.*{measured}.*learning_rate"):
        report = begun(start).check(5, features, (features, features), 0.8)
    assert report.collapsed and report.reason and measured in report.reason


@pytest.mark.parametrize("projection_std", [0.2, float("nan")])
def test_collapsed_projections_are_a_collapse_whatever_the_features_are(projection_std: float) -> None:
    with pytest.warns(CollapseWarning, match="projections"):
        assert begun(SPREAD).check(1, SPREAD, (SPREAD, SPREAD), projection_std).collapsed


def test_a_collapse_is_told_once_and_again_after_it_recovered() -> None:
    monitor, point = begun(SPREAD), np.ones_like(SPREAD)
    told = []
    for step, features in enumerate([point, point, SPREAD, point]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            monitor.check(step, features, (features, features))
        told.append(len(caught))
    assert told == [1, 0, 0, 1]
    assert [report.collapsed for report in monitor.reports] == [True, True, False, True]


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (SPREAD[:2], "needs 3 images or more, there are 2; .* --health_every 0"),
        (
            SPREAD * np.float32("inf"),
            f"started from makes numbers that are not finite of {len(SPREAD)} of {len(SPREAD)} ",
        ),
    ],
)
def test_a_start_that_cannot_be_watched_is_refused(features: np.ndarray, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        HealthMonitor().begin(features)


def test_state_continues_exactly() -> None:
    random = np.random.default_rng(2)
    series = [SPREAD + random.normal(size=SPREAD.shape).astype(np.float32) * 0.3 * step for step in range(4)]
    whole = begun(SPREAD)
    for step, features in enumerate(series):
        whole.check(step, features, (features, SPREAD), 0.8)
    parts = begun(SPREAD)
    for step, features in enumerate(series):
        tensors, values = parts.state()
        tensors, values = {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values))
        parts = HealthMonitor(k=3)
        parts.load(tensors, values)
        parts.check(step, features, (features, SPREAD), 0.8)
    assert parts.reports == whole.reports


# A real BYOL, once as it is and once without what keeps it from collapsing: no predictor, no stop-gradient, target =
# online. 24 steps on smooth random images.


def distorted(images: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 1 + 0.3 * torch.randn(len(images), 3, 1, 1, generator=generator)
    return images * scale + 0.3 * torch.randn(images.shape, generator=generator)


def some_images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=(32, 32), mode="bilinear")


class Collapsing(BYOL):
    def forward(self, batch: dict[str, dict[str, Tensor]], progress: float) -> dict[str, Tensor]:
        projections = [self.projector(self.backbone(view)) for view in batch["images"].values()]
        loss = -F.cosine_similarity(*projections).mean()
        return {"loss": loss, "projection_std": normalized_std(projections[0])}


@torch.no_grad()
def features_of(backbone: nn.Module, images: Tensor) -> np.ndarray:
    backbone.eval()
    features: np.ndarray = backbone(images).numpy()
    backbone.train()
    return features


def watched_run(method: BYOL, steps: int) -> HealthReport:
    images, sample = some_images(32), some_images(48)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.2, momentum=0.9)
    monitor = begun(features_of(method.backbone, sample))
    for step in range(steps):
        part = images[16 * (step % 2) :][:16]
        batch = {"images": {"view1": distorted(part, 2 * step), "view2": distorted(part, 2 * step + 1)}}
        losses = method(batch, step / steps)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(step / steps)
    views = tuple(features_of(method.backbone, distorted(sample, seed)) for seed in (1000, 1001))
    projection_std = float(losses["projection_std"]) * method.config.projection_features**0.5
    return monitor.check(steps, features_of(method.backbone, sample), views, projection_std)


@pytest.mark.parametrize("method, collapses", [(BYOL, False), (Collapsing, True)])
def test_a_run_made_to_collapse_is_found_and_a_healthy_one_is_not(
    tiny_backbone: nn.Module, method: type[BYOL], collapses: bool
) -> None:
    torch.manual_seed(0)
    run = method(tiny_backbone, BYOLConfig(hidden_features=128, projection_features=64)).train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CollapseWarning)
        report = watched_run(run, steps=24)
    assert report.collapsed == collapses, report
    assert bool(caught) == collapses


def reports(agreement: list[float], rank: list[float], alignment: list[float]) -> list[HealthReport]:
    return [
        HealthReport(10 * number, 0.8, r, a, -2.0, kept, 0.5, 0.8, None, False, None)
        for number, (kept, r, a) in enumerate(zip(agreement, rank, alignment, strict=True), start=1)
    ]


def test_a_quiet_series_has_settled_and_says_why() -> None:
    quiet = reports([0.5, 0.85, 0.86, 0.87], [90, 60, 61, 60], [1.2, 1.0, 1.01, 1.0])
    assert settled(quiet[:3]) is None
    reason = settled(quiet)
    assert reason is not None and "step 40" in reason and "85%" in reason


@pytest.mark.parametrize(
    "agreement, rank, alignment",
    [
        ([0.9, 0.9], [60, 60], [1, 1]),  # too few checks
        ([0.7, 0.7, 0.7], [60, 60, 60], [1, 1, 1]),  # neighbors still change
        ([0.82, 0.86, 0.9], [60, 60, 60], [1, 1, 1]),  # less and less
        ([0.9, 0.9, 0.9], [60, 63, 66], [1, 1, 1]),
        ([0.9, 0.9, 0.9], [60, 60, 60], [1, 0.95, 0.9]),
    ],
)
def test_a_series_that_moves_has_not(agreement: list[float], rank: list[float], alignment: list[float]) -> None:
    assert settled(reports(agreement, rank, alignment)) is None


def test_neither_warm_up_nor_collapse_is_settled() -> None:
    quiet = reports([0.95] * 4, [60.0] * 4, [1.0] * 4)
    assert settled(quiet, after_step=20) is None and settled(quiet, after_step=10) is not None
    assert settled([*quiet[:3], replace(quiet[3], collapsed=True)]) is None
