import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = Path(__file__).parents[3] / "recipes" / "predict.py"


@pytest.fixture(scope="module")
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("predict_recipe", RECIPE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("words", "file"), [((), "predictions.csv"), (("embed",), "embeddings.parquet")])
def test_the_recipe_says_where_the_answers_are(
    recipe: Any,
    classifier: Path,
    photos: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = {"model": classifier, "dataset": photos, "output_dir": tmp_path / "answers", "device": "cpu"}
    monkeypatch.setattr(sys, "argv", ["predict.py", *words, *(f"--{name}={value}" for name, value in keys.items())])
    assert recipe.main() == 0
    assert "7 images, 0 that could not be read" in capsys.readouterr().out
    assert (tmp_path / "answers" / file).is_file()
