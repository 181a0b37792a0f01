"""A distillation through the recipes: resumed, refused, judged and told of on a card."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_teacher import save_teacher, tiny_teacher

from tpssl_hf.errors import InputError
from tpssl_hf.hub.card import render_card
from tpssl_hf.hub.config import PublishConfig
from tpssl_hf.hub.run_record import gather
from tpssl_hf.methods.pretrain.distill import Distill
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.tasks.pretrain.config import parse_pretrain
from tpssl_hf.tasks.pretrain.prepare import FIRST_PART
from tpssl_hf.verdicts import decision, paired_bootstrap

Adapt = Callable[..., int]
OWN = {"method": "distill", "queue_size": 16, "hidden_features": None, "projection_features": None}


def content(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def stop_after_forward(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = Distill.forward, iter(range(1, 100))

    def stopping(*given: Any) -> Any:
        if next(calls) == count:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(*given)

    monkeypatch.setattr(Distill, "forward", stopping)


def test_a_stopped_run_goes_on_with_its_teacher_and_with_no_other(
    adapt: Adapt,
    images: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, teacher = tmp_path / "run", save_teacher(tmp_path / "teacher", seed=7)
    settings = {"dataset": images(), "teacher": teacher, **OWN}
    with monkeypatch.context() as patch:
        stop_after_forward(2, patch)
        assert adapt(**settings) == 143
    assert "teacher: teacher/model (license: cc-by-nc-4.0), which sees 48 px" in capsys.readouterr().out
    (method,) = run.glob("checkpoints/step_2/method*")
    parts = {name.removeprefix("inner.").partition(".")[0].partition("_")[0] for name in load_file(method)}
    assert parts == {"backbone", "projector", "queue", "center", "anchor"}

    save_teacher(teacher, seed=8)
    with pytest.raises(InputError, match="step_2 was made with teacher .*give back what the run was started with"):
        adapt(**settings)
    save_teacher(teacher, seed=7)
    assert adapt(**settings) == 0
    assert adapt(**settings, output_dir=tmp_path / "unstopped") == 0
    one, other = ((folder / "model" / "model.safetensors").read_bytes() for folder in (run, tmp_path / "unstopped"))
    assert one == other
    told = content(run / "results.json")["teacher"]
    assert (told["kind"], told["name"], told["license"]) == ("folder", "teacher/model", "cc-by-nc-4.0")
    assert content(run / "model" / "config.json")["tpssl_hf"]["teacher"] == told


def test_random_weights_are_no_teacher(adapt: Adapt, images: Callable[..., Path]) -> None:
    with pytest.raises(InputError, match="distill follows a teacher, and random weights are none: add --teacher"):
        adapt(dataset=images(), **OWN)


def test_the_weights_it_starts_from_teach_by_larger_images(
    adapt: Adapt, images: Callable[..., Path], tmp_path: Path
) -> None:
    start = save_teacher(tmp_path / "start", seed=7) / "model"
    settings = {"dataset": images(), "backbone": "test_convnext", "init": str(start), **OWN}
    with pytest.raises(InputError, match="would see 48 px, which the run itself sees at 48 px"):
        adapt(**settings, image_size=48)
    assert adapt(**settings, image_size=32) == 0
    found = content(tmp_path / "run" / "results.json")
    assert found["teacher"]["weights"] == found["init"]["weights"]
    assert (found["config"]["image_size"], found["teacher"]["image_size"]) == (32, 48)


def test_timms_own_weights_teach_by_their_name() -> None:
    given = {
        "method": "distill",
        "dataset": "digits",
        "init": "timm",
        "backbone": "resnet18.a1_in1k",
        "image_size": 64,
    }
    args = parse_pretrain(given)
    assert (args.method.teacher, args.method.teacher_backbone) == ("resnet18.a1_in1k", None)
    assert parse_pretrain(given | {"teacher": "resnet50.a1_in1k"}).method.teacher == "resnet50.a1_in1k"


def test_it_begins_by_a_twentieth_of_the_images_it_sees(
    adapt: Adapt, images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    begin = Distill.begin

    def counting(method: Distill, batches: Any) -> None:
        kept = list(batches)
        seen.extend(len(batch["images"]["view1"]) for batch in kept)
        begin(method, kept)

    monkeypatch.setattr(Distill, "begin", counting)
    settings = {"dataset": images(), "teacher": tiny_teacher(), **OWN}
    assert adapt(**settings) == 0
    assert adapt(**settings, max_steps=2 * FIRST_PART, health_every=0, output_dir=tmp_path / "longer") == 0
    assert seen == [8, 8, 8], "a batch at least, then two of them"


@pytest.fixture
def distilled(adapt: Adapt, tmp_path: Path) -> Path:
    """A finished distillation on the digits."""
    assert adapt(dataset="digits", limit_images=160, teacher=tiny_teacher(), **OWN) == 0
    return tmp_path / "run"


def test_its_teacher_is_a_row_of_the_verdict_until_it_is_left_out(
    distilled: Path,
    run_recipe: Any,
    load_recipe: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decision, "CLUSTER_SEEDS", 2)
    monkeypatch.setattr(paired_bootstrap, "RESAMPLES", 500)
    recipe = load_recipe("verdict")
    asked: dict[str, Any] = {"dataset": "digits", "image_size": 32, "limit_images": 160, "labels": 20, "draws": 5}
    asked |= {"base": "random", "backbone": "test_resnet", "cache_dir": tmp_path / "cache", "adapted": distilled}
    asked |= {"feature_dir": tmp_path / "features"}
    assert run_recipe(recipe, {**asked, "output_dir": tmp_path / "found"}) == 0
    numbers = content(tmp_path / "found" / "verdict.json")
    assert [row["name"] for row in numbers["rows"]] == ["base", "base, statistics only", "run", "teacher"]
    assert ("teacher", "run") in [(entry["name"], entry["against"]) for entry in numbers["comparisons"]]
    assert numbers["weights"]["teacher"]["image_size"] == 48
    assert "| teacher" in (tmp_path / "found" / "verdict.md").read_text()
    assert run_recipe(recipe, {**asked, "teacher": "none", "output_dir": tmp_path / "none"}) == 0
    assert [row["name"] for row in content(tmp_path / "none" / "verdict.json")["rows"]][-1] == "run"
    config = content(distilled / "results.json")
    (distilled / "results.json").write_text(json.dumps(config | {"config": config["config"] | {"teacher": "gone"}}))
    with pytest.raises(InputError, match="teacher 'gone' is no timm model.* --teacher none leaves it out"):
        run_recipe(recipe, {**asked, "output_dir": tmp_path / "gone"})


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (WeightsSource("timm", "vit_small_patch14_dinov2.lvd142m", license="apache-2.0"), "timm/vit_small_patch14"),
        (WeightsSource("hub", "you/y", revision="abc123"), "[you/y](https://huggingface.co/you/y) at commit `abc123`"),
        (WeightsSource("folder", "teacher/model", license="cc-by-nc-4.0"), "`teacher/model`"),
    ],
)
def test_the_card_names_the_teacher_and_its_license(
    source: WeightsSource, shown: str, distilled: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(distilled, tmp_path / "published"))
    facts = content(run / "results.json") | {"teacher": source.as_dict()}
    (run / "results.json").write_text(json.dumps(facts))
    card = render_card(gather(run, PublishConfig(license="mit")), "me/x", frozenset())
    line = next(line for line in card.splitlines() if line.startswith("- **Teacher**: "))
    assert shown in line
    license = source.license or "not stated where it was taken from"
    assert f"Teacher: {license}; its terms may bind what was made by it." in card
