"""The recipe that converts weights from elsewhere: the file may come first, and the folder is an --init."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from tpssl_hf.errors import InputError
from tpssl_hf.models.backbone import load_backbone

# timm 1.0 opens config.json of a local-dir without closing it
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <_io.FileIO:pytest.PytestUnraisableExceptionWarning"
)


def test_one_command_makes_an_init(
    load_recipe: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load_recipe("convert")
    state = timm.create_model("test_resnet", num_classes=0).state_dict()
    torch.save({"model": {f"module.encoder.{key}": value for key, value in state.items()}}, tmp_path / "pixpro.pth")
    arguments = [
        "--backbone=test_resnet",
        f"--output_dir={tmp_path / 'made'}",
        "--image_size=32",
        "--mean=0.5,0.4,0.3",
    ]
    monkeypatch.setattr(sys, "argv", ["convert.py", str(tmp_path / "pixpro.pth"), *arguments, "--license=mit"])
    assert recipe.main() == 0
    said = capsys.readouterr().out
    assert "below 'model.module.encoder.'" in said and "mean (0.5, 0.4, 0.3)" in said
    backbone, origin = load_backbone("test_resnet", init=str(tmp_path / "made"))
    assert origin.license == "mit"
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    monkeypatch.setattr(sys, "argv", ["convert.py", *arguments])
    with pytest.raises(InputError, match="no weights are given"):
        recipe.main()
