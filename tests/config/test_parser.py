from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from tpssl_hf.analysis.config import AnalyzeConfig
from tpssl_hf.config.parser import key, parse_config, parse_with_method, take
from tpssl_hf.config.shared import (
    CARRY_OUT_KEYS,
    HUB_KEYS,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PushConfig,
    RunConfig,
)
from tpssl_hf.errors import InputError
from tpssl_hf.methods.pretrain import PRETRAIN
from tpssl_hf.tasks.classify.config import ClassifyConfig
from tpssl_hf.tasks.pretrain.config import HealthConfig, PretrainConfig

SHARED = [PretrainConfig, HealthConfig, DataConfig, ModelConfig, OptimConfig, RunConfig, PushConfig]


def parse(*arguments: str) -> dict:
    return parse_config(SHARED, list(arguments), description="test")


def test_defaults_are_those_of_the_dataclasses() -> None:
    assert take(OptimConfig, parse()) == OptimConfig()


def test_file_beats_default_and_command_line_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("image_size: 64\nlearning_rate: 1e-3\n")
    values = parse("--config", str(file), "--image_size", "96")
    assert values["image_size"] == 96
    assert values["learning_rate"] == 1e-3


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
    file.write_text("learning_rte: 0.1\n")
    with pytest.raises(InputError, match="'learning_rte'.*'learning_rate'"):
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


def test_two_groups_with_one_key_are_a_bug() -> None:
    @dataclass
    class Twin:
        """Twin."""

        image_size: int = key(1, "again")

    with pytest.raises(ValueError, match="image_size"):
        parse_config([DataConfig, Twin], [], description="test")


def test_every_key_has_a_help_sentence() -> None:
    for group in [*SHARED, *(spec.config for spec in PRETRAIN.values())]:
        for item in fields(group):
            assert item.metadata["help"].endswith("."), item.name


def test_keys_that_may_change_on_resume_exist() -> None:
    assert {item.name for group in SHARED for item in fields(group)} >= CARRY_OUT_KEYS
    assert {item.name for item in fields(PushConfig)} == HUB_KEYS


def test_the_method_brings_its_own_keys_and_defaults(tmp_path: Path) -> None:
    @dataclass
    class Other:
        """Other."""

        temperature: float = key(0.2, "Temperature.")

    methods = {"byol": (PRETRAIN["byol"].config, {}), "other": (Other, {"learning_rate": 0.03})}
    values, config = parse_with_method(["--method", "other"], SHARED, methods, description="test")
    assert config == Other() and values["learning_rate"] == 0.03
    file = tmp_path / "a.yaml"
    file.write_text("method: other\nlearning_rate: 0.5\n")
    values, _ = parse_with_method(["--config", str(file)], SHARED, methods, description="test")
    assert values["method"] == "other" and values["learning_rate"] == 0.5
    values, _ = parse_with_method(["--config", str(file), "--method=byol"], SHARED, methods, description="test")
    assert values["method"] == "byol"
    with pytest.raises(InputError, match="'nope'.*byol, other"):
        parse_with_method(["--method", "nope"], SHARED, methods, description="test")


@pytest.mark.parametrize("written", ["1,2,3", "[1,2,3]", "[1, 2, 3]", " 1, 2 ,3"])
def test_several_numbers_are_written_with_commas_or_as_a_list(written: str, tmp_path: Path) -> None:
    def seeds(*arguments: str) -> Any:
        return parse_config([ClassifyConfig], list(arguments), description="test")["label_seeds"]

    (tmp_path / "run.yaml").write_text(f"label_seeds: {written}\n")
    assert seeds(f"--label_seeds={written}") == seeds(f"--config={tmp_path / 'run.yaml'}") == [1, 2, 3]
    (tmp_path / "run.yaml").write_text("label_seeds: 7\n")
    assert seeds(f"--config={tmp_path / 'run.yaml'}") == seeds("--label_seeds", "7") == [7] and seeds() is None


@pytest.mark.parametrize("written", ["1,1", "[1, a]", "[1, -2]", "1.5", "[[1], 2]"])
def test_what_is_no_list_of_numbers_is_one_sentence(written: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"label_seeds: {written}\n")
    with pytest.raises(InputError, match="label_seeds"):
        parse_config([ClassifyConfig], [f"--config={tmp_path / 'run.yaml'}"], description="test")


def test_several_names_may_be_a_yaml_list_as_well(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("adapted: [outputs/one, outputs/two]\nlabels: [40, 250]\nanalysis: [tsne]\n")
    read = parse_config([AnalyzeConfig], [f"--config={tmp_path / 'run.yaml'}"], description="test")
    assert (read["adapted"], read["labels"], read["analysis"]) == ("outputs/one,outputs/two", "40,250", "tsne")
