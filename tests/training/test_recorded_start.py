"""What a base of ``timm`` is: what the run recorded, never the architecture's default tag."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm

from tpssl_hf.analysis.common import weights_of
from tpssl_hf.analysis.config import AnalyzeConfig
from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import WeightsSource
from tpssl_hf.models.timm_export import Preprocessing, save_timm_folder
from tpssl_hf.training.recorded_start import recorded_start, same_start
from tpssl_hf.verdicts.config import VerdictConfig
from tpssl_hf.verdicts.weights import find_weights

TIMM = {"kind": "timm", "name": "test_resnet.another_tag", "weights": "1" * 64}


def run_from(folder: Path, init: dict[str, Any] | None, *, in_results: bool = False) -> Path:
    """Write what a run leaves, its start recorded with the weights or in its results alone."""
    model = timm.create_model("test_resnet", num_classes=0)
    facts = {"recipe": "target_pretrain", "seed": 4, "init": init}
    folder.mkdir()
    save_timm_folder(model, folder / "model", preprocessing=Preprocessing(32), provenance={} if in_results else facts)
    if in_results:
        (folder / "results.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize("in_results", [False, True])
@pytest.mark.parametrize("backbone", [None, "test_resnet"])
@pytest.mark.parametrize("place", ["", "model", "model/model.safetensors"])
def test_a_base_of_timm_is_the_tag_that_the_run_began_from(
    in_results: bool, backbone: str | None, place: str, tmp_path: Path
) -> None:
    run = run_from(tmp_path / "run", TIMM, in_results=in_results) / place
    base, adapted = find_weights(VerdictConfig(base="timm", backbone=backbone, adapted=str(run)))
    assert (base.init, base.architecture) == ("timm", "test_resnet.another_tag")
    assert adapted[0].architecture == "test_resnet" and adapted[0].start == {"seed": 4, **TIMM}
    options = AnalyzeConfig(base="timm", backbone=backbone or "resnet18", adapted=str(run))
    if backbone:
        assert weights_of(options)[0].backbone == "test_resnet.another_tag"


@pytest.mark.parametrize(
    ("init", "advice"),
    [
        ({"kind": "random", "name": "test_resnet"}, "say --base random"),
        ({"kind": "hub", "name": "me/mine", "revision": "abc"}, "say --base me/mine@abc"),
        ({"kind": "folder", "name": "one/model"}, "say --base PATH/TO/one/model"),
    ],
)
def test_a_base_of_timm_is_refused_where_the_run_began_elsewhere(
    init: dict[str, Any], advice: str, tmp_path: Path
) -> None:
    run = run_from(tmp_path / "run", init)
    with pytest.raises(InputError, match=advice):
        find_weights(VerdictConfig(base="timm", adapted=str(run)))
    base, _ = find_weights(VerdictConfig(base="test_resnet.r160_in1k", adapted=str(run)))
    assert base.architecture == "test_resnet.r160_in1k"  # to compare with others is allowed, and remarked


def test_weights_that_say_nothing_and_a_tag_that_is_given_stand(tmp_path: Path) -> None:
    run = run_from(tmp_path / "run", None)
    assert recorded_start(str(run)) == {}
    assert find_weights(VerdictConfig(base="timm", adapted=str(run)))[0].architecture == "test_resnet"
    given = VerdictConfig(base="timm", backbone="test_resnet.mine", adapted=str(run_from(tmp_path / "two", TIMM)))
    assert find_weights(given)[0].architecture == "test_resnet.mine"


FOLDER = WeightsSource("folder", "model", weights="1" * 64)


@pytest.mark.parametrize(
    ("start", "base", "same"),
    [
        (TIMM, WeightsSource("timm", "test_resnet.r160_in1k"), False),
        (TIMM, WeightsSource("timm", "test_resnet.another_tag"), True),
        (TIMM, FOLDER, True),
        ({**TIMM, "weights": "2" * 64}, FOLDER, False),
        ({"kind": "folder", "name": "x/model"}, FOLDER, None),
        ({"kind": "file", "name": "x", "sha256": "3"}, WeightsSource("file", "y", sha256="3"), True),
        ({"kind": "random", "name": "a", "seed": 1}, WeightsSource("random", "a"), False),
        ({"kind": "random", "name": "a", "seed": 0}, WeightsSource("random", "a"), True),
        ({"kind": "random", "name": "a"}, WeightsSource("timm", "a.b"), False),
        ({}, FOLDER, None),
    ],
)
def test_starts_are_compared_by_digest_then_by_name(
    start: dict[str, Any], base: WeightsSource, same: bool | None
) -> None:
    assert same_start(start, base, seed=0) is same
