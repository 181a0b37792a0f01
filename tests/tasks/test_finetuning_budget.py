from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from tpssl_hf.methods.segment import SEGMENT
from tpssl_hf.tasks import finetuning_budget as planning
from tpssl_hf.tasks.classify import budget as classify
from tpssl_hf.tasks.classify.config import ClassifyArgs, parse_classify
from tpssl_hf.tasks.finetuning_budget import BudgetedTask, Costs, plan_for_budget, with_plan
from tpssl_hf.tasks.finetuning_plan import FinetuningPlan, StepBatch
from tpssl_hf.tasks.segment import budget as segment
from tpssl_hf.tasks.segment.config import SegmentArgs, parse_segment

SECONDS = {StepBatch(16, 4): 1.0, StepBatch(32, 7): 3.0, StepBatch(64, 7): 6.0}


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> BudgetedTask[ClassifyArgs, Any]:
    """Classification with ten minutes of evaluation, a second beside each step, and steps that are not made."""
    monkeypatch.setattr(planning, "measure_seconds_per_step", lambda _, batch: SECONDS[batch] - 1.0)
    costs = Costs(600.0, lambda batch: 1.0, lambda batch: 100_000)
    return replace(classify.TASK, prepare=lambda *_: None, costs=lambda _: costs)


def asked(*line: str) -> ClassifyArgs:
    return parse_classify(["--dataset", "x", "--image_size", "32", "--budget", "2h", *line])


@pytest.mark.parametrize(
    ("seeds", "trainings", "batch", "steps"),
    [("1", 1, StepBatch(32, 7), 1_959), ("1", 2, StepBatch(16, 4), 2_939), ("1,2,3", 1, StepBatch(16, 4), 1_559)],
)
def test_label_seeds_and_trainings_share_the_budget(
    seeds: str,
    trainings: int,
    batch: StepBatch,
    steps: int,
    task: BudgetedTask[ClassifyArgs, Any],
    accelerator: Accelerator,
) -> None:
    """Of two hours 6480 s are planned with, less ten minutes for each seed."""
    found = plan_for_budget(asked("--label_seeds", seeds), accelerator, task, trainings)
    assert found.batch == batch and found.max_steps in (steps, steps + 1)


def test_a_batch_for_which_memory_runs_out_is_passed_over(
    task: BudgetedTask[ClassifyArgs, Any], accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(_: Any, batch: StepBatch) -> float:
        if batch.batch_size > 16:
            raise torch.OutOfMemoryError
        return 0.0

    monkeypatch.setattr(planning, "measure_seconds_per_step", measured)
    assert plan_for_budget(asked(), accelerator, task).batch == StepBatch(16, 4)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", [(16, 4), (32, 7), (64, 7)]),
        ("--batch_size 64", [(64, 4), (64, 7)]),
        ("--batch_size 8", [(8, 4), (8, 7)]),
        ("--unlabeled_ratio 7", [(16, 7), (32, 7), (64, 7)]),
        ("--batch_size 8 --unlabeled_ratio 2", [(8, 2)]),
        ("--method supervised", [(16, 0), (32, 0), (64, 0)]),
        ("--method mean_teacher", [(16, 1), (32, 1), (64, 1)]),
        ("--method self_tuning", [(16, 1), (24, 1)]),
    ],
)
def test_a_classification_chooses_from_what_is_not_given(line: str, found: list[tuple[int, int]]) -> None:
    args = parse_classify(["--dataset", "x", "--budget", "15m", *line.split()])
    assert classify.batches(args, 1) == [StepBatch(*batch) for batch in found]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("--method cutmix", [(4, 2), (8, 2), (20, 2)]),
        ("--method supervised", [(4, 0), (8, 0), (20, 0)]),
        ("--method classmix", [(4, 1), (8, 1), (10, 1)]),
        ("--method unimatch", [(4, 1), (8, 1)]),
        ("--method cutmix --batch_size 6", [(6, 2)]),
    ],
)
def test_a_segmentation_chooses_from_what_is_not_given(line: str, found: list[tuple[int, int]]) -> None:
    args = parse_segment(["--dataset", "x", "--budget", "15m", *line.split()])
    assert segment.batches(args, 1) == [StepBatch(*batch) for batch in found]


@pytest.mark.parametrize(
    ("line", "rate"),
    [
        ("--init timm", 0.002),
        ("--init timm --batch_size 32", 0.004),
        ("--init random", 0.0075),
        ("--learning_rate 0.3", 0.3),
        ("--method self_tuning", 0.001),
    ],
)
def test_the_learning_rate_follows_the_batch_unless_it_is_given(line: str, rate: float) -> None:
    args = parse_classify(["--dataset", "x", "--image_size", "32", "--budget", "15m", *line.split()])
    found = with_plan(args, classify.TASK, StepBatch(16, 4), 300)
    assert found.optim.learning_rate == rate
    assert (found.optim.max_steps, found.optim.unlabeled_ratio) == (300, 4)


def test_without_a_budget_nothing_is_left_open() -> None:
    args = parse_classify(["--dataset", "x", "--image_size", "32"])
    assert (args.optim.batch_size, args.optim.unlabeled_ratio) == (64, 7) and args.optim.learning_rate


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", ("adamw", 1e-5, 1.0, "constant")),
        ("--max_steps 60000", ("adamw", 1e-5, 1.0, "constant")),
        ("--max_steps 10000", ("adamw", 4e-5, 10.0, "poly")),
        ("--max_steps 300", ("adamw", 3e-4, 10.0, "poly")),
        ("--max_steps 300 --learning_rate 0.02 --schedule constant", ("adamw", 0.02, 10.0, "constant")),
        ("--method classmix", ("sgd", 2.5e-4, 10.0, "poly")),
        ("--method classmix --max_steps 300", ("adamw", 3e-4, 10.0, "poly")),
        ("--method clmb --max_steps 300 --optimizer sgd", ("sgd", 2e-4, 1.0, "poly")),
    ],
)
def test_a_short_segmentation_has_a_rate_that_moves_its_decoder(
    line: str, expected: tuple[str, float, float, str]
) -> None:
    optim = parse_segment(["--dataset", "x", *line.split()]).optim
    assert (optim.optimizer, optim.learning_rate, optim.head_lr_multiplier, optim.schedule) == expected


def test_the_rate_of_a_segmentation_follows_the_length_a_budget_chose() -> None:
    args = parse_segment(["--dataset", "x", "--budget", "15m", "--method", "cutmix"])
    assert args.optim.learning_rate is None
    assert with_plan(args, segment.TASK, StepBatch(4, 2), 10_000).optim.learning_rate == 4e-5


@pytest.mark.parametrize(
    ("device", "line", "expected"),
    [
        ("cpu", "", (128, 128, 64)),
        ("cpu", "--crop_height 96 --decoder_width 32", (96, 128, 32)),
        ("cuda", "", (321, 321, 256)),
        ("cuda", "--crop_width 512", (321, 512, 256)),
    ],
)
def test_a_budget_on_a_cpu_takes_small_crops(device: str, line: str, expected: tuple[int, int, int]) -> None:
    args = parse_segment(["--dataset", "x", "--budget", "15m", *line.split()])
    choice = segment.with_sizes(args, torch.device(device)).task
    assert (choice.crop_height, choice.crop_width, choice.decoder_width) == expected


@pytest.mark.parametrize(
    ("line", "steps", "method", "ratio"),
    [
        ("", 1_000, "supervised", 0),
        ("", 3_000, "cutmix", 2),
        ("--method cutmix", 1_000, "cutmix", 2),
        ("--unlabeled_ratio 2", 1_000, "cutmix", 2),
        ("--confidence 0.9", 1_000, "cutmix", 2),
    ],
)
def test_a_budget_too_short_for_unlabeled_images_goes_into_steps_with_masks(
    line: str, steps: int, method: str, ratio: int, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned(args: SegmentArgs, *_: Any) -> FinetuningPlan:
        return FinetuningPlan(900.0, segment.batches(args, 1)[-1], steps, 1, False, 0.5, 10.0, 600.0)

    monkeypatch.setattr(planning, "plan_for_budget", planned)
    args = parse_segment(["--dataset", "x", "--budget", "15m", *line.split()])
    found = segment.apply_time_budget(args, accelerator)
    assert (found.task.method, found.optim.unlabeled_ratio) == (method, ratio)
    assert found.optim.max_steps == steps and SEGMENT[method].config is type(found.method)


def test_a_run_that_has_begun_keeps_the_method_that_its_budget_had_chosen(
    accelerator: Accelerator, tmp_path: Path
) -> None:
    args = parse_segment({"dataset": "x", "budget": "15m", "output_dir": str(tmp_path)})
    for method in ("supervised", "cutmix"):
        begun = f"method: {method}\nbudget: 15m\nmax_steps: 7\nbatch_size: 4\nunlabeled_ratio: 2\n"
        (tmp_path / "config.yaml").write_text(begun)
        assert segment.apply_time_budget(args, accelerator).task.method == method
