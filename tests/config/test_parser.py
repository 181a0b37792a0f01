from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from tpssl_hf.analysis.config import AnalyzeConfig
from tpssl_hf.config.parser import Methods, carry_out_keys, flat, from_flat, key, parse_args
from tpssl_hf.config.shared import DataConfig, ModelConfig, OptimConfig, PushConfig, RunConfig, TimeConfig
from tpssl_hf.errors import InputError
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.tasks.classify.config import ClassifyArgs, ClassifyConfig
from tpssl_hf.tasks.pretrain.config import METHODS, HealthConfig, PretrainArgs, PretrainConfig
from tpssl_hf.tasks.segment.config import SegmentArgs

SHARED = [PretrainConfig, HealthConfig, TimeConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, PushConfig]


def parse(*arguments: str) -> dict[str, Any]:
    return flat(parse_args(PretrainArgs, list(arguments), methods=METHODS))


@dataclass(frozen=True)
class LabelArgs:
    """Arguments of one group."""

    task: ClassifyConfig


@dataclass(frozen=True)
class AnalysisArgs:
    """Arguments of one group."""

    task: AnalyzeConfig


def test_defaults_are_those_of_the_dataclasses() -> None:
    args = parse_args(PretrainArgs, ["--method", "byol"], methods=METHODS)
    assert (args.optim, args.data, args.method) == (OptimConfig(), DataConfig(), PRETRAIN["byol"].config())


def test_flat_keys_and_arguments_are_two_forms_of_one_thing() -> None:
    args = parse_args(PretrainArgs, ["--method", "moco", "--queue_size", "64"], methods=METHODS)
    assert from_flat(PretrainArgs, flat(args), PRETRAIN["moco"].config) == args
    assert flat(args)["queue_size"] == 64 == args.method.queue_size
    with pytest.raises(FrozenInstanceError):
        args.optim.batch_size = 3  # type: ignore[misc]


def test_file_beats_default_and_command_line_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("image_size: 64\nbase_learning_rate: 1e-3\n")
    values = parse("--config", str(file), "--image_size", "96")
    assert values["image_size"] == 96
    assert values["base_learning_rate"] == 1e-3


def test_an_exponent_in_a_file_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("weight_decay: 1e-6\n")
    assert parse("--config", str(file))["weight_decay"] == 1e-6


@pytest.mark.parametrize("arguments", [["--image_sise", "64"], ["--image_sise=64"]])
def test_an_unknown_key_is_refused_with_the_nearest_known_one(arguments: list[str]) -> None:
    with pytest.raises(InputError, match="'image_sise'.*'image_size'"):
        parse(*arguments)


def test_an_unknown_key_in_a_file_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("base_learning_rte: 0.1\n")
    with pytest.raises(InputError, match="'base_learning_rte'.*'base_learning_rate'"):
        parse("--config", str(file))


@pytest.mark.parametrize(
    "arguments", [["--image_size", "seven"], ["--optimizer", "adagrad"], ["--epochs", "1.5"], ["stray"]]
)
def test_a_wrong_value_is_one_sentence(arguments: list[str]) -> None:
    with pytest.raises(InputError) as refused:
        parse(*arguments)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["- a list\n", "a: [unclosed\n", "just text\n"])
def test_a_file_that_is_no_flat_mapping_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match="a.yaml"):
        parse("--config", str(file))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(InputError, match="nowhere.yaml"):
        parse("--config", "nowhere.yaml")


def test_a_switch_needs_no_value() -> None:
    assert parse("--streaming")["streaming"] is True
    assert parse("--streaming", "false")["streaming"] is False
    assert parse("--horizontal_flip")["horizontal_flip"] is True


def test_every_key_is_unique_over_the_shared_groups_and_each_method() -> None:
    for spec in PRETRAIN.values():
        names = [item.name for group in [*SHARED, spec.config] for item in fields(group)]
        assert len(names) == len(set(names))


@dataclass(frozen=True)
class Twin:
    """Twin."""

    image_size: int = key(1, "again")


@dataclass(frozen=True)
class TwinArgs:
    """Two groups that declare one key."""

    data: DataConfig
    twin: Twin


def test_two_groups_with_one_key_are_a_bug() -> None:
    with pytest.raises(ValueError, match="image_size"):
        parse_args(TwinArgs, [])


def test_every_key_has_a_help_sentence() -> None:
    for group in [*SHARED, *(spec.config for spec in PRETRAIN.values())]:
        for item in fields(group):
            assert item.metadata["help"].endswith("."), item.name


@pytest.mark.parametrize("args_type", [PretrainArgs, ClassifyArgs, SegmentArgs])
def test_keys_that_may_change_on_resume_say_only_how_a_run_is_carried_out(args_type: type) -> None:
    hub = {item.name for item in fields(PushConfig)}
    run = {"output_dir", "resume", "save_every", "keep_checkpoints", "log_with", "plan"}
    assert carry_out_keys(args_type) == hub | run | {"num_workers", "cache_dir", "cache_budget", "memory_format"}


@dataclass(frozen=True)
class Other:
    """Other."""

    temperature: float = key(0.2, "Temperature.")


def test_the_method_brings_its_own_keys_and_defaults(tmp_path: Path) -> None:
    methods = Methods({"byol": (PRETRAIN["byol"].config, {}), "other": (Other, {"base_learning_rate": 0.03})}, "byol")

    def args(*arguments: str) -> PretrainArgs:
        return parse_args(PretrainArgs, list(arguments), methods=methods)

    assert args("--method", "other").method == Other() and args("--method", "other").optim.base_learning_rate == 0.03
    file = tmp_path / "a.yaml"
    file.write_text("method: other\nbase_learning_rate: 0.5\n")
    read = args("--config", str(file))
    assert (read.task.method, read.optim.base_learning_rate) == ("other", 0.5)
    assert args("--config", str(file), "--method=byol").task.method == "byol"
    with pytest.raises(InputError, match="'nope'.*byol, other"):
        args("--method", "nope")


@pytest.mark.parametrize("written", ["1,2,3", "[1,2,3]", "[1, 2, 3]", " 1, 2 ,3"])
def test_several_numbers_are_written_with_commas_or_as_a_list(written: str, tmp_path: Path) -> None:
    def seeds(*arguments: str) -> Any:
        return parse_args(LabelArgs, list(arguments)).task.label_seeds

    (tmp_path / "run.yaml").write_text(f"label_seeds: {written}\n")
    assert seeds(f"--label_seeds={written}") == seeds(f"--config={tmp_path / 'run.yaml'}") == [1, 2, 3]
    (tmp_path / "run.yaml").write_text("label_seeds: 7\n")
    assert seeds(f"--config={tmp_path / 'run.yaml'}") == seeds("--label_seeds", "7") == [7] and seeds() is None


@pytest.mark.parametrize("written", ["1,1", "[1, a]", "[1, -2]", "1.5", "[[1], 2]"])
def test_what_is_no_list_of_numbers_is_one_sentence(written: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"label_seeds: {written}\n")
    with pytest.raises(InputError, match="label_seeds"):
        parse_args(LabelArgs, [f"--config={tmp_path / 'run.yaml'}"])


def test_several_names_may_be_a_yaml_list_as_well(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("adapted: [outputs/one, outputs/two]\nlabels: [40, 250]\nanalysis: [tsne]\n")
    read = parse_args(AnalysisArgs, [f"--config={tmp_path / 'run.yaml'}"]).task
    assert (read.adapted, read.labels, read.analysis) == ("outputs/one,outputs/two", "40,250", "tsne")
