"""The public functions on real models: what they return, and where they keep it."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from finished_models import FILES, NAMES
from PIL import Image

from tpssl_hf.commands.embed import embed
from tpssl_hf.commands.predict import predict
from tpssl_hf.tasks.predict.read import ImageReader


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_without_output_dir_each_model_has_a_folder_of_its_own(
    classifier: Path, segmenter: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = predict(SimpleNamespace(model_path=classifier), photos, device="cpu")
    assert len(labels) == len(FILES) and set(labels["label"]) <= set(NAMES)
    masks = predict(segmenter, photos, device="cpu")
    assert masks.column_names[:4] == ["row", "file", "mask", "confidence"]
    for row in masks:
        with Image.open(row["mask"]) as mask, Image.open(photos / row["file"]) as image:
            assert mask.size == image.size
    folders = sorted(path.name.rpartition("-")[0] for path in Path("outputs/predictions").iterdir())
    assert folders == sorted(f"{path.parent.name}-photos" for path in (classifier, segmenter))
    monkeypatch.setattr(ImageReader, "read", lambda *_, **__: pytest.fail("computed again"))
    assert predict(str(classifier), photos, device="cpu", batch_size=3).to_list() == labels.to_list()


def test_features_are_kept_where_they_are_asked_for(backbone: Path, photos: Path, tmp_path: Path) -> None:
    table = embed(str(backbone), str(photos), device="cpu", output_dir=tmp_path / "features")
    assert table.column_names == ["row", "file", "embedding"] and len(table) == len(FILES)
    assert (tmp_path / "features" / "embeddings.parquet").is_file() and not Path("outputs").exists()
    embed(str(backbone), str(photos), device="cpu", limit_images=2)
    assert [path.parent.name for path in Path("outputs").glob("embeddings/*-photos-*/*.parquet")]
