import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tpssl_hf.analysis.figures import draw_convergence, draw_stages, draw_steps
from tpssl_hf.analysis.finished_runs import (
    convergence_curves,
    find_runs,
    missing_commands,
    steps_of_runs,
    transfer_table,
)
from tpssl_hf.errors import InputError


def make_run(
    folder: Path,
    *,
    start: str = "base/model",
    dataset: str = "cifar10",
    accuracies: tuple[float, ...] = (0.5,),
    labels: int | str = 40,
    sha: str | None = "a",
    curve: bool = False,
    **config: Any,
) -> Path:
    """Write what a finished run of ssl_classify leaves, as far as it is read here."""
    folder.mkdir(parents=True)
    settings = {"method": "supervised", "backbone": "resnet18", "labels": labels, "init": f"/runs/{start}", **config}
    results: dict[str, Any] = {
        "recipe": "ssl_classify",
        "dataset": {"name": dataset},
        "init": {"kind": "folder", "name": start, "sha256": sha},
        "config": settings,
    }
    one = len(accuracies) == 1
    results |= {"metrics": {"accuracy": accuracies[0]}} if one else {"accuracy": {"values": list(accuracies)}}
    (folder / "results.json").write_text(json.dumps(results))
    for number, value in enumerate(accuracies if curve else ()):
        place = folder if one else folder / f"label_seed_{number}"
        place.mkdir(exist_ok=True)
        lines = [{"step": s, "epoch": s / 10, "loss": 1.0, "test_accuracy": value * s / 30} for s in (10, 20, 30)]
        lines.insert(1, {"step": 15, "epoch": 1.5, "loss": 1.0})
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def runs_below(folder: Path) -> Any:
    return find_runs(f"{folder}/*")


def test_runs_are_found_by_name_or_pattern_with_one_score_for_each_draw(tmp_path: Path) -> None:
    one = make_run(tmp_path / "one")
    two = make_run(tmp_path / "two", accuracies=(0.4, 0.6, 0.5), dataset="svhn")
    found = find_runs(f"{one}, {two}")
    assert [run.accuracies for run in found] == [[0.5], [0.4, 0.6, 0.5]]
    assert [run.task for run in found] == ["cifar10@40", "svhn@40"]
    assert [run.folder for run in runs_below(tmp_path)] == [one, two]


def test_the_table_has_starts_as_rows_and_says_how_to_fill_what_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path / "a", start="base/model", dataset="cifar10")
    make_run(tmp_path / "b", start="base/model", dataset="svhn", accuracies=(0.2, 0.3))
    make_run(tmp_path / "c", start="on_svhn/model", dataset="svhn", sha="b")
    table = transfer_table(runs_below(tmp_path))
    assert list(table) == ["base/model", "on_svhn/model"]
    assert table["base/model"]["svhn@40"].accuracies == [0.2, 0.3] and list(table["on_svhn/model"]) == ["svhn@40"]
    commands = missing_commands(table)
    assert len(commands) == 1
    words = commands[0].split()
    assert words[words.index("--config") + 1] == str(tmp_path / "a" / "config.yaml")
    assert words[words.index("--init") + 1] == "/runs/on_svhn/model"
    assert words[words.index("--output_dir") + 1] == str(tmp_path / "on_svhn_model_on_cifar10@40")


def test_a_full_table_misses_nothing(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    assert missing_commands(transfer_table(runs_below(tmp_path))) == []


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"method": "fixmatch", "dataset": "svhn"}, "mix method supervised"),
        ({"backbone": "resnet50", "dataset": "svhn"}, "mix backbone resnet18"),
        ({}, "both finetune base/model on cifar10@40"),
        ({"sha": "b", "dataset": "svhn"}, "different weights that are both called base/model"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(second: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", **second)
    with pytest.raises(InputError, match=sentence):
        transfer_table(runs_below(tmp_path))


def test_folders_that_hold_no_scored_run_are_refused_by_name(tmp_path: Path) -> None:
    for nothing in (None, "", str(tmp_path / "none*")):
        with pytest.raises(InputError, match="names no folder"):
            find_runs(nothing)
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(InputError, match="unfinished holds no readable results.json"):
        runs_below(tmp_path)
    (tmp_path / "unfinished" / "results.json").write_text("{")
    with pytest.raises(InputError, match="holds no readable results.json"):
        runs_below(tmp_path)
    (tmp_path / "unfinished" / "results.json").write_text('{"recipe": "target_pretrain"}')
    with pytest.raises(InputError, match="is a run of target_pretrain"):
        runs_below(tmp_path)
    (tmp_path / "unfinished" / "results.json").write_text('{"recipe": "ssl_classify", "metrics": {}}')
    with pytest.raises(InputError, match="has no score"):
        runs_below(tmp_path)
    for several in ({"metrics": {"mean_average_precision": 0.5}}, {"mean_average_precision": {"values": [0.5]}}):
        (tmp_path / "unfinished" / "results.json").write_text(json.dumps({"recipe": "ssl_classify", **several}))
        with pytest.raises(InputError, match="is a run of several labels an image and has no accuracy to compare"):
            runs_below(tmp_path)


def test_steps_are_read_from_the_snapshots_that_runs_started_from(tmp_path: Path) -> None:
    for step in (100, 20, 0):
        for labels in (40, 250):
            make_run(
                tmp_path / f"{step}_{labels}", labels=labels, init=f"/s/step_{step}", accuracies=(step / 200, 0.1)
            )
    series = steps_of_runs(runs_below(tmp_path))
    assert sorted(series) == ["cifar10@250", "cifar10@40"]
    assert list(series["cifar10@40"]) == [0, 20, 100] and series["cifar10@40"][20] == [0.1, 0.1]


@pytest.mark.parametrize(
    ("init", "sentence"),
    [
        ("/s/model", "must start from snapshots"),
        ("/other/step_30", "must start from snapshots of one"),
        ("/s/step_20", "two of --runs finetune step 20"),
    ],
)
def test_steps_of_other_starts_are_refused(init: str, sentence: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a", init="/s/step_20")
    make_run(tmp_path / "b", init=init)
    with pytest.raises(InputError, match=sentence):
        steps_of_runs(runs_below(tmp_path))


def test_curves_come_from_every_draw_of_labels(tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracies=(0.3, 0.6), curve=True)
    make_run(tmp_path / "b", start="resnet18_tin", curve=True)
    curves = convergence_curves(runs_below(tmp_path))
    assert [curve.epochs for curve in curves] == [[1.0, 2.0, 3.0]] * 3
    assert [curve.adapted for curve in curves] == [True, True, False]
    assert curves[1].accuracies == pytest.approx([0.2, 0.4, 0.6])
    assert curves[0].group == "cifar10@40" and curves[0].title == "supervised from base/model"


def test_a_run_without_a_curve_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    with pytest.raises(InputError, match="--evaluate_every 1"):
        convergence_curves(runs_below(tmp_path))


def test_figures_are_drawn(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", accuracies=(0.3, 0.6), curve=True)
    make_run(tmp_path / "runs" / "b", dataset="svhn", curve=True)
    draw_convergence(tmp_path / "convergence.png", convergence_curves(runs_below(tmp_path / "runs")))
    draw_steps(tmp_path / "steps.png", {"a": {0: [0.5], 30: [0.5, 0.7]}}, title="steps", untouched={"a": 0.4})
    draw_stages(tmp_path / "drift.png", {"m": {"layer1": 0.1, "rest": 0.2}}, {"m": {"layer1": 0.9}})
    for name in ("convergence", "steps", "drift"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 300
