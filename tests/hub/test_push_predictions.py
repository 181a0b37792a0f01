"""Publishing predictions as a data set, through the real client, to a Hub on this machine."""

import io
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import HfApi
from loopback import LoopbackHub

from tpssl_hf.commands import predict as command
from tpssl_hf.errors import InputError
from tpssl_hf.hub.commit import PushError
from tpssl_hf.hub.predictions import publish_predictions
from tpssl_hf.tasks.predict.config import PredictConfig
from tpssl_hf.tasks.predict.run import predict

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture
def labels(runs: dict[str, Path], tmp_path: Path) -> Path:
    """Predictions of 12 digits."""
    config = PredictConfig(
        model=str(runs["classifier"]), dataset="digits", limit_images=12, output_dir=str(tmp_path / "labels")
    )
    return predict(config, say=str, progress=False).folder


def test_the_table_and_its_card_arrive_in_one_commit(labels: Path, hub: LoopbackHub, api: HfApi) -> None:
    address = publish_predictions(labels, "me/labels", api=api, say=str)
    repository, files = hub.repositories["datasets/me/labels"], hub.head("datasets/me/labels")
    assert address.startswith(hub.url) and repository.messages[1:] == ["Publish predictions of tpssl_hf"]
    assert files.keys() == {".gitattributes", "README.md", "predictions.parquet"}
    assert pq.read_table(io.BytesIO(files["predictions.parquet"])).num_rows == 12
    card = files["README.md"].decode()
    facts = yaml.safe_load(card.split("---")[1])
    assert facts["configs"] == [{"config_name": "default", "data_files": "predictions.parquet"}]
    assert "Labels of 12 images of `digits`, predicted by the classifier `classifier`" in card
    assert "is not known: no labels were held out" in card and str(labels.parent) not in card


def test_private_ones_stay_private_and_a_failure_says_how_to_push_again(
    labels: Path, runs: dict[str, Path], hub: LoopbackHub, api: HfApi, waits: list[float]
) -> None:
    publish_predictions(labels, "me/secret", private=True, api=api, say=str)
    assert hub.repositories["datasets/me/secret"].private
    hub.fail("POST /api/datasets/me/secret/commit", "403")
    (labels / "predictions.parquet").write_bytes(b"changed")
    with pytest.raises(PushError) as caught:
        publish_predictions(labels, "me/secret", private=True, api=api, say=str)
    again = f"--model {runs['classifier']} --dataset digits --limit_images 12 --output_dir {labels} --push_to_hub "
    assert again + "me/secret --hub_private_repo true" in str(caught.value)


def test_a_finished_folder_is_pushed_by_the_command_without_predicting_again(
    labels: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = []
    monkeypatch.setattr(command, "publish_predictions", lambda *given, **keys: pushed.append((given, keys)))
    line = [str(runs["classifier"]), "digits", "--limit_images", "12", "--output_dir", str(labels)]
    before = (labels / "predictions.parquet").stat().st_mtime_ns
    assert command.main([*line, "--push_to_hub", "me/labels", "--hub_private_repo", "true"]) == 0
    assert pushed == [((labels, "me/labels"), {"private": True})]
    assert (labels / "predictions.parquet").stat().st_mtime_ns == before


def test_what_cannot_be_published_is_refused_before_the_first_image(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="push_to_hub 'labels' names no owner"):
        command.predict(runs["classifier"], "digits", output_dir=out, push_to_hub="labels")
    assert not out.exists()
