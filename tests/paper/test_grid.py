"""The grids of the paper's tables: which cells there are, which commands make them, what they print."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tpssl_hf.errors import InputError
from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.paper.cells import Cell, Stage
from tpssl_hf.paper.config import ReproduceConfig
from tpssl_hf.paper.grid import FIGURES, TABLES, Plan, figure_of, make_plan
from tpssl_hf.paper.launch import presets

CONFIGS = presets()
FILES = sorted(path.stem for path in (CONFIGS / "tables").glob("*.yaml") if path.stem != "common")


@cache
def plan(**options: Any) -> Plan:
    return make_plan(ReproduceConfig(**options), CONFIGS)


def cells(**options: Any) -> dict[str, Cell]:
    return {cell.name: cell for cell in plan(**options).cells}


def test_there_is_a_grid_for_every_table_and_figure_and_no_other() -> None:
    assert sorted([*TABLES.values(), *FIGURES.values()]) == FILES


@pytest.mark.parametrize("file", FILES)
def test_every_grid_says_what_it_needs_and_lists_a_value_for_each_printed_row(file: str) -> None:
    text = (CONFIGS / "tables" / f"{file}.yaml").read_text()
    assert "# Needs:" in text and "# Command: python recipes/reproduce.py" in text
    content = yaml.safe_load(text)
    for row, values in content.get("paper", {}).items():
        assert row in content["rows"] and len(values) <= len(content["columns"])


@pytest.mark.parametrize(
    ("table", "cell", "value"),
    [
        ("I", "random_none_mean_teacher/cifar10_40", 27.34),
        ("I", "in_sup_byol_self_tuning/cifar100_2500", 67.31),
        ("I", "in_sup_byol_fixmatch/svhn_40", 92.97),
        ("II", "in_sup_none_clmb/cityscapes_372", 70.00),
        ("II", "in_pixpro_pixpro_cutmix/voc_2pct", 61.25),
        ("III", "byol/labels_10", 77.74),
        ("IV", "l2/voc_5pct", 62.39),
        ("V", "moco_v2/mean_teacher", 69.02),
        ("V", "none/fixmatch", 75.28),
        ("VI", "svhn/cifar100", 12.12),
        ("VII", "byol/svhn_train", 15.96),
        ("VII", "none/cifar100_test", 6.74),
        ("V", "byol/linear_probe", None),
        ("I", "in_sup_none_pseudo_label/svhn_40", None),
        ("IV", "neither/voc_1pct", None),
    ],
)
def test_printed_values_are_those_of_the_paper(table: str, cell: str, value: float | None) -> None:
    assert cells(table=table)[cell].paper == value


def test_tables_of_the_paper_agree_where_they_print_the_same_cell() -> None:
    one, five, six = cells(table="I"), cells(table="V"), cells(table="VI")
    for row, start in (("none", "in_sup_none"), ("byol", "in_sup_byol")):
        for column in ("supervised", "fixmatch"):
            here, there = five[f"{row}/{column}"], one[f"{start}_{column}/cifar10_40"]
            assert here.paper == there.paper and here.stages[-1].name == there.stages[-1].name
    assert six["svhn/svhn"].paper == one["in_sup_byol_supervised/svhn_40"].paper
    assert six["svhn/svhn"].stages == one["in_sup_byol_supervised/svhn_40"].stages


def test_cells_the_paper_does_not_have_are_not_made_and_our_baselines_are() -> None:
    assert "in_sup_none_classmix/cityscapes_100" not in cells(table="II")
    assert {"none/linear_probe", "none/pseudo_label"} < cells(table="V").keys()
    assert len(cells(table="V")) == 18 and len(cells(table="I")) == 18 * 6


def test_a_target_pretraining_is_shared_by_all_its_cells() -> None:
    stages = [stage for cell in plan(table="V", scale="small").cells for stage in cell.stages]
    assert len({stage.name for stage in stages if stage.recipe == "target_pretrain"}) == 2
    finetunings = [stage for stage in stages if stage.recipe == "ssl_classify"]
    assert len({stage.name for stage in finetunings}) == len(finetunings) == 18


def test_finetuning_starts_where_the_target_pretraining_leaves_its_weights(tmp_path: Path) -> None:
    adapted, tuned = cells(table="V", init="some/weights")["byol/uda"].stages
    assert f"--output_dir={tmp_path / adapted.name}" in adapted.arguments(tmp_path)
    assert "--init=some/weights" in adapted.arguments(tmp_path)
    assert f"--init={tmp_path / adapted.name}/model" in tuned.arguments(tmp_path)


def test_the_name_of_a_run_says_its_settings_and_not_where_it_is() -> None:
    here, there = (cells(table="V", output_dir=folder)["byol/uda"].stages[-1].name for folder in ("a", "b"))
    assert here == there and here.startswith("uda_cifar10_40-")
    assert cells(table="V", scale="paper")["byol/uda"].stages[-1].name != here
    assert cells(table="V", init="other")["byol/uda"].stages[-1].name != here


def test_equal_settings_have_one_name_whether_a_preset_says_them_or_not() -> None:
    preset = CONFIGS / "ssl_classify" / "cifar10_40_paper.yaml"
    plain, explicit = (Stage("ssl_classify", preset, own, "x") for own in ({}, {"image_size": 224}))
    assert plain.name == explicit.name != Stage("ssl_classify", preset, {"image_size": 64}, "x").name


def test_the_budget_of_images_is_the_same_for_every_learner_at_small_scale() -> None:
    budgets: set[tuple[Any, ...]] = set()
    for name, cell in cells(table="V", scale="small").items():
        settings = cell.stages[-1].overrides
        budgets.add((settings["max_steps"], settings["batch_size"], settings["learning_rate"]))
        wanted = 4 if name.partition("/")[2] in ("fixmatch", "uda", "pseudo_label") else None  # else the learner's own
        assert settings.get("unlabeled_ratio") == wanted and settings["label_seeds"] == "1,2,3"
        assert "--learning_rate=null" in cell.stages[-1].arguments(Path("runs"))  # the default's, not the preset's
    assert len(budgets) == 1


def test_other_weights_bring_their_architecture_to_every_command() -> None:
    options = {"table": "V", "scale": "small", "backbone": "tf_efficientnet_lite0", "init": "some/weights"}
    for stage in cells(**options)["byol/uda"].stages:
        assert stage.overrides["backbone"] == "tf_efficientnet_lite0"
    assert all("backbone" not in stage.overrides for stage in cells(table="V", scale="paper")["byol/uda"].stages)


@pytest.mark.parametrize(("scale", "asked", "handed_on"), [("small", None, "best"), ("small", "last", "last")])
def test_small_cells_adapt_with_the_defaults_or_keep_the_last(scale: str, asked: str | None, handed_on: str) -> None:
    adapted, tuned = cells(table="V", scale=scale, select=asked)["moco_v2/uda"].stages
    assert adapted.overrides["select"] == handed_on and "select" not in tuned.overrides
    for name in ("optimizer", "base_learning_rate"):
        assert f"--{name}=null" in adapted.arguments(Path("runs"))


def test_random_weights_are_not_pulled_back() -> None:
    adapted = cells(table="I", scale="paper")["random_byol_fixmatch/svhn_40"].stages[0]
    assert (adapted.overrides["init"], adapted.overrides["l2_weight"]) == ("random", 0)


def test_figure_3_finetunes_from_snapshots_of_one_run() -> None:
    found = cells(figure="3", scale="paper")
    assert len(found["labels_250/epoch_0"].stages) == 1
    adapted, snapshots, tuned = found["labels_4000/epoch_150"].stages
    assert tuned.overrides["init"].endswith("/snapshots/step_29250") and tuned.overrides["labels"] == "4000"
    assert snapshots.overrides["run"] == f"{{runs}}/{adapted.name}"
    assert len({cell.stages[0].name for cell in found.values() if len(cell.stages) > 1}) == 1


def test_smoke_needs_neither_data_nor_weights() -> None:
    for name in TABLES:
        made = plan(table=name, scale="smoke")
        assert not made.downloads and not any(cell.missing for cell in made.cells)
        starts = {stage.overrides["init"] for cell in made.cells for stage in cell.stages if "init" in stage.overrides}
        assert all(start == "random" or start.startswith("{runs}") for start in starts)


def test_missing_data_are_named_by_cell_and_can_be_given(tmp_path: Path) -> None:
    made = plan(table="II", scale="paper")
    found = {cell.name: cell.missing for cell in made.cells}
    assert found["in_pixpro_pixpro_cutmix/voc_1pct"] == ("VOCdevkit", "in_pixpro", "voc_train_aug")
    assert found["in_sup_none_cutmix/cityscapes_100"] == ("cityscapes",)
    assert all(name in made.sources for names in found.values() for name in names)
    given = cells(table="II", init_pixpro="p.safetensors", dataset_paths=f"VOCdevkit={tmp_path}")
    cell = given["in_pixpro_none_cutmix/voc_1pct"]
    assert not cell.missing and cell.stages[0].overrides["dataset"] == str(tmp_path)
    assert plan(table="V").downloads == ("cifar10",) and not plan(table="V", dataset=str(tmp_path)).downloads


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "neither of --table and --figure"),
        ({"table": "I", "figure": "1"}, "both of --table and --figure"),
        ({"table": "VIII"}, "table 'VIII' is not one of I, II"),
        ({"figure": "2"}, "figure '2' is not one of 1, 3"),
        ({"table": "V", "cells": "byol/fixmtach"}, "no cell is called 'byol/fixmtach'; the cells are none/supervised"),
        ({"table": "V", "dataset_paths": "svhn=x"}, "the data sets of this table are: cifar10"),
        ({"table": "V", "dataset_paths": "cifar10"}, "is not NAME=PATH"),
        ({"table": "I", "dataset": "x"}, "this table has 3"),
        ({"table": "V", "dataset": "/nowhere/at/all"}, "there is no such folder"),
    ],
)
def test_bad_input_is_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        plan(**options)


def test_tables_are_named_by_numerals_of_either_kind_and_cells_by_patterns() -> None:
    assert plan(table="5") == plan(table="v") == plan(table="V")
    assert list(cells(table="V", cells="byol/*,none/uda")) == [
        "none/uda",
        *(f"byol/{c}" for c in ("supervised", "fixmatch", "uda", "mean_teacher", "linear_probe", "pseudo_label")),
    ]


def write(folder: Path, stage: Stage, content: dict[str, Any]) -> None:
    (folder / stage.name).mkdir(parents=True)
    (folder / stage.name / stage.produces).write_text(json.dumps(content))


def test_a_value_is_read_from_draws_from_one_run_or_from_an_analysis(tmp_path: Path) -> None:
    cell = cells(table="V")["none/uda"]
    assert cell.outcome(tmp_path, "accuracy")["finished"] is False
    write(tmp_path, cell.stages[0], {"accuracy": {"values": [0.5, 0.7]}, "seconds": 3.0})
    outcome = cell.outcome(tmp_path, "accuracy")
    assert outcome["values"] == [50.0, 70.0] and outcome["mean"] == 60.0 and outcome["seconds"] == [3.0]
    assert outcome["standard_deviation"] == pytest.approx(14.142, abs=1e-3)
    assert outcome["half_interval"] == pytest.approx(127.06, abs=0.01)  # 12.706 · 14.142 / √2: two draws say little
    one = cells(table="III")["none/labels_10"]
    write(tmp_path, one.stages[0], {"metrics": {"mean_iou": 0.25}, "seconds": 1.0})
    assert one.outcome(tmp_path, "mean_iou")["mean"] == 25.0
    seven = cells(table="VII")
    table = [
        {"model": model, "split": split, "seed": seed, "value": value + seed / 10}
        for model, split, value in (("base", "train", 0.1), ("base", "test", 0.2), ("adapted", "train", 0.3))
        for seed in (0, 1)
    ]
    write(tmp_path, seven["none/cifar10_train"].stages[-1], {"table": table, "seconds": 2.0})
    assert seven["none/cifar10_train"].outcome(tmp_path, "accuracy")["values"] == pytest.approx([10.0, 20.0])
    assert seven["byol/cifar10_train"].outcome(tmp_path, "accuracy")["mean"] == pytest.approx(35.0)


def test_the_figure_is_drawn_of_what_is_finished(tmp_path: Path) -> None:
    made = plan(figure="3", scale="smoke")
    assert figure_of(made, tmp_path) is None and figure_of(plan(table="V"), tmp_path) is None
    found = {cell.name: cell.stages for cell in made.cells}
    for name in ("labels_250/epoch_0", "labels_250/epoch_50"):
        write(tmp_path, found[name][-1], {})
    stage = figure_of(made, tmp_path)
    assert stage is not None and stage.overrides["runs"] == f"{{runs}}/{found['labels_250/epoch_50'][-1].name}"


@pytest.mark.parametrize("scale", ["paper", "small", "smoke"])
@pytest.mark.parametrize(
    ("table", "name", "plain"),
    [
        ("II", "in_pixpro_bn_only_supervised/voc_2pct", "in_pixpro_none_supervised/voc_2pct"),
        ("II", "in_pixpro_bn_only_cutmix/cityscapes_100", "in_pixpro_none_cutmix/cityscapes_100"),
        ("IV", "bn_only/voc_1pct", "none/voc_1pct"),
    ],
)
def test_a_control_row_has_the_statistics_of_adapted_rows_and_the_weights_of_the_others(
    table: str, name: str, plain: str, scale: Any
) -> None:
    found = cells(table=table, scale=scale, init_pixpro="p.safetensors")
    (untouched, tuned), (start,) = found[name].stages, found[plain].stages
    assert (untouched.recipe, untouched.overrides["base_learning_rate"], untouched.overrides["max_steps"]) == (
        "target_pretrain",
        0.0,
        1,
    )
    assert untouched.overrides["init"] == start.overrides["init"] and untouched.name.startswith("bn_only_")
    assert {**tuned.overrides, "init": None} == {**start.overrides, "init": None}


def test_the_learners_of_table_2_have_their_own_codes_numbers() -> None:
    found = cells(table="II", scale="paper")
    for column, labels, classes in (("voc_2pct", 212, 21), ("voc_5pct", 529, 21), ("cityscapes_100", 100, 0)):
        settings = found[f"in_sup_none_clmb/{column}"].stages[-1].overrides
        rule = max(1, int(classes / 3 * round(256 / labels)) if classes else round(256 / labels))
        assert settings["bank_rows_per_image"] == str(rule)
        assert (settings["mix_background"], settings["batch_size"]) == (("False", "20") if classes else ("True", "7"))
    assert found["in_sup_none_clmb/cityscapes_372"].stages[-1].overrides["bank_rows_per_image"] == "1"
    assert found["in_sup_none_classmix/voc_1pct"].stages[-1].overrides["batch_size"] == 10
    assert SEGMENT["classmix"].defaults["unlabeled_ratio"] == 1
