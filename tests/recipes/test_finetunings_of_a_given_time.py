"""Finetunings of a given time, through the recipes, in this process on tiny backbones."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tpssl_hf.errors import InputError
from tpssl_hf.monitoring.pseudo_labels import NeverAcceptedWarning
from tpssl_hf.tasks import finetuning_budget as planning
from tpssl_hf.tasks import time_budget
from tpssl_hf.tasks.classify import report as classify_report
from tpssl_hf.tasks.classify import run as classify_run
from tpssl_hf.tasks.finetuning_plan import FinetuningPlan, StepBatch
from tpssl_hf.tasks.segment import report as segment_report
from tpssl_hf.tasks.segment import run as segment_run

Learn = Callable[..., int]
TINY = {
    "ssl_classify": {"dataset": "digits", "labels": 20, "image_size": 32, "work_size": 16, "limit_images": 300},
    "ssl_segment": {"dataset": "digit_scenes", "labels": 4, "shorter_side": 64, "crop_height": 32, "crop_width": 32},
}
TINY["ssl_segment"] |= {"limit_images": 20, "decoder_width": 16}


@pytest.fixture
def learn(
    run_recipe: Any,
    load_recipe: Callable[[str], Any],
    shared_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Learn:
    """Run a recipe in this process with these settings; a setting of None is left out."""
    monkeypatch.setattr(time_budget, "TIMING_SECONDS", 0.05)
    drawn = [(module, "draw_views") for module in (classify_run, segment_run)]
    drawn += [(module, "draw_curves") for module in (classify_report, segment_report)]
    drawn += [(classify_report, "draw_pseudo_labels"), (segment_report, "draw_predictions")]
    for module, name in drawn:
        monkeypatch.setattr(module, name, lambda path, *_, **__: path.touch())
    shared = {"backbone": "test_resnet", "limit_test_images": 12, "log_every": 1, "precision": "fp32"}
    shared |= {"cache_dir": shared_cache, "output_dir": tmp_path / "run"}

    def run(recipe: str, **settings: Any) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NeverAcceptedWarning)  # a few steps accept nothing
            code: int = run_recipe(load_recipe(recipe), TINY[recipe] | shared | settings)
        return code

    return run


def config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())["config"]
    return found


def a_plan(batch: StepBatch) -> FinetuningPlan:
    return FinetuningPlan(600.0, batch, 3, 1, False, 1.0, 1.0, 4.0)


def test_a_budget_learns_the_digits_as_a_run_of_what_it_chose_does(
    learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of epochs is still the most, so that this ends soon."""
    assert learn("ssl_classify", budget="10h", epochs=1, unlabeled_ratio=1) == 0
    said = capsys.readouterr().out
    assert "plan for 10 h: 2 times 1 steps of 64 labeled and 64 unlabeled images" in said
    assert "as long as a run without a budget would be\n  learning_rate 0.03" in said
    names = ("batch_size", "unlabeled_ratio", "max_steps", "learning_rate")
    chosen = {name: config(tmp_path / "run")[name] for name in names}
    assert chosen == {"batch_size": 64, "unlabeled_ratio": 1, "max_steps": 1, "learning_rate": 0.03}
    assert config(tmp_path / "run")["budget"] == "10h"
    assert learn("ssl_classify", **chosen, output_dir=tmp_path / "same") == 0
    weights = [load_file(tmp_path / folder / "model" / "model.safetensors") for folder in ("run", "same")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("recipe", sorted(TINY))
def test_a_plan_only_says_what_would_be_done(
    recipe: str, learn: Learn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"batch_size": 4, "unlabeled_ratio": 2}
    assert learn(recipe, budget="2h", plan="true", **given) == 0
    said = capsys.readouterr().out
    assert "plan for 2 h" in said and "steps of 4 labeled and 8 unlabeled images" in said and "ready about" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", sorted(TINY))
@pytest.mark.parametrize(
    ("budget", "sentence"), [("0.01s", "the least.*--budget"), ("soon", "'soon' is not a duration")]
)
def test_a_budget_that_cannot_be_kept_is_one_sentence(recipe: str, budget: str, sentence: str, learn: Learn) -> None:
    with pytest.raises(InputError, match=sentence):
        learn(recipe, budget=budget, batch_size=4, unlabeled_ratio=2)


@pytest.mark.parametrize("recipe", sorted(TINY))
def test_a_resumed_run_keeps_what_its_budget_chose(
    recipe: str, learn: Learn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planning, "plan_for_budget", lambda *_: a_plan(StepBatch(2, 4)))
    assert learn(recipe, budget="10m", max_steps=500) == 0
    found = config(tmp_path / "run")
    assert (found["batch_size"], found["unlabeled_ratio"], found["max_steps"]) == (2, 4, 3)
    monkeypatch.setattr(planning, "plan_for_budget", lambda *_: pytest.fail("timed again"))
    capsys.readouterr()
    assert learn(recipe, budget="10m", max_steps=500) == 0
    said = capsys.readouterr().out
    assert "keeps its plan: 3 steps of 2 labeled and 8 unlabeled images" in said
    assert "holds the finished run of these settings" in said
    with pytest.raises(InputError, match="batch_size 2 -> 4"):
        learn(recipe, budget="10m", batch_size=4)
