"""Publishing masks as a data set, through the real client, to a Hub on this machine."""

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from huggingface_hub import HfApi
from loopback import LoopbackHub
from PIL import Image

from tpssl_hf.errors import InputError
from tpssl_hf.hub.masks import mask_shards
from tpssl_hf.hub.predictions import publish_predictions
from tpssl_hf.tasks.predict.config import PredictConfig
from tpssl_hf.tasks.predict.run import predict

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def masks(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Masks of six boxes."""
    images = runs["segmenter"].parent / "boxes" / "test" / "images"
    config = PredictConfig(model=str(runs["segmenter"]), dataset=str(images), output_dir=str(tmp_path / "masks"))
    return predict(config, say=str, progress=False).folder


def small_shards(masks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let two masks fill a file."""
    most = max(path.stat().st_size for path in (masks / "masks").iterdir())
    monkeypatch.setattr("tpssl_hf.hub.masks.SHARD", 2 * most)


def test_masks_arrive_in_one_commit_as_images_that_datasets_reads(
    masks: Path, runs: dict[str, Path], hub: LoopbackHub, api: HfApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(masks, monkeypatch)
    before = sorted(masks.rglob("*"))
    publish_predictions(masks, "me/masks", api=api, say=str)
    repository, files = hub.repositories["datasets/me/masks"], hub.head("datasets/me/masks")
    assert repository.messages[1:] == ["Publish predictions of tpssl_hf"] and sorted(masks.rglob("*")) == before
    names = [f"data/predictions-0000{number}-of-00003.parquet" for number in range(3)]
    assert sorted(files) == [".gitattributes", "README.md", "classes.json", *names]
    for name, content in files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.load_dataset(str(tmp_path / "copy"), split="train")
    assert table.column_names == ["row", "file", "mask", "confidence", "class_shares", "width", "height"]
    assert table["file"] == [f"{number}.png" for number in range(6)]
    for row in table:
        own = np.asarray(Image.open(masks / "masks" / row["file"]))
        assert row["mask"].mode == "P" and np.array_equal(np.asarray(row["mask"]), own)
        assert row["class_shares"][1] == pytest.approx((own == 1).mean(), abs=1e-6)
    card = files["README.md"].decode()
    assert "Masks of 6 images of `images`, predicted by the segmenter `segmenter`" in card
    assert "| 0 | ground | `#000000` |" in card and "| 1 | box | `#" in card
    score = json.loads((runs["segmenter"] / "results.json").read_text())["metrics"]
    assert f"On 6 test images its masks had a mean IoU of {100 * score['mean_iou']:.1f} %" in card
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, np.ndarray] = {}
    exec(compile(code.replace("me/masks", str(tmp_path / "copy")), "card", "exec"), found)
    assert found["mask"].shape == (36, 48)


def test_fewer_masks_replace_all_that_were_there(
    masks: Path, hub: LoopbackHub, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_predictions(masks, "me/masks", api=api, say=str)
    assert "data/predictions-00000-of-00001.parquet" in hub.head("datasets/me/masks")
    small_shards(masks, monkeypatch)
    publish_predictions(masks, "me/masks", api=api, say=str)
    assert sum(name.endswith(".parquet") for name in hub.head("datasets/me/masks")) == 3


def test_a_segmenter_without_a_run_has_no_score_and_a_lost_mask_is_named(
    masks: Path, runs: dict[str, Path], hub: LoopbackHub, api: HfApi, tmp_path: Path
) -> None:
    alone = shutil.copytree(runs["segmenter"] / "model", tmp_path / "alone")
    images = runs["segmenter"].parent / "boxes" / "test" / "images"
    said: list[str] = []
    config = PredictConfig(model=str(alone), dataset=str(images), limit_images=2, output_dir=str(tmp_path / "two"))
    folder = predict(config, say=said.append, progress=False).folder
    assert "what mean IoU to expect is not known: no score on test images came with the segmenter" in said
    publish_predictions(folder, "me/two", api=api, say=str)
    card = hub.head("datasets/me/two")["README.md"].decode()
    assert "How good they are is not known" in card
    (masks / "masks" / "3.png").unlink()
    with pytest.raises(InputError, match=r"3.png cannot be read .* so the masks are not published"):
        mask_shards(masks / "predictions.parquet", tmp_path)
