import json
from pathlib import Path

import pytest

from tpssl_hf.config.own_backbone import with_own_backbone
from tpssl_hf.tasks.classify.config import parse_classify


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit"}))
    return tmp_path


def test_weights_that_say_what_they_are_need_no_backbone(weights: Path) -> None:
    assert parse_classify(["--dataset", "x", "--image_size", "32", f"--init={weights}"]).model.backbone == "test_vit"
    assert with_own_backbone(["--init", str(weights)]) == ["--init", str(weights), "--backbone", "test_vit"]


def test_what_is_named_stays(weights: Path, tmp_path: Path) -> None:
    for line in (["--init", str(weights), "--backbone=resnet18"], ["--init", "timm"], [], ["--init", "nowhere"]):
        assert with_own_backbone(line) == line
    line = ["--config", "some.yaml", "--init", str(weights)]
    assert with_own_backbone(line) == line
