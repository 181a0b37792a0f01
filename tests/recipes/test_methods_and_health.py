"""Every method through the recipe, what is watched while it runs, and runs of a given time."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_teacher import tiny_teacher
from torch import nn

from tpssl_hf.commands import pretrain as command
from tpssl_hf.config.shared import OptimConfig
from tpssl_hf.errors import InputError
from tpssl_hf.methods.base import Method
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.monitoring.collapse import CollapseWarning
from tpssl_hf.tasks import time_budget as budget
from tpssl_hf.tasks.pretrain import budget as planning
from tpssl_hf.tasks.pretrain import prepare as preparing
from tpssl_hf.tasks.pretrain.config import parse_pretrain
from tpssl_hf.training.optim import lars_reach
from tpssl_hf.training.run_dir import read_metrics

Adapt = Callable[..., int]
ImageBatch = Callable[..., Path]
NO_HEAD = {"hidden_features": None, "projection_features": None}
SMALL: dict[str, dict[str, Any]] = {
    "byol": {},
    "moco": {"queue_size": 16, "hidden_features": None},
    "simclr": {"hidden_features": None},
    "densecl": {"queue_size": 16, "image_size": 64},
    "distill": {"teacher": tiny_teacher(), "queue_size": 16, **NO_HEAD},
    "pixpro": {"image_size": 64},
}


def log(tmp_path: Path) -> list[dict[str, Any]]:
    return read_metrics(tmp_path / "run" / "metrics.jsonl")


def results(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "run" / "results.json").read_text())
    return found


@pytest.mark.parametrize("method", sorted(PRETRAIN))
def test_every_method_adapts_and_leaves_weights(method: str, adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    assert adapt(dataset=images(), method=method, **SMALL[method]) == 0
    assert results(tmp_path)["method"] == method
    assert log(tmp_path)[-1]["drift"] > 0
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("method", ["byol", "simclr"])
@pytest.mark.parametrize("backbone", ["test_vit", "test_convnext"])
def test_instance_level_methods_adapt_other_backbones(
    method: str, backbone: str, adapt: Adapt, images: ImageBatch, tmp_path: Path
) -> None:
    assert adapt(dataset=images(), method=method, backbone=backbone, **SMALL[method]) == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "moco", "queue_size": 20, "hidden_features": None}, "queue_size 20 is not a multiple"),
        ({"method": "pixpro", "backbone": "test_vit", "image_size": 64}, "dense methods need a backbone with maps"),
        ({"method": "densecl", "queue_size": 16, "image_size": 16}, "smaller than the stride 32"),
        ({"method": "byol", "batch_size": 1}, "at least 2"),
    ],
)
def test_what_does_not_fit_a_method_is_one_sentence(
    settings: dict[str, Any], sentence: str, adapt: Adapt, images: ImageBatch
) -> None:
    with pytest.raises(InputError, match=sentence):
        adapt(dataset=images(), **settings)


def test_health_is_logged_once_per_epoch_on_the_lines_of_the_log(
    adapt: Adapt, images: ImageBatch, tmp_path: Path
) -> None:
    adapt(dataset=images(), max_steps=9, log_every=1)  # three steps an epoch
    checked = [entry["step"] for entry in log(tmp_path) if "health_effective_rank" in entry]
    assert checked == [3, 6, 9]
    last = log(tmp_path)[-1]
    assert 0 <= last["health_neighbor_agreement_start"] <= 1 and 0 < last["health_cka_start"] <= 1 + 1e-6
    assert "health_knn_accuracy" not in last


def test_health_can_be_switched_off(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    adapt(dataset=images(), max_steps=3, log_every=1, health_every=0)
    assert not any(name.startswith("health") for entry in log(tmp_path) for name in entry)


def test_probing_logs_knn_accuracy_on_training_labels(adapt: Adapt, labeled: Any, tmp_path: Path) -> None:
    labeled.save_to_disk(tmp_path / "labeled")
    adapt(dataset=tmp_path / "labeled", max_steps=4, log_every=1, probe_labels=True)
    assert 0 <= log(tmp_path)[-1]["health_knn_accuracy"] <= 1


class Collapsing(Method):
    """BYOL whose projections all become one point."""

    def __init__(self, inner: Method) -> None:
        super().__init__()
        self.inner, self.projection_features = inner, inner.projection_features

    def forward(self, batch: Any, progress: float) -> Any:
        losses = self.inner(batch, progress)
        return {**losses, "projection_std": torch.full_like(losses["projection_std"], 1e-3)}

    def after_step(self, progress: float) -> None:
        self.inner.after_step(progress)

    @property
    def deployed(self) -> nn.Module:
        return self.inner.deployed


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    spec = PRETRAIN["byol"]
    collapsed = replace(spec, build=lambda backbone, config: Collapsing(spec.build(backbone, config)))
    monkeypatch.setitem(preparing.PRETRAIN, "byol", collapsed)


def test_a_collapse_warns_within_one_check_and_goes_on(
    collapsing: None, adapt: Adapt, images: ImageBatch, tmp_path: Path
) -> None:
    with pytest.warns(CollapseWarning, match="step 3: projections have"):
        assert adapt(dataset=images(), max_steps=9, log_every=1) == 0
    assert results(tmp_path)["steps"] == 9 and results(tmp_path)["stopped"] is None


@pytest.mark.filterwarnings("ignore::tpssl_hf.monitoring.collapse.CollapseWarning")
def test_a_collapse_stops_when_asked_and_says_why(
    collapsing: None, adapt: Adapt, images: ImageBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt(dataset=images(), max_steps=9, log_every=1, on_collapse="stop") == 0
    assert results(tmp_path)["steps"] == 3
    assert "collapsed" in results(tmp_path)["stopped"] and "collapsed" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_a_settled_run_stops_says_at_which_step_and_is_finished(
    adapt: Adapt, images: ImageBatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # with a rate of next to nothing the features stand still
    settings = {"max_steps": 60, "log_every": 1, "stop_when": "stable", "base_learning_rate": 1e-9}
    folder = images()
    assert adapt(dataset=folder, **settings) == 0
    found = results(tmp_path)
    assert 15 < found["steps"] < 60 and f"settled at step {found['steps']}" in found["stopped"]
    assert adapt(dataset=folder, **settings) == 0
    assert "holds the finished run" in capsys.readouterr().out


def test_a_run_killed_between_settling_and_its_results_does_not_train_on(
    adapt: Adapt, images: ImageBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"max_steps": 60, "log_every": 1, "stop_when": "stable", "base_learning_rate": 1e-9}
    folder = images()
    with monkeypatch.context() as patched:
        patched.setattr(command, "save_results", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            adapt(dataset=folder, **settings)
    lines = log(tmp_path)
    assert adapt(dataset=folder, **settings) == 0
    assert log(tmp_path) == lines
    assert results(tmp_path)["steps"] == lines[-1]["step"]


def test_the_decoupled_pull_moves_toward_the_start(adapt: Adapt, images: ImageBatch, tmp_path: Path) -> None:
    drifts = []
    for weight in (0.0, 2.0):
        settings = {
            "l2_weight": weight,
            "l2_mode": "decoupled",
            "base_learning_rate": 3.0,
            "max_steps": 6,
            "log_every": 6,
        }
        adapt(dataset=images(), output_dir=tmp_path / f"run{weight}", **settings)
        entry = read_metrics(tmp_path / f"run{weight}" / "metrics.jsonl")[-1]
        assert "loss_anchor" not in entry
        drifts.append(entry["drift"])
    assert drifts[1] < 0.9 * drifts[0]


def test_a_budget_chooses_batch_size_and_length_and_a_plan_only_says_so(
    adapt: Adapt,
    images: ImageBatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budget, "TIMING_SECONDS", 0.2)
    settings = {"dataset": images(70), "budget": "5m", "max_steps": None}
    assert adapt(**settings, plan="true") == 0
    said = capsys.readouterr().out
    assert "plan for 5 min" in said and "ready about" in said
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_budget_too_short_names_the_least(adapt: Adapt, images: ImageBatch) -> None:
    with pytest.raises(InputError, match="the least.*--budget"):
        adapt(dataset=images(70), budget="0.01s", max_steps=None)


def test_a_resumed_run_keeps_what_its_budget_chose(
    adapt: Adapt, images: ImageBatch, recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = budget.Plan(600.0, 8, 1.0, 3, 1.0, 1.0, 4.0)
    monkeypatch.setattr(planning, "plan_for_budget", lambda *_: (chosen, 300))
    folder = images()
    assert adapt(dataset=folder, budget="10m", max_steps=None, batch_size=None) == 0
    config = results(tmp_path)["config"]
    assert (results(tmp_path)["steps"], config["batch_size"], config["probe_images"]) == (3, 8, 300)
    assert config["base_momentum"] == 0.9 and config["base_learning_rate"] == pytest.approx(153.6, rel=0.05)
    monkeypatch.setattr(planning, "plan_for_budget", lambda *_: pytest.fail("timed again"))
    assert adapt(dataset=folder, budget="10m", max_steps=None, batch_size=None) == 0


def reach_of(optim: OptimConfig, max_steps: int, epoch_steps: int | None) -> float:
    return lars_reach(preparing.schedule(optim, max_steps, epoch_steps), max_steps)


@pytest.mark.parametrize(("name", "steps"), [("byol", 800), ("pixpro", 100), ("moco", 500), ("byol", 100_000)])
def test_a_planned_run_can_move_its_weights_and_its_target(name: str, steps: int) -> None:
    """Batch 32 in place of 256 lowers BYOL's rate eightfold: 1.5 % of the weights' length in 800 steps."""
    spec = PRETRAIN[name]
    asked = parse_pretrain(["--dataset", "x", "--method", name, "--batch_size", "32", "--max_steps", str(steps)])
    before, rate = reach_of(asked.optim, steps, 50), asked.optim.base_learning_rate
    assert rate == spec.defaults.get("base_learning_rate", 0.3)
    args, lines = planning.fit_to_length(asked, budget.Plan(600.0, 32, steps / 50, steps, 1.0, 1.0, 4.0))
    if steps == 100_000:
        assert lines == [] and args == asked, "a long run has what was asked for"
        return
    method_config = args.method
    if args.optim.optimizer == "lars":
        assert before < 0.02 and reach_of(args.optim, steps, 50) == pytest.approx(0.1, rel=0.06)
        assert any(line.startswith(f"  base_learning_rate {rate:g} -> ") for line in lines)
    else:
        assert args.optim.base_learning_rate == rate
    constant = name == "moco"
    momentum = method_config.key_momentum if constant else method_config.base_momentum
    left = math.exp(-(1 - momentum) * (1.0 if constant else 0.5) * steps)
    assert left < 0.0105 and any("momentum" in line and "its start at the end" in line for line in lines)


def test_a_run_whose_weights_can_hardly_move_says_so(
    adapt: Adapt, images: ImageBatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert adapt(dataset=images()) == 0
    said = capsys.readouterr().out
    assert "caution: at these rates LARS moves a weight tensor by 0.00% of its length in all 3 steps" in said
    rate = float(said.partition("--base_learning_rate ")[2].split()[0])
    assert adapt(dataset=images(), base_learning_rate=1.1 * rate, output_dir=tmp_path / "other") == 0
    assert "caution" not in capsys.readouterr().out


def test_a_streamed_run_is_warmed_up_over_a_tenth_of_its_steps() -> None:
    optim = OptimConfig(base_learning_rate=0.3, warmup_epochs=10.0)
    streamed, known = (preparing.schedule(optim, 1000, steps) for steps in (None, 5))
    assert [streamed(step) for step in (0, 50, 100)] == pytest.approx([0.0, 0.15, 0.3])
    assert known(50) == pytest.approx(0.3), "ten epochs of five steps"
    assert preparing.schedule(OptimConfig(base_learning_rate=0.3, warmup_epochs=0.0), 1000, None)(0) == pytest.approx(
        0.3
    )
